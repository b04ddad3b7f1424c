"""Models with their weights randomised, from the head down.

Source: Adebayo et al. 2018, arXiv:1810.03292 (cascading randomisation).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.models.chain import Chain, alexnet, vgg16
from gc_jax.models.layers import (
  HE_INIT,
  HE_UNIFORM_INIT,
  TORCH_INIT,
  BatchNorm,
  Init,
)
from gc_jax.models.resnet import ResNet
from gc_jax.models.squeezenet import SqueezeNet


class UnknownLayersError(ValueError):
  """A model's layers have no known order; says which of its names is new."""


_LAYERS = (nnx.Conv, nnx.Linear)

# Attribute of a chain -> torchvision's name for it.
_NUMBERED = {"trunk": "features", "head": "classifier"}


def stages(model: nnx.Module) -> tuple[str, ...]:
  """Returns the parts of a model that are randomised together, head first.

  Named as torchvision names them. Stages of a ResNet: "fc", "layer4", ...,
  "layer1", "conv1", the last with its norm. Single layers of a chain, and of
  SqueezeNet its fire modules: "classifier.6", "classifier.4", ...,
  "features.0".

  Raises:
    UnknownLayersError: the model has weights elsewhere than those have.
  """
  found = dict.fromkeys(_stage(path) for path, _ in _layers(model))
  return tuple(reversed(found))


def randomized(model: nnx.Module, stage: str, key: PRNGKeyArray) -> nnx.Module:
  """Returns a copy, initialised anew from the head down to a stage.

  Each layer is drawn as its architecture draws it. BatchNorms start as at the
  beginning of training: their statistics are learned, too, and belong to the
  weights before them. The copy is in evaluation mode.

  Args:
    model: left as it was.
    stage: the last that is randomised, of `stages`.
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
  for number, (path, module) in enumerate(_layers(copy)):
    if _stage(path) in anew:
      init = _initializer(model, path, module)
      _initialize(module, init, jax.random.fold_in(key, number))
  return copy


def _initializer(model: nnx.Module, path: tuple, module: nnx.Module) -> Init:
  """Returns how the model's constructor initialises one of its layers.

  A module does not keep its initialiser; the class of the model, and of a
  chain its layers, say which it was. Of others it is PyTorch's default.
  """
  is_conv = isinstance(module, nnx.Conv)
  match model:
    case ResNet():
      return HE_INIT if is_conv else TORCH_INIT
    case SqueezeNet():
      if tuple(path) == model.last_layer:
        return Init(nnx.initializers.normal(0.01), zero_bias=True)
      return HE_UNIFORM_INIT
    case Chain():
      for constructor in (alexnet, vgg16):
        if constructor.args[0] == model.chain:
          kind = "conv_init" if is_conv else "linear_init"
          return constructor.keywords[kind]
  return TORCH_INIT


def _initialize(module: nnx.Module, init: Init, key: PRNGKeyArray) -> None:
  if isinstance(module, BatchNorm):
    module.scale[...] = jnp.ones_like(module.scale[...])
    module.bias[...] = jnp.zeros_like(module.bias[...])
    module.mean[...] = jnp.zeros_like(module.mean[...])
    module.var[...] = jnp.ones_like(module.var[...])
    return
  key_kernel, key_bias = jax.random.split(key)
  shape = module.kernel[...].shape
  module.kernel[...] = init.kernel(key_kernel, shape, jnp.float32)
  if module.bias is not None:
    draw = init.bias(int(np.prod(shape[:-1])))
    module.bias[...] = draw(key_bias, shape[-1:])


def _layers(model: nnx.Module) -> list[tuple[tuple, nnx.Module]]:
  """Returns the layers with weights, from the picture up, head last."""
  found = [
    (path, module)
    for path, module in nnx.iter_modules(model)
    if isinstance(module, (*_LAYERS, BatchNorm))
  ]
  order = ("stem", "trunk", "layer", "head", "fc")

  def place(item):
    first, *rest = map(str, item[0])
    kind = "stem" if first in ("conv1", "bn1") else first.rstrip("0123456789")
    if kind not in order:
      raise UnknownLayersError(
        f"The order of a model's layers must be known to randomise them one "
        f"after the other; {type(model).__name__} has weights in {first!r}, "
        f"and known are {', '.join(order)}."
      )
    number = int(first[5:] or 0) if kind == "layer" else 0
    return order.index(kind), number, [int(n) for n in rest[:1]]

  return sorted(found, key=place)


def _stage(path: tuple) -> str:
  first, *rest = map(str, path)
  if first in _NUMBERED:
    return f"{_NUMBERED[first]}.{rest[0]}"
  return "conv1" if first == "bn1" else first


def rank_correlation(
  a: Float[Array | np.ndarray, "N h w"],
  b: Float[Array | np.ndarray, "N h w"],
) -> Float[np.ndarray, "N"]:
  """Returns Spearman's correlation of two maps of the same size, each pair.

  Equal cells share their mean rank; 0 where a map is constant.
  """
  import scipy.stats  # a second, which every other command need not take

  ranks = [
    scipy.stats.rankdata(np.asarray(cam).reshape(len(cam), -1), axis=1)
    for cam in (a, b)
  ]
  centred = [r - r.mean(1, keepdims=True) for r in ranks]
  norms = [np.sqrt((r**2).sum(1)) for r in centred]
  product = norms[0] * norms[1]
  inner = (centred[0] * centred[1]).sum(1)
  return np.where(product > 0, inner / np.where(product > 0, product, 1), 0.0)
