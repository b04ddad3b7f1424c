"""Convolutions and max-pools: PyTorch's values, the gradients of XLA."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from gc_jax import models
from gc_jax.attribution import gradients
from gc_jax.models import network
from gc_jax.models.convolution import convolve, max_pool
from tests.benchmarks.convolution import of_xla

# Kernel, stride, padding: of every convolution of the models.
CASES = [
  (3, 1, 1),
  (3, 2, 1),
  (3, 2, 0),
  (3, 1, 0),
  (1, 1, 0),
  (1, 2, 0),
  (5, 1, 2),
  (7, 2, 3),
  (11, 4, 2),
]


def draw(kernel_size, height=23, width=30, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 2)
  kernel = jax.random.normal(keys[1], (kernel_size, kernel_size, 3, 5), dtype)
  return jax.random.normal(keys[0], (2, height, width, 3), dtype), kernel


def weighted(convolution, stride, padding):
  """Returns a function to differentiate; no two cells count the same."""

  def total(x, kernel):
    y = convolution(stride, padding, x, kernel)
    weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    return (y * weights).sum(dtype=jnp.promote_types(y.dtype, jnp.float32))

  return total


@pytest.mark.parametrize("height, width", [(23, 30), (32, 17)])
@pytest.mark.parametrize("kernel_size, stride, padding", CASES)
def test_both_gradients_of_a_convolution_are_those_of_xla(
  height, width, kernel_size, stride, padding
):
  """Where strides leave a rest, and where they leave none."""
  with jax.enable_x64(True):
    x, kernel = draw(kernel_size, height, width, jnp.float64)

    def value_and_gradients(convolution):
      total = weighted(convolution, stride, padding)
      y = convolution(stride, padding, x, kernel)
      return y, *jax.grad(total, (0, 1))(x, kernel)

    own, expected = (
      jax.jit(value_and_gradients, static_argnums=0)(each)
      for each in (convolve, of_xla)
    )
    np.testing.assert_array_equal(own[0], expected[0])
    for one, other in zip(own[1:], expected[1:], strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def of_xlas_pool(x):
  return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


BOTH_MODES = {
  "jvp": lambda f, x, to: jax.jvp(f, x, to),
  "linearize": lambda f, x, to: jax.linearize(f, *x)[1](*to),
  "forward of reverse": lambda f, x, to: jax.jvp(jax.grad(f, (0, 1)), x, to),
  "reverse of forward": lambda f, x, to: jax.grad(
    lambda *x: jax.jvp(f, x, to)[1], (0, 1)
  )(*x),
  # A loss on the map of an inner layer takes these.
  "reverse of reverse": lambda f, x, to: jax.grad(
    lambda *x: sum(map(jnp.vdot, jax.grad(f, (0, 1))(*x), to)), (0, 1)
  )(*x),
  "hessian": lambda f, x, to: jax.hessian(
    lambda a: f(*(each * a for each in x))
  )(1.5),
  "vmap of each operand": lambda f, x, to: [
    jax.vmap(
      lambda a, i=i: jax.jvp(
        jax.grad(lambda *x: a * f(*x), (0, 1)),
        (*x[:i], a * x[i], *x[i + 1 :]),
        to,
      )
    )(jnp.array([1.0, 2.0]))
    for i in range(2)
  ],
}


@pytest.mark.parametrize("mode", BOTH_MODES)
def test_both_modes_of_differentiation_hold_and_go_together(mode):
  """Through convolutions and poolings, as XLA has it, in float64."""
  with jax.enable_x64(True):
    x = draw(3, 9, 10, jnp.float64)
    to = tuple(jnp.cos(7 * each) for each in x)

    def loss(convolution, pool, *x):
      return sum(
        jnp.sin(pool(convolution(stride, 1, *map(jnp.sin, x)))).sum()
        for stride in (1, 2)
      )

    def derivatives(convolution, pool):
      function = functools.partial(loss, convolution, pool)
      return jax.jit(functools.partial(BOTH_MODES[mode], function))(x, to)

    pool = functools.partial(max_pool, window=3, stride=2, padding=1)
    found = derivatives(convolve, pool)
    expected = derivatives(of_xla, of_xlas_pool)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11),
      found,
      expected,
    )


def test_gradients_keep_the_types_of_a_bfloat16_layer():
  layer = network.conv(
    3, 4, 3, 2, dtype=jnp.bfloat16, rngs=nnx.Rngs(models.init_key(0))
  )
  graphdef, params = nnx.split(layer)
  x = draw(3)[0]

  def total(params, x):
    return nnx.merge(graphdef, params)(x).astype(jnp.float32).sum()

  of_params, of_x = jax.grad(total, (0, 1))(params, x)
  assert of_x.dtype == x.dtype
  assert of_params["kernel"][...].dtype == jnp.float32
  rounded = x.astype(jnp.bfloat16)
  kernel = params["kernel"][...].astype(jnp.bfloat16)
  expected = jax.grad(
    lambda x, w: of_xla(2, 1, x, w).astype(jnp.float32).sum(), (0, 1)
  )(rounded.astype(jnp.float32), kernel.astype(jnp.float32))
  np.testing.assert_allclose(of_x, expected[0], atol=0.02)
  # One rounding, after a sum in float32.
  np.testing.assert_allclose(
    of_params["kernel"][...], expected[1], rtol=2**-8, atol=1e-3
  )


def test_shifted_activations_are_not_kept_from_the_forward_pass():
  """Each is nine times as large as what it is a copy of."""
  depth = 8
  kernels = jnp.zeros((depth, 3, 3, 16, 16))

  def total(convolution, kernels, x):
    for kernel in kernels:
      x = jnp.sin(convolution(1, 1, x, kernel))
    return x.sum()

  x = jnp.zeros((4, 32, 32, 16))
  temporaries, expected = (
    jax.jit(lambda k, x, c=convolution: jax.grad(total, 1)(c, k, x))
    .lower(kernels, x)
    .compile()
    .memory_analysis()
    .temp_size_in_bytes
    for convolution in (convolve, of_xla)
  )
  one = 9 * x.nbytes
  assert temporaries < expected + 2 * one < expected + depth * one


def test_gradients_in_a_loop_are_in_the_form_of_fast_kernels():
  """XLA writes a kernel's axes as 01io where a CPU's fast kernels take it."""
  model = models.create("resnet8-small", 10)
  model.eval()
  images = jnp.zeros((2, 96, 96, 3), jnp.uint8)
  targets = jnp.zeros((2, 1), jnp.int32)

  @jax.jit
  def run(images):
    return gradients.integrated_gradients(model, images, targets)

  text = run.lower(images).compile().as_text()
  forms = re.findall(r"convolution\(.*dim_labels=(\w+)->", text)
  assert len(forms) > 10 and set(forms) == {"b01f_01io"}


def in_torch(x, window, stride=2, padding=0, partial_windows=False):
  return torch.nn.functional.max_pool2d(
    x, window, stride, padding, ceil_mode=partial_windows
  )


@pytest.mark.parametrize("size", [(3, 4), (8, 9), (11, 6)])
@pytest.mark.parametrize(
  ("window", "settings"),
  [
    (2, {}),
    (3, {}),
    (2, {"partial_windows": True}),
    (3, {"partial_windows": True}),
    (3, {"padding": 1}),
  ],
)
def test_maxima_are_pytorchs_and_never_the_border(size, window, settings):
  x = -1 - np.random.default_rng(0).random((1, *size, 2)).astype(np.float32)
  theirs = in_torch(torch.from_numpy(x).permute(0, 3, 1, 2), window, **settings)
  np.testing.assert_array_equal(
    max_pool(jnp.asarray(x), window, 2, **settings),
    theirs.permute(0, 2, 3, 1),
  )


@pytest.mark.parametrize(
  ("window", "stride", "padding", "partial_windows"),
  [(3, 2, 1, False), (2, 2, 0, False), (3, 2, 0, True), (3, 1, 1, False)],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_a_window_goes_to_its_first_maximum(
  window, stride, padding, partial_windows, dtype
):
  """As in PyTorch, and as XLA has it for accelerators; second order, too."""
  rng = np.random.default_rng(0)
  # Few values: most windows have several maxima.
  x = rng.integers(-3, 3, (2, 9, 12, 3)).astype(np.float32)
  pool = functools.partial(
    max_pool,
    window=window,
    stride=stride,
    padding=padding,
    partial_windows=partial_windows,
  )
  ours = jnp.asarray(x, dtype)
  weights = rng.integers(-8, 8, pool(ours).shape).astype(np.float32)

  def gradient(x, weights):
    y, backward = jax.vjp(pool, x)
    return backward(weights.astype(y.dtype))[0]

  found = jax.jit(gradient)(ours, jnp.asarray(weights))
  theirs = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
  pooled = in_torch(theirs, window, stride, padding, partial_windows)
  (expected,) = torch.autograd.grad(
    pooled, theirs, torch.from_numpy(weights).permute(0, 3, 1, 2)
  )
  assert found.dtype == ours.dtype
  np.testing.assert_array_equal(
    found.astype(np.float32), expected.permute(0, 2, 3, 1)
  )
  # Linear in the weights: its own gradient is the choice of the maxima.
  transposed = jax.jit(
    lambda y: jax.vjp(lambda w: gradient(y, w), jnp.asarray(weights))[1](y)[0]
  )
  np.testing.assert_array_equal(transposed(ours), pool(ours))
