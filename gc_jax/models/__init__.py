"""The architectures, by name. A `-gmp` suffix pools by the global maximum."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from gc_jax.models.resnet import BasicBlock, Bottleneck, ResNet

_ARCHITECTURES = {
  # For pictures of 64 pixels: two stages, an 8x8 feature grid.
  "resnet10-small": partial(
    ResNet, (2, 2), BasicBlock, width=32, stem_kernel=3
  ),
  "resnet18": partial(ResNet, (2, 2, 2, 2), BasicBlock),
  "resnet34": partial(ResNet, (3, 4, 6, 3), BasicBlock),
  "resnet50": partial(ResNet, (3, 4, 6, 3), Bottleneck),
  "resnet101": partial(ResNet, (3, 4, 23, 3), Bottleneck),
}

# name -> constructor(num_classes, *, dtype, rngs)
MODELS = {
  **{k: partial(v, pooling="average") for k, v in _ARCHITECTURES.items()},
  **{f"{k}-gmp": partial(v, pooling="max") for k, v in _ARCHITECTURES.items()},
}


def create(
  name: str, num_classes: int, *, dtype: DTypeLike = jnp.float32, seed: int = 0
) -> nnx.Module:
  """Returns a freshly initialised model.

  Args:
    name: a key of `MODELS`.
    num_classes: K.
    dtype: of activations; parameters are float32.
    seed: initialisation is a function of it.
  """
  return MODELS[name](num_classes, dtype=dtype, rngs=nnx.Rngs(seed))


def pure_head(model: nnx.Module) -> Callable[[Array], Array]:
  """Returns `model.classify` as a pure function of the features.

  Differentiating the method itself inside an outer gradient would mutate the
  module's random state (dropout) at another trace level, which NNX refuses.
  """
  graphdef, state = nnx.split(model)
  return lambda features: nnx.merge(graphdef, state, copy=True).classify(
    features
  )
