"""Guidance terms by name: what each is, and the draws of all of them.

To add one: its fields in `method.fields`, its function and an entry here, a
recipe that gives it weight. Everything else reads the entry. Maths that others
may want, as losses of arrays, are in `method.losses`.
"""

import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from gc_jax.method import losses
from gc_jax.method.fields import FIELDS
from gc_jax.method.types import Batch
from gc_jax.models.network import average_to_grid
from gc_jax.training import composites
from gc_jax.training.term import Draw, Explained, Seen, Term


def _located(
  settings: Any, batch: Batch, explained: Explained, key: PRNGKeyArray
) -> Draw:
  """Draws nothing: images count in which the explained class is located."""
  del settings, key
  return Draw(explained.mask * batch["object_mask"].any((1, 2)))


def on_cells(seen: Seen) -> Float[Array, "B h w"]:
  """Returns the share of each cell of the features that the object covers."""
  mask = seen.batch["object_mask"].astype(jnp.float32)
  return average_to_grid(mask[..., None], seen.features.shape[1:3])[..., 0]


# name -> all that is known of it. Add at the end: the random numbers of a term
# follow from its place.
TERMS = {
  "consistency": Term(
    fields=FIELDS["consistency"],
    settings=composites.settings,
    needs=composites.needs,
    draw=composites.draw,
    losses=composites.consistency,
    masked="masked_pairs_frac",
    check=composites.check,
    images_unit=composites.images_unit,
    images_in_one=composites.images_in_one,
  ),
  "energy": Term(
    fields=FIELDS["energy"],
    needs=lambda config: ("object_mask",),
    draw=_located,
    losses=lambda how, seen, drawn, key: losses.energy_loss(
      seen.cam(), on_cells(seen)
    ),
    masked="energy_masked_frac",
  ),
}


def chosen(config: ConfigDict) -> dict[str, Term]:
  """Returns the terms to which a recipe gives weight."""
  return {
    name: term
    for name, term in TERMS.items()
    if config.loss[term.fields.weight.name] > 0
  }


def settings(config: ConfigDict, num_devices: int) -> dict[str, Any]:
  """Returns each chosen term's settings, by its name."""
  terms = chosen(config).items()
  return {name: term.settings(config, num_devices) for name, term in terms}


def weights(
  config: ConfigDict, steps_per_epoch: int
) -> dict[str, optax.Schedule]:
  """Returns each chosen term's weight after a number of completed updates.

  It rises linearly from 0 over the ramp. Early maps, under global max pooling
  above all, are nearly empty: dividing them by their sum makes the gradient
  explode.
  """

  def schedule(weight: float, ramp_epochs: float) -> optax.Schedule:
    ramp_steps = round(ramp_epochs * steps_per_epoch)
    if not ramp_steps:
      return lambda step: jnp.asarray(weight, jnp.float32)
    return optax.linear_schedule(0.0, weight, ramp_steps)

  return {
    name: schedule(
      config.loss[term.fields.weight.name], config.loss[term.fields.ramp.name]
    )
    for name, term in chosen(config).items()
  }


def needs(config: ConfigDict) -> tuple[str, ...]:
  """Returns the entries of a `Batch` that a recipe's terms need."""
  terms = chosen(config).values()
  return tuple(sorted({each for term in terms for each in term.needs(config)}))


class Drawn(NamedTuple):
  """All random draws for a part of a batch, made before the model is asked."""

  dropout: PRNGKeyArray  # of the originals
  explained: Explained
  terms: dict[str, Draw]
  keys: dict[str, PRNGKeyArray]  # of what is random in the terms' losses


def draw(
  settings: Mapping[str, Any],
  num_classes: int,
  target_draw: str,
  batch: Batch,
  key: PRNGKeyArray,
  given: Mapping[str, Draw] = types.MappingProxyType({}),
) -> Drawn:
  """Draws all that a part of a batch needs: every key is made here.

  Terms whose draw is `given` draw nothing.
  """
  key_dropout, key_guidance = jax.random.split(key)
  # One for the targets, then two for each term: its draw and its losses. The
  # first keys of a split do not depend on how many follow.
  of_target, *keys = jax.random.split(key_guidance, 1 + 2 * len(TERMS))
  of_draw = dict(zip(TERMS, keys[::2], strict=True))
  of_losses = dict(zip(TERMS, keys[1::2], strict=True))
  if "labels" in batch:
    contains = batch["labels"] > 0
  else:
    contains = jax.nn.one_hot(batch["label"], num_classes, dtype=bool)
  explained = Explained(
    # The pipeline drew it already if it decoded something for it.
    target=batch["target"]
    if "target" in batch
    else draw_target(of_target, batch, target_draw),
    mask=batch["mask"] * contains.any(-1),
    contains=contains,
  )
  return Drawn(
    key_dropout,
    explained,
    {
      name: given[name]
      if name in given
      else TERMS[name].draw(how, batch, explained, of_draw[name])
      for name, how in settings.items()
    },
    {name: of_losses[name] for name in settings},
  )


def draw_target(
  key: PRNGKeyArray, batch: Batch, target_draw: str
) -> Int[Array, "B"]:
  """Returns the class to explain in each image, one that is present.

  If there are several, "category" draws uniformly over the present classes
  (paper), "instance" in proportion to their objects (release).
  """
  if "labels" not in batch:
    return batch["label"]
  counts = batch["labels"]
  if target_draw == "category":
    counts = counts > 0
  return jax.random.categorical(key, jnp.log(counts.astype(jnp.float32)))
