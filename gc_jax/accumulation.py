"""A batch in parts, one after the other, and the sums over them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from gc_jax.drawing import Drawn
from gc_jax.types import Batch


class Shares(NamedTuple):
  """How much of a batch a part is, in images and in unmasked pairs."""

  images: Array | float
  pairs: Array | float


def divided(batch: Batch, num_parts: int) -> Batch:
  """Returns the batch with a leading axis of parts.

  Part i has every `num_parts`-th example from the i-th on: a share of each
  device's, so that none moves to another.
  """
  return jax.tree.map(
    lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), batch
  )


def shares_of(batches: Batch, drawn: Drawn | None) -> Shares:
  """Returns the shares of all parts, `[parts]` each.

  A mean over the batch is the sum over parts of share times mean.
  """

  def share(mask):
    counts = mask.reshape(len(mask), -1).sum(1)
    return counts / jnp.maximum(counts.sum(), 1.0)

  images = share(batches["mask"])
  return Shares(images, images if drawn is None else share(drawn.layout.mask))


def sum_over(
  of_part: Callable[..., tuple[nnx.State, Any]],
  batch_stats: nnx.State,
  parts: Any,
) -> tuple[nnx.State, Any]:
  """Returns the running statistics after all parts, and the sums over them.

  Args:
    of_part: makes both of the running statistics before and a part; what it
      sums is a tree of arrays.
    batch_stats: running statistics before the first.
    parts: arrays with a leading axis of parts.
  """
  first = jax.tree.map(lambda x: x[0], parts)
  _, shapes = jax.eval_shape(of_part, batch_stats, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def add(carry, part):
    batch_stats, total = carry
    batch_stats, sums = of_part(batch_stats, part)
    return (batch_stats, jax.tree.map(jnp.add, total, sums)), None

  (batch_stats, sums), _ = jax.lax.scan(add, (batch_stats, zeros), parts)
  return batch_stats, sums
