"""Evaluation data: small splits, cut into padded batches or whole."""

import jax
import jax.numpy as jnp
import numpy as np


def added(totals):
  """What the caller does with the sums of several batches."""
  return jax.tree.map(
    lambda *values: sum(np.asarray(v) for v in values), *totals
  )


def cut(example_arrays, sizes, padded_to):
  """The split in batches of these sizes, each padded with garbage.

  Args:
    example_arrays: name -> one row an example; `mask` names say what counts.
    sizes: examples of each batch.
    padded_to: rows of each batch.
  """
  start = 0
  for size in sizes:
    batch = {}
    for name, rows in example_arrays.items():
      rows = np.asarray(rows[start : start + size])
      # The first example again, so that it would count if it counted.
      filler = np.repeat(rows[:1], padded_to - size, axis=0)
      if name.endswith("mask") and name != "object_mask":
        filler = np.zeros_like(filler)
      batch[name] = jnp.asarray(np.concatenate([rows, filler]))
    yield batch
    start += size


def assert_totals_close(ours, theirs):
  assert ours.keys() == theirs.keys()
  for name in ours:
    for value, other in zip(ours[name], theirs[name], strict=True):
      # Float32 sums in another order.
      np.testing.assert_allclose(
        value, other, rtol=1e-5, atol=1e-5, err_msg=name
      )
