"""NQH of a split: by hand, masked, padded and of control maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gc_jax.evaluators import negative_quadrants
from tests.evaluators import batches

sums = jax.jit(negative_quadrants.sums)


def rows():
  rng = np.random.default_rng(0)
  return {
    "cam": rng.random((6, 4, 4)).astype(np.float32),
    "cell": rng.integers(0, 4, 6),
    "mask": np.array([1, 1, 0, 1, 1, 1], np.float32),
  }


def evaluated(batch):
  return sums(
    {"a": batch["cam"], "uniform": jnp.ones_like(batch["cam"])},
    batch["cell"],
    batch["mask"],
  )


def test_the_mean_is_over_unmasked_composites():
  """2 of 5 units of mass outside cell 1, then all of them: 70 in the mean."""
  cam = np.zeros((3, 2, 2), np.float32)
  cam[0] = [[2, 3], [0, 0]]
  cam[1] = [[0, 0], [7, 0]]
  batch = {"cam": cam, "cell": [1, 1, 1], "mask": np.array([1, 1, 0], "f")}
  totals = evaluated({k: jnp.asarray(v) for k, v in batch.items()})
  results = negative_quadrants.summarize(totals)
  assert results["a/negative_quadrants_heatmap"] == pytest.approx(70)


def test_the_uniform_map_scores_75():
  (batch,) = batches.cut(rows(), (6,), 6)
  results = negative_quadrants.summarize(evaluated(batch))
  assert results["uniform/negative_quadrants_heatmap"] == 75


@pytest.mark.parametrize("sizes", [(3, 3), (1, 5), (4, 2)])
def test_batches_and_padding_change_nothing(sizes):
  (batch,) = batches.cut(rows(), (6,), 6)
  parts = [evaluated(part) for part in batches.cut(rows(), sizes, 6)]
  batches.assert_totals_close(batches.added(parts), evaluated(batch))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_empty_map_scores_75(value):
  """It says nothing, and must not be better than that."""
  empty = rows() | {"cam": np.full((6, 4, 4), value, np.float32)}
  (batch,) = batches.cut(empty, (6,), 6)
  results = negative_quadrants.summarize(evaluated(batch))
  assert results["a/negative_quadrants_heatmap"] == 75


def test_where_nothing_counts_nothing_is_said():
  (batch,) = batches.cut(rows() | {"mask": np.zeros(6, "f")}, (6,), 6)
  assert negative_quadrants.summarize(evaluated(batch)) == {}
