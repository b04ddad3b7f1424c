"""Layers by name, for methods that look elsewhere than at the last.

A layer is known by its output, after the nonlinearity, and named as torchvision
names it: "layer3" of a ResNet, "features.23" of VGG16 (its fourth pooling).
Its output is what the module after it is given (`Network.layer_inputs`).
"""

import difflib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gc_jax.attribution.intercept import intercept
from gc_jax.models.network import FEATURES, Network


def layer_paths(model: nnx.Module) -> dict[str, str]:
  """Returns the layers there are, from the picture up.

  Args:
    model: one of `gc_jax.models` says which; of any other, only its features
      have a name, "features".

  Returns:
    Name -> dotted path of the module whose input it is; `FEATURES` for the
    last, which are the features.
  """
  if isinstance(model, Network):
    return model.layer_inputs()
  return {"features": FEATURES}


def layer_names(model: nnx.Module) -> tuple[str, ...]:
  """Returns what `layer` may be for a model, from the picture up."""
  return tuple(layer_paths(model))


def input_path(model: nnx.Module, layer: str) -> str:
  """Returns the path of the module whose input a layer is, or `FEATURES`.

  Raises:
    ValueError: the model has no such layer; names those it has.
  """
  paths = layer_paths(model)
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
    taps: name of a layer -> what is done to its output before it goes on.

  Raises:
    ValueError: the model has no such layer.
  """
  by_path = {input_path(model, name): tap for name, tap in taps.items()}
  last = by_path.pop(FEATURES, lambda x: x)
  if not by_path:
    return lambda images: last(model.features(images))
  modules = {
    ".".join(map(str, path)): module for path, module in nnx.iter_modules(model)
  }
  kinds = tuple({type(modules[path]) for path in by_path})

  def call(path, module, x):
    return module(by_path[path](x) if path in by_path else x)

  copy = intercept(model, kinds, call)
  return lambda images: last(copy.features(images))


def grids(
  model: nnx.Module, height: int, width: int
) -> dict[str, tuple[int, int]]:
  """Returns (h, w) of what each layer puts out, without computing any.

  Args:
    model: with `normalize` and `features`.
    height: of the images.
    width: of the images.
  """
  found = {}

  def tap(name):
    def see(x):
      found[name] = x.shape[1:3]
      return x

    return see

  features = tapped_features(
    model, {name: tap(name) for name in layer_names(model)}
  )
  images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
  jax.eval_shape(lambda images: features(model.normalize(images)), images)
  return found
