"""Metrics of maps by their entries in METRICS, and boxes by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from gc_jax.data import geometry
from gc_jax.evaluation import localisation
from gc_jax.method.metrics import METRICS, Key, Metric


def test_a_new_metric_is_measured_where_its_entry_says(monkeypatch):
  mass = Metric(
    "Mass",
    "sum of the map",
    "objects",
    lambda cam, at: cam.sum((1, 2)) * at.everywhere.sum((1, 2)) / 256,
    higher_is_better=None,
  )
  corner = Metric(
    "Corner", "first cell", "composite", lambda cam, cell: cam[:, 0, 0] + cell
  )
  monkeypatch.setitem(METRICS, "mass", mass)
  monkeypatch.setitem(METRICS, "corner", corner)
  mask = np.zeros((16, 16), bool)
  mask[:4, :4] = True
  on_grid = geometry.on_grid(mask, mask, (4, 4))
  one = jnp.ones(1)
  batch = {
    "mask": one,
    "target_mask": one,
    "annotated": one,
    "difficult": 0 * one,
    "cell": jnp.full(1, 3),
    "annotations": {
      geometry.grid_name((4, 4)): [jnp.asarray(x)[None] for x in on_grid]
    },
  }
  cams = {"mine": jnp.full((1, 4, 4), 0.5)}
  found = jax.jit(localisation.on_pictures)(cams, batch)
  np.testing.assert_allclose(found[Key("mass", "mine")], [8.0])
  assert Key("corner", "mine") not in found
  assert found[Key("content_heatmap", "mine")] == 1 / 16
  found = jax.jit(localisation.on_composites)(cams, batch)
  np.testing.assert_allclose(found[Key("corner", "mine")], [3.5])
  assert Key("negative_quadrants_heatmap", "mine") in found


def canvas(*parts, size=(12, 15)):
  """Rectangles (ymin, xmin, ymax, xmax, value) on black."""
  cam = np.zeros(size, np.float32)
  for ymin, xmin, ymax, xmax, value in parts:
    cam[ymin:ymax, xmin:xmax] = value
  return cam


def boxes_at(cam, *percents):
  """Returns the box at some percents of the maximum."""
  return localisation.boxes_of_map(cam)[list(percents)].tolist()


def test_the_overlap_is_counted_in_pixels():
  rng = np.random.default_rng(0)
  made = rng.integers(0, 10, (40, 4))
  made[:, 2:] = made[:, :2] + rng.integers(0, 6, (40, 2))
  a, b = made[:20], made[20:]
  found = localisation.box_iou(a, b)
  for i, j in np.ndindex(20, 20):
    one, other = (canvas((*box, 1), size=(16, 16)) > 0 for box in (a[i], b[j]))
    union = (one | other).sum()
    expected = (one & other).sum() / union if union else 0.0
    assert found[i, j] == pytest.approx(expected)


def test_the_box_is_around_the_largest_part():
  cam = canvas((1, 1, 4, 4, 1.0), (6, 5, 11, 14, 0.5))
  large, small = [6, 5, 11, 14], [1, 1, 4, 4]
  # At exactly half the maximum the larger part still counts.
  expected = [[0, 0, 12, 15], large, large, small]
  assert boxes_at(cam, 0, 25, 50, 90) == expected


def test_corners_that_touch_are_one_part():
  cam = canvas((0, 0, 2, 2, 1.0), (2, 2, 5, 4, 1.0))
  assert boxes_at(cam, 50) == [[0, 0, 5, 4]]


def test_at_every_threshold_the_box_is_what_labelling_finds():
  rng = np.random.default_rng(1)
  for _ in range(5):
    cam = scipy.ndimage.gaussian_filter(rng.random((40, 33)), 2.0)
    cam = (cam - cam.min()).astype(np.float32)
    found = localisation.boxes_of_map(cam).tolist()
    for box, threshold in zip(found, localisation.THRESHOLDS, strict=True):
      bright = cam >= threshold * cam.max()
      parts, _ = scipy.ndimage.label(bright, np.ones((3, 3)))
      sizes = np.bincount(parts.ravel())[1:]
      slices = scipy.ndimage.find_objects(parts)
      candidates = [
        [rows.start, columns.start, rows.stop, columns.stop]
        for size, (rows, columns) in zip(sizes, slices, strict=True)
        if size == sizes.max()
      ]
      assert box == min(candidates)


@pytest.mark.parametrize("value", [0.0, 0.7, np.nan])
def test_a_map_without_a_peak_is_boxed_whole(value):
  boxes = localisation.boxes_of_map(np.full((6, 9), value, np.float32))
  assert np.unique(boxes, axis=0).tolist() == [[0, 0, 6, 9]]


def test_a_box_is_right_from_its_overlap_on():
  cam = canvas((2, 2, 8, 8, 1.0))
  truth = np.array([[2, 2, 8, 14], [0, 0, 1, 1]])  # half of the first
  found = localisation.box_correct(cam, truth)
  assert found[:, 50].tolist() == [True, True, False]


def test_the_best_threshold_is_one_for_all_pairs():
  """By hand: two pairs, two thresholds, three overlaps."""
  first = np.array([[1, 1], [1, 0], [0, 0]], bool)
  second = np.array([[1, 0], [0, 1], [0, 1]], bool)
  found = localisation.max_box_acc(first.astype(int) + second, 2)
  assert found == {
    "max_box_acc_30": 100.0,
    "max_box_acc_50": 50.0,
    "max_box_acc_70": 50.0,
    "max_box_acc_v2": pytest.approx(200 / 3),
  }
  assert localisation.max_box_acc(np.zeros((3, 2)), 0) == {}
