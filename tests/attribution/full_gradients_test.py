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
from gc_jax.models.pixels import normalize_pixels
from tests.attribution import twins

NUM_CLASSES = 5
TARGETS = np.array([[1, 4], [3, 0]])
NAMES = [
  *("alexnet", "vgg16", "squeezenet1_1"),
  *("resnet18", "resnet18-gmp"),
  pytest.param("resnet50", marks=pytest.mark.large),
  pytest.param("resnet50-gmp", marks=pytest.mark.large),
]


def pixels(name="resnet18"):
  size = 96 if name == "alexnet" else 64
  return np.random.default_rng(0).random((2, size, size, 3), np.float32)


@functools.cache
def pair(name):
  narrow = {"width": 8} if name.startswith("resnet") else {"hidden": 64}
  return twins.pair(
    name, NUM_CLASSES, **(narrow if name != "squeezenet1_1" else {})
  )


@pytest.mark.parametrize("name", NAMES)
def test_the_terms_add_up_to_the_score_to_the_last_digits_of_float64(name):
  # SqueezeNet's logits are cut off at 0: a relative difference needs classes
  # that are above it.
  targets = np.array([[1], [0]]) if name == "squeezenet1_1" else TARGETS
  with jax.enable_x64(True):
    graphdef, state = nnx.split(pair(name)[0])
    wide = jax.tree.map(
      lambda x: (
        x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
      ),
      state,
    )
    score, total, of_biases = jax.tree.map(
      np.array,
      nnx.jit(full_gradients.terms)(
        nnx.merge(graphdef, wide),
        jnp.asarray(pixels(name), jnp.float64),
        jnp.asarray(targets),
      ),
    )
  assert score.dtype == np.float64 and np.abs(score).min() > 1e-3
  total = total.sum((2, 3, 4))
  assert np.abs(total / score - 1).max() > 0.01  # the biases matter
  for term in of_biases:
    total += term.reshape(*targets.shape, -1).sum(-1)
  np.testing.assert_allclose(total, score, rtol=1e-10)
  num_biases = {"alexnet": 8, "vgg16": 16, "squeezenet1_1": 26}
  num_biases |= {"resnet18": 21, "resnet50": 54}
  assert len(of_biases) == num_biases[name.removesuffix("-gmp")]


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
  run = functools.partial(full_gradients.fullgrad, rescale=rescale)
  ours = nnx.jit(run)(model, jnp.asarray(images), jnp.asarray(TARGETS))
  assert ours.shape == (2, 2, *images.shape[1:3])
  for place in range(2):
    target = torch.from_numpy(TARGETS[:, place])
    theirs = reference(twin, images, target, rescale)
    scale = theirs.max()
    np.testing.assert_allclose(
      ours[:, place] / scale, theirs / scale, atol=1e-4
    )


def test_another_rescaling_is_refused(make_tiny):
  with pytest.raises(ValueError, match="rescale must be one of layer, channel"):
    full_gradients.fullgrad(make_tiny(), None, None, rescale="x")
