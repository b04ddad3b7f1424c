"""Boxes, polygons and run lengths: what is read, left out, and refused."""

import io
import math

import hypothesis
import numpy as np
import PIL.Image
import pytest
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from gc_jax.data.sets import shapes
from tests.data.archives import compressed, uncompressed

# Boxes.


def fractions(*corners):
  watch = shapes.Fractions()
  for i, box in enumerate(corners, 1):
    box = tuple(map(float, box))
    watch.add(f"line {i}", box, box)
  return str(watch)


def test_the_box_of_a_mask_holds_its_pixels_and_nothing_more():
  mask = np.zeros((7, 9), bool)
  assert shapes.box_of_mask(mask) is None
  mask[2, 3] = True
  assert shapes.box_of_mask(mask) == (3.0, 2.0, 4.0, 3.0)
  mask[6, 0] = True
  assert shapes.box_of_mask(mask) == (0.0, 2.0, 4.0, 7.0)


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


# Masks.

WIDTH, HEIGHT = SIZE = (12, 10)
SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]
OTHER = [6, 6, 8, 6, 8, 8, 6, 8]
SCRAPS = {
  "four numbers": [1, 1, 5, 5],  # pycocotools takes them for a box
  "five numbers": [1, 1, 5, 1, 5],
  "seven numbers": [1, 1, 5, 1, 5, 5, 1],
  "a line": [1, 1, 5, 1, 1, 1],
  "too thin": [1, 1, 5, 1, 5, 1.05, 1, 1.05],
  "outside": [20, 1, 30, 1, 30, 9, 20, 9],
  "before it": [-20, -20, -10, -20, -10, -10],
  "far outside": [1e9, 1, 3e9, 1, 3e9, 9],
  "a number of 400 digits": [1, 1, 10**400, 1, 4, 4],
  "NaN": [1, 1, float("nan"), 1, 4, 4],
  "infinite": [1, 1, float("inf"), 1, 4, 4],
  "texts": ["1", "1", "4", "1", "4", "4"],
  "booleans": [True, False, True, True, True, False],
  "null": [1, 1, None, 1, 4, 4],
  "corners": [[1, 1], [4, 1], [4, 4]],
  "no list": 7,
}


def read(given):
  """Returns the pixels of a segmentation, and how many parts are left out."""
  cleaned, num_left_out = shapes.clean(given, SIZE)
  return shapes.draw(cleaned, SIZE), num_left_out


def test_polygons_of_one_object_are_joined():
  expected = np.zeros((HEIGHT, WIDTH), bool)
  expected[1:4, 1:4] = expected[6:8, 6:8] = True
  np.testing.assert_array_equal(read([SQUARE, OTHER])[0], expected)


def test_a_polygon_outside_of_a_list_is_one():
  assert shapes.clean(SQUARE, SIZE) == ([SQUARE], 0)


def test_a_polygon_that_sticks_out_is_cut_off_at_the_edge():
  mask, _ = read([[-5, -5, 3, -5, 3, 3, -5, 3]])
  assert mask[:3, :3].all() and mask.sum() == 9


@pytest.mark.parametrize("name", SCRAPS)
def test_a_polygon_that_covers_no_pixel_is_left_out(name):
  scrap = SCRAPS[name]
  assert shapes.clean([scrap], SIZE) == (None, 1)
  kept = shapes.clean([SQUARE, scrap, OTHER], SIZE)
  assert kept == ([SQUARE, OTHER], 1)


@pytest.mark.parametrize("nothing", [None, [], {}, [[]], [[], []]])
def test_no_segmentation_is_none_and_leaves_nothing_out(nothing):
  mask, num_left_out = read(nothing)
  assert mask.shape == (HEIGHT, WIDTH) and not mask.any()
  assert num_left_out == 0


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("write", [uncompressed, compressed])
def test_run_lengths_are_drawn_as_a_list_and_compressed(write, share):
  pixels = np.random.default_rng(0).random((HEIGHT, WIDTH)) < share
  given = write(pixels)
  kept = (given, 0) if share else (None, 1)
  assert shapes.clean(given, SIZE) == kept
  np.testing.assert_array_equal(read(given)[0], pixels)


def test_whole_floats_are_run_lengths():
  given = {"size": [10.0, 12.0], "counts": [20.0, 100.0]}
  assert read(given)[0].sum() == 100


@pytest.mark.parametrize(
  ("counts", "message"),
  [
    ([5, 100], r"add up to 120, all pixels of 12x10, and make 105"),
    ([5, 5000], r"must be from 0 to 120, .* and one is 5000"),
    ([-5, 125], r"must be from 0 to 120"),
    ([10**400, 1], r"must be from 0 to 120"),
    ([], r"add up to 120, all pixels of 12x10, and make 0"),
    (["5", 115], r"must have counts, a list of whole numbers"),
    ([1.5, 118.5], r"must have counts, a list of whole numbers"),
    ([float("inf")], r"must have counts"),
    ([True, 119], r"must have counts"),
    ([None], r"must have counts"),
    (None, r"must have counts"),
    (120, r"must have counts"),
    ("", r"add up to 120"),
    ("9Xé3", r"from character 3 on, 'é'"),
    ("9 3", r"from character 2 on, ' '"),
    ("9o", r"break off after 2 characters, within a number"),
    ("o" * 400, r"from character \d+ on"),
  ],
)
def test_run_lengths_that_make_no_picture_are_refused(counts, message):
  with pytest.raises(ValueError, match=message):
    shapes.clean({"size": [10, 12], "counts": counts}, SIZE)


@pytest.mark.parametrize("size", [[12, 10], ["10", "12"], None, []])
def test_run_lengths_of_another_picture_are_refused(size):
  given = {"size": size, "counts": [0, 120]}
  for refuse in shapes.clean, shapes.draw:
    with pytest.raises(
      shapes.OtherSizeError, match=r"of size \[10, 12\], and are of size"
    ):
      refuse(given, SIZE)


@pytest.mark.parametrize("other", ["mask.png", 7, True, 1.5])
def test_neither_polygons_nor_run_lengths_are_refused(other):
  with pytest.raises(ValueError, match="must be polygons or run lengths, and"):
    shapes.clean(other, SIZE)


def test_polygons_are_drawn_as_pycocotools_draws_them():
  generator = np.random.default_rng(3)
  for _ in range(200):
    polygon = generator.uniform(-4, 16, 2 * generator.integers(3, 9)).tolist()
    theirs = coco_mask.decode(
      coco_mask.merge(coco_mask.frPyObjects([polygon], HEIGHT, WIDTH))
    )
    # A polygon is left out exactly where it covers no pixel.
    mask, num_left_out = read([polygon])
    np.testing.assert_array_equal(mask, theirs)
    assert num_left_out == (not theirs.any())


def test_masks_are_encoded_with_one_bit_a_pixel():
  mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.5
  with PIL.Image.open(io.BytesIO(shapes.encode(mask))) as image:
    assert image.mode == "1"
    np.testing.assert_array_equal(np.asarray(image), mask)


NUMBERS = st.one_of(
  st.integers(-5, 200),
  st.floats(-50, 50),
  st.sampled_from([None, True, "1", 10**400, float("nan"), float("inf"), 1e30]),
)
JSON = st.recursive(
  NUMBERS | st.text(max_size=4),
  lambda inner: (
    st.lists(inner, max_size=8)
    | st.dictionaries(st.sampled_from(["counts", "size"]), inner)
  ),
  max_leaves=20,
)
SEGMENTATIONS = st.one_of(
  JSON,
  st.lists(st.lists(NUMBERS, max_size=10), max_size=3),
  st.fixed_dictionaries(
    {
      "size": st.just([HEIGHT, WIDTH]),
      "counts": st.text("0123456789:;<=>?@ABXYZ`abno", max_size=12)
      | st.lists(NUMBERS, max_size=5),
    }
  ),
)


@hypothesis.settings(max_examples=300)
@hypothesis.given(SEGMENTATIONS)
@hypothesis.example([[math.inf, 0, 0, 0, math.inf, 0]])
@hypothesis.example([[1e308, 0, -1e308, 0, 1, 1]])
def test_any_json_is_drawn_or_refused_by_a_value_error(given):
  try:
    kept, _ = shapes.clean(given, SIZE)
  except ValueError:
    return
  mask = shapes.draw(kept, SIZE)
  assert mask.shape == (HEIGHT, WIDTH)
  assert mask.any() == (kept is not None)
