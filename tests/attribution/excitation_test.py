"""Excitation backprop: conservation, closed forms, and PyTorch by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from gc_jax import models
from gc_jax.attribution import METHODS, excitation
from gc_jax.attribution.programs import DoesNotHold
from gc_jax.attribution.wrapping import wrap
from gc_jax.models.pixels import normalize_pixels
from tests.attribution import torch_excitation, twins

NUM_CLASSES = 5
TARGETS = jnp.array([[1, 4], [3, 0]])


def pixels(size):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.integers(0, 256, (2, size, size, 3), np.uint8))


def propagated(model, size, **settings):
  run = functools.partial(excitation.propagated, **settings)
  return nnx.jit(run)(model, pixels(size), TARGETS)


def made(name):
  model = models.create(name, NUM_CLASSES)
  model.eval()
  return model


@pytest.mark.parametrize("pooling", ["", "-gmp"])
@pytest.mark.parametrize(
  "name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.large)]
)
def test_without_contrast_every_layer_holds_all_the_probability(name, pooling):
  """At the layer of the map and the one below."""
  for layer in ("layer3", "layer2"):
    signed, _ = propagated(made(name + pooling), 64, layer=layer)
    np.testing.assert_allclose(signed.sum((-3, -2, -1)), 1, atol=1e-5)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_at_the_classifier_it_is_the_closed_form(make_tiny, pooling):
  """d_c A_c / sum A_c under the average, d_c at the maximum under that."""
  model = make_tiny(pooling, NUM_CLASSES)
  model.eval()
  run = propagated(model, 16, layer="layer1", contrasts=True)
  signed, (difference,) = run
  cam = excitation.cmwp(model, pixels(16), TARGETS, layer="layer1")
  np.testing.assert_allclose(cam, signed.sum(-1).clip(0), atol=1e-6)
  features = model.features(model.normalize(pixels(16)))
  features = np.asarray(features, np.float64)
  cells = features.reshape(2, -1, features.shape[-1])
  if pooling == "average":
    pooled = cells.mean(1)
    share = cells / np.maximum(cells.sum(1, keepdims=True), 1e-30)
  else:
    pooled = cells.max(1)
    first = cells.argmax(1)[:, None]
    share = np.arange(cells.shape[1])[None, :, None] == first
    share = share * (pooled > 0)[:, None]
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
  size = 96 if name == "alexnet" else 64
  ours = np.asarray(propagated(model, size, contrasts=contrast)[0])

  x = np.array(normalize_pixels(pixels(size))).transpose(0, 3, 1, 2)
  by_hand = (
    torch_excitation.alexnet if name == "alexnet" else torch_excitation.resnet
  )
  stage = 5 if name == "alexnet" else 3  # features.5, layer3
  for place in range(2):
    target = torch.from_numpy(np.array(TARGETS[:, place], np.int64))
    plain, theirs = (
      by_hand(twin, torch.from_numpy(x), target, stage, contrasts).numpy()
      for contrasts in (False, contrast)
    )
    theirs = theirs.transpose(0, 2, 3, 1)
    # The contrast is a small difference of such probabilities.
    np.testing.assert_allclose(
      ours[:, place], theirs, rtol=0, atol=1e-4 * np.abs(plain).max()
    )
    np.testing.assert_allclose(
      ours[:, place].sum(-1).clip(0),
      theirs.sum(-1).clip(0),
      rtol=0,
      atol=1e-4 * plain.sum(1).max(),
    )


@pytest.mark.parametrize("name", ["resnet8-small", "squeezenet1_1", "vgg16"])
def test_with_contrast_nothing_is_left_in_sum(name, small_models):
  signed, (difference,) = propagated(made(name), 64, contrasts=True)
  assert np.abs(signed).max() > 0
  for values in (signed, difference):
    total = values.reshape(2, 2, -1).sum(-1)
    np.testing.assert_allclose(total, 0, atol=1e-5)


def test_the_default_layers_are_the_releases(small_models):
  for name, layer in {
    "resnet18": "layer3",
    "resnet8-small": "layer1",
    "vgg16": "features.23",
    "alexnet": "features.5",
    "squeezenet1_1": "features.8",
  }.items():
    assert excitation.default_layer(made(name)) == layer


def test_probability_passes_what_a_hard_tanh_cuts_off_above_alone():
  """A unit of 1 or more is excited, whatever it excites further; one of -1."""
  weights = jnp.ones((3, 5)) / 3
  net = wrap(lambda x, tap: nnx.hard_tanh(tap(x)).mean((1, 2)) @ weights)
  images = jnp.array([4.0, 0.5, -2.0])[None, None, None]
  run = METHODS["excitation_backprop"].explain
  signed, _ = excitation.propagated(net, images, jnp.array([[2]]))
  # 1, 0.5 and -1 excite: 2, 1 and -2 of a sum of 1; below -1, nothing passes.
  np.testing.assert_allclose(signed.ravel(), [2, 1, 0], rtol=1e-5)
  assert run(net, images, jnp.array([[2]])).shape == (1, 1, 1, 1)


def test_in_float16_what_excites_nothing_gets_nothing():
  weights = jnp.array([[1.0, -1.0], [1.0, -1.0]], jnp.float16)
  net = wrap(lambda x, tap: nnx.relu(tap(x)).mean((1, 2)) @ weights)
  images = jnp.ones((1, 2, 2, 2), jnp.float16).at[0, 0].set(0)
  for targets, expected in (([[0]], [0, 0, 0.5, 0.5]), ([[1]], [0] * 4)):
    found = METHODS["excitation_backprop"](net, images, jnp.array(targets))
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-3)


W = jax.random.normal(jax.random.key(0), (6, 4))
MEAN = jnp.full((4, 4), 1 / 16)
# One function of activations [B 4 4 6]: their mean, times W.
HEADS = {
  "of a mean": lambda x: x.mean((1, 2)) @ W,
  "side by side": lambda x: jnp.concatenate(
    [x.mean((1, 2)) @ W[:, :2], x.mean((1, 2)) @ W[:, 2:]], -1
  ),
  "in parts": lambda x: (
    x[..., :3].mean((1, 2)) @ W[:3] + x[..., 3:].mean((1, 2)) @ W[3:]
  ),
  "permuted": lambda x: (
    x.mean((1, 2)) @ W[:, ::-1] @ jnp.eye(4)[::-1]
  ),
  "of cells": lambda x: (x @ W).mean((1, 2)),
  "of cells, weighted": lambda x: jnp.einsum("bhwk,hw->bk", x @ W, MEAN),
  "classes first": lambda x: jax.vmap(lambda z: W.T @ z)(x.mean((1, 2))),
}  # fmt: skip


def activations():
  return nnx.relu(jax.random.normal(jax.random.key(1), (2, 4, 4, 6)))


@pytest.mark.parametrize("name", ["cmwp", "excitation_backprop"])
@pytest.mark.parametrize("head", HEADS)
def test_of_one_function_it_is_one_map_however_the_last_layer_is_written(
  head, name
):
  net = wrap(lambda x, tap: HEADS[head](nnx.relu(tap(x))))
  targets = jnp.array([[0, 3], [2, 1]])
  found = jax.jit(METHODS[name].explain)(net, activations(), targets)
  a = np.asarray(activations(), np.float64)[:, None]  # [B 1 h w D]
  w = np.asarray(W, np.float64).T[targets][:, :, None, None]
  share = lambda x: x / x.sum((2, 3, 4), keepdims=True)
  expected = share(a * w.clip(0))
  if name == "cmwp":
    expected = expected - share(a * (-w).clip(0))
  expected = expected.sum(-1).clip(0)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  missed = jax.jit(METHODS[name].law.error)(net, activations(), targets)
  assert missed.error < 1e-5


@pytest.mark.parametrize(
  "head, message",
  [
    (lambda z: z @ W + z[:, :4], "one passes by it"),
    (lambda z: nnx.relu(z @ W) + z @ W, "one last layer; .*'add' of two"),
  ],
)
def test_what_has_no_one_last_layer_has_no_contrast(head, message):
  net = wrap(lambda x, tap: head(nnx.relu(tap(x)).mean((1, 2))[:, :6]))
  with pytest.raises(DoesNotHold, match=message):
    METHODS["cmwp"](net, activations(), jnp.zeros((2, 1), int))
