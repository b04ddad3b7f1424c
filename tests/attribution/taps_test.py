"""Names of layers, and that a tap sees what the layer puts out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax import models
from gc_jax.attribution import taps
from gc_jax.models.convolution import max_pool


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.normal(size=(2, 64, 64, 3)).astype(np.float32))


def layer_names(model):
  return tuple(taps.layers(model))


def made(name):
  model = models.create(name, 3)
  model.eval()
  return model


def test_names_are_torchvisions(small_perceptrons):
  assert layer_names(made("resnet18")) == (
    "maxpool",
    "layer1",
    "layer2",
    "layer3",
    "layer4",
  )
  names = layer_names(made("vgg16"))
  assert names[0] == "features.1" and names[-1] == "features.30"
  assert "features.23" in names  # pool4
  assert layer_names(made("alexnet")) == (
    "features.2",
    "features.5",
    "features.7",
    "features.9",
    "features.12",
  )
  assert layer_names(made("squeezenet1_1"))[-1] == "features.12"


@pytest.mark.parametrize("name", ["resnet8-small", "alexnet", "squeezenet1_1"])
def test_what_a_tap_does_to_the_last_layer_is_seen(
  name, images, small_perceptrons
):
  model = made(name)
  last = layer_names(model)[-1]
  doubled = taps.tapped_features(model, {last: lambda x: 2 * x})
  np.testing.assert_allclose(
    doubled(images), 2 * model.features(images), rtol=1e-6
  )


def test_a_tap_sees_a_stages_output(images):
  model, seen = made("resnet8-small"), []
  run = taps.tapped_features(
    model, {"layer1": lambda x: (seen.append(x), x)[1]}
  )
  np.testing.assert_array_equal(run(images), model.features(images))
  x = nnx.relu(model.bn1(model.conv1(images)))
  x = max_pool(x, 3, 2, padding=1)
  np.testing.assert_array_equal(seen[0], model.layer1[0](x))


def test_a_tap_sees_a_poolings_output(images, small_perceptrons):
  model, seen = made("alexnet"), []
  run = taps.tapped_features(
    model, {"features.2": lambda x: (seen.append(x), 0 * x)[1]}
  )
  run(images)
  x = nnx.relu(model.trunk["0"](images))
  np.testing.assert_array_equal(seen[0], max_pool(x, 3, 2))
  # And what it returns goes on: from zeros, every picture looks the same.
  out = run(images)
  np.testing.assert_array_equal(out[0], out[1])


def test_a_tap_can_be_differentiated(images):
  """The gradient with respect to what is added is that of the layer."""
  model = made("resnet8-small")

  def score(offset):
    run = taps.tapped_features(model, {"layer1": lambda x: x + offset})
    return model.classify(run(images))[:, 0].sum()

  shape = (2, 16, 16, 32)
  gradient = jax.jit(jax.grad(score))(jnp.zeros(shape))
  direction = jnp.asarray(
    np.random.default_rng(1).normal(size=shape), jnp.float32
  )
  step = 1e-3
  slope = (score(step * direction) - score(-step * direction)) / (2 * step)
  np.testing.assert_allclose(slope, (gradient * direction).sum(), rtol=2e-2)


def test_an_unknown_layer_is_named_with_those_there_are():
  with pytest.raises(ValueError, match=r"maxpool, layer1.*Did you mean 'lay"):
    taps.input_path(made("resnet8-small"), "layer9")


def test_any_other_model_has_its_features():
  class Other(nnx.Module):
    def features(self, images):
      return images

  assert layer_names(Other()) == ("features",)
  run = taps.tapped_features(Other(), {"features": lambda x: x + 1})
  np.testing.assert_array_equal(run(jnp.zeros((1, 2, 2, 3))), 1)
