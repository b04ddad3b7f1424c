"""Top-k and F1, by hand; every example counts exactly once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gc_jax.evaluation import classification

compiled = jax.jit(classification.sums)


def sums(logits, labels):
  """Sums of a batch with one label each, or with counts of several."""
  labels = jnp.asarray(labels)
  kind = "label" if labels.ndim == 1 else "labels"
  batch = {kind: labels, "mask": jnp.ones(len(labels))}
  return compiled(jnp.asarray(logits, jnp.float32), batch)


def test_top_1_and_top_5_by_hand():
  """Rows in which the label ranks first, second, fifth and sixth."""
  row = np.array([6.0, 5, 4, 3, 2, 1])
  results = classification.summarize(sums([row] * 4, [0, 1, 4, 5]))
  assert results["top1"] == 25 and results["top5"] == 75
  chance = np.exp(row) / np.exp(row).sum()
  expected = -np.log(chance[[0, 1, 4, 5]]).mean()
  assert results["loss"] == pytest.approx(expected, rel=1e-6)


def test_among_equal_logits_the_first_class_is_predicted():
  """As argmax does: constant logits are right for one class, not for all."""
  totals = sums(np.zeros((7, 7)), np.arange(7))
  assert totals["top1"] == (1, 7) and totals["top5"] == (5, 7)
  logits = np.random.default_rng(0).integers(0, 3, (200, 7))
  label = np.random.default_rng(1).integers(0, 7, 200)
  order = np.argsort(-logits, axis=1, kind="stable")
  totals = sums(logits, label)
  assert totals["top1"][0] == (order[:, 0] == label).sum()
  assert totals["top5"][0] == (order[:, :5] == label[:, None]).sum()


@pytest.mark.parametrize(
  "row", [[np.nan] * 6, [np.inf] * 6, [-np.inf] * 6, [0, np.nan, -1]]
)
def test_logits_that_are_not_finite_are_never_right(row):
  totals = sums([row] * len(row), np.arange(len(row)))
  assert totals["top1"][0] == 0 and totals["top5"][0] == 0


def test_f1_by_hand():
  """Class 0: 2 hits, 1 false alarm. Class 1: 1 hit, 1 miss. Class 2: none."""
  logits = np.array([[1, -1, -1], [1, 1, -1], [1, -1, 1]]) / 10
  labels = np.array([[1, 0, 0], [2, 1, 0], [0, 3, 0]])
  totals = sums(logits, labels)
  np.testing.assert_array_equal(totals["true_positives"][0], [2, 1, 0])
  np.testing.assert_array_equal(totals["false_positives"][0], [1, 0, 1])
  np.testing.assert_array_equal(totals["false_negatives"][0], [0, 1, 0])
  results = classification.summarize(totals)
  assert results["f1_per_class"] == pytest.approx(100 * (4 / 5 + 2 / 3) / 3)
  assert results["f1_overall"] == pytest.approx(100 * 6 / 9)
  assert results.keys() == {"loss", "f1_per_class", "f1_overall"}


def test_a_class_never_seen_nor_predicted_scores_zero():
  """As in the release."""
  results = classification.summarize(sums([[1, -1]], [[1, 0]]))
  assert results["f1_per_class"] == 50 and results["f1_overall"] == 100


@pytest.mark.parametrize("kind", ["label", "labels"])
def test_batches_and_padding_change_nothing(kind):
  """Ten rows at once, against batches whose padding would count if it could."""
  rng = np.random.default_rng(0)
  labels = {"label": (6, 10), "labels": (3, (10, 6))}[kind]
  whole = {
    "logits": rng.normal(size=(10, 6)).astype(np.float32),
    kind: rng.integers(0, *labels),
    "mask": np.ones(10, np.float32),
  }

  def sums_of(batch):
    batch = {name: jnp.asarray(rows) for name, rows in batch.items()}
    return compiled(batch.pop("logits"), batch)

  expected = sums_of(whole)
  for sizes in ((5, 5), (1, 4, 5), (5, 3, 2)):
    parts = []
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
      rows = np.append(np.arange(end - size, end), [0, 0])
      batch = {name: values[rows] for name, values in whole.items()}
      batch["mask"][-2:] = 0
      parts.append(sums_of(batch))
    total = jax.tree.map(lambda *values: sum(map(np.asarray, values)), *parts)
    assert total["loss"][1] == 10
    # Float32 sums in another order.
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
      total,
      expected,
    )


@pytest.mark.parametrize("kind", ["label", "labels"])
def test_pictures_one_by_one_add_up_to_the_sums(kind):
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)
  labels = rng.integers(0, 2, {"label": 9, "labels": (9, 4)}[kind])
  found = classification.by_example(logits, {kind: jnp.asarray(labels)})
  totals = sums(logits, labels)
  for name, values in found.items():
    assert set(values.tolist()) != {0}
    assert values.sum() == totals[name][0].sum()
