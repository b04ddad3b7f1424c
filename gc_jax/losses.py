"""The three losses: cross-entropy, its multi-label form, consistency.

Each returns one value an example (or pair); the caller takes the masked mean,
so that padding and masked pairs never count.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

REDUCTIONS = ("mean", "sum")


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
    labels: objects of each class in the image; any positive count is present.
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


def masked_mean(
  values: Float[Array, "*B"], mask: Float[Array, "*B"]
) -> Float[Array, ""]:
  """Returns the mean of the values whose mask is 1; 0 where there are none."""
  return (values * mask).sum() / jnp.maximum(mask.sum(), 1.0)
