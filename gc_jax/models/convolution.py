"""A square convolution whose gradients are fast on a CPU."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Conv(nnx.Conv):
  """Flax's convolution with `convolve` in place of XLA's own gradients.

  Strides and padding are one number each, the kernel is neither dilated,
  grouped nor masked: as `layers.conv` makes it.
  """

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    """Returns the convolution of x, plus the bias where there is one."""
    bias = None if self.bias is None else self.bias[...]
    x, kernel, bias = self.promote_dtype(
      (x, self.kernel[...], bias), dtype=self.dtype
    )
    y = convolve(self.strides, self.padding, x, kernel)
    return y if bias is None else y + bias[None, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def convolve(
  stride: int,
  padding: int,
  x: Float[Array, "B H W C"],
  kernel: Float[Array, "k k C D"],
) -> Float[Array, "B h w D"]:
  """Returns the convolution of x with the kernel.

  Its gradients are the same on every device, up to rounding; on a CPU they are
  computed in another way. It has no forward-mode derivative (`jax.jvp`).

  Args:
    stride: both ways.
    padding: zeros on every side.
    x: activations.
    kernel: as wide as `x` is deep.
  """
  return _convolve(x, kernel, stride, [(padding, padding)] * 2)


def _forward(stride, padding, x, kernel):
  return convolve(stride, padding, x, kernel), (x, kernel)


def _backward(stride, padding, kept, gradient):
  def of_xla(x, kernel, gradient):
    pads = [(padding, padding)] * 2
    _, pull = jax.vjp(lambda *args: _convolve(*args, stride, pads), x, kernel)
    return pull(gradient)

  def of_cpu(x, kernel, gradient):
    return (
      _input_gradient(stride, padding, x, kernel, gradient),
      _kernel_gradient(stride, padding, x, kernel, gradient),
    )

  return jax.lax.platform_dependent(*kept, gradient, cpu=of_cpu, default=of_xla)


convolve.defvjp(_forward, _backward)


def _convolve(x, kernel, stride, pads, spread=1):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=pads,
    lhs_dilation=(spread, spread),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _input_gradient(stride, padding, x, kernel, gradient):
  """Returns the gradient by x: a convolution, too.

  Of what comes from above, spread by the stride, with the kernel turned by
  half a circle and its channels exchanged. XLA's own has the kernel's axes in
  another order, and its compiler for CPUs brings only convolutions outside of
  loops into the form that its fast kernels take (jax-ml/jax#12868): in a loop
  it takes four times as long.
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
  """Returns the gradient by the kernel: one product of two matrices.

  Of what each weight is multiplied with in every cell, with what comes from
  above there. XLA's own is a convolution whose kernel is as large as the
  picture: for the stem of a ResNet it takes five times as long, for 1x1 kernels
  up to twelve times (`tests.benchmarks.convolution`). Devices then add up one
  array as large as the kernel, as they do with XLA's.
  """
  extent = kernel.shape[0]
  if stride > 1:
    product = _correlate(stride, padding, extent, x, gradient)
  else:
    # The same sum, the other shifted. Nothing but order keeps XLA from writing
    # all the shifted x of a network in the forward pass, and it would.
    product = _correlate(1, extent - 1 - padding, extent, gradient, x)
    product = jnp.flip(product, (0, 1)).swapaxes(2, 3)
  return product.astype(kernel.dtype)


def _correlate(
  stride: int,
  padding: int,
  extent: int,
  wide: Float[Array, "B H W C"],
  narrow: Float[Array, "B h w D"],
) -> Float[Array, "k k C D"]:
  """Returns the sum over cells of narrow times wide, for each shift of wide.

  Args:
    stride: cells of `wide` to one of `narrow`.
    padding: zeros on every side of `wide`.
    extent: k, shifts along each axis.
    wide: what is shifted.
    narrow: what is not.
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
  """Returns [count, *x.shape], `length` cells of axis 3 from each shift on.

  Called twice, it shifts the last axis and then the one before.
  """
  return jnp.stack(
    [
      jax.lax.slice_in_dim(
        x, start, start + stride * (length - 1) + 1, stride, axis=3
      )
      for start in range(count)
    ]
  )
