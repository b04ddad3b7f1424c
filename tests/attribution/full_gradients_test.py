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
from gc_jax.attribution.programs import DoesNotHold
from gc_jax.attribution.wrapping import wrap
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


def drawn(number, *shape):
  return jax.random.normal(jax.random.key(number), shape)


def convolved(x, order, turned=False):
  """Of pictures, perhaps turned, with the output's axes in an order."""
  names, weights, strides = (
    ("NHWC", "HWIO", order),
    drawn(0, 3, 3, 3, 5),
    (1, 2),
  )
  if turned:
    weights, strides = weights.transpose(1, 0, 2, 3), (2, 1)
  z = jax.lax.conv_general_dilated(
    x, weights, strides, "SAME", dimension_numbers=names
  )
  shape = [5 if axis == "C" else 1 for axis in order]
  z = nnx.relu(z + drawn(1, 5).reshape(shape))
  places = "NWHC" if turned else "NHWC"
  return z.transpose([order.index(axis) for axis in places])


def of_tokens(x):
  """Cells as columns of a matrix, and then on their grid, with a bias there."""
  z = x.reshape(len(x), -1, 5).transpose(0, 2, 1).reshape(-1, 5, *x.shape[1:3])
  z = nnx.relu(z + drawn(2, 5)[None, :, None, None])
  return z.reshape(len(x), 5, -1).transpose(0, 2, 1).reshape(x.shape)


def enlarged(x, channels):
  """Twice as high, with a bias, channels at an axis."""
  z = jnp.moveaxis(x, -1, channels)
  shape = [2 * n if n == 6 else n for n in z.shape]
  z = jax.image.resize(z, shape, "bilinear")
  bias = jnp.moveaxis(drawn(2, 1, 1, 1, 5), -1, channels)
  return jnp.moveaxis(nnx.relu(z + bias), channels, -1)


def map_of(run):
  """Of a net whose pictures are 6 x 8, and activations 6 x 4."""
  net = wrap(lambda x, tap: tap(run(x)).mean((1, 2)) @ drawn(3, 5, 4))
  images = jax.random.uniform(jax.random.key(4), (2, 6, 8, 3))
  return jax.jit(full_gradients.fullgrad)(
    net, images, jnp.array([[0, 1], [3, 2]])
  )


@pytest.mark.parametrize(
  "run, other",
  [
    (lambda x: convolved(x, "NHWC"), lambda x: convolved(x, "NCHW")),
    (lambda x: convolved(x, "NHWC"), lambda x: convolved(x, "CWNH")),
    (
      lambda x: convolved(convolved(x, "NHWC")[..., :3], "NHWC"),
      lambda x: convolved(convolved(x, "NWCH")[..., :3], "HCNW"),
    ),
    (
      lambda x: nnx.relu(convolved(x, "NHWC") + drawn(2, 5)[None, None, None]),
      lambda x: of_tokens(convolved(x, "NCHW")),
    ),
    (
      lambda x: convolved(x, "NHWC"),
      lambda x: convolved(x.transpose(0, 2, 1, 3), "NHWC", turned=True),
    ),
    (
      lambda x: nnx.relu(convolved(x, "NHWC")[:, ::2] + drawn(2, 1, 3, 1, 1)),
      lambda x: nnx.relu(
        convolved(x, "NHWC")[:, jnp.array([0, 2, 4])] + drawn(2, 1, 3, 1, 1)
      ),
    ),
    (
      lambda x: enlarged(convolved(x, "NHWC"), 3),
      lambda x: enlarged(convolved(x, "NCHW"), 1),
    ),
  ],
  ids=[
    "channels first",
    "any order",
    "two",
    "tokens",
    "turned",
    "picked",
    "enlarged",
  ],
)
def test_the_map_of_one_net_is_one_in_whatever_order_its_axes_are(run, other):
  expected = map_of(run)
  assert expected.max() > 1
  np.testing.assert_allclose(map_of(other), expected, rtol=1e-4, atol=1e-5)


def test_a_bias_of_axes_that_are_not_known_is_refused():
  def mixed(x):
    z = convolved(x, "NCHW").reshape(2, 4, 6, 5)
    return nnx.relu(z + drawn(2, 1, 4, 1, 1))

  with pytest.raises(DoesNotHold, match=r"behind 'reshape' .*\(2, 4, 6, 5\)"):
    map_of(mixed)
