"""Boxes around maps, and how well they fit: by hand and by brute force."""

import numpy as np
import pytest
import scipy.ndimage

from gc_jax.evaluation import boxes

THRESHOLDS = np.array([0.0, 0.25, 0.5, 0.9])


def canvas(*parts, size=(12, 15)):
  """Rectangles (ymin, xmin, ymax, xmax, value) on black."""
  cam = np.zeros(size, np.float32)
  for ymin, xmin, ymax, xmax, value in parts:
    cam[ymin:ymax, xmin:xmax] = value
  return cam


def test_the_overlap_is_counted_in_pixels():
  rng = np.random.default_rng(0)
  made = rng.integers(0, 10, (40, 4))
  made[:, 2:] = made[:, :2] + rng.integers(0, 6, (40, 2))
  a, b = made[:20], made[20:]
  found = boxes.box_iou(a, b)
  for i, j in np.ndindex(20, 20):
    one, other = (canvas((*box, 1), size=(16, 16)) > 0 for box in (a[i], b[j]))
    union = (one | other).sum()
    expected = (one & other).sum() / union if union else 0.0
    assert found[i, j] == pytest.approx(expected)


def test_the_box_is_of_the_largest_part():
  cam = canvas((1, 1, 4, 4, 1.0), (6, 5, 11, 14, 0.5))
  found = boxes.boxes_of_map(cam, THRESHOLDS)
  np.testing.assert_array_equal(found[0], [0, 0, 12, 15])
  np.testing.assert_array_equal(found[1], [6, 5, 11, 14])
  np.testing.assert_array_equal(found[2], [6, 5, 11, 14])  # not strict
  np.testing.assert_array_equal(found[3], [1, 1, 4, 4])


def test_corners_that_touch_are_one_part():
  cam = canvas((0, 0, 2, 2, 1.0), (2, 2, 5, 4, 1.0))
  np.testing.assert_array_equal(
    boxes.boxes_of_map(cam, THRESHOLDS)[2], [0, 0, 5, 4]
  )


def test_at_every_threshold_it_is_what_labelling_finds():
  rng = np.random.default_rng(1)
  for _ in range(5):
    cam = scipy.ndimage.gaussian_filter(rng.random((40, 33)), 2.0)
    cam = (cam - cam.min()).astype(np.float32)
    found = boxes.boxes_of_map(cam)
    for box, threshold in zip(found, boxes.THRESHOLDS, strict=True):
      parts, count = scipy.ndimage.label(
        cam >= threshold * cam.max(), np.ones((3, 3))
      )
      sizes = np.bincount(parts.ravel())[1:]
      candidates = []
      for k in 1 + np.flatnonzero(sizes == sizes.max()):
        rows, columns = np.nonzero(parts == k)
        candidates.append(
          [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        )
      assert count and list(box) in candidates


@pytest.mark.parametrize("value", [0.0, 0.7, np.nan])
def test_a_map_without_a_peak_is_boxed_whole(value):
  cam = np.full((6, 9), value, np.float32)
  for box in boxes.boxes_of_map(cam, THRESHOLDS):
    np.testing.assert_array_equal(box, [0, 0, 6, 9])


def test_a_box_is_right_from_its_overlap_on():
  cam = canvas((2, 2, 8, 8, 1.0))
  truth = np.array([[2, 2, 8, 14], [0, 0, 1, 1]])  # half of the first
  found = boxes.box_correct(cam, truth, THRESHOLDS)
  np.testing.assert_array_equal(found[:, 2], [True, True, False])
  with pytest.raises(ValueError, match="at least one"):
    boxes.box_correct(cam, np.zeros((0, 4)), THRESHOLDS)


def test_the_best_threshold_is_one_for_all_pairs():
  """By hand: two pairs, two thresholds, three overlaps."""
  first = np.array([[1, 1], [1, 0], [0, 0]], bool)
  second = np.array([[1, 0], [0, 1], [0, 1]], bool)
  found = boxes.max_box_acc(first.astype(int) + second, 2)
  assert found == {
    "max_box_acc_30": 100.0,
    "max_box_acc_50": 50.0,
    "max_box_acc_70": 50.0,
    "max_box_acc_v2": pytest.approx(200 / 3),
  }
  assert boxes.max_box_acc(np.zeros((3, 2)), 0) == {}
