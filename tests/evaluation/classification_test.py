"""Top-k and F1, by hand; every example counts exactly once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gc_jax.evaluation import classification

sums = jax.jit(classification.sums)


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


def single(logits, label, mask=None):
  logits = jnp.asarray(logits, jnp.float32)
  mask = np.ones(len(logits)) if mask is None else mask
  return sums(
    logits,
    {"label": jnp.asarray(label), "mask": jnp.asarray(mask, jnp.float32)},
  )


def multi(logits, labels, mask=None):
  logits = jnp.asarray(logits, jnp.float32)
  mask = np.ones(len(logits)) if mask is None else mask
  return sums(
    logits,
    {"labels": jnp.asarray(labels), "mask": jnp.asarray(mask, jnp.float32)},
  )


def test_top_1_and_top_5_by_hand():
  """Rows in which the label ranks first, second, fifth and sixth."""
  row = np.array([6.0, 5, 4, 3, 2, 1])
  results = classification.summarize(single([row] * 4, [0, 1, 4, 5]))
  assert results["top1"] == 25 and results["top5"] == 75
  chance = np.exp(row) / np.exp(row).sum()
  expected = -np.log(chance[[0, 1, 4, 5]]).mean()
  assert results["loss"] == pytest.approx(expected, rel=1e-6)


def test_of_equal_logits_the_first_class_is_predicted():
  """As argmax does: constant logits are right for one class, not for all."""
  totals = single(np.zeros((7, 7)), range(7))
  assert totals["top1"] == (1, 7) and totals["top5"] == (5, 7)
  logits = np.random.default_rng(0).integers(0, 3, (200, 7))
  label = np.random.default_rng(1).integers(0, 7, 200)
  order = np.argsort(-logits, axis=1, kind="stable")
  totals = single(logits, label)
  assert totals["top1"][0] == (order[:, 0] == label).sum()
  assert totals["top5"][0] == (order[:, :5] == label[:, None]).sum()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_never_right(value):
  everywhere = single(np.full((6, 6), value), range(6))
  assert everywhere["top1"][0] == 0 and everywhere["top5"][0] == 0


def test_a_nan_beside_the_label_is_no_lower_logit():
  totals = single([[0, np.nan, -1]] * 3, range(3))
  assert totals["top1"][0] == 0 and totals["top5"][0] == 0


def test_f1_by_hand():
  """Class 0: 2 hits, 1 false alarm. Class 1: 1 hit, 1 miss. Class 2: none."""
  logits = np.array([[1, -1, -1], [1, 1, -1], [1, -1, 1]]) / 10
  labels = [[1, 0, 0], [2, 1, 0], [0, 3, 0]]
  totals = multi(logits, labels)
  np.testing.assert_array_equal(totals["true_positives"][0], [2, 1, 0])
  np.testing.assert_array_equal(totals["false_positives"][0], [1, 0, 1])
  np.testing.assert_array_equal(totals["false_negatives"][0], [0, 1, 0])
  results = classification.summarize(totals)
  assert results["f1_per_class"] == pytest.approx(100 * (4 / 5 + 2 / 3) / 3)
  assert results["f1_overall"] == pytest.approx(100 * 6 / 9)
  assert results.keys() == {"loss", "f1_per_class", "f1_overall"}


def test_a_class_never_seen_nor_predicted_scores_zero():
  """As in the release."""
  totals = multi([[1, -1]], [[1, 0]])
  results = classification.summarize(totals)
  assert results["f1_per_class"] == 50 and results["f1_overall"] == 100


SIZES = [(10,), (5, 5), (1, 4, 5), (5, 3, 2)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["label", "labels"])
def test_batches_and_padding_change_nothing(kind, sizes):
  rng = np.random.default_rng(0)
  rows = {
    "logits": rng.normal(size=(10, 6)).astype(np.float32),
    "mask": np.ones(10, np.float32),
    "label": rng.integers(0, 6, 10),
    "labels": rng.integers(0, 3, (10, 6)),
  }
  del rows[{"label": "labels", "labels": "label"}[kind]]
  (whole,) = cut(rows, (10,), 10)
  expected = sums(whole.pop("logits"), whole)
  parts = [
    sums(batch.pop("logits"), batch)
    for batch in cut(rows, sizes, max(sizes) + 2)
  ]
  totals = added(parts)
  assert totals["loss"][1] == 10
  assert_totals_close(totals, expected)
