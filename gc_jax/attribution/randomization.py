"""Models with their weights randomised, from the head down.

Source: Adebayo et al. 2018, arXiv:1810.03292 (cascading randomisation).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.models.network import TORCH_INIT, Network

_LAYERS = (nnx.Conv, nnx.Linear)


def stages(model: nnx.Module) -> tuple[str, ...]:
  """Returns the parts of a model that are randomised together, head first.

  A `Network` names them itself, as torchvision does: "fc", "layer4", ...,
  "layer1", "conv1" of a ResNet. The parts of any other model are its attributes
  that hold layers, the last one that was set first.

  Raises:
    ValueError: a layer is in none of the parts that a `Network` names.
  """
  if _remakes(model):
    return tuple(reversed(model.parts()))
  found = dict.fromkeys(part for part, _ in _layers(model))
  return tuple(reversed(found))


def randomized(model: nnx.Module, stage: str, key: PRNGKeyArray) -> nnx.Module:
  """Returns a copy, initialised anew from the head down to a stage.

  Each layer is drawn as its architecture draws it, and norms start as before
  training. The copy is in evaluation mode.

  Args:
    model: left as it was.
    stage: the last one to randomise, of `stages`.
    key: the initialisation is a function of it and of each layer's place.

  Raises:
    ValueError: the model has no such stage.
  """
  names = stages(model)
  if stage not in names:
    raise ValueError(
      f"stage must be one of {', '.join(names)}; it is {stage!r}."
    )
  anew = names[: names.index(stage) + 1]
  copy = nnx.clone(model)
  copy.eval()
  if _remakes(model):
    parts = model.parts()
    return _remade(copy, {path for part in anew for path in parts[part]}, key)
  for number, (part, module) in enumerate(_layers(copy)):
    if part in anew:
      _initialize(module, jax.random.fold_in(key, number))
  return copy


def _remakes(model: nnx.Module) -> bool:
  return isinstance(model, Network) and model.anew is not None


def _remade(model: Network, paths: set[str], key: PRNGKeyArray) -> Network:
  """Returns the model with variables below some paths as a new one has them."""
  new = jax.jit(lambda key: nnx.state(model.anew(key)))(key)
  below = lambda path: any(
    ".".join(map(str, path[:depth])) in paths for depth in range(len(path) + 1)
  )
  flat = [(path, v) for path, v in nnx.to_flat_state(new) if below(path)]
  nnx.update(model, nnx.from_flat_state(flat))
  return model


def _initialize(module: nnx.Module, key: PRNGKeyArray) -> None:
  if hasattr(module, "initialize"):
    module.initialize(key)
    return
  init = getattr(module, "init", TORCH_INIT)
  key_kernel, key_bias = jax.random.split(key)
  shape = module.kernel[...].shape
  module.kernel[...] = init.kernel(key_kernel, shape, jnp.float32)
  if module.bias is not None:
    draw = init.bias(int(np.prod(shape[:-1])))
    module.bias[...] = draw(key_bias, shape[-1:])


def _layers(model: nnx.Module) -> list[tuple[str, nnx.Module]]:
  """Returns (part, layer) of all layers with weights, from the picture up."""
  if isinstance(model, Network):
    parts = model.parts()
  else:
    parts = {name: (name,) for name in vars(model)}
  part_of = {path: part for part, paths in parts.items() for path in paths}
  place = {part: i for i, part in enumerate(parts)}
  found = []
  for names, module in nnx.iter_modules(model):
    if isinstance(module, _LAYERS) or hasattr(module, "initialize"):
      names = list(map(str, names))
      depths = [
        i for i in range(len(names) + 1) if ".".join(names[:i]) in part_of
      ]
      if not depths:
        raise ValueError(
          f"parts() of {type(model).__name__} must name every layer, for the "
          f"sanity check to randomise; {'.'.join(names)} is in none of "
          f"{', '.join(parts)}. Add it to one."
        )
      depth = max(depths)
      part = part_of[".".join(names[:depth])]
      block = [int(n) for n in names[depth : depth + 1] if n.isdecimal()]
      found.append(((place[part], block), part, module))
  found.sort(key=lambda layer: layer[0])
  return [(part, module) for _, part, module in found]


def rank_correlation(
  a: Float[Array | np.ndarray, "N h w"],
  b: Float[Array | np.ndarray, "N h w"],
) -> Float[np.ndarray, "N"]:
  """Returns Spearman's correlation of each pair of maps.

  Equal cells share their mean rank; NaN where a map is constant, an empty one
  for example: it has no order to compare.
  """
  import scipy.stats  # takes a second, which other commands save

  ranks = [
    scipy.stats.rankdata(np.asarray(cam).reshape(len(cam), -1), axis=1)
    for cam in (a, b)
  ]
  centred = [r - r.mean(1, keepdims=True) for r in ranks]
  norms = [np.sqrt((r**2).sum(1)) for r in centred]
  product = norms[0] * norms[1]
  inner = (centred[0] * centred[1]).sum(1)
  has_order = product > 0
  return np.where(has_order, inner / np.where(has_order, product, 1), np.nan)


def mean_correlation(
  a: Float[Array | np.ndarray, "N h w"],
  b: Float[Array | np.ndarray, "N h w"],
) -> float | None:
  """Returns the mean over pairs that have a `rank_correlation`, or None."""
  found = rank_correlation(a, b)
  found = found[np.isfinite(found)]
  return float(found.mean()) if len(found) else None
