"""FullGrad: the terms add up to the score, and the map is PyTorch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional

from gc_jax.attribution import full_gradients
from gc_jax.models.network import normalize_pixels
from tests.attribution import twins

NUM_CLASSES = 5
TARGETS = np.array([[1, 4], [3, 0]])
NAMES = [
  *("alexnet", "vgg16", "squeezenet1_1"),
  *("resnet18", "resnet18-gmp"),
  pytest.param("resnet50", marks=pytest.mark.large),
  pytest.param("resnet50-gmp", marks=pytest.mark.large),
]


def narrow(name):
  if name in ("alexnet", "vgg16"):
    return {"hidden": 64}
  return {} if name == "squeezenet1_1" else {"width": 8}


def pixels(name="resnet18"):
  size = 96 if name == "alexnet" else 64
  return np.random.default_rng(0).random((2, size, size, 3), np.float32)


@functools.cache
def pair(name):
  return twins.pair(name, NUM_CLASSES, **narrow(name))


def targets_of(name):
  # SqueezeNet's logits are cut off at 0: a relative difference needs classes
  # that are above it.
  return np.array([[1], [0]]) if name == "squeezenet1_1" else TARGETS


def gap(model, images, targets):
  """The largest relative difference of the score and the sum of all terms."""
  graphdef, state = nnx.split(model)
  found = jax.jit(
    lambda state, images, targets: full_gradients.terms(
      nnx.merge(graphdef, state), images, targets
    )
  )(state, images, jnp.asarray(targets))
  found = jax.tree.map(np.asarray, found)
  total = found.input.sum((2, 3, 4))
  for term in found.biases.values():
    total += term.reshape(*targets.shape, -1).sum(-1)
  assert np.abs(found.score).min() > 1e-3
  # Of any size: without the biases alone it would not add up.
  assert np.abs(found.input.sum((2, 3, 4)) / found.score - 1).max() > 0.01
  return np.abs(total / found.score - 1).max(), found


@pytest.mark.parametrize("name", NAMES)
def test_in_float32_the_terms_add_up_to_the_score(name):
  difference, found = gap(
    pair(name)[0], jnp.asarray(pixels(name)), targets_of(name)
  )
  assert difference < 1e-4
  assert found.score.dtype == jnp.float32
  base = name.removesuffix("-gmp")
  terms = {
    **{"alexnet": 8, "vgg16": 16, "squeezenet1_1": 26},
    **{"resnet18": 21, "resnet50": 54},
  }[base]
  assert len(found.biases) == terms


@pytest.mark.parametrize("name", NAMES)
def test_in_float64_they_do_to_the_last_digits(name):
  model = pair(name)[0]
  with jax.enable_x64(True):
    graphdef, state = nnx.split(model)
    wide = jax.tree.map(
      lambda x: (
        x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
      ),
      state,
    )
    images = jnp.asarray(pixels(name), jnp.float64)
    difference, found = gap(nnx.merge(graphdef, wide), images, targets_of(name))
  assert found.score.dtype == jnp.float64
  assert difference < 1e-10


def reference(twin, images, target, rescale):
  """The map in PyTorch, by hooks, from the equations."""
  x = torch.from_numpy(np.array(normalize_pixels(jnp.asarray(images))))
  x = x.permute(0, 3, 1, 2).requires_grad_()
  outputs, biases, hooks = [], [], []

  def hook(module, inputs, output):
    if isinstance(module, torch.nn.BatchNorm2d):
      std = (module.running_var + module.eps).sqrt()
      bias = module.bias - module.weight * module.running_mean / std
    else:
      bias = module.bias
    if bias is not None and output.ndim == 4:
      outputs.append(output)
      biases.append(bias)

  kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d)
  for module in twin.modules():
    if isinstance(module, kinds):
      hooks.append(module.register_forward_hook(hook))
  score = twin(x)[torch.arange(len(target)), target].sum()
  for handle in hooks:
    handle.remove()
  at_input, *at_outputs = torch.autograd.grad(score, [x, *outputs])
  terms = [at_input * x]
  terms += [
    g * b[None, :, None, None] for g, b in zip(at_outputs, biases, strict=True)
  ]
  axes = (1, 2, 3) if rescale == "layer" else (2, 3)
  total = 0
  for term in terms:
    term = term.abs()
    term = term - term.amin(axes, keepdim=True)
    term = term / (term.amax(axes, keepdim=True) + 1e-6)
    large = functional.interpolate(
      term, images.shape[1:3], mode="bilinear", align_corners=True
    )
    total = total + large.sum(1)
  return total.detach().numpy()


@pytest.mark.parametrize("rescale", full_gradients.RESCALES)
@pytest.mark.parametrize(
  "name",
  [
    "alexnet",
    "resnet18-gmp",
    pytest.param("resnet50", marks=pytest.mark.large),
  ],
)
def test_maps_are_pytorchs(name, rescale):
  model, twin = pair(name)
  images = pixels(name)
  graphdef, state = nnx.split(model)
  ours = jax.jit(
    lambda state, *args: full_gradients.fullgrad(
      nnx.merge(graphdef, state), *args, rescale=rescale
    )
  )(state, jnp.asarray(images), jnp.asarray(TARGETS))
  assert ours.shape == (2, 2, *images.shape[1:3])
  for place in range(2):
    target = torch.from_numpy(TARGETS[:, place])
    theirs = reference(twin, images, target, rescale)
    scale = theirs.max()
    np.testing.assert_allclose(
      ours[:, place] / scale, theirs / scale, atol=1e-4
    )


def test_corners_stay_in_the_corners():
  cam = jnp.arange(6.0).reshape(1, 1, 2, 3)
  large = full_gradients._enlarged(cam, 5, 9)
  np.testing.assert_allclose(large[0, 0, 0, ::8], [0, 2], atol=1e-6)
  np.testing.assert_allclose(large[0, 0, 4, ::4], [3, 4, 5], atol=1e-6)
  np.testing.assert_allclose(large[0, 0, 2, 4], 2.5, atol=1e-6)


def test_one_logit_will_do_and_a_black_picture_too(make_tiny):
  model = make_tiny("max", 1, dtype=jnp.bfloat16)
  model.eval()
  images = jnp.zeros((2, 16, 16, 3), jnp.uint8)
  explain = nnx.jit(full_gradients.fullgrad)
  found = explain(model, images, jnp.zeros((2, 1), int))
  assert found.shape == (2, 1, 16, 16) and found.dtype == jnp.float32
  assert jnp.isfinite(found).all() and (found >= 0).all()


def test_a_bfloat16_model_is_explained_in_float32(make_tiny):
  """Not only the dtype: nothing on the way is rounded."""
  images = jnp.asarray(pixels())[:, :16, :16]
  found = []
  for dtype in (jnp.float32, jnp.bfloat16):
    model = make_tiny("average", dtype=dtype)
    model.eval()
    explain = nnx.jit(full_gradients.fullgrad)
    found.append(explain(model, images, jnp.asarray(TARGETS)))
  np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


def test_another_rescaling_is_refused(make_tiny):
  with pytest.raises(ValueError, match="rescale must be one of layer, channel"):
    full_gradients.fullgrad(
      make_tiny(),
      jnp.zeros((1, 16, 16, 3)),
      jnp.zeros((1, 1), int),
      rescale="x",
    )
