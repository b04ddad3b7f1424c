"""Map metrics against brute force: explicit distances, explicit loops."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from gc_jax.method import metrics

SIZES = [(17, 23), (31, 8), (1, 40)]
# Compiled whole: op by op, the disc of 29 rows would take seconds.
dilate = jax.jit(metrics.dilate, static_argnums=1)
draw_game = jax.jit(metrics.stochastic_pointing_game, static_argnums=3)
TOLERANCES = [1.0, 2.5, 4.286, 15.0]  # 4.286: 15 px at 224, at 64


def random_masks(height, width, count=6, seed=0):
  """Sparse, so that the dilated ones stay partial: [count H W]."""
  rng = np.random.default_rng(seed)
  masks = rng.random((count, height, width)) < 2 / (height * width)
  masks[0] = False
  masks[1] = True
  return masks


def random_maps(height, width, count=6, seed=0):
  rng = np.random.default_rng(seed)
  return rng.random((count, height, width)).astype(np.float32) ** 8


def test_a_map_of_half_precision_scores_as_any_other():
  """Its sum is above 65,504, the largest number of the type."""
  cam = 10 * random_maps(224, 224, 2)
  cam[:, 112:] = 0
  half = jnp.asarray(cam, jnp.float16)
  assert not metrics.is_empty(half).any()
  upper = jnp.zeros((2, 224, 224), bool).at[:, :112].set(True)
  np.testing.assert_allclose(metrics.content_heatmap(half, upper), 1.0)


def brute_dilate(mask, tolerance):
  """Min over m in mask of |m - p|^2 < tolerance^2, pixel by pixel."""
  dilated = np.zeros_like(mask)
  points = np.argwhere(mask)
  for p in np.ndindex(mask.shape) if len(points) else ():
    nearest = ((points - p) ** 2).sum(1).min()
    dilated[p] = nearest < tolerance**2
  return dilated


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_dilate_is_every_pixel_nearer_than_the_tolerance(size, tolerance):
  masks = random_masks(*size)
  np.testing.assert_array_equal(
    dilate(jnp.asarray(masks), tolerance),
    [brute_dilate(mask, tolerance) for mask in masks],
  )


def test_at_tolerance_15_distance_14_hits_and_15_misses():
  """Also off the axes: 9-12 is 15 away, 10-11 is 14.9."""
  mask = jnp.zeros((41, 41), bool).at[20, 20].set(True)
  dilated = dilate(mask, 15.0)
  for dy, dx in ((0, 14), (14, 0), (10, 11)):
    assert dilated[20 + dy, 20 + dx] and dilated[20 - dy, 20 - dx]
  for dy, dx in ((0, 15), (15, 0), (9, 12)):
    assert not (dilated[20 + dy, 20 + dx] or dilated[20 - dy, 20 - dx])
  for dy, dx in ((0, 14), (0, 15)):
    cam = jnp.zeros((41, 41)).at[20 + dy, 20 + dx].set(1.0)
    assert metrics.pointing_game(cam, dilated) == (dx == 14)


@pytest.mark.parametrize("size", SIZES)
def test_pointing_and_mass_against_brute_force(size):
  masks, maps = random_masks(*size), random_maps(*size)
  dilated = np.stack([brute_dilate(mask, 2.5) for mask in masks])
  assert 0 < dilated[2:].mean() < 0.9
  cam = metrics.as_distribution(jnp.asarray(maps))
  pointing, content = [], []
  for values, mask, near in zip(maps, masks, dilated, strict=True):
    (best,) = np.argwhere(values == values.max())
    pointing.append(float(near[tuple(best)]))
    share = values.astype(np.float64) / values.sum(dtype=np.float64)
    content.append(sum(share[p] for p in np.ndindex(*size) if mask[p]))
  np.testing.assert_array_equal(
    metrics.pointing_game(cam, jnp.asarray(dilated)), pointing
  )
  # Float32 sums of some 400 cells.
  np.testing.assert_allclose(
    metrics.content_heatmap(cam, jnp.asarray(masks)), content, atol=2e-6
  )


def test_of_equal_maxima_the_first_points():
  cam = jnp.zeros((3, 4)).at[1, 3].set(1.0).at[2, 0].set(1.0)
  hit = jnp.zeros((3, 4), bool)
  assert metrics.pointing_game(cam, hit.at[1, 3].set(True)) == 1
  assert metrics.pointing_game(cam, hit.at[2, 0].set(True)) == 0


@pytest.mark.parametrize("size", SIZES)
def test_the_stochastic_game_approaches_its_exact_expectation(size):
  masks, maps = random_masks(*size, seed=1), random_maps(*size, seed=1)
  cam = metrics.as_distribution(jnp.asarray(maps))
  near = dilate(jnp.asarray(masks), 2.5)
  num_samples = 20_000
  share = draw_game(jax.random.key(0), cam, near, num_samples)
  exact = np.asarray(metrics.content_heatmap(cam, near))
  assert np.ptp(exact[2:]) > 0.1
  # Four standard errors; 1e-6 for where the expectation is 0 or 1.
  error = np.sqrt(np.clip(exact * (1 - exact), 0, 1) / num_samples)
  assert (np.abs(share - exact) <= 4 * error + 1e-6).all()


def test_not_even_the_lowest_draw_falls_on_a_cell_without_mass(monkeypatch):
  lowest = lambda _, *of: jnp.zeros(*of)
  monkeypatch.setattr(jax.random, "uniform", lowest)
  cam = jnp.array([[0.0, 0.0], [1.0, 0.0]])
  hits = metrics.stochastic_pointing_game(jax.random.key(0), cam, cam > 0, 3)
  assert hits == 1


EMPTY = {
  "zero": np.zeros((7, 9)),
  "nan": np.full((7, 9), np.nan),
  "one nan": np.where(np.arange(63).reshape(7, 9) == 5, np.nan, 1.0),
  "infinite": np.full((7, 9), np.inf),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_map_counts_and_scores_as_the_uniform_one(name):
  cam = jnp.asarray(EMPTY[name], jnp.float32)
  assert metrics.is_empty(cam)
  np.testing.assert_array_equal(
    metrics.as_distribution(cam), np.full((7, 9), 1 / 63, np.float32)
  )


def test_a_constant_map_is_uniform_but_not_empty():
  for value in (1e-30, 1.0, 1e30):
    cam = jnp.full((7, 9), value)
    assert not metrics.is_empty(cam)
    np.testing.assert_allclose(metrics.as_distribution(cam), 1 / 63, rtol=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_every_metric_is_defined_on_empty_and_full_masks(full):
  mask = jnp.full((7, 9), full)
  dilated = dilate(mask, 3.0)
  np.testing.assert_array_equal(dilated, mask)
  maps = [*EMPTY.values(), np.ones((7, 9)), np.eye(7, 9)]
  cam = metrics.as_distribution(jnp.asarray(np.stack(maps), jnp.float32))
  masks = jnp.broadcast_to(mask, cam.shape)
  for value in (
    metrics.pointing_game(cam, masks),
    metrics.content_heatmap(cam, masks),
    draw_game(jax.random.key(0), cam, masks, 50),
  ):
    np.testing.assert_allclose(value, float(full), atol=1e-6)


def bilinear(cam, height, width):
  """Pixel centres at (i + 1/2) / size; the border is repeated."""
  h, w = cam.shape
  enlarged = np.empty((height, width))
  for i, j in np.ndindex(height, width):
    y = np.clip((i + 0.5) * h / height - 0.5, 0, h - 1)
    x = np.clip((j + 0.5) * w / width - 0.5, 0, w - 1)
    top, left = int(y), int(x)
    below, right = min(top + 1, h - 1), min(left + 1, w - 1)
    upper = cam[top, left] * (1 - x % 1) + cam[top, right] * (x % 1)
    lower = cam[below, left] * (1 - x % 1) + cam[below, right] * (x % 1)
    enlarged[i, j] = upper * (1 - y % 1) + lower * (y % 1)
  return enlarged


@pytest.mark.parametrize("size", [(28, 28), (15, 22), (5, 3)])
def test_upsample_is_bilinear_about_pixel_centres(size):
  """At 5x3 it shrinks: there, too, without smoothing first."""
  cam = np.random.default_rng(0).random((2, 7, 7)).astype(np.float32)
  np.testing.assert_allclose(
    metrics.upsample(jnp.asarray(cam), *size),
    [bilinear(plane, *size) for plane in cam],
    atol=2e-6,  # float32 weights
  )


@pytest.mark.parametrize("size", [(6, 10), (13, 13), (4, 5)])
def test_the_negative_quadrants_heatmap_is_the_mass_elsewhere(size):
  """The middle of an odd grid (AlexNet's 13x13) belongs to both sides.

  By halves of cells, in a loop.
  """
  cam = np.random.default_rng(0).random(size).astype(np.float32)
  cam /= cam.sum()
  rows, columns = (
    [
      (max(0, min(1, n / 2 - i)), max(0, min(1, i + 1 - n / 2)))
      for i in range(n)
    ]
    for n in size
  )
  for cell in range(4):
    own = sum(
      cam[i, j] * rows[i][cell // 2] * columns[j][cell % 2]
      for i, j in np.ndindex(*size)
    )
    negative = metrics.negative_quadrants_heatmap(
      jnp.asarray(cam), jnp.asarray(cell)
    )
    assert float(negative) == pytest.approx(1 - own, abs=1e-6)
  uniform = jnp.full(size, 1 / (size[0] * size[1]))
  negative = metrics.negative_quadrants_heatmap(uniform, jnp.asarray(2))
  assert float(negative) == pytest.approx(0.75, abs=1e-6)


def test_maps_of_any_scale_and_masks_of_any_type_score_the_same():
  maps = jnp.asarray(random_maps(6, 8))
  masks = jnp.asarray(random_maps(6, 8, seed=1) > 0.01)
  key, cell = jax.random.key(0), jnp.arange(6) % 4
  bytes_ = masks.astype(jnp.uint8) * 255

  def scores(cam, mask):
    near = metrics.dilate(mask, 2.0)
    return {
      "content": metrics.content_heatmap(cam, mask),
      "near": metrics.content_heatmap(cam, near),
      "point": metrics.pointing_game(cam, mask),
      "points": metrics.stochastic_pointing_game(key, cam, mask, 5),
      "negative": metrics.negative_quadrants_heatmap(cam, cell),
    }

  expected = scores(metrics.as_distribution(maps), masks)
  assert all(0 < v.mean() < 1 for v in expected.values())
  for cam, mask in ((7 * maps, masks), (maps, bytes_), (maps, bytes_ / 255)):
    found = scores(cam, mask)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected
    )


def test_maps_and_masks_of_unlike_shapes_are_refused(monkeypatch):
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  maps, masks = jnp.ones((3, 6, 8)), jnp.ones((3, 6, 8), bool)
  for wrong in (masks[:, None], masks[:, :4], masks[0]):
    for score in (metrics.pointing_game, metrics.content_heatmap):
      with pytest.raises(ValueError, match="must have one shape; cam has"):
        score(maps, wrong)
  with pytest.raises(ValueError, match="cell must be one for each map"):
    metrics.negative_quadrants_heatmap(maps, jnp.asarray(0))


def test_of_no_maps_there_are_no_scores():
  maps, masks = jnp.ones((0, 6, 8)), jnp.ones((0, 6, 8), bool)
  for found in (
    metrics.negative_quadrants_heatmap(maps, jnp.zeros(0, int)),
    metrics.pointing_game(maps, masks),
    metrics.content_heatmap(maps, masks),
    metrics.stochastic_pointing_game(jax.random.key(0), maps, masks, 3),
    metrics.dilate(masks, 2.0)[:, 0, 0],
  ):
    assert found.shape == (0,)
