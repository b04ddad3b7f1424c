"""Poolings as PyTorch has them: borders, ties, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gc_jax.models import pooling


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_max_pooling_never_takes_the_border(size):
  x = -1 - np.random.default_rng(0).random((*size, 2)).astype(np.float32)
  padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  pooled = pooling.max_pool(jnp.asarray(x[None]), 3, 2, padding=1)[0]
  assert pooled.shape == ((size[0] - 1) // 2 + 1, (size[1] - 1) // 2 + 1, 2)
  for i, j in np.ndindex(*pooled.shape[:2]):
    window = padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
    np.testing.assert_array_equal(pooled[i, j], window.max((0, 1)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_global_pooling_takes_the_mean_or_the_first_maximum(dtype):
  x = np.random.default_rng(0).integers(0, 4, (2, 3, 5, 6))  # many ties
  features = jnp.asarray(x, dtype)
  cells = x.reshape(2, 15, 6)
  np.testing.assert_array_equal(
    pooling.pool_globally(features, "max"), cells.max(1)
  )
  np.testing.assert_allclose(
    pooling.pool_globally(features, "average").astype(jnp.float32),
    cells.mean(1),
    rtol=1e-2,  # bfloat16 has 8 bits
  )
  grad = jax.grad(lambda f: pooling.pool_globally(f, "max").sum())(features)
  first = np.moveaxis(np.eye(15)[cells.argmax(1)], -1, 1).reshape(x.shape)
  np.testing.assert_array_equal(grad, first)


@pytest.mark.parametrize("size", [(1, 1), (4, 9), (6, 6), (13, 7), (27, 5)])
@pytest.mark.parametrize("grid", [1, 6, 7])
def test_averaging_to_a_grid_is_pytorchs_adaptive_pooling(size, grid):
  x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
  theirs = torch.nn.functional.adaptive_avg_pool2d(
    torch.from_numpy(x).permute(0, 3, 1, 2), (grid, grid)
  )
  np.testing.assert_allclose(
    pooling.average_to_grid(jnp.asarray(x), grid),
    theirs.permute(0, 2, 3, 1),
    atol=1e-6,  # float32 sums of up to 351 numbers
  )


@pytest.mark.parametrize("size", [(3, 4), (8, 9), (11, 6)])
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("partial_windows", [False, True])
def test_max_pooling_ends_where_pytorchs_does(size, window, partial_windows):
  x = -1 - np.random.default_rng(0).random((1, *size, 2)).astype(np.float32)
  theirs = torch.nn.functional.max_pool2d(
    torch.from_numpy(x).permute(0, 3, 1, 2),
    window,
    2,
    ceil_mode=partial_windows,
  )
  np.testing.assert_array_equal(
    pooling.max_pool(
      jnp.asarray(x), window, 2, partial_windows=partial_windows
    ),
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
    pooling.max_pool,
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
  pooled = torch.nn.functional.max_pool2d(
    theirs, window, stride, padding, ceil_mode=partial_windows
  )
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
