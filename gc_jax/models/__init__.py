"""The architectures, by name. A `-gmp` suffix pools by the global maximum."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from gc_jax.models.chain import alexnet, vgg16
from gc_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from gc_jax.models.squeezenet import SqueezeNet

_GLOBALLY_POOLED = {
  # For pictures of 64 pixels: two stages, an 8x8 feature grid.
  "resnet8-small": partial(ResNet, (1, 2), BasicBlock, width=32, stem_kernel=3),
  "resnet18": partial(ResNet, (2, 2, 2, 2), BasicBlock),
  "resnet34": partial(ResNet, (3, 4, 6, 3), BasicBlock),
  "resnet50": partial(ResNet, (3, 4, 6, 3), Bottleneck),
  "resnet101": partial(ResNet, (3, 4, 23, 3), Bottleneck),
  "squeezenet1_1": SqueezeNet,
}

# name -> constructor(num_classes, *, dtype, rngs)
MODELS = {
  "alexnet": alexnet,
  "vgg16": vgg16,
  **{k: partial(v, pooling="average") for k, v in _GLOBALLY_POOLED.items()},
  **{
    f"{k}-gmp": partial(v, pooling="max") for k, v in _GLOBALLY_POOLED.items()
  },
}


def create(
  name: str,
  num_classes: int,
  *,
  dtype: jax.typing.DTypeLike = jnp.float32,
  key: PRNGKeyArray | None = None,
) -> nnx.Module:
  """Returns a freshly initialised model.

  Args:
    name: a key of `MODELS`.
    num_classes: K.
    dtype: of activations; parameters are float32.
    key: the initialisation is a function of it; by default `init_key(0)`.
  """
  rngs = nnx.Rngs(init_key(0) if key is None else key)
  return MODELS[name](num_classes, dtype=dtype, rngs=rngs)


def init_key(seed: int) -> PRNGKeyArray:
  """Returns a key to initialise a model with.

  Its generator is XLA's own ("rbg"). The default one is compiled anew for
  every shape of kernel: on a CPU a ResNet8 took ten times as long to start.
  """
  return jax.random.key(seed, impl="rbg")


def pure_head(
  model: nnx.Module, key: PRNGKeyArray | None = None
) -> Callable[[Array], Array]:
  """Returns `model.classify` as a pure function of the features.

  Differentiating the method itself inside an outer gradient would touch the
  module's variables at another trace level, which NNX refuses.

  Args:
    model: with `classify`.
    key: of its dropout masks, the same at every call; None drops nothing.
  """
  graphdef, state = nnx.split(model)
  return lambda features: nnx.merge(graphdef, state, copy=True).classify(
    features, key
  )
