"""Names of layers, and that a tap sees what the layer puts out."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax import models
from gc_jax.attribution import taps
from gc_jax.models.convolution import max_pool
from gc_jax.models.network import context_of


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.normal(size=(2, 64, 64, 3)).astype(np.float32))


def made(name):
  model = models.create(name, 3)
  model.eval()
  return model


def test_names_are_torchvisions(small_models):
  names = {
    name: [*taps.layers(made(name))]
    for name in (
      *("resnet18", "alexnet", "vgg16", "squeezenet1_1"),
      *("vit_tiny", "convnext_tiny"),
    )
  }
  assert names["vit_tiny"] == ["encoder.layers.encoder_layer_1.ln_1"]
  assert names["convnext_tiny"] == [f"features.{i}" for i in range(8)]
  assert names["resnet18"] == ["maxpool", *(f"layer{i}" for i in (1, 2, 3, 4))]
  assert names["alexnet"] == [f"features.{i}" for i in (2, 5, 7, 9, 12)]
  vgg = names["vgg16"]
  assert vgg[0] == "features.1" and vgg[-1] == "features.30"
  assert "features.23" in vgg  # pool4
  assert names["squeezenet1_1"][-1] == "features.12"


@pytest.mark.parametrize(
  "name",
  ["resnet8-small", "alexnet", "squeezenet1_1", "vit_tiny", "convnext_tiny"],
)
def test_what_a_tap_does_to_the_last_layer_is_seen(name, images, small_models):
  """What else the features hold for the head is let through as it is."""
  model = made(name)
  double = {taps.last_layer(model): lambda x: 2 * x}
  features = np.array(model.features(images))
  features[..., : features.shape[-1] - context_of(model)] *= 2
  np.testing.assert_allclose(
    taps.tapped_features(model, double)(images), features, rtol=1e-5, atol=1e-6
  )


def test_a_tap_sees_a_stages_output(images):
  model, seen = made("resnet8-small"), []
  tap = lambda x: (seen.append(x), x)[1]
  run = taps.tapped_features(model, {"layer1": tap})
  np.testing.assert_array_equal(run(images), model.features(images))
  x = nnx.relu(model.bn1(model.conv1(images)))
  x = max_pool(x, 3, 2, padding=1)
  np.testing.assert_array_equal(seen[0], model.layer1[0](x))


def test_a_tap_sees_a_poolings_output_and_what_it_returns_goes_on(
  images, small_models
):
  model, seen = made("alexnet"), []
  tap = lambda x: (seen.append(x), 0 * x)[1]
  out = taps.tapped_features(model, {"features.2": tap})(images)
  x = nnx.relu(model.trunk["0"](images))
  np.testing.assert_array_equal(seen[0], max_pool(x, 3, 2))
  np.testing.assert_array_equal(out[0], out[1])


def test_any_other_model_has_its_features():
  class Other(nnx.Module):
    def features(self, images):
      return images

  assert [*taps.layers(Other())] == ["features"]
  run = taps.tapped_features(Other(), {"features": lambda x: x + 1})
  np.testing.assert_array_equal(run(jnp.zeros((1, 2, 2, 3))), 1)
