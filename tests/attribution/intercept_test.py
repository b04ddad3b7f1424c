"""Models changed from outside compute what they did before."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gc_jax import models
from gc_jax.attribution import gradients
from gc_jax.attribution.intercept import for_pixel_gradients
from gc_jax.models import layers


@pytest.fixture
def rngs():
  return nnx.Rngs(models.init_key(0))


def pixel_gradient(model, x):
  # Weighted, so that no two pixels of the output add the same.
  weights = jnp.cos(jnp.arange(model(x).size, dtype=x.dtype)).reshape(
    model(x).shape
  )
  return jax.grad(lambda x: (model(x) * weights).sum())(x)


@pytest.mark.parametrize("height, width", [(23, 30), (32, 17)])
@pytest.mark.parametrize(
  "kernel_size, stride, padding",
  [
    (3, 1, 1),
    (3, 2, 1),
    (1, 1, 0),
    (1, 2, 0),
    (7, 2, 3),
    (11, 4, 2),
    (3, 2, 0),
  ],
)
def test_a_pixel_gradient_is_that_of_jax(
  rngs, height, width, kernel_size, stride, padding
):
  """Of every convolution of the models, where strides leave a rest or none."""
  model = nnx.Sequential(
    layers.conv(
      3,
      5,
      kernel_size,
      stride,
      padding=padding,
      dtype=jnp.float32,
      rngs=rngs,
    )
  )
  x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
  changed = for_pixel_gradients(model)
  np.testing.assert_array_equal(changed(x), model(x))
  np.testing.assert_allclose(
    pixel_gradient(changed, x), pixel_gradient(model, x), atol=1e-5
  )


@pytest.mark.parametrize(
  "settings",
  [
    {"feature_group_count": 2},
    {"kernel_dilation": 2},
    {"padding": "SAME"},
    {"strides": (2, 1)},
  ],
)
def test_other_convolutions_stay_as_they_are(rngs, settings):
  model = nnx.Sequential(nnx.Conv(4, 6, (3, 3), rngs=rngs, **settings))
  x = jax.random.normal(jax.random.key(0), (2, 9, 12, 4))
  np.testing.assert_allclose(
    pixel_gradient(for_pixel_gradients(model), x),
    pixel_gradient(model, x),
    atol=1e-5,
  )


def test_a_bfloat16_gradient_keeps_its_type(rngs):
  model = nnx.Sequential(layers.conv(3, 4, 3, 2, dtype=jnp.bfloat16, rngs=rngs))
  x = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
  gradient = pixel_gradient(for_pixel_gradients(model), x)
  assert gradient.dtype == x.dtype
  np.testing.assert_allclose(gradient, pixel_gradient(model, x), atol=0.02)


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
