"""Pictures: heat in the right place, outlines, rows and columns."""

import base64
import io

import matplotlib
import numpy as np
import pytest
import skimage.color
from PIL import Image

from gc_jax.report import pictures, plots

GREY = np.full((16, 16, 3), 128, np.uint8)


def _one_cell(row, column):
  cam = np.zeros((4, 4), np.float32)
  cam[row, column] = 1.0
  return cam


def test_a_map_with_its_mass_in_one_cell_colours_that_place_only():
  picture = pictures.heat_overlay(GREY, _one_cell(0, 3), scale=2)
  changed = np.abs(picture.astype(int) - 128).sum(axis=-1)
  row, column = np.unravel_index(changed.argmax(), changed.shape)
  assert row < 8 and column >= 24  # cell (0, 3) of 4x4 on 32x32 pixels
  assert changed[16:].max() == 0
  assert changed[:, :16].max() == 0


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_empty_map_is_no_heat_but_words_in_grey(value):
  image = np.full((64, 64, 3), 200, np.uint8)
  cam = np.full((4, 4), value, np.float32)
  found = pictures.heat_overlay(image, cam, 4).astype(int)
  np.testing.assert_array_equal(found[64:], 200)
  band = found[:32]
  assert (band < 80).mean() > 0.3 and (band > 220).mean() > 0.02
  assert (found == found[..., :1]).all()  # no colour of the colormap


def test_one_extreme_pixel_does_not_hide_the_rest_of_a_map_of_pixels():
  cam = np.random.default_rng(0).random((16, 16)).astype(np.float32)
  plain = pictures.heat_overlay(GREY, cam).astype(int)
  cam[3, 4] = 1000.0
  for seen in ((16, 16), None):
    picture = pictures.heat_overlay(GREY, cam, seen=seen).astype(int)
    off = np.abs(picture - plain).max(-1)
    off[3, 4] = 0
    assert off.max() < 8  # the percentile moves by one pixel in rank
  cam[:] = 0
  cam[3, 4] = 1.0  # of a map of few pixels, the percentile is 0
  assert (pictures.heat_overlay(GREY, cam)[3, 4] != 128).any()


@pytest.mark.parametrize("seen", [None, (8, 8)])
def test_a_map_of_cells_is_scaled_to_its_maximum_to_the_byte(seen):
  cam = np.random.default_rng(0).random((4, 4)).astype(np.float32)
  cam[0, 3] = 1000.0
  heat = pictures.enlarge_map(cam, 16, 16)
  heat = np.clip(heat / float(heat.max()), 0.0, 1.0)
  colors = pictures.COLORMAP(heat)[..., :3] * 255.0
  alpha = 0.8 * heat[..., None]
  expected = np.rint((1 - alpha) * GREY + alpha * colors).astype(np.uint8)
  found = pictures.heat_overlay(GREY, cam, seen=seen)
  np.testing.assert_array_equal(found, expected)


def test_enlarging_is_bilinear_with_clamped_edges():
  cam = np.array([[0.0, 1.0]], np.float32)
  # Cell centres at 1 and 3 of 4 pixels: pixel centres 0.5, 1.5, 2.5, 3.5.
  enlarged = pictures.enlarge_map(cam, 1, 4)
  np.testing.assert_allclose(enlarged, [[0.0, 0.25, 0.75, 1.0]], atol=1e-6)


def test_the_outline_lies_just_outside_the_mask():
  object_mask = np.zeros((16, 16), bool)
  object_mask[4:8, 5:9] = True
  picture = pictures.draw_outline(pictures.enlarge_image(GREY, 4), object_mask)

  def ring(inner, outer):
    found = np.zeros((64, 64), bool)
    found[16 - outer : 32 + outer, 20 - outer : 36 + outer] = True
    found[16 - inner : 32 + inner, 20 - inner : 36 + inner] = False
    return found

  px = pictures.LINE_PX
  for color, expected in (
    (pictures.LINE_COLOR, ring(0, px)),
    (pictures.EDGE_COLOR, ring(px, px + 1)),
  ):
    np.testing.assert_array_equal((picture == color).all(axis=-1), expected)
  full = pictures.draw_outline(GREY, np.ones((16, 16), bool))
  np.testing.assert_array_equal(full, GREY)


def _opened(layer):
  """Returns a layer's pixels, RGBA."""
  start, content = layer.uri.split(",")
  assert start == f"data:image/{layer.kind};base64"
  image = Image.open(io.BytesIO(base64.b64decode(content)))
  return np.asarray(image.convert("RGBA"))


def test_the_frame_stays_within_its_cell():
  for cell in range(4):
    layer = pictures.frame_layer((32, 32), cell)
    rows, columns = np.nonzero(_opened(layer)[..., 3])
    assert set(rows // 128 * 2 + columns // 128) == {cell}
    assert len(rows) == 128**2 - 118**2  # four pixels of line, one of edge


@pytest.mark.parametrize("shape", [(4, 4), (16, 16)])
def test_a_map_over_its_picture_looks_as_in_the_figures(shape):
  cam = np.random.default_rng(0).random(shape).astype(np.float32) ** 4
  expected = pictures.heat_overlay(GREY, cam, scale=8).astype(float)
  layer = pictures.heat_layer(cam, (16, 16))
  assert (layer.width, layer.height) == (128, 128)
  found = _opened(layer).astype(float)
  alpha = found[..., 3:] / 255
  blended = alpha * found[..., :3] + (1 - alpha) * 128
  # Half a step of 63 in colour and opacity, and both rounded.
  assert np.abs(blended - expected).max() < 4
  assert not _opened(pictures.heat_layer(0 * cam, (16, 16)))[..., 3].any()


def test_layers_of_a_photograph_have_one_shape_and_are_small(
  photographs, monkeypatch
):
  monkeypatch.setattr(pictures, "_MAX_IMAGE_PX", 300)
  with Image.open(photographs / "coffee.png") as opened:
    photograph = np.asarray(opened)
  height, width = photograph.shape[:2]
  image = pictures.image_layer(photograph)
  heat = pictures.heat_layer(_one_cell(1, 2), (height, width))
  outline = pictures.outline_layer(np.zeros((height, width), bool))
  for layer in (image, heat, outline):
    shape = _opened(layer).shape
    assert shape[:2] == (layer.height, layer.width)
    assert layer.width / layer.height == pytest.approx(1.5, abs=0.01)
  assert max(image.width, image.height) == 300
  assert len(heat.uri) < 8_000
  assert not pictures.image_layer(photograph).is_enlarged


def test_maps_are_told_from_the_colours_of_photographs(photographs):
  names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
  pixels = []
  for name in names:
    with Image.open(photographs / name) as opened:
      pixels.append(np.asarray(opened.resize((48, 48))).reshape(-1, 3))
  pixels = np.concatenate(pixels) / 255

  def seen(heat, colormap):
    alpha = 0.8 * heat
    blended = (1 - alpha) * pixels + alpha * np.array(colormap(heat)[:3])
    return skimage.color.rgb2lab(blended)

  def hardest(colormap):
    """Returns how far pixels move, the 5% that move least aside."""
    steps = [seen(n / 4, colormap) for n in range(5)]
    moved = lambda a, b: np.percentile(
      skimage.color.deltaE_ciede2000(steps[a], steps[b]), 5
    )
    between = min(moved(n, n + 1) for n in range(4))
    return moved(0, 4), moved(0, 2), between

  full, half, between = hardest(pictures.COLORMAP)
  assert full > 30 and half > 12 and between > 6
  for other in ("plasma", "inferno", "viridis", "cividis"):
    # Their warm ends are lost in warm pictures, or their steps are too small.
    assert hardest(matplotlib.colormaps[other])[2] < between / 1.5
  for other in ("turbo", "jet"):
    assert hardest(matplotlib.colormaps[other])[0] < full / 1.5


def test_photographs_are_embedded_small_and_pixel_art_as_it_is():
  rng = np.random.default_rng(0)
  photograph = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
  assert pictures.compact(photograph)[1] == "jpeg"
  enlarged = pictures.enlarge_image(photograph[:16, :16], 16)
  content, kind = pictures.compact(enlarged)
  assert kind == "png"
  image = Image.open(io.BytesIO(content))
  np.testing.assert_array_equal(np.asarray(image), enlarged)


def test_small_images_are_enlarged_and_large_ones_left():
  sizes = [(16, 16), (64, 64), (224, 224), (600, 480)]
  assert [pictures.display_scale(*size) for size in sizes] == [16, 4, 1, 1]


def _picture(height, width, color):
  return np.full((height, width, 3), color, np.uint8)


def _draw(*rows):
  named = [(str(n), cells) for n, cells in enumerate(rows)]
  headings = [f"column {n}" for n in range(len(rows[0]))]
  return plots.read_png(pictures.draw_grid(headings, named))


def _box(image, color):
  """Returns height and width of what has a colour."""
  rows, columns = np.nonzero((image == color).all(-1))
  return np.ptp(rows) + 1, np.ptp(columns) + 1


def test_pictures_fill_their_cells_whatever_their_shapes():
  red, blue = (200, 0, 0), (0, 0, 200)
  image = _draw([_picture(40, 40, red)], [_picture(20, 40, blue)])
  tall, wide = _box(image, red), _box(image, blue)
  assert tall[0] == pytest.approx(tall[1], abs=6)
  assert wide[0] == pytest.approx(wide[1] / 2, abs=6)
  assert wide[1] == pytest.approx(1.7 * 160, rel=0.15)


def test_what_is_missing_leaves_a_gap():
  red = (200, 0, 0)
  image = _draw([_picture(40, 40, red), None], [None, _picture(40, 40, red)])
  is_red = (image == red).all(-1)
  height, width = is_red.shape
  quarters = [
    is_red[top : top + height // 2, left : left + width // 2].mean()
    for top in (0, height // 2)
    for left in (0, width // 2)
  ]
  assert [quarter > 0.4 for quarter in quarters] == [True, False, False, True]
