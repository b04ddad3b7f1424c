"""What stands out by class: outliers, and no false alarm."""

import numpy as np
import pytest

from gc_jax.method.metrics import Key
from gc_jax.report import classes
from gc_jax.report.rows import Rows
from tests.report import evaluations

METHOD = "gradcam"


def _pairs(target, **columns):
  """Returns rows of pictures with one class each; `map_` is of the method."""
  named = {}
  for name, values in columns.items():
    is_of_maps = name not in ("top1", "predicted")
    named[Key(name, METHOD if is_of_maps else "")] = np.float32(values)
  names = np.array([""] * len(target))
  return Rows(np.arange(len(target)), np.asarray(target), names, named)


def _hits(rng, rates, count):
  """Returns classes and hits of `count` pictures each."""
  target = np.repeat(np.arange(len(rates)), count)
  return target, rng.random(len(target)) < np.asarray(rates)[target]


def _found(pairs):
  num_classes = int(pairs.target.max()) + 1
  return [
    (one.label, one.metric.title, one.is_worse)
    for one in classes.findings(pairs, METHOD, num_classes)
  ]


def test_digit_0_whose_maps_point_beside_it_is_found():
  rates = [0.38, 0.97, 0.84, 0.9, 0.95, 0.79, 0.8, 0.89, 0.9, 0.9]
  target, hits = _hits(np.random.default_rng(0), rates, 100)
  content = np.random.default_rng(1).beta(2, 5, len(target))
  pairs = _pairs(target, pointing_game=hits, content_heatmap=content)
  (one,) = classes.findings(pairs, METHOD, 10)
  assert (one.label, one.metric.title, one.is_worse) == (0, "PG", True)
  assert one.value == pytest.approx(100 * hits[:100].mean())
  means = 100 * hits.reshape(10, 100).mean(1)
  assert (one.low, one.high) == pytest.approx((min(means[1:]), max(means)))
  assert (one.num_others, one.num_pairs) == (9, 100)


def test_a_class_that_is_better_or_lower_where_that_is_better_is_told_so():
  rng = np.random.default_rng(0)
  target = np.repeat(np.arange(8), 50)
  outside = np.clip(rng.normal(0.5, 0.05, 400), 0, 1)
  outside[target == 3] -= 0.4
  assert _found(_pairs(target, negative_quadrants_heatmap=outside)) == [
    (3, "NQH", False)
  ]
  outside[target == 3] += 0.8
  assert _found(_pairs(target, negative_quadrants_heatmap=outside)) == [
    (3, "NQH", True)
  ]


@pytest.mark.parametrize("num_classes", [2, 4, 10, 40])
@pytest.mark.parametrize("count", [10, 100])
def test_equal_classes_seldom_raise_an_alarm(num_classes, count):
  rng = np.random.default_rng(0)
  alarms = 0
  for _ in range(60):
    target, right = _hits(rng, [0.9] * num_classes, count)
    content = rng.beta(2, 5, len(target))
    pairs = _pairs(
      target,
      top1=right,
      pointing_game=rng.random(len(target)) < 0.98,  # misses are rare
      content_heatmap=content,
    )
    alarms += bool(_found(pairs))
  assert alarms <= 6  # 3 are expected at most; 7 or more in one of 30 tries


def test_classes_that_all_differ_have_no_outlier():
  rng = np.random.default_rng(0)
  alarms = 0
  for _ in range(40):
    rates = np.clip(rng.normal(0.7, 0.12, 20), 0, 1)
    target, right = _hits(rng, rates, 100)
    alarms += bool(_found(_pairs(target, top1=right)))
  assert alarms <= 5


def test_of_few_classes_a_large_difference_counts():
  rng = np.random.default_rng(0)
  target, right = _hits(rng, [0.5, 0.95], 60)
  assert _found(_pairs(target, top1=right)) == [(0, "Top-1", True)]
  target, right = _hits(rng, [0.9, 0.5, 0.92, 0.94], 60)
  assert _found(_pairs(target, top1=right)) == [(1, "Top-1", True)]
  target, right = _hits(rng, [0.9, 0.5, 0.92, 0.94], 8)  # too few pictures
  assert _found(_pairs(target, top1=right)) == []


def test_nothing_measured_or_one_class_stands_out_from_nothing():
  target = np.zeros(30, int)
  nothing = np.full(30, np.nan)
  assert _found(_pairs(target, top1=nothing, content_heatmap=nothing)) == []
  assert _found(_pairs(target, top1=np.ones(30))) == []
  target = np.arange(30) % 3
  assert _found(_pairs(target, top1=np.ones(30))) == []
  constant = np.full(30, 0.25)
  assert _found(_pairs(target, content_heatmap=constant)) == []


def test_the_matrix_counts_each_picture_once_and_names_its_mistakes():
  rng = np.random.default_rng(0)
  target = np.repeat(np.arange(5), 40)
  predicted = target.astype(float)
  predicted[:12] = 3  # of class 0
  predicted[45:48] = [0, 2, 4]
  predicted[-1] = np.nan  # no first row of its picture
  order = rng.permutation(200)
  counts = classes.confusion(
    _pairs(target[order], predicted=predicted[order]), 5
  )
  assert counts.sum() == 199 and counts.trace() == 184
  assert counts[0].tolist() == [28, 0, 0, 12, 0]
  assert classes.mistakes(counts)[0] == (0, 3, 12, 40)
  assert len(classes.mistakes(counts)) == 4
  assert classes.telling_mistakes(counts) == [classes.Mistake(0, 3, 12, 40)]
  assert classes.telling_mistakes(counts.T[::-1] * 0) == []
  assert classes.confusion(_pairs(target), 5) is None  # an older evaluation


def test_all_classes_are_listed_with_the_numbers_of_every_method(tmp_path):
  made = evaluations.make(tmp_path / "e", methods=("gradcam", "cmwp"))
  del made.per_class["one"]
  found = classes.table(made, made.rows, ["gradcam", "cmwp"])
  assert [row.name for row in found.rows] == evaluations.CLASSES
  assert [row.num_pairs for row in found.rows] == ["27", "27", "26"]
  headings = [heading for heading, _ in found.headings]
  content = headings.index("CH ↑")
  assert found.rows[0].cells[content] == "30.0"
  assert set(found.rows[1].cells) == {""}
  assert found.numbers["cmwp"][2][content] == "29.0"
  bare = evaluations.bare(tmp_path / "b")
  assert classes.table(bare, None, []) == ([], [], {})
