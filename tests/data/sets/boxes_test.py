"""Boxes in pixels, and those that are not."""

import numpy as np
import pytest

from gc_jax.data.sets import boxes


def fractions(*corners):
  watch = boxes.Fractions()
  for i, box in enumerate(corners, 1):
    box = tuple(map(float, box))
    watch.add(f"line {i}", box, box)
  return str(watch)


def test_the_box_of_a_mask_holds_its_pixels_and_nothing_more():
  mask = np.zeros((7, 9), bool)
  assert boxes.of_mask(mask) is None
  mask[2, 3] = True
  assert boxes.of_mask(mask) == (3.0, 2.0, 4.0, 3.0)
  mask[6, 0] = True
  assert boxes.of_mask(mask) == (0.0, 2.0, 4.0, 7.0)


@pytest.mark.parametrize(
  "corners",
  [
    [(0.1, 0.1, 0.5, 0.5)] * 3,
    [(0, 0, 1, 1), (0.2, 0.2, 1, 0.9)],  # of the whole picture
    [(-0.02, 0.1, 1.01, 0.5)],  # not clipped
  ],
)
def test_boxes_within_0_and_1_are_found_out(corners):
  said = fractions(*corners)
  assert said.startswith("boxes must be in pixels")
  assert "lie within 0 and 1" in said or "lies within 0 and 1" in said
  assert f"the first line 1, with {corners[0][0]:g}, " in said
  assert "Are they fractions of the picture?" in said


def test_boxes_that_lie_within_a_pixel_each_are_found_out():
  said = fractions((7.1, 3.2, 7.9, 3.3), (40, 2, 41, 3))
  assert "all 2 boxes lie within one pixel" in said


@pytest.mark.parametrize(
  "corners",
  [
    [],
    [(6, 4, 24, 20)],
    [(0.1, 0.1, 0.5, 0.5), (6, 4, 24, 20)],  # an object of less than a pixel
    [(6, 4, 24, 20), (0.1, 0.1, 0.5, 0.5)],
    [(0, 0, 2, 2)],
    [(0, 0, 1, 40)],
    [(50, 40, 51, 41)],  # one star
    [(0, 0, 0, 0)] * 4,  # not boxes at all
    [(float("nan"),) * 4],
  ],
)
def test_boxes_in_pixels_are_not_suspected(corners):
  assert not fractions(*corners)


def test_a_box_is_said_in_words():
  assert boxes.words((1, 2.5, 3, 4)) == "xmin=1 ymin=2.5 xmax=3 ymax=4"
