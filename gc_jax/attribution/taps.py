"""Reads and changes what the modules of a model compute, from outside it.

Models hold no explanation code. A method that needs another rule in every
convolution, or the output of a layer, runs a copy of the model in which a
function stands for some modules.

A layer means its output, after the nonlinearity, under torchvision's name:
"layer3" of a ResNet, "features.23" of VGG16 (its fourth pooling). It is read
where it is the input of the next module (`Network.layer_inputs`).
"""

import difflib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gc_jax.method.cam import wider
from gc_jax.models.network import FEATURES, Network, context_of

# (dotted path of the module, the module, its input) -> its output
Call = Callable[[str, nnx.Module, Array], Array]


class _Intercepted(nnx.Module):
  """Calls a function in place of a module."""

  def __init__(self, path: str, module: nnx.Module, call: Call):
    self.path = path
    self.module = module
    self.call = call

  def __call__(self, x: Array) -> Array:
    return self.call(self.path, self.module, x)


def intercept(
  model: nnx.Module, kinds: type | tuple[type, ...], call: Call
) -> nnx.Module:
  """Returns a copy of the model in which a function stands for some modules.

  Use the copy within the trace that made it: its variables have other paths.

  Args:
    model: left as it was.
    kinds: classes of the modules to replace, nested ones too.
    call: stands for them; `module(x)` inside it is what they would compute.
  """

  def replaced(path, node):
    if isinstance(node, kinds):
      return _Intercepted(".".join(map(str, path)), node, call)
    return node

  return nnx.recursive_map(replaced, model)


def dtype_of(model: nnx.Module) -> jnp.dtype:
  """Returns float32, or float64 if the model's weights are."""
  parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
  return wider(jnp.float32, *(p.dtype for p in parameters))


def in_float32(model: nnx.Module) -> nnx.Module:
  """Returns a copy that computes in `dtype_of` it."""
  dtype = dtype_of(model)

  def widened(path, node):
    del path
    if isinstance(node, nnx.Module) and hasattr(node, "dtype"):
      node.dtype = dtype
    return node

  return nnx.recursive_map(widened, nnx.clone(model))


def layers(model: nnx.Module) -> dict[str, str]:
  """Returns the layers that methods can look at, from the picture up.

  A model that is not a `Network` has one, "features".

  Returns:
    Name -> dotted path of the module whose input the layer is; `FEATURES` for
    the last one.
  """
  if isinstance(model, Network):
    return model.layer_inputs()
  return {"features": FEATURES}


def last_layer(model: nnx.Module) -> str:
  """Returns the name of the layer that `features` returns."""
  return [*layers(model)][-1]


def input_path(model: nnx.Module, layer: str) -> str:
  """Returns the path of the module whose input a layer is, or `FEATURES`.

  Raises:
    ValueError: the model has no such layer.
  """
  paths = layers(model)
  if layer in paths:
    return paths[layer]
  nearest = difflib.get_close_matches(layer, paths, n=1)
  hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
  raise ValueError(
    f"layer must be one of {', '.join(paths)} for this model; it is "
    f"{layer!r}.{hint}"
  )


def tapped_features(
  model: nnx.Module, taps: Mapping[str, Callable[[Array], Array]]
) -> Callable[[Float[Array, "B H W 3"]], Float[Array, "B h w D"]]:
  """Returns `model.features` with functions applied to outputs of layers.

  Args:
    model: left as it was.
    taps: name of a layer -> what its output becomes before it goes on.

  Raises:
    ValueError: the model has no such layer.
  """
  by_path = {input_path(model, name): tap for name, tap in taps.items()}
  last = by_path.pop(FEATURES, lambda x: x)
  kinds = tuple(
    {
      type(module)
      for path, module in nnx.iter_modules(model)
      if ".".join(map(str, path)) in by_path
    }
  )

  def call(path, module, x):
    return module(by_path[path](x) if path in by_path else x)

  copy = intercept(model, kinds, call)

  def run(images):
    features = copy.features(images)
    if not context_of(model):
      return last(features)
    explained, context = copy.parted(features)
    return jnp.concatenate([last(explained), context], axis=-1)

  return run
