"""Insertion and deletion of nets that look at one place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.evaluation import faithfulness
from gc_jax.method import metrics
from gc_jax.models.network import RGB_MEAN, normalize_pixels

SIDE = 8


class OnePixel(nnx.Module):
  """Class 0 by far while pixel (2, 3) is brighter than mean grey."""

  def normalize(self, images):
    return normalize_pixels(images)

  def features(self, images):
    return images

  def classify(self, features):
    bright = features[:, 2, 3, 0] > 0.5
    score = jnp.where(bright, 50.0, -50.0)
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


def curves(cams, targets=(0, 0), num_steps=SIDE * SIDE, multi_label=False):
  return faithfulness.curves(
    OnePixel(),
    picture(),
    jnp.array([targets[: len(cams)]]),
    jnp.stack(cams)[None],
    num_steps=num_steps,
    multi_label=multi_label,
  )


def test_a_perfect_map_inserts_and_deletes_the_pixel_first():
  fractions, insertion, deletion = curves([peak_at(2, 3), -peak_at(2, 3) + 2])
  np.testing.assert_allclose(fractions, np.arange(65) / 64)
  # By the map with the first pixel, by its opposite with the last.
  after_first, at_last = [0] + [1] * 64, [0] * 64 + [1]
  both = np.array([after_first, at_last])
  np.testing.assert_allclose(insertion[0], both, atol=1e-6)
  np.testing.assert_allclose(deletion[0], 1 - both, atol=1e-6)
  areas = faithfulness.area_under(fractions, insertion)
  np.testing.assert_allclose(areas[0], [1 - 1 / 128, 1 / 128], atol=1e-5)
  areas = faithfulness.area_under(fractions, deletion)
  np.testing.assert_allclose(areas[0], [1 / 128, 1 - 1 / 128], atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_every_point_is_the_score_of_its_picture(make_tiny, num_steps):
  """Two maps of two pictures, against pictures put together one by one."""
  net = make_tiny("average")
  net.eval()
  rng = np.random.default_rng(1)
  images = jnp.asarray(rng.random((2, 16, 16, 3)), jnp.float32)
  targets = jnp.array([[1, 2], [3, 4]])
  cams = jnp.asarray(rng.random((2, 2, 16, 16)), jnp.float32)
  fractions, *found = faithfulness.curves(
    net, images, targets, cams, num_steps=num_steps, multi_label=False
  )
  blurred = faithfulness._blurred(images)
  grey = jnp.broadcast_to(jnp.array(RGB_MEAN), images.shape)
  for i, p, s in np.ndindex(2, 2, num_steps + 1):
    order = np.argsort(-cams[i, p].ravel(), kind="stable")
    changed = np.zeros(256, bool)
    changed[order[: 256 * s // num_steps]] = True
    changed = changed.reshape(16, 16, 1)
    assert fractions[s] == changed.mean()
    for curve, before, after in zip(
      found, (blurred, images), (images, grey), strict=True
    ):
      shown = jnp.where(changed, after[i], before[i])[None]
      logits = net.classify(net.features(net.normalize(shown)))
      expected = jax.nn.softmax(logits)[0, targets[i, p]]
      np.testing.assert_allclose(curve[i, p, s], expected, rtol=1e-4)


def test_pictures_that_all_maps_share_are_scored_once():
  pictures, places = faithfulness._pictures(3, np.array([0, 10, 20, 30]))
  # Blurred, clean and grey, and for each map two points of either curve.
  assert len(np.unique(pictures, axis=0)) == len(pictures) == 3 + 3 * 2 * 2
  assert places.shape == (2, 3, 4)


def test_several_labels_are_scored_by_their_own_sigmoid():
  cams = [peak_at(2, 3)] * 2
  _, insertion, _ = curves(cams, (0, 1), num_steps=2, multi_label=True)
  np.testing.assert_allclose(insertion[0, :, -1], [1, 0], atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3, np.nan])
def test_maps_without_an_order_go_row_by_row(value):
  """Pixel (2, 3) is then the 20th of 64."""
  cam = jnp.full((SIDE, SIDE), value, jnp.float32)
  _, insertion, _ = curves([cam])
  np.testing.assert_allclose(insertion[0, 0], [0] * 20 + [1] * 45, atol=1e-6)


def test_small_maps_are_enlarged_first():
  small = jnp.asarray(np.random.default_rng(0).random((2, 4, 4)), jnp.float32)
  large = faithfulness.enlarged(small, SIDE, SIDE)
  expected = metrics.upsample(metrics.as_distribution(small), SIDE, SIDE)
  np.testing.assert_allclose(large, expected, rtol=1e-6)
  ours, theirs = curves([small[0]])[1], curves([large[0]])[1]
  np.testing.assert_array_equal(ours, theirs)


def test_the_blur_hides_detail_and_keeps_flat_parts():
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.random((1, 32, 32, 3)), jnp.float32)
  blurred = faithfulness._blurred(images)
  assert blurred.std() < 0.2 * images.std()
  flat = jnp.full((1, 32, 24, 3), 0.3)
  np.testing.assert_allclose(faithfulness._blurred(flat), flat, rtol=1e-5)
