"""Excitation backprop: conservation, closed forms, and PyTorch by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from gc_jax import models
from gc_jax.attribution import excitation, taps
from gc_jax.models.network import normalize_pixels
from tests.attribution import torch_excitation, twins

NUM_CLASSES = 5
TARGETS = jnp.array([[1, 4], [3, 0]])


def pixels(size, count=2):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.integers(0, 256, (count, size, size, 3), np.uint8))


def jitted(function, model, *names):
  """A method with the model's variables as arguments, the names fixed."""
  graphdef, state = nnx.split(model)
  run = jax.jit(
    lambda state, images, targets: function(
      nnx.merge(graphdef, state), images, targets, *names
    )
  )
  return functools.partial(run, state)


def made(name, num_classes=NUM_CLASSES):
  model = models.create(name, num_classes)
  model.eval()
  return model


@pytest.mark.parametrize("pooling", ["", "-gmp"])
@pytest.mark.parametrize(
  "name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.large)]
)
def test_without_contrast_every_layer_holds_all_the_probability(name, pooling):
  """At the layer of the map and the one below."""
  model = made(name + pooling)
  run = jitted(
    lambda model, *args: [
      excitation.propagated(model, *args, layer)[0].sum((-3, -2, -1))
      for layer in ("layer3", "layer2")
    ],
    model,
  )
  for total in run(pixels(64), TARGETS):
    np.testing.assert_allclose(total, 1, atol=1e-5)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_at_the_classifier_it_is_the_closed_form(make_tiny, pooling):
  """d_c A_c / sum A_c under the average, d_c at the maximum under that."""
  model = make_tiny(pooling, NUM_CLASSES)
  model.eval()
  images = pixels(16)
  signed, difference = excitation.propagated(
    model, images, TARGETS, "layer1", True
  )
  features = np.asarray(model.features(model.normalize(images)), np.float64)
  cells = features.reshape(2, -1, features.shape[-1])
  if pooling == "average":
    pooled = cells.mean(1)
    share = cells / np.maximum(cells.sum(1, keepdims=True), 1e-30)
  else:
    pooled = cells.max(1)
    first = cells.argmax(1)[:, None]
    share = (np.arange(cells.shape[1])[None, :, None] == first) * (pooled > 0)[
      :, None
    ]
  weights = np.asarray(model.fc.kernel[...], np.float64)  # [D K]
  for image, place in np.ndindex(TARGETS.shape):
    w, a = weights[:, TARGETS[image, place]], pooled[image]
    up, down = a * np.maximum(w, 0), a * np.maximum(-w, 0)
    d = up / up.sum() - down / down.sum()
    np.testing.assert_allclose(difference[image, place], d, atol=1e-6)
    expected = (d * share[image]).reshape(features.shape[1:])
    np.testing.assert_allclose(signed[image, place], expected, atol=1e-6)


@pytest.mark.parametrize("contrast", [False, True])
@pytest.mark.parametrize(
  "name",
  [
    *("resnet18", "resnet18-gmp", "alexnet"),
    pytest.param("resnet50", marks=pytest.mark.large),
  ],
)
def test_maps_are_those_of_pytorch_by_hand(name, contrast):
  narrow = {"hidden": 64} if name == "alexnet" else {"width": 8}
  model, twin = twins.pair(name, NUM_CLASSES, **narrow)
  images = pixels(96 if name == "alexnet" else 64)
  layer = excitation.default_layer(model)
  ours = jitted(excitation.propagated, model, layer, contrast)(images, TARGETS)
  ours = np.asarray(ours[0])

  x = torch.from_numpy(np.array(normalize_pixels(images)).transpose(0, 3, 1, 2))
  by_hand = (
    torch_excitation.alexnet if name == "alexnet" else torch_excitation.resnet
  )
  stage = 5 if name == "alexnet" else 3  # features.5, layer3
  for place in range(2):
    target = torch.from_numpy(np.array(TARGETS[:, place], np.int64))
    down = lambda contrasts, target=target: (
      by_hand(twin, x, target, stage, contrasts).numpy().transpose(0, 2, 3, 1)
    )
    # The contrast is a small difference of such probabilities.
    scale = np.abs(down(False)).max(), down(False).sum(-1).max()
    theirs = down(contrast)
    near(ours[:, place], theirs, scale[0])
    near(
      *(np.maximum(p.sum(-1), 0) for p in (ours[:, place], theirs)), scale[1]
    )


def near(ours, theirs, scale):
  np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet8-small", "squeezenet1_1", "vgg16"])
def test_with_contrast_nothing_is_left_in_sum(name, small_perceptrons):
  run = jitted(excitation.propagated, made(name), None, True)
  signed, difference = run(pixels(64), TARGETS)
  assert np.abs(signed).max() > 0
  for values in (signed, difference):
    total = values.reshape(2, 2, -1).sum(-1)
    np.testing.assert_allclose(total, 0, atol=1e-5)


def test_maps_are_sums_over_channels_cut_at_zero(make_tiny):
  model = make_tiny("max", NUM_CLASSES)
  model.eval()
  for method, contrast in (
    (excitation.excitation_backprop, False),
    (excitation.cmwp, True),
  ):
    signed, _ = excitation.propagated(
      model, pixels(16), TARGETS, None, contrast
    )
    expected = np.maximum(np.asarray(signed).sum(-1), 0)
    found = method(model, pixels(16), TARGETS)
    assert found.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_several_classes_are_each_alone_and_one_logit_will_do(make_tiny):
  model = make_tiny("average", NUM_CLASSES)
  model.eval()
  both = excitation.cmwp(model, pixels(16), TARGETS)
  for place in range(2):
    alone = excitation.cmwp(model, pixels(16), TARGETS[:, place : place + 1])
    np.testing.assert_allclose(both[:, place], alone[:, 0], atol=1e-6)
  single = make_tiny("average", 1)
  single.eval()
  found = excitation.cmwp(single, pixels(16), jnp.zeros((2, 1), int))
  assert found.shape == (2, 1, 4, 4) and found.max() > 0


def test_maps_are_float32_and_finite_whatever_the_model(make_tiny):
  model = make_tiny("max", NUM_CLASSES, dtype=jnp.bfloat16)
  model.eval()
  images = pixels(16).at[0].set(0)
  for method in (excitation.excitation_backprop, excitation.cmwp):
    found = method(model, images, TARGETS)
    assert found.dtype == jnp.float32
    assert jnp.isfinite(found).all()
  assert model.dtype == jnp.bfloat16  # left as it was


def test_the_default_layers_are_the_releases(small_perceptrons):
  assert excitation.default_layer(made("resnet18")) == "layer3"
  assert excitation.default_layer(made("vgg16")) == "features.23"
  for name in ("alexnet", "squeezenet1_1", "resnet8-small"):
    model = made(name)
    assert excitation.default_layer(model) in taps.layers(model)


def test_layers_that_cannot_be_are_named(make_tiny):
  model = made("resnet8-small")
  with pytest.raises(ValueError, match="layer must be one of maxpool, layer1"):
    excitation.cmwp(model, pixels(16), TARGETS, layer="layer7")
