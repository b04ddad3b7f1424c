"""Grad-CAM and its relatives of a whole model: closed and published forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.attribution import METHODS, taps
from gc_jax.method import cam as cams
from gc_jax.models import pure_head

TARGETS = jnp.array([[3, 0], [7, 7]])


def pixels():
  values = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3))
  return jnp.asarray(values, jnp.uint8)


@pytest.fixture(scope="module", params=["average", "max"])
def model(request, make_tiny):
  net = make_tiny(request.param)
  # Statistics of pixels, so that some maps are not empty.
  net.train()
  net.features(net.normalize(pixels()))
  net.eval()
  return net


@pytest.mark.parametrize("method", ["gradcam", "gradcam_elementwise"])
def test_maps_are_the_closed_form_on_the_models_own_features(model, method):
  maps = METHODS[method](model, pixels(), TARGETS)
  features = np.asarray(model.features(model.normalize(pixels())))
  weights = np.asarray(model.fc.kernel[...])[:, TARGETS]  # [D B P]
  if (method, model.pooling) == ("gradcam_elementwise", "max"):
    cells = features.reshape(2, 16, 8)
    at_maxima = np.eye(16)[cells.argmax(1)]  # [B D hw]
    features = (cells * at_maxima.swapaxes(1, 2)).reshape(features.shape) * 16
  expected = np.einsum("dbp,bhwd->bphw", weights, features).clip(0) / 16
  assert maps.dtype == jnp.float32 and maps.shape == (2, 2, 4, 4)
  assert expected.max() > 0.01
  # The trunk in another order of float32 operations, then 8 terms.
  np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-5)


class Published(nnx.Module):
  """A convolution of ones with biases -50 and -75, a ReLU, a linear row.

  The net of captum's public test of Grad-CAM; its input is arange(16), here in
  the red channel. Windows sum to 45 54 81 90. The features are taken before the
  ReLU or after it.
  """

  def __init__(self, after_relu):
    self.after_relu = after_relu

  def normalize(self, images):
    return images

  def features(self, images):
    window = jax.lax.reduce_window(
      images[..., :1], 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID"
    )
    activations = jnp.concatenate([window - 50, window - 75], -1)
    return nnx.relu(activations) if self.after_relu else activations

  def classify(self, features, key=None):
    # Flattened channel by channel: 1 1 1 1 | 1 -1 -1 -1.
    weights = jnp.array([[1.0, 1, 1, 1], [1, -1, -1, -1]]).reshape(2, 2, 2)
    features = features if self.after_relu else nnx.relu(features)
    score = (features.transpose(0, 3, 1, 2) * weights[None]).sum((1, 2, 3))
    return score[:, None]


# After the ReLU, activations are 0 4 31 40 and 0 0 6 15, gradients 1 1 1 1 and
# 1 -1 -1 -1.
@pytest.mark.parametrize(
  ("method", "after_relu", "expected"),
  [
    ("gradcam", False, [[11.25, 13.5], [20.25, 22.5]]),
    ("gradcam", True, [[0, 4], [28, 32.5]]),
    ("gradcam_elementwise", False, [[0, 4], [25, 25]]),
    ("gradcam_elementwise", True, [[0, 4], [25, 25]]),
  ],
)
def test_published_values_are_met(method, after_relu, expected):
  red = jnp.arange(16.0).reshape(1, 4, 4, 1)
  images = jnp.pad(red, ((0, 0), (0, 0), (0, 0), (0, 2)))
  target = jnp.zeros((1, 1), int)
  found = METHODS[method](Published(after_relu), images, target)
  np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["gradcam_plus_plus", "layercam"])
def test_relatives_are_their_equations(model, method):
  """In numpy, from the features and the gradients at them."""
  features = model.features(model.normalize(pixels()))
  g = cams.class_gradients(pure_head(model), features, TARGETS)
  g, features = np.asarray(g, np.float64), np.asarray(features, np.float64)
  found = METHODS[method](model, pixels(), TARGETS)
  for image, place in np.ndindex(2, 2):
    a, grad = features[image], g[image, place]
    if method == "layercam":
      expected = (np.maximum(grad, 0) * a).sum(-1)
    else:
      below = 2 * grad**2 + grad**3 * a.sum((0, 1))
      alpha = np.divide(
        grad**2, below, out=np.zeros_like(grad), where=below != 0
      )
      weights = (alpha * np.maximum(grad, 0)).sum((0, 1))
      expected = np.maximum((weights * a).sum(-1), 0)
    np.testing.assert_allclose(
      found[image, place], expected, rtol=1e-3, atol=1e-5
    )


def test_an_inner_layers_map_is_its_gradients_weighing_it(make_tiny):
  """The same as cutting the net there, and calling the rest its head."""
  model = make_tiny("max")
  model.eval()
  seen = []
  tap = lambda x: (seen.append(x), x)[1]
  taps.tapped_features(model, {"maxpool": tap})(model.normalize(pixels()))
  rest = lambda x: model.classify(model.layer1[0](x))
  gradients = cams.class_gradients(rest, seen[0], TARGETS)
  expected = cams.elementwise_grad_cam(seen[0][:, None], gradients)
  found = METHODS["gradcam_elementwise"](
    model, pixels(), TARGETS, layer="maxpool"
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
