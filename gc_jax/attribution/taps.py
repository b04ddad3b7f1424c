"""Reads and changes what the layers of a model put out, from outside it.

Models hold no explanation code. A method that needs the output of a layer runs
a copy of the model in which it passes a function on its way.

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


class _Tapped(nnx.Module):
  """A module whose input passes a function first."""

  def __init__(self, tap: Callable[[Array], Array], module: nnx.Module):
    self.tap = tap
    self.module = module

  def __call__(self, x: Array) -> Array:
    return self.module(self.tap(x))


def in_float32(model: nnx.Module) -> nnx.Module:
  """Returns a copy that computes in float32, or float64 if its weights are."""
  parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
  dtype = wider(jnp.float32, *(p.dtype for p in parameters))

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

  def replaced(path, node):
    tap = by_path.get(".".join(map(str, path)))
    return node if tap is None else _Tapped(tap, node)

  # Its variables have other paths than the model's.
  copy = nnx.recursive_map(replaced, model)

  def run(images):
    features = copy.features(images)
    if not context_of(model):
      return last(features)
    explained, context = copy.parted(features)
    return jnp.concatenate([last(explained), context], axis=-1)

  return run
