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
