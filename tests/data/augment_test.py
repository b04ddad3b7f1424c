"""The laws of random crops and flips, and what becomes of the pixels."""

import functools
import math

import numpy as np
import pytest
from scipy import stats

from gc_jax.data import augment
from gc_jax.data.augment import Augmentation
from tests.data import photos

NUM_DRAWS = 20_000
# For statistical tests, of fixed seed: 1 in 1,000 such seeds would fail.
SIGNIFICANCE = 1e-3
SIZES = [(500, 375), (2_000, 2_000), (600, 200)]


@functools.cache
def draws(width, height):
  generator = np.random.default_rng(0)
  return np.array(
    [augment.draw_crop(width, height, generator) for _ in range(NUM_DRAWS)]
  )


@functools.cache
def law(width, height):
  """(area, log aspect) of a fine grid of draws, those that fit."""
  area = (np.arange(2_000) + 0.5) / 2_000 * (1 - 0.08) + 0.08
  log_aspect = ((np.arange(2_000) + 0.5) / 1_000 - 1) * math.log(4 / 3)
  area, log_aspect = np.meshgrid(area, log_aspect)
  px = area * width * height
  fits = np.sqrt(px * np.exp(log_aspect)) <= width + 0.5
  fits &= np.sqrt(px / np.exp(log_aspect)) <= height + 0.5
  return area[fits], log_aspect[fits], fits.mean()


def p_value(samples, grid):
  """Of Kolmogorov and Smirnov, against the distribution of the grid."""
  grid = np.sort(grid)
  cdf = lambda x: np.searchsorted(grid, x, "right") / len(grid)
  return stats.kstest(samples, cdf).pvalue


@pytest.mark.parametrize("size", SIZES)
def test_area_and_aspect_of_crops_follow_the_law(size):
  """Uniform, and uniform in the logarithm, given that the crop fits.

  Whole pixels make steps in both; half a pixel is put back at random.
  """
  width, height = size
  left, _, w, h = draws(width, height).T
  jitter = np.random.default_rng(1).uniform(-0.5, 0.5, (2, NUM_DRAWS))
  area, log_aspect, fit_frac = law(width, height)
  # What never fits falls back to the centre; at 600x200 one in 25 does.
  drawn = slice(None)
  expected = (1 - fit_frac) ** 10
  assert (NUM_DRAWS * expected > 20) == (size == (600, 200))
  if NUM_DRAWS * expected > 20:
    fallback = (w == 267) & (h == 200)
    error = math.sqrt(expected * (1 - expected) / NUM_DRAWS)
    assert abs(fallback.mean() - expected) < 4 * error + 1e-4
    assert (left[fallback] == 166).mean() > 0.9
    drawn = ~fallback
  w, h = (w + jitter[0])[drawn], (h + jitter[1])[drawn]
  assert p_value(w * h / (width * height), area) > SIGNIFICANCE
  assert p_value(np.log(w / h), log_aspect) > SIGNIFICANCE


def test_places_of_crops_are_uniform():
  left, top, w, h = draws(500, 375).T
  generator = np.random.default_rng(2)
  for start, free in ((left, 500 - w), (top, 375 - h)):
    assert (start >= 0).all() and (start <= free).all()
    place = (start + generator.random(NUM_DRAWS)) / (free + 1)
    assert stats.kstest(place, "uniform").pvalue > SIGNIFICANCE


def test_every_second_picture_is_flipped():
  generator, square = np.random.default_rng(0), np.zeros((8, 8, 3), np.uint8)
  encoded = photos.encode(square, "png")
  mirror = Augmentation(8, flip=True)
  flips = sum(mirror(encoded, generator, square).flip for _ in range(2_000))
  assert stats.binomtest(flips, 2_000, 0.5).pvalue > SIGNIFICANCE


@pytest.mark.parametrize(
  ("size", "expected"),
  [
    ((1_000, 10), (493, 0, 13, 10)),  # 4:3 of the height
    ((10, 1_000), (0, 493, 10, 13)),  # 3:4 of the width
    ((1, 1), (0, 0, 1, 1)),
  ],
)
def test_what_never_fits_is_the_centre_with_the_nearest_aspect(size, expected):
  assert augment.draw_crop(*size, np.random.default_rng(0)) == expected


def test_the_square_is_the_drawn_crop_and_the_flip():
  """Nothing else happens to the pixels."""
  photo = photos.load("coffee.png", (320, 240))
  encoded = photos.encode(photo, "png")
  flipped = 0
  for seed in range(20):
    square = np.empty((64, 64, 3), np.uint8)
    view = Augmentation(64, crop="random_resized", flip=True)(
      encoded, np.random.default_rng(seed), square
    )
    generator = np.random.default_rng(seed)
    left, top, w, h = view.box
    assert view.box == augment.draw_crop(320, 240, generator)
    part = photo.crop((left, top, left + w, top + h)).resize((64, 64), 2)
    part = np.asarray(part).astype(int)
    flipped += view.flip
    # Three taps for a filter (up to 5 levels on average at 3.7 times); the
    # wrong side out is 30 off.
    assert np.abs(square - (part[:, ::-1] if view.flip else part)).mean() < 6
  assert 4 < flipped < 16
