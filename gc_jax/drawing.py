"""Which composites a batch has: drawn before the model is asked."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from gc_jax import compose
from gc_jax.objective import Objective
from gc_jax.types import Batch


class Drawn(NamedTuple):
  """What chance decides about composites before the model is asked.

  Attributes:
    target: `[B]`, the class to explain in each image.
    layout: of the composites, with a leading axis of `compose_groups`.
  """

  target: Array
  layout: compose.Layout


def draw(objective: Objective, batch: Batch, key: PRNGKeyArray) -> Drawn | None:
  """Returns the composites of a part of a batch; None without the loss.

  Args:
    objective: what is minimised.
    batch: labels and mask of the part.
    key: of the part.
  """
  if not objective.consistency:
    return None
  _, key_composites = jax.random.split(key)
  key_target, key_layout, _ = composite_keys(key_composites)
  contains = classes_present(batch, objective.num_classes)
  by_group = functools.partial(grouped, objective)
  keys = jax.random.split(key_layout, objective.compose_groups)
  mask = batch["mask"] * contains.any(-1)
  if "distractors" in batch:
    target = batch["target"]  # what they were drawn against
    layout = jax.vmap(compose.supplied)(
      keys, by_group(mask * batch["distractor_mask"])
    )
  else:
    target = draw_target(key_target, batch, objective.target_draw)
    layout = jax.vmap(compose.MODES[objective.compose_mode])(
      keys, by_group(contains), by_group(target), by_group(mask)
    )
  return Drawn(target, layout)


def composite_keys(key: PRNGKeyArray) -> Array:
  """Returns keys of the targets, the layouts and the composites' dropout."""
  return jax.random.split(key, 3)


def grouped(objective: Objective, x: Array) -> Array:
  """Returns a part with a leading axis of the groups that do not mix."""
  return x.reshape(objective.compose_groups, -1, *x.shape[1:])


def classes_present(batch: Batch, num_classes: int) -> Array:
  """Returns `[B K]`, True where the image holds an object of the class."""
  if "labels" in batch:
    return batch["labels"] > 0
  return jax.nn.one_hot(batch["label"], num_classes, dtype=bool)


def draw_target(
  key: PRNGKeyArray, batch: Batch, target_draw: str
) -> Int[Array, "B"]:
  """Returns the class to explain in each image, one that is present.

  Args:
    key: the draw is a function of it.
    batch: single-label (the label itself) or multi-label.
    target_draw: "category" draws uniformly over the present classes (paper),
      "instance" in proportion to their objects (release).
  """
  if "labels" not in batch:
    return batch["label"]
  counts = batch["labels"]
  if target_draw == "category":
    counts = counts > 0
  return jax.random.categorical(key, jnp.log(counts.astype(jnp.float32)))
