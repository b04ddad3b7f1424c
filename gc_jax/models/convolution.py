"""Convolutions and max-pools whose gradients are fast on CPUs.

Elsewhere the gradients are XLA's own; both are the same but for rounding. They
have forward-mode derivatives too, which are XLA's everywhere.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from gc_jax.method.sharding import divided_as


class Conv(nnx.Conv):
  """Flax's convolution with the gradients of `convolve`.

  It must be as `network.conv` makes it: strides and padding one number each,
  the kernel not dilated, grouped or masked.
  """

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    """Returns the convolution of x, plus the bias if there is one."""
    bias = None if self.bias is None else self.bias[...]
    x, kernel, bias = self.promote_dtype(
      (x, self.kernel[...], bias), dtype=self.dtype
    )
    y = convolve(self.strides, self.padding, x, kernel)
    return y if bias is None else y + bias[None, None, None]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def convolve(
  stride: int,
  padding: int,
  x: Float[Array, "B H W C"],
  kernel: Float[Array, "k k C D"],
) -> Float[Array, "B h w D"]:
  """Convolves x, zeros padded on every side."""
  return _convolve(x, kernel, stride, [(padding, padding)] * 2)


def _convolve(x, kernel, stride, pads, spread=1):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=pads,
    lhs_dilation=(spread, spread),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


@functools.partial(convolve.defjvp, symbolic_zeros=True)
def _convolve_jvp(stride, padding, operands, tangents):
  y = convolve(stride, padding, *operands)
  changes = [
    with_transpose(
      partial(_change, stride, padding, which),
      partial(_gradient, stride, padding, which),
      operands,
      tangent,
    )
    for which, tangent in enumerate(tangents)
    if not isinstance(tangent, SymbolicZero)
  ]
  return y, functools.reduce(jnp.add, changes)


def _change(stride, padding, which, x, kernel, tangent):
  """Returns how the convolution changes with x (0) or with the kernel (1)."""
  operands = (tangent, kernel) if which == 0 else (x, tangent)
  return convolve(stride, padding, *operands)


def _gradient(stride, padding, which, x, kernel, gradient):
  """Returns the gradient with respect to x (0) or to the kernel (1)."""

  def of_xla(x, kernel, gradient):
    pads = [(padding, padding)] * 2
    _, pull = jax.vjp(lambda *args: _convolve(*args, stride, pads), x, kernel)
    return pull(gradient)[which]

  of_cpu = partial((_input_gradient, _kernel_gradient)[which], stride, padding)
  either = partial(jax.lax.platform_dependent, cpu=of_cpu, default=of_xla)
  return divided_as((x, kernel)[which], either, x, kernel, gradient)


def _input_gradient(stride, padding, x, kernel, gradient):
  """Returns the gradient with respect to x, as a convolution.

  It convolves the gradient from above, spread by the stride, with the kernel
  turned by half a circle and its channels exchanged. XLA's own has the kernel's
  axes in another order. Its compiler for CPUs brings only convolutions outside
  of loops into the form of its fast kernels (jax-ml/jax#12868): in a loop XLA's
  takes four times as long.
  """
  pads = []
  for side, extent, outs in zip(
    x.shape[1:3], kernel.shape[:2], gradient.shape[1:3], strict=True
  ):
    spread = (outs - 1) * stride + 1
    before = extent - 1 - padding
    pads.append((before, side + extent - 1 - spread - before))
  turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  return _convolve(gradient, turned, 1, pads, spread=stride)


def _kernel_gradient(stride, padding, x, kernel, gradient):
  """Returns the gradient with respect to the kernel: one product of matrices.

  One holds what each weight is multiplied with in every cell, the other the
  gradient from above there. XLA's own is a convolution whose kernel is as large
  as the picture: it takes five times as long for the stem of a ResNet, up to
  twelve times for 1x1 kernels (`tests.benchmarks.convolution`).
  """
  extent = kernel.shape[0]
  if stride > 1:
    product = _correlate(stride, padding, extent, x, gradient)
  else:
    # The same sum with the gradient shifted, not x: XLA would write the shifted
    # x of all layers in the forward pass, and keep them until now.
    product = _correlate(1, extent - 1 - padding, extent, gradient, x)
    product = jnp.flip(product, (0, 1)).swapaxes(2, 3)
  return product.astype(kernel.dtype)


def _correlate(stride, padding, extent, wide, narrow):
  """Returns the sum over cells of narrow times wide, for each shift of wide.

  `wide` is padded with zeros; `stride` cells of it meet one of `narrow`.
  """
  height, width = narrow.shape[1:3]
  wide = jnp.pad(
    wide.transpose(3, 0, 1, 2), ((0, 0), (0, 0), *[(padding, padding)] * 2)
  )
  # Along a row first: there strides read single numbers, afterwards whole rows.
  shifted = _shifts(
    _shifts(wide, extent, stride, width), extent, stride, height
  )
  product = jnp.matmul(
    shifted.reshape(extent**2 * wide.shape[0], -1),
    narrow.reshape(-1, narrow.shape[-1]),
  )
  return product.reshape(extent, extent, wide.shape[0], -1)


def _shifts(x, count, stride, length):
  # Called twice, it shifts the last axis and then the one before.
  stops = [start + stride * (length - 1) + 1 for start in range(count)]
  return jnp.stack(
    [
      jax.lax.slice_in_dim(x, start, stop, stride, axis=3)
      for start, stop in enumerate(stops)
    ]
  )


def max_pool(
  x: Float[Array, "B H W D"],
  window: int,
  stride: int,
  *,
  padding: int = 0,
  partial_windows: bool = False,
) -> Float[Array, "B h w D"]:
  """Returns the maximum of each square window; the border counts as -inf.

  The padding is added on every side. `partial_windows` lets a last window reach
  over the edge (PyTorch's `ceil_mode`); otherwise cells beyond the last whole
  one are left out. The gradient of a window goes to the first of its maxima,
  row by row.
  """
  pads = []
  for size in x.shape[1:3]:
    over = (size + 2 * padding - window) % stride
    beyond = (stride - over) % stride if partial_windows else 0
    pads.append((padding, padding + beyond))
  return _max_pool(window, stride, tuple(pads), x)


def _maxima(window, stride, pads, x):
  return nnx.max_pool(
    x, (window, window), strides=(stride, stride), padding=pads
  )


_max_pool = jax.custom_jvp(_maxima, nondiff_argnums=(0, 1, 2))


@_max_pool.defjvp
def _max_pool_jvp(window, stride, pads, operands, tangents):
  (x,), (tangent,) = operands, tangents
  y = _max_pool(window, stride, pads, x)
  maxima = partial(_maxima, window, stride, pads)
  return y, with_transpose(
    partial(_chosen, maxima),
    partial(_max_pool_back, window, stride, pads),
    # Which number is chosen has no derivative.
    (jax.lax.stop_gradient(x), jax.lax.stop_gradient(y)),
    tangent,
  )


def _chosen(maxima, x, y, tangent):
  del y
  return jax.jvp(maxima, (x,), (tangent,))[1]


def _max_pool_back(window, stride, pads, x, y, gradient):
  def of_xla(x, _, gradient):
    _, backward = jax.vjp(partial(_maxima, window, stride, pads), x)
    return backward(gradient)[0]

  # XLA's select-and-scatter takes a seventh of a ResNet's step on a CPU.
  of_cpu = partial(_scatter_by_place, window, stride, pads)
  either = partial(jax.lax.platform_dependent, cpu=of_cpu, default=of_xla)
  return divided_as(x, either, x, y, gradient)


def _scatter_by_place(window, stride, pads, x, y, gradient):
  """Returns the gradient at x: a pass over all windows for each place in them.

  Cells `stride` apart have the same place in their windows: each such set is
  summed by itself, and the sets are interleaved in the end.
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


def with_transpose(
  forward: Callable[..., Array],
  back: Callable[..., Array],
  kept: Sequence[Array],
  x: Array,
) -> Array:
  """Returns `forward(*kept, x)`, transposed by `back`.

  So both modes of differentiation hold. `jax.custom_derivatives.linear_call` is
  the same for kept arrays without derivatives and without `vmap`.

  Args:
    forward: linear in x; gives one array.
    back: its transpose, (*kept, gradient of the result) -> gradient of x.
    kept: what else both need.
    x: an array.
  """
  return _with_transpose.bind(*kept, x, forward=forward, back=back)


_with_transpose = Primitive("with_transpose")


@_with_transpose.def_impl
def _with_transpose_impl(*operands, forward, back):
  del back
  return forward(*operands)


mlir.register_lowering(
  _with_transpose, mlir.lower_fun(_with_transpose_impl, multiple_results=False)
)


@_with_transpose.def_abstract_eval
def _with_transpose_shape(*operands, forward, back):
  del back
  return jax.make_jaxpr(forward)(*operands).out_avals[0]


def _with_transpose_jvp(operands, tangents, *, forward, back):
  *kept, x = operands
  *of_kept, of_x = tangents
  y = with_transpose(forward, back, kept, x)
  parts = []
  if not isinstance(of_x, ad.Zero):
    parts.append(with_transpose(forward, back, kept, of_x))
  if moved := [i for i, t in enumerate(of_kept) if not isinstance(t, ad.Zero)]:

    def of_moved(*values):
      now = dict(enumerate(kept)) | dict(zip(moved, values, strict=True))
      return forward(*now.values(), x)

    at, along = ([each[i] for i in moved] for each in (kept, of_kept))
    parts.append(jax.jvp(of_moved, at, along)[1])
  return y, functools.reduce(jnp.add, parts)


def _with_transpose_transpose(gradient, *operands, forward, back):
  del forward
  *kept, x = operands
  if isinstance(gradient, ad.Zero):
    return [None] * len(kept) + [ad.Zero(x.aval)]
  return [None] * len(kept) + [back(*kept, gradient)]


def _with_transpose_batch(operands, axes, *, forward, back):
  *of_kept, of_x = axes

  def back_of_all(*operands):
    found = jax.vmap(back, in_axes=(*of_kept, 0), out_axes=of_x or 0)(*operands)
    return found.sum(0) if of_x is None else found

  forward_of_all = jax.vmap(forward, in_axes=tuple(axes))
  *kept, x = operands
  return with_transpose(forward_of_all, back_of_all, kept, x), 0


ad.primitive_jvps[_with_transpose] = _with_transpose_jvp
ad.primitive_transposes[_with_transpose] = _with_transpose_transpose
batching.primitive_batchers[_with_transpose] = _with_transpose_batch
