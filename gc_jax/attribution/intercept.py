"""Changing what a model's modules compute, from outside the model.

Models hold no explanation code. A method that needs another rule in every
convolution, or what every layer puts out, runs a copy whose modules call it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

# (dotted path of the module, the module, its input) -> its output
Call = Callable[[str, nnx.Module, Array], Array]


class _Intercepted(nnx.Module):
  """Calls a function in place of a module."""

  def __init__(self, path: str, module: nnx.Module, call: Call):
    self.path = path
    self.module = module
    self.call = call

  def __call__(self, x: Array) -> Array:
    """Returns what the function makes of the module and its input."""
    return self.call(self.path, self.module, x)


def intercept(
  model: nnx.Module, kinds: type | tuple[type, ...], call: Call
) -> nnx.Module:
  """Returns a copy of the model in which a function stands for some modules.

  The copy has other paths of variables: use it for a forward pass, within the
  trace that made it, and let it go.

  Args:
    model: left as it was.
    kinds: classes of the modules to replace; where one is inside another, both
      are.
    call: what is done in their place; `module(x)` is what they would do.
  """

  def replaced(path, node):
    if isinstance(node, kinds):
      return _Intercepted(".".join(map(str, path)), node, call)
    return node

  return nnx.recursive_map(replaced, model)


def in_float32(model: nnx.Module) -> nnx.Module:
  """Returns a copy of the model whose activations are float32 throughout.

  Args:
    model: left as it was. Of one whose parameters are float64, activations are
      so, too.
  """
  parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
  dtype = jnp.result_type(jnp.float32, *(p.dtype for p in parameters))

  def widened(path, node):
    del path
    if isinstance(node, nnx.Module) and hasattr(node, "dtype"):
      node.dtype = dtype
    return node

  return nnx.recursive_map(widened, nnx.clone(model))


def for_pixel_gradients(model: nnx.Module) -> nnx.Module:
  """Returns a copy of the model whose gradient by pixels is fast in loops.

  XLA's compiler for CPUs brings only convolutions outside of loops into the
  form that its fast kernels take (jax-ml/jax#12868). The gradient's have the
  kernel's axes in another order: in a loop they took four times as long. Here
  each is written in that form. Compilers for GPUs and TPUs know the usual one.

  Args:
    model: left as it was, and returned as it is where it does not run on a
      CPU. Its parameters get no gradient.
  """
  if jax.default_backend() != "cpu":
    return model
  return intercept(model, nnx.Conv, _convolved)


def _convolved(path: str, module: nnx.Conv, x: Array) -> Array:
  """Returns the convolution, with a rule of its own for the input's gradient.

  The gradient is a convolution of what comes from above, spread by the stride,
  with the kernel turned by half a circle and its channels exchanged.
  """
  del path
  if not _is_plain(module):
    return module(x)
  kernel, stride = module.kernel[...], module.strides

  @jax.custom_vjp
  def convolve(x):
    return module(x)

  def forward(x):
    return module(x), None

  def backward(_, out):
    padding = []
    for side, extent, outs in zip(
      x.shape[1:3], kernel.shape[:2], out.shape[1:3], strict=True
    ):
      spread = (outs - 1) * stride + 1
      before = extent - 1 - module.padding
      padding.append((before, side + extent - 1 - spread - before))
    gradient = jax.lax.conv_general_dilated(
      out,
      jnp.flip(kernel, (0, 1)).swapaxes(2, 3).astype(out.dtype),
      window_strides=(1, 1),
      padding=padding,
      lhs_dilation=(stride, stride),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return (gradient.astype(x.dtype),)

  convolve.defvjp(forward, backward)
  return convolve(x)


def _is_plain(module: nnx.Conv) -> bool:
  """Returns whether a convolution is one that `models.layers.conv` makes."""
  return (
    len(module.kernel_size) == 2
    and isinstance(module.strides, int)
    and isinstance(module.padding, int)
    and module.input_dilation == module.kernel_dilation == 1
    and module.feature_group_count == 1
    and module.mask is None
  )
