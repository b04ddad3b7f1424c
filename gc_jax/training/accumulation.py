"""A batch in parts, one after the other, and the sums over them.

A wrapper around the step: nothing that computes a loss knows of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from gc_jax.method.types import Batch
from gc_jax.training.guidance import Drawn

CLASSIFICATION = "classification"


class Part(NamedTuple):
  """A part of a batch, or the whole of it.

  Attributes:
    batch: its images and what comes with them.
    drawn: what chance decided about it.
    shares: loss -> the factor that makes of the part's mean its share of the
      batch's: how much of what counts is in the part.
  """

  batch: Batch
  drawn: Drawn
  shares: dict[str, Array | float]


def in_parts(
  num_parts: int,
  draw: Callable[[Batch, PRNGKeyArray], Drawn],
  part_sums: Callable[[nnx.State, Part], tuple[nnx.State, Any]],
) -> Callable[[nnx.State, Batch, PRNGKeyArray], tuple[nnx.State, Any]]:
  """Returns `part_sums` of a whole batch, computed in equal parts.

  A mean over the batch is the sum over parts of share times mean.

  Args:
    num_parts: how many; of 1, the batch is the part.
    draw: what chance decides about a part, by its images and key.
    part_sums: makes of the running statistics before and a part those after,
      and what is summed up over parts: a tree of arrays.
  """

  def whole(batch_stats, batch, key):
    drawn = draw(batch, key)
    shares = dict.fromkeys(_masks(batch, drawn), 1.0)
    return part_sums(batch_stats, Part(batch, drawn, shares))

  def divided(batch_stats, batch, key):
    batches = divide(batch, num_parts)
    drawn = jax.vmap(draw)(batches, jax.random.split(key, num_parts))
    shares = {k: _share(mask) for k, mask in _masks(batches, drawn).items()}
    return sum_over(part_sums, batch_stats, Part(batches, drawn, shares))

  return whole if num_parts == 1 else divided


def divide(batch: Batch, num_parts: int) -> Batch:
  """Returns the batch with a leading axis of parts.

  Part i has every `num_parts`-th example from the i-th on: a share of each
  device's, so that none moves to another.
  """
  return jax.tree.map(
    lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), batch
  )


def _masks(batch: Batch, drawn: Drawn) -> dict[str, Array]:
  """Returns for each loss what counts in its mean."""
  terms = {name: term.mask for name, term in drawn.terms.items()}
  return {CLASSIFICATION: batch["mask"], **terms}


def _share(mask: Array) -> Array:
  """Returns the share of what counts that is in each part."""
  counts = mask.reshape(len(mask), -1).sum(1)
  return counts / jnp.maximum(counts.sum(), 1.0)


def sum_over(
  part_sums: Callable[..., tuple[nnx.State, Any]],
  batch_stats: nnx.State,
  parts: Any,
) -> tuple[nnx.State, Any]:
  """Returns the running statistics after all parts, and the sums over them.

  Args:
    part_sums: see `in_parts`.
    batch_stats: running statistics before the first.
    parts: arrays with a leading axis of parts.
  """
  first = jax.tree.map(lambda x: x[0], parts)
  _, shapes = jax.eval_shape(part_sums, batch_stats, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def add(carry, part):
    batch_stats, total = carry
    batch_stats, sums = part_sums(batch_stats, part)
    return (batch_stats, jax.tree.map(jnp.add, total, sums)), None

  (batch_stats, sums), _ = jax.lax.scan(add, (batch_stats, zeros), parts)
  return batch_stats, sums
