"""The convolution's gradients are those of JAX, in the form of fast kernels."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax import models
from gc_jax.attribution import gradients
from gc_jax.models import network
from gc_jax.models.convolution import convolve
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
def test_both_gradients_are_those_of_xla(
  height, width, kernel_size, stride, padding
):
  """Of every convolution of the models, where strides leave a rest or none."""
  with jax.enable_x64(True):
    x, kernel = draw(kernel_size, height, width, jnp.float64)
    np.testing.assert_array_equal(
      *(
        jax.jit(convolution, static_argnums=(0, 1))(stride, padding, x, kernel)
        for convolution in (convolve, of_xla)
      )
    )
    own, expected = (
      jax.jit(jax.grad(weighted(convolution, stride, padding), (0, 1)))(
        x, kernel
      )
      for convolution in (convolve, of_xla)
    )
    for one, other in zip(own, expected, strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_gradients_are_those_of_xla(stride):
  """What a map of an inner layer takes: it is a gradient already."""

  def twice(convolution):
    def norm(x, kernel):
      inner = jax.grad(weighted(convolution, stride, 1), (0, 1))(
        jnp.sin(x), jnp.sin(kernel)
      )
      return sum((each**2).sum() for each in inner)

    return jax.jit(jax.grad(norm, (0, 1)))

  with jax.enable_x64(True):
    x, kernel = draw(3, dtype=jnp.float64)
    own, expected = twice(convolve)(x, kernel), twice(of_xla)(x, kernel)
    for one, other in zip(own, expected, strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


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
  model = models.create("resnet18", 10)
  model.eval()
  images = jnp.zeros((2, 96, 96, 3), jnp.uint8)
  targets = jnp.zeros((2, 1), jnp.int32)

  @jax.jit
  def run(images):
    return gradients.integrated_gradients(model, images, targets)

  text = run.lower(images).compile().as_text()
  forms = re.findall(r"convolution\(.*dim_labels=(\w+)->", text)
  assert len(forms) > 10 and set(forms) == {"b01f_01io"}
