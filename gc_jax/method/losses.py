"""The losses: cross-entropy, its multi-label form, and those on maps.

Each returns one value an example (or pair); the caller takes the masked mean,
so that padding and masked pairs never count. What a recipe sets of those that
guide explanations: `method.fields`.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from gc_jax.method.cam import EPSILON
from gc_jax.method.fields import REDUCTIONS
from gc_jax.method.types import check_alike


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

  Raises:
    ValueError: they are not of one shape.
  """
  check_alike(logits=logits, labels=labels)
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

  Raises:
    ValueError: `reduction` is neither, or the maps are not of one shape.

  Source: Pillai & Pirsiavash 2021, eq. 5 ("sum"); the release ("mean").
  Differs: none.
  """
  if reduction not in REDUCTIONS:
    raise ValueError(
      f"reduction must be one of {', '.join(REDUCTIONS)}; it is {reduction!r}."
    )
  check_alike(expected=expected, cam=cam)
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

  Raises:
    ValueError: they are not of one shape.

  Source: Rao et al. 2023, "Studying How to Efficiently and Effectively Guide
    Models with Explanations", the energy loss.
  Differs: their objects are boxes of whole cells; here a cell may be covered
    in part.
  """
  check_alike(cam=cam, coverage=coverage)
  inside = (coverage * cam).sum((-2, -1))
  return 1 - inside / (cam.sum((-2, -1)) + EPSILON)


def masked_mean(
  values: Float[Array, "*B"], mask: Float[Array, "*B"]
) -> Float[Array, ""]:
  """Returns the mean of the values whose mask is 1; 0 if there are none.

  A value that is masked may be anything, NaN too.

  Raises:
    ValueError: they are not of one shape.
  """
  check_alike(values=values, mask=mask)
  values = jnp.where(mask != 0, values, 0)
  return (values * mask).sum() / jnp.maximum(mask.sum(), 1.0)
