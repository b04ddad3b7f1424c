"""The losses: cross-entropy, its multi-label form, and those on maps.

Each returns one value an example (or pair); the caller takes the masked mean,
so that padding and masked pairs never count. `FIELDS` are the settings of those
that guide explanations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from gc_jax.method.cam import EPSILON

REDUCTIONS = ("mean", "sum")


class Field(NamedTuple):
  """A field of `config.loss`.

  Attributes:
    name: below `config.loss`.
    default: its value where a recipe does not say.
    choices: its legal words; empty: it is True or False, or a finite number
      from 0 on.
  """

  name: str
  default: bool | float | str
  choices: Sequence[str] = ()


class Fields(NamedTuple):
  """What a guidance loss is called, and what a recipe sets of it.

  Attributes:
    title: as people write it, after "a loss on the".
    weight: the factor of the mean loss; 0 = off.
    ramp: the epochs over which the weight rises from 0; 0 = at once.
    others: whatever else it has.
    section: a section of the config that only this loss reads, "compose".
  """

  title: str
  weight: Field
  ramp: Field
  others: tuple[Field, ...] = ()
  section: str = ""

  def every(self) -> tuple[Field, ...]:
    """Returns the fields of `config.loss`."""
    return (self.weight, self.ramp, *self.others)


# By the name of the guidance term, see training.guidance.TERMS.
FIELDS = {
  "consistency": Fields(
    title="Grad-CAM consistency",
    # With reduction "mean" on 14x14 cells, 25 (the release on ImageNet) equals
    # 25 / 196 = 0.1276 with "sum".
    weight=Field("consistency_weight", 25.0),
    ramp=Field("ramp_epochs", 0.0),  # 0 = off (release)
    others=(
      # Over map cells: mean (release) | sum (eq. 5).
      Field("reduction", "mean", REDUCTIONS),
      Field("stop_gradient", False),  # True: composites chase a fixed target
    ),
    section="compose",
  ),
  "energy": Fields(
    title="energy in the object",
    weight=Field("energy_weight", 0.0),
    ramp=Field("energy_ramp_epochs", 0.0),
  ),
}


def cross_entropy(
  logits: Float[Array, "B K"], label: Int[Array, "B"]
) -> Float[Array, "B"]:
  """Returns the negative log-likelihood of the label, in nats."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def binary_cross_entropy(
  logits: Float[Array, "B K"], labels: Int[Array, "B K"]
) -> Float[Array, "B"]:
  """Returns the mean over classes of the sigmoid cross-entropy, in nats.

  Args:
    logits: one a class.
    labels: objects of each class in the image; a count above 0 is present.
  """
  present = (labels > 0).astype(logits.dtype)
  return optax.sigmoid_binary_cross_entropy(logits, present).mean(-1)


def consistency_loss(
  expected: Float[Array, "*P h w"],
  cam: Float[Array, "*P h w"],
  reduction: str = "mean",
) -> Float[Array, "*P"]:
  """Returns the L1 distance between two maps.

  Args:
    expected: the original's normalised map in its cell of the composite, zero
      elsewhere.
    cam: the composite's own normalised map, for the same class.
    reduction: "sum" over cells, or "mean" over them. Both maps sum to about 1,
      so the sum is at most 2 and the mean at most 2 / (h w): a weight of 25
      with "mean" on 14x14 cells equals 0.1276 with "sum".

  Source: Pillai & Pirsiavash 2021, eq. 5 ("sum"); the release ("mean").
  Differs: none.
  """
  distance = jnp.abs(expected - cam)
  if reduction == "mean":
    return distance.mean((-2, -1))
  return distance.sum((-2, -1))


def energy_loss(
  cam: Float[Array, "*B h w"], coverage: Float[Array, "*B h w"]
) -> Float[Array, "*B"]:
  """Returns the share of a map's mass that lies outside the object.

  1 - sum(coverage * cam) / sum(cam)

  Args:
    cam: maps >= 0, of any scale. An empty one has a loss of 1, no gradient.
    coverage: share of each cell that the object covers, in [0, 1].

  Source: Rao et al. 2023, "Studying How to Efficiently and Effectively Guide
    Models with Explanations", the energy loss.
  Differs: their objects are boxes of whole cells; here a cell may be covered
    in part.
  """
  inside = (coverage * cam).sum((-2, -1))
  return 1 - inside / (cam.sum((-2, -1)) + EPSILON)


def masked_mean(
  values: Float[Array, "*B"], mask: Float[Array, "*B"]
) -> Float[Array, ""]:
  """Returns the mean of the values whose mask is 1; 0 if there are none."""
  return (values * mask).sum() / jnp.maximum(mask.sum(), 1.0)
