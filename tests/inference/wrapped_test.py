"""Insertion and deletion of users' nets: exact values, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gc_jax

SIDE = 8


def one_pixel():
  """A net of class 0 by far while pixel (2, 3) is bright, else of class 1."""

  def run(images, tap):
    score = jnp.where(tap(images)[:, 2, 3, 0] > 0.7, 50.0, -50.0)
    return jnp.stack([score, -score], 1)

  return gc_jax.wrap(run)


def pictures():
  """Two dark pictures, but for the pixel."""
  images = np.zeros((2, SIDE, SIDE, 3), np.float32)
  images[:, 2, 3] = 1.0
  return jnp.asarray(images)


def first_and_last():
  """Maps whose pixel (2, 3) is the brightest, and the darkest."""
  y, x = np.indices((SIDE, SIDE))
  peak = 1 / (1.0 + (y - 2) ** 2 + (x - 3) ** 2)
  return jnp.asarray(np.stack([peak, 2 - peak]), jnp.float32)


ALL = SIDE * SIDE  # each pixel a step


@pytest.mark.parametrize("jitted", [False, True])
def test_areas_of_a_net_that_sees_one_pixel_are_exact(jitted):
  net = one_pixel()
  both = lambda images, maps: (
    gc_jax.insertion(net, images, [0, 0], maps, num_steps=ALL),
    gc_jax.deletion(net, images, [0, 0], maps, num_steps=ALL),
  )
  run = jax.jit(both) if jitted else both
  shown, hidden = run(pictures(), first_and_last())
  half = 1 / (2 * ALL)  # of a step, by the trapezoid rule
  np.testing.assert_allclose(shown, [1 - half, half], atol=1e-6)
  np.testing.assert_allclose(hidden, [half, 1 - half], atol=1e-6)


def test_what_covers_a_pixel_and_what_a_score_is_can_be_said():
  net, images, maps = one_pixel(), pictures(), first_and_last()
  for grey in (0.9, [0.9, 0.0, 0.0]):  # bright: nothing is ever hidden
    found = gc_jax.deletion(net, images, [0, 0], maps, grey=grey)
    np.testing.assert_allclose(found, 1, atol=1e-6)
  half = gc_jax.wrap(lambda x, tap: 0 * tap(x)[:, 0, 0, :2] + np.log(3))
  for multi_label, expected in ((False, 1 / 2), (True, 3 / 4)):
    found = gc_jax.insertion(
      half, images, [0, 1], maps, multi_label=multi_label
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_model_of_ours_covers_pixels_with_the_mean_colour(make_tiny):
  model = make_tiny("average")
  model.eval()
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
  maps = gc_jax.explain(model, images, [1, 2])
  grey = np.float32([[[0.485, 0.456, 0.406]]])
  # One step: from the picture to the mean colour.
  ends = [images / np.float32(255), np.broadcast_to(grey, images.shape)]
  scores = [jax.nn.softmax(gc_jax.predict(model, x)) for x in ends]
  expected = [
    (scores[0][i, c] + scores[1][i, c]) / 2 for i, c in ((0, 1), (1, 2))
  ]
  found = gc_jax.deletion(model, images, [1, 2], maps, num_steps=1)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
  ("labels", "maps", "settings", "message"),
  [
    ([0, 2], np.ones((2, 4, 4)), {}, r"labels must be in 0\.\.1.*; 2 is not"),
    ([0], np.ones((2, 4, 4)), {}, r"labels must be \[B\]"),
    ([[0], [1]], np.ones((2, 4, 4)), {}, r"labels must be \[B\], a class of"),
    ([0, 1], np.ones((1, 4, 4)), {}, r"maps must be \[B h w\].*\(1, 4, 4\)"),
    ([0, 1], np.ones((2, 1, 4, 4)), {}, r"maps must be \[B h w\]"),
    ([0, 1], np.ones((2, 4, 4), int), {}, "maps must be float; they are int"),
    ([0, 1], np.ones((2, 4, 4)), {"num_steps": 0}, "num_steps must be at lea"),
  ],
)
def test_wrong_arguments_are_named(labels, maps, settings, message):
  for measure in (gc_jax.insertion, gc_jax.deletion):
    with pytest.raises(ValueError, match=message):
      measure(one_pixel(), pictures(), labels, maps, **settings)
