"""Metrics from small maps against brute force in the annotation's pixels."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gc_jax.data import geometry
from gc_jax.method import metrics

# (cells of the map), (pixels of the annotation): odd, wide, and finer maps.
SIZES = [
  ((7, 7), (224, 224)),
  ((14, 19), (375, 500)),
  ((13, 5), (101, 67)),
  ((1, 1), (17, 9)),
  ((1, 6), (5, 31)),
  ((32, 40), (33, 29)),
  ((48, 64), (21, 13)),
]
TOLERANCE = 15.0


def objects(rng, height, width):
  """Some masks: blobs, a border, one pixel, all, nothing."""
  blob = cv2.GaussianBlur(rng.random((height, width)), (0, 0), 3)
  border = np.zeros((height, width), bool)
  border[:2], border[:, -1:] = True, True
  pixel = np.zeros((height, width), bool)
  pixel[height // 2, width // 3] = True
  return {
    "blob": blob > np.quantile(blob, 0.8),
    "border": border,
    "pixel": pixel,
    "all": np.ones((height, width), bool),
    "nothing": np.zeros((height, width), bool),
  }


def squared_distance(mask):
  """Of every pixel to the nearest of the mask, by looking at all of them."""
  height, width = mask.shape
  best = np.full((height, width), np.inf)
  y, x = np.indices((height, width))
  for row, column in np.argwhere(mask):
    np.minimum(best, (y - row) ** 2 + (x - column) ** 2, out=best)
  return best


def brute_force(cam, mask, near):
  """PG, SPG exact and CH of one map, the way their definitions read."""
  height, width = mask.shape
  cam = cv2.resize(
    cam.astype(np.float64), (width, height), interpolation=cv2.INTER_LINEAR
  )
  cam /= cam.sum()
  # Rounded: of equal values the first counts, and OpenCV keeps its weights in
  # float32.
  peak = (cam / cam.max()).round(6).argmax()
  row, column = np.unravel_index(peak, cam.shape)
  return float(near[row, column]), cam[near].sum(), cam[mask].sum()


def on_device(annotated):
  return jax.tree.map(jnp.asarray, annotated)


def ours(cam, mask, near):
  annotated = on_device(geometry.on_grid(mask, near, cam.shape))
  return tuple(map(float, measured(jnp.asarray(cam), annotated)))


@jax.jit
def measured(cam, annotated):
  inside, near, everywhere = annotated[:3]
  return (
    metrics.grid_pointing_game(cam, annotated),
    metrics.grid_content_heatmap(cam, near, everywhere),
    metrics.grid_content_heatmap(cam, inside, everywhere),
  )


@pytest.mark.parametrize("grid, pixels", SIZES)
def test_metrics_of_small_maps_are_those_in_pixels(grid, pixels):
  rng = np.random.default_rng(0)
  for mask in objects(rng, *pixels).values():
    near = geometry.dilate(mask, 4.5)
    for _ in range(20):
      cam = np.maximum(rng.normal(size=grid), 0).astype(np.float32)
      cam[0, 0] += 0.01
      hit, near_mass, inside = ours(cam, mask, near)
      expected = brute_force(cam, mask, near)
      assert hit == expected[0]
      # Float32 sums of a few hundred cells.
      assert near_mass == pytest.approx(expected[1], abs=1e-6)
      assert inside == pytest.approx(expected[2], abs=1e-6)


@pytest.mark.parametrize("pixels", [(40, 53), (31, 17)])
@pytest.mark.parametrize("tolerance", [1.0, 4.3, TOLERANCE])
def test_dilation_is_that_of_the_distances(pixels, tolerance):
  rng = np.random.default_rng(1)
  on_device = jax.jit(functools.partial(metrics.dilate, tolerance_px=tolerance))
  for mask in objects(rng, *pixels).values():
    near = geometry.dilate(mask, tolerance)
    np.testing.assert_array_equal(near, squared_distance(mask) < tolerance**2)
    np.testing.assert_array_equal(near, on_device(jnp.asarray(mask)))


def test_a_flat_map_points_at_the_first_pixel():
  """Also where its values have no exact sums of thirds and sevenths."""
  mask = np.zeros((101, 67), bool)
  mask[:1, :1] = True
  for value in (1.0, 0.1, 1 / 3, 1e-30, 3e30):
    cam = np.full((13, 5), value, np.float32)
    hit, near, inside = ours(cam, mask, mask)
    assert hit == 1.0
    assert near == inside == pytest.approx(1 / mask.size, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_empty_maps_count_as_uniform(value):
  rng = np.random.default_rng(2)
  for mask in objects(rng, 33, 21).values():
    near = geometry.dilate(mask, TOLERANCE)
    empty = ours(np.full((4, 3), value, np.float32), mask, near)
    assert empty == ours(np.ones((4, 3), np.float32), mask, near)
    assert np.isfinite(empty).all()
    assert empty[2] == pytest.approx(mask.mean(), abs=1e-6)


def test_many_pairs_at_once_are_each_alone():
  rng = np.random.default_rng(4)
  masks = list(objects(rng, 30, 44).values())
  cams = rng.random((len(masks), 6, 5)).astype(np.float32)
  annotated = [
    on_device(geometry.on_grid(mask, geometry.dilate(mask, 3.0), (6, 5)))
    for mask in masks
  ]
  stacked = metrics.GridAnnotation(
    *(jnp.stack(parts) for parts in zip(*annotated, strict=True))
  )
  together = metrics.grid_pointing_game(jnp.asarray(cams), stacked)
  for cam, one, hit in zip(cams, annotated, together, strict=True):
    assert metrics.grid_pointing_game(jnp.asarray(cam), one) == hit
