"""Gradients at the pixels: by hand, and what their integral sums to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.attribution import gradients
from gc_jax.models.pixels import RGB_MEAN, RGB_STD, normalize_pixels

TARGETS = jnp.array([[1, 4], [3, 0]])


class Linear(nnx.Module):
  """Logits linear in the normalised pixels, weights of any sign."""

  def __init__(self):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 5, 3, 6)).astype(np.float32)
    self.weights = nnx.Param(jnp.asarray(weights))

  def normalize(self, images):
    return normalize_pixels(images)

  def features(self, images):
    return images

  def classify(self, features):
    return jnp.einsum("bhwc,hwck->bk", features, self.weights[...])


def pixels(height=16, width=16):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.integers(0, 256, (2, height, width, 3), np.uint8))


def weights_of(target):
  """Returns d logit / d pixel of the linear model."""
  std = np.array(RGB_STD)
  return np.asarray(Linear().weights[...])[..., target] / std


def test_a_linear_models_gradients_are_its_weights():
  for method in (gradients.input_gradients, gradients.smoothgrad):
    found = method(Linear(), pixels(4, 5), TARGETS)
    for image, place in np.ndindex(2, 2):
      expected = np.abs(weights_of(TARGETS[image, place])).sum(-1)
      np.testing.assert_allclose(found[image, place], expected, rtol=1e-5)


class Quadratic(Linear):
  """Logits that are weighted sums of squares: gradients change on the way."""

  def features(self, images):
    return images**2


@pytest.mark.parametrize("steps", [1, 5])
def test_midpoints_integrate_a_square_exactly(steps):
  """Any other point of each part would miss it by 1 / steps."""
  found = gradients.attributions(
    Quadratic(), pixels(4, 5), TARGETS, steps=steps
  )
  squares = np.asarray(normalize_pixels(pixels(4, 5))) ** 2
  weights = np.asarray(Quadratic().weights[...])
  expected = np.moveaxis(weights[..., TARGETS], (3, 4), (0, 1))
  expected = expected * squares[:, None]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  cam = gradients.integrated_gradients(
    Quadratic(), pixels(4, 5), TARGETS, steps=steps
  )
  np.testing.assert_allclose(
    cam, np.abs(expected.sum(-1)), rtol=1e-4, atol=1e-5
  )


def test_the_noise_is_in_parts_of_each_pictures_range():
  """The smoothed gradient of a square is off by what the noise's mean is."""
  model = Quadratic()
  # Bright, so that noise turns no sign and the magnitude is linear in it.
  pattern = jnp.asarray(np.random.default_rng(0).random((1, 4, 5, 3)), float)
  off = []
  for contrast in (0.2, 0.1, 0.0):
    images = 0.7 + contrast * pattern
    smooth = gradients.smoothgrad(model, images, TARGETS[:1])
    plain = gradients.input_gradients(model, images, TARGETS[:1])
    off.append(np.asarray(smooth - plain))
  assert np.abs(off[0]).max() > 0.1
  # Differences of float32 numbers of about 50.
  np.testing.assert_allclose(off[0], 2 * off[1], rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(off[2], 0, atol=1e-4)


def test_no_steps_and_no_samples_are_refused():
  with pytest.raises(ValueError, match="steps must be at least 1; it is 0"):
    gradients.integrated_gradients(Linear(), pixels(4, 5), TARGETS, steps=0)
  with pytest.raises(ValueError, match="num_samples must be at least 1"):
    gradients.smoothgrad(Linear(), pixels(4, 5), TARGETS, num_samples=0)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_the_integral_sums_to_the_difference_of_the_scores(make_tiny, pooling):
  model = make_tiny(pooling)
  model.eval()
  found = gradients.attributions(model, pixels(), TARGETS, steps=300)
  grey = jnp.broadcast_to(jnp.array(RGB_MEAN), (2, 16, 16, 3))
  score = lambda images: jnp.take_along_axis(
    model.classify(model.features(model.normalize(images))), TARGETS, 1
  )
  difference = score(pixels()) - score(grey)
  # A net of ReLUs is linear in pieces: 300 midpoints miss few of the corners.
  np.testing.assert_allclose(
    found.sum((2, 3, 4)), difference, atol=0.01 * np.abs(difference).max()
  )


class Kinks(Linear):
  """Each class rises with the brightness from another place on the way."""

  def classify(self, features):
    white = normalize_pixels(jnp.ones((1, 1, 1, 3))).mean()
    starts = white * jnp.linspace(0, 0.9, 50)[None]
    return jax.nn.relu(features.mean((1, 2, 3))[:, None] - starts)


def test_the_default_steps_miss_less_than_a_percent_of_bent_scores():
  white = jnp.ones((1, 4, 5, 3))
  _, found, change = gradients.divide(Kinks(), white, jnp.arange(50)[None])
  assert change[0, 0] > 2 and (change > 0).all()
  assert np.abs(found - change).sum() < 0.01 * change.sum()


def test_without_noise_the_smoothed_gradient_is_the_plain_one(make_tiny):
  model = make_tiny()
  model.eval()
  plain = gradients.input_gradients(model, pixels(), TARGETS)
  smooth = gradients.smoothgrad(
    model, pixels(), TARGETS, sigma_frac=0.0, num_samples=3
  )
  np.testing.assert_allclose(smooth, plain, rtol=1e-4, atol=1e-6)
  noisy = functools.partial(gradients.smoothgrad, model, pixels(), TARGETS)
  assert np.abs(noisy() - plain).max() > 1e-3
  np.testing.assert_array_equal(noisy(), noisy())
  assert np.abs(noisy(key=jax.random.key(1)) - noisy()).max() > 1e-4


def test_a_smoothed_map_does_not_depend_on_the_pictures_beside_it(make_tiny):
  model = make_tiny()
  model.eval()
  smooth = functools.partial(gradients.smoothgrad, model, num_samples=2)
  two = jnp.concatenate([pixels()[:1, ::-1], pixels()[:1]])
  beside = smooth(two, jnp.array([[0], [3]]))[1]
  alone = smooth(two[1:], jnp.array([[3]]))[0]
  np.testing.assert_allclose(beside, alone, rtol=1e-3, atol=1e-5)
