"""Polygons and run lengths: what is drawn, left out, and refused."""

import io

import hypothesis
import numpy as np
import PIL.Image
import pytest
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from gc_jax.data.sets import segmentation

WIDTH, HEIGHT = SIZE = (12, 10)
SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]
OTHER = [6, 6, 8, 6, 8, 8, 6, 8]
SCRAPS = {
  "four numbers": [1, 1, 5, 5],  # pycocotools takes them for a box
  "five numbers": [1, 1, 5, 1, 5],
  "seven numbers": [1, 1, 5, 1, 5, 5, 1],
  "two numbers": [1, 1],
  "a line": [1, 1, 5, 1, 1, 1],
  "a point": [3, 3] * 4,
  "too thin": [1, 1, 5, 1, 5, 1.05, 1, 1.05],
  "outside": [20, 1, 30, 1, 30, 9, 20, 9],
  "before it": [-20, -20, -10, -20, -10, -10],
  "far outside": [1e9, 1, 3e9, 1, 3e9, 9],
  "a number of 400 digits": [1, 1, 10**400, 1, 4, 4],
  "NaN": [1, 1, float("nan"), 1, 4, 4],
  "infinite": [1, 1, float("inf"), 1, 4, 4],
  "texts": ["1", "1", "4", "1", "4", "4"],
  "words": [True, False, True, True, True, False],
  "null": [1, 1, None, 1, 4, 4],
  "corners": [[1, 1], [4, 1], [4, 4]],
  "no list": 7,
}


def runs(pixels):
  """Returns run lengths of a mask, as a list and compressed, by pycocotools."""
  flat = pixels.ravel(order="F").astype(int)
  edges = np.flatnonzero(np.diff(flat)) + 1
  counts = np.diff([0, *edges, flat.size]).tolist()
  counts = [0, *counts] if flat[0] else counts
  encoded = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
  size = list(pixels.shape)
  return [
    {"size": size, "counts": counts},
    {"size": size, "counts": encoded["counts"].decode()},
  ]


def test_polygons_of_one_object_are_joined():
  expected = np.zeros((HEIGHT, WIDTH), bool)
  expected[1:4, 1:4] = expected[6:8, 6:8] = True
  drawn = segmentation.draw([SQUARE, OTHER], SIZE)
  np.testing.assert_array_equal(drawn, expected)


def test_a_polygon_outside_of_a_list_is_one():
  assert segmentation.clean(SQUARE, SIZE) == ([SQUARE], 0)
  assert segmentation.draw(SQUARE, SIZE).sum() == 9


def test_a_polygon_that_sticks_out_is_cut_off_at_the_edge():
  drawn = segmentation.draw([[-5, -5, 3, -5, 3, 3, -5, 3]], SIZE)
  assert drawn[:3, :3].all() and drawn.sum() == 9


@pytest.mark.parametrize("name", SCRAPS)
def test_a_polygon_that_covers_no_pixel_is_left_out(name):
  scrap = SCRAPS[name]
  assert segmentation.clean([scrap], SIZE) == (None, 1)
  assert not segmentation.draw([scrap], SIZE).any()
  kept, num_left_out = segmentation.clean([SQUARE, scrap, OTHER], SIZE)
  assert (kept, num_left_out) == ([SQUARE, OTHER], 1)
  drawn = segmentation.draw([SQUARE, scrap, OTHER], SIZE)
  assert drawn.sum() == 9 + 4


@pytest.mark.parametrize("nothing", [None, [], {}, [[]], [[], []]])
def test_no_segmentation_is_none_and_leaves_nothing_out(nothing):
  assert segmentation.clean(nothing, SIZE) == (None, 0)
  assert segmentation.draw(nothing, SIZE).shape == (HEIGHT, WIDTH)


def noise(share):
  return np.random.default_rng(0).random((HEIGHT, WIDTH)) < share


@pytest.mark.parametrize("share", [0.1, 0.5, 1])
def test_run_lengths_are_drawn_as_a_list_and_compressed(share):
  for given in runs(noise(share)):
    assert segmentation.clean(given, SIZE) == (given, 0)
    drawn = segmentation.draw(given, SIZE)
    np.testing.assert_array_equal(drawn, noise(share))


def test_run_lengths_of_no_pixel_are_no_mask():
  for given in runs(noise(0)):
    assert segmentation.clean(given, SIZE) == (None, 1)


def test_whole_floats_are_run_lengths():
  given = {"size": [10.0, 12.0], "counts": [20.0, 100.0]}
  assert segmentation.draw(given, SIZE).sum() == 100


@pytest.mark.parametrize(
  ("size", "counts", "message"),
  [
    ([10, 12], [5, 100], r"add up to 120, all pixels of 12x10, and make 105"),
    ([10, 12], [5, 5000], r"must be from 0 to 120, .* and one is 5000"),
    ([10, 12], [-5, 125], r"must be from 0 to 120"),
    ([10, 12], [], r"add up to 120, all pixels of 12x10, and make 0"),
    ([10, 12], [10**400, 1], r"must be from 0 to 120"),
    ([10, 12], ["5", 115], r"must have counts, a list of whole numbers"),
    ([10, 12], [1.5, 118.5], r"must have counts, a list of whole numbers"),
    ([10, 12], [float("inf")], r"must have counts"),
    ([10, 12], [True, 119], r"must have counts"),
    ([10, 12], [None], r"must have counts"),
    ([10, 12], None, r"must have counts"),
    ([10, 12], 120, r"must have counts"),
    ([10, 12], "", r"add up to 120"),
    ([10, 12], "0", r"add up to 120"),
    ([10, 12], "9Xé3", r"from character 3 on, 'é'"),
    ([10, 12], "9 3", r"from character 2 on, ' '"),
    ([10, 12], "9o", r"break off after 2 characters, within a number"),
    ([10, 12], "o" * 400, r"from character \d+ on"),
    ([12, 10], [120], r"of size \[10, 12\], and are of size \[12, 10\]"),
    (["10", "12"], [120], r"and are of size \['10', '12'\]"),
    (None, [120], r"and are of size None"),
    ([], [120], r"and are of size \[\]"),
  ],
)
def test_run_lengths_that_cannot_be_are_refused(size, counts, message):
  given = {"size": size, "counts": counts}
  for read in segmentation.clean, segmentation.draw:
    with pytest.raises(ValueError, match=message):
      read(given, SIZE)


@pytest.mark.parametrize("other", ["mask.png", 7, True, 1.5])
def test_what_is_neither_polygons_nor_run_lengths_is_refused(other):
  with pytest.raises(ValueError, match="must be polygons or run lengths, and"):
    segmentation.clean(other, SIZE)


def test_what_is_drawn_is_what_pycocotools_draws():
  generator = np.random.default_rng(3)
  for _ in range(200):
    polygon = generator.uniform(-4, 16, 2 * generator.integers(3, 9)).tolist()
    theirs = coco_mask.decode(
      coco_mask.merge(coco_mask.frPyObjects([polygon], HEIGHT, WIDTH))
    )
    np.testing.assert_array_equal(segmentation.draw([polygon], SIZE), theirs)
    # Nothing that covers a pixel is left out, and nothing else kept.
    kept, _ = segmentation.clean([polygon], SIZE)
    assert (kept is not None) == theirs.any()


def test_masks_are_encoded_in_a_bit_a_pixel():
  mask = noise(0.5)
  with PIL.Image.open(io.BytesIO(segmentation.encode(mask))) as image:
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
def test_whatever_comes_is_drawn_or_refused_by_value_error(given):
  try:
    kept, _ = segmentation.clean(given, SIZE)
  except ValueError:
    return
  drawn = segmentation.draw(given, SIZE)
  assert drawn.shape == (HEIGHT, WIDTH)
  assert drawn.any() == (kept is not None)
  np.testing.assert_array_equal(segmentation.draw(kept, SIZE), drawn)
