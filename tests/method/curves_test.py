"""Insertion and deletion of nets that look at one place."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.method import curves, metrics

SIDE = 8


def one_pixel(pixels):
  """Class 0 by far while pixel (2, 3) is bright."""
  score = jnp.where(pixels[:, 2, 3, 0] > 0.7, 50.0, -50.0)
  return jnp.stack([score, -score], 1)


def picture():
  """Dark, but for the pixel."""
  image = np.zeros((1, SIDE, SIDE, 3), np.float32)
  image[0, 2, 3] = 1.0
  return jnp.asarray(image)


def peak_at(row, column):
  """A map of the picture's size whose cells fall off from a place."""
  y, x = np.indices((SIDE, SIDE))
  return jnp.asarray(
    1 / (1.0 + (y - row) ** 2 + (x - column) ** 2), jnp.float32
  )


def curves_of(cams, num_steps=SIDE * SIDE, kinds=curves.KINDS):
  fractions, found = curves.curves(
    lambda pixels: nnx.softmax(one_pixel(pixels)),
    picture(),
    0.5 + jnp.zeros_like(picture()),
    jnp.array([[0, 0][: len(cams)]]),
    jnp.stack(cams)[None],
    num_steps=num_steps,
    kinds=kinds,
  )
  return (fractions, *(found[kind] for kind in kinds))


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_every_point_is_the_score_of_its_picture(num_steps):
  """Two maps of two pictures, against pictures put together one by one."""
  rng = np.random.default_rng(1)
  images = jnp.asarray(rng.random((2, 16, 16, 3)), jnp.float32)
  targets = jnp.array([[1, 2], [0, 1]])
  cams = jnp.asarray(rng.random((2, 2, 16, 16)), jnp.float32)
  weights = jnp.asarray(rng.normal(size=(16, 16, 3, 3)), jnp.float32)
  scores = lambda x: nnx.softmax(jnp.einsum("bhwc,hwck->bk", x, weights))
  grey = jnp.broadcast_to(jnp.array([0.2, 0.3, 0.4]), images.shape)
  _, found = run = curves.curves(
    scores, images, grey, targets, cams, num_steps=num_steps
  )
  blurred = curves._blurred(images)
  for i, p, s in np.ndindex(2, 2, num_steps + 1):
    order = np.argsort(-cams[i, p].ravel(), kind="stable")
    changed = np.zeros(256, bool)
    changed[order[: 256 * s // num_steps]] = True
    changed = changed.reshape(16, 16, 1)
    assert run[0][s] == changed.mean()
    for kind, before, after in (
      ("insertion", blurred, images),
      ("deletion", images, grey),
    ):
      shown = jnp.where(changed, after[i], before[i])[None]
      expected = scores(shown)[0, targets[i, p]]
      np.testing.assert_allclose(found[kind][i, p, s], expected, rtol=1e-4)


def test_pictures_that_all_maps_share_are_scored_once():
  pictures, places = curves._pictures(3, np.array([0, 10, 20, 30]))
  # Blurred, clean and grey, and for each map two points of either curve.
  assert len(np.unique(pictures, axis=0)) == len(pictures) == 3 + 3 * 2 * 2
  assert places.shape == (2, 3, 4)


def test_one_kind_alone_is_what_it_is_beside_the_other():
  cams = [peak_at(2, 3), peak_at(5, 5)]
  _, *both = curves_of(cams, num_steps=6)
  for kind, expected in zip(curves.KINDS, both, strict=True):
    (_, found) = curves_of(cams, num_steps=6, kinds=(kind,))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3, np.nan])
def test_maps_without_an_order_go_row_by_row(value):
  """Pixel (2, 3) is then the 20th of 64."""
  cam = jnp.full((SIDE, SIDE), value, jnp.float32)
  _, insertion, _ = curves_of([cam])
  np.testing.assert_allclose(insertion[0, 0], [0] * 20 + [1] * 45, atol=1e-6)


def test_small_maps_are_enlarged_first():
  small = jnp.asarray(np.random.default_rng(0).random((2, 4, 4)), jnp.float32)
  large = curves.enlarged(small, SIDE, SIDE)
  expected = metrics.upsample(metrics.as_distribution(small), SIDE, SIDE)
  np.testing.assert_allclose(large, expected, rtol=1e-6)
  ours, theirs = curves_of([small[0]])[1], curves_of([large[0]])[1]
  np.testing.assert_array_equal(ours, theirs)


def test_the_blur_hides_detail_and_keeps_flat_parts():
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.random((1, 32, 32, 3)), jnp.float32)
  blurred = curves._blurred(images)
  assert blurred.std() < 0.2 * images.std()
  flat = jnp.full((1, 32, 24, 3), 0.3)
  np.testing.assert_allclose(curves._blurred(flat), flat, rtol=1e-5)
