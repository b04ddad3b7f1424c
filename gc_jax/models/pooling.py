"""Maxima and means of windows, of a grid, of everything, as in PyTorch."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


def max_pool(
  x: Float[Array, "B H W D"],
  window: int,
  stride: int,
  *,
  padding: int = 0,
  partial_windows: bool = False,
) -> Float[Array, "B h w D"]:
  """Returns the maximum of each window; the border counts as -inf.

  The gradient of a window goes to the first of its maxima, row by row.

  Args:
    x: activations.
    window: side of the windows.
    stride: both ways.
    padding: cells added on every side.
    partial_windows: whether a last window may reach over the edge (PyTorch's
      `ceil_mode`), instead of the cells beyond the last whole one being left.
  """
  pads = []
  for size in x.shape[1:3]:
    over = (size + 2 * padding - window) % stride
    beyond = (stride - over) % stride if partial_windows else 0
    pads.append((padding, padding + beyond))
  return _max_pool(window, stride, tuple(pads), x)


_Pads = tuple[tuple[int, int], tuple[int, int]]


def _maxima(window: int, stride: int, pads: _Pads, x: Array) -> Array:
  return nnx.max_pool(
    x, (window, window), strides=(stride, stride), padding=pads
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _max_pool(window: int, stride: int, pads: _Pads, x: Array) -> Array:
  return _maxima(window, stride, pads, x)


def _max_pool_forward(window, stride, pads, x):
  y = _maxima(window, stride, pads, x)
  return y, (x, y)


def _max_pool_backward(window, stride, pads, kept, gradient):
  def of_xla(x, _, gradient):
    _, backward = jax.vjp(functools.partial(_maxima, window, stride, pads), x)
    return backward(gradient)[0]

  # XLA's select-and-scatter takes a seventh of a ResNet's step on a CPU.
  by_place = functools.partial(_scatter_by_place, window, stride, pads)
  return (
    jax.lax.platform_dependent(*kept, gradient, cpu=by_place, default=of_xla),
  )


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _scatter_by_place(
  window: int,
  stride: int,
  pads: _Pads,
  x: Float[Array, "B H W D"],
  y: Float[Array, "B h w D"],
  gradient: Float[Array, "B h w D"],
) -> Float[Array, "B H W D"]:
  """Returns the gradient at x, place by place of a window, for all windows.

  Cells `stride` apart, which have the same place in their windows, are summed
  up by themselves, and put between each other in the end.
  """
  padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
  batch, height, width, depth = padded.shape
  h, w = y.shape[1:3]
  rows, columns = -(-height // stride), -(-width // stride)
  found = jnp.zeros(y.shape, bool)
  phases = {}
  for i, j in itertools.product(range(window), repeat=2):
    here = padded[
      :,
      i : i + stride * (h - 1) + 1 : stride,
      j : j + stride * (w - 1) + 1 : stride,
    ]
    first = (here == y) & ~found
    found |= first
    below, right = i // stride, j // stride
    part = jnp.pad(
      jnp.where(first, gradient, jnp.zeros((), x.dtype)),
      ((0, 0), (below, rows - h - below), (right, columns - w - right), (0, 0)),
    )
    phase = i % stride, j % stride
    phases[phase] = phases[phase] + part if phase in phases else part
  nothing = jnp.zeros((batch, rows, columns, depth), x.dtype)
  places = range(stride)
  apart = jnp.stack(
    [
      jnp.stack([phases.get((i, j), nothing) for j in places], axis=3)
      for i in places
    ],
    axis=2,
  )
  whole = apart.reshape(batch, rows * stride, columns * stride, depth)
  (top, _), (left, _) = pads
  return whole[:, top : top + x.shape[1], left : left + x.shape[2]]


def average_to_grid(
  x: Float[Array, "B H W D"], grid: int
) -> Float[Array, "B g g D"]:
  """Returns the means over `grid * grid` windows that cover the input.

  Window i reaches from floor(i n / g) to ceil((i + 1) n / g): of unequal sizes
  and overlapping where g does not divide n (PyTorch's adaptive pooling).
  """
  rows, columns = (_window_weights(size, grid) for size in x.shape[1:3])
  return jnp.einsum("gh,bhwd,kw->bgkd", rows, x, columns, precision="highest")


def _window_weights(size: int, grid: int) -> Float[np.ndarray, "g n"]:
  weights = np.zeros((grid, size), np.float32)
  for i in range(grid):
    start, stop = i * size // grid, -(-(i + 1) * size // grid)
    weights[i, start:stop] = 1 / (stop - start)
  return weights


def pool_globally(
  features: Float[Array, "B h w D"], pooling: str
) -> Float[Array, "B D"]:
  """Returns one value a channel: the mean ("average") or maximum ("max").

  The maximum is taken at the *first* argmax in row-major order, as PyTorch
  does; `jnp.max` would split the gradient between ties, which after a ReLU
  and in bfloat16 are common.
  """
  if pooling == "average":
    return features.mean((1, 2))
  cells = features.reshape(features.shape[0], -1, features.shape[-1])
  first = jnp.argmax(cells, axis=1, keepdims=True)
  return jnp.take_along_axis(cells, first, axis=1)[:, 0]
