"""Grad-CAM of a whole model: pixels and classes in, maps out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax.attribution import METHODS

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


@functools.cache
def maps_of(model, method):
  graphdef, state = nnx.split(model)

  @jax.jit
  def explain(state, images, targets):
    net = nnx.merge(graphdef, state)
    return METHODS[method](net, images, targets)

  return functools.partial(explain, state)


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_the_closed_form_on_the_models_own_features(model, method):
  maps = maps_of(model, method)(pixels(), TARGETS)
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


@pytest.mark.parametrize("method", METHODS)
def test_bytes_and_fractions_give_the_same_map(model, method):
  explain = maps_of(model, method)
  fractions = pixels().astype(jnp.float32) / 255
  np.testing.assert_allclose(
    explain(fractions, TARGETS), explain(pixels(), TARGETS), atol=1e-5
  )


@pytest.mark.parametrize("method", METHODS)
def test_explaining_leaves_the_model_as_it_was(model, method):
  before = jax.tree.map(np.array, nnx.state(model))
  METHODS[method](model, pixels(), TARGETS)
  jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
