import numpy as np
import pytest

from gc_jax.data.sets import compositor

WHITE = 255


def disc(colors=None):
  """A disc with a smooth edge, of radius 10 in 28 x 28 pixels."""
  y, x = np.mgrid[:28, :28] - 13.5
  alpha = np.clip(10.5 - np.hypot(y, x), 0, 1) * 255
  return compositor.Cutout(alpha.astype(np.uint8), colors)


def noise(seed):
  generator = np.random.default_rng(seed)
  return generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)


def draw(background, cutouts, seed=0, low=0.25, high=0.42):
  generator = np.random.default_rng(seed)
  return compositor.draw(background, cutouts, generator, (low, high))


def test_the_mask_is_where_at_least_half_of_the_pixel_is_the_objects():
  white = np.full((28, 28, 3), WHITE, np.uint8)
  black = np.zeros((64, 64, 3), np.uint8)
  picture = draw(black, [disc(colors=white)])
  # White on black: the picture is the alpha, which is then read off it.
  np.testing.assert_array_equal(
    picture.masks[0], picture.image[..., 0] / 255 >= 0.5
  )
  assert (picture.alphas[picture.alphas > 0] < 255).any(), "edges are smooth"


def test_the_picture_is_the_mixture_that_the_equation_says():
  background = noise(1)
  picture = draw(background, [disc()])
  color = picture.image[picture.alphas[0] == 255][0].astype(float)
  a = picture.alphas[0][..., None] / 255
  expected = (1 - a) * background + a * color
  # Half a level: the picture is rounded to whole ones, once.
  assert np.abs(picture.image - expected).max() <= 0.5
  np.testing.assert_array_equal(background, noise(1))


def test_transparent_pixels_do_not_bleed_into_own_colors():
  colors = np.full((28, 28, 3), (0, 255, 0), np.uint8)
  cutout = disc(colors=colors)
  colors[cutout.alpha == 0] = (255, 0, 0)
  resized = compositor.resize(compositor.trim(cutout), 13)
  assert resized.colors[resized.alpha > 20, 0].max() <= 3


@pytest.mark.parametrize("seed", range(20))
def test_objects_do_not_overlap_and_stay_wholly_inside(seed):
  picture = draw(noise(seed), [disc()] * 3, seed)
  assert (picture.alphas > 0).sum(0).max() == 1
  areas = picture.masks.sum((1, 2))
  sides = np.array([mask.any(1).sum() for mask in picture.masks])
  # A disc cut by the border or another disc would have less.
  np.testing.assert_allclose(areas, np.pi / 4 * sides**2, rtol=0.15)


def test_sizes_are_a_share_of_the_side():
  sides = [
    draw(noise(0), [disc()], seed, 0.3, 0.55).alphas[0].any(1).sum() / 64
    for seed in range(200)
  ]
  assert 0.3 - 0.5 / 64 <= min(sides) < 0.33
  assert 0.52 < max(sides) <= 0.55 + 0.5 / 64


@pytest.mark.parametrize("level", [0, 60, 127, 128, 200, 255])
def test_drawn_colors_contrast_with_what_they_cover(level):
  # The left half has this level, the right half is black or white: what
  # counts is under the object, not the whole background.
  background = np.full((64, 64, 3), level, np.uint8)
  background[:, 32:] = 255 if level < 128 else 0
  block = compositor.Cutout(np.full((28, 28), 255, np.uint8))
  colors = []
  for seed in range(40):
    picture = draw(background, [block], seed)
    mask = picture.masks[0]
    colors.append(picture.image[mask][0])
    difference = np.abs(
      compositor.luma(colors[-1]) - compositor.luma(background[mask]).mean()
    )
    assert difference >= compositor.MIN_CONTRAST
  assert len(np.unique(colors, axis=0)) == 40


def test_places_are_uniform():
  generator = np.random.default_rng(0)
  corners = [
    compositor.place([(3, 3)], (8, 6), generator)[0] for _ in range(4800)
  ]
  counts = np.unique(corners, axis=0, return_counts=True)[1]
  assert len(counts) == 6 * 4
  # 200 each; four standard deviations of a binomial count.
  assert np.abs(counts - 200).max() < 4 * np.sqrt(200)


def test_objects_that_cannot_fit_are_refused():
  with pytest.raises(ValueError, match=r"without overlap .* draw fewer or sma"):
    draw(noise(0), [disc()] * 3, low=0.7, high=0.7)
  with pytest.raises(ValueError, match="must fit into the background of 64x64"):
    draw(noise(0), [disc()], low=1.5, high=1.5)


@pytest.mark.parametrize("colors", [None, np.full((28, 28, 3), 9, np.uint8)])
def test_a_thin_stroke_keeps_a_mask_however_small_it_is_drawn(colors):
  alpha = np.zeros((28, 28), np.uint8)
  alpha[4:24, 14] = 240
  alpha[4, 8:20] = 240  # so that it is not trimmed to a column
  for side_px in (3, 8, 20, 40):
    resized = compositor.resize(compositor.Cutout(alpha, colors), side_px)
    assert resized.alpha.shape == (side_px, side_px)
    assert resized.alpha.max() == 240


def test_a_cutout_without_an_object_is_refused():
  faint = compositor.Cutout(np.full((4, 4), 127, np.uint8))
  with pytest.raises(ValueError, match=r"alpha >= 128.*the greatest is 127"):
    compositor.trim(faint)
