"""The architectures, by name. A `-gmp` suffix pools by the global maximum."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from gc_jax.models.chain import ALEXNET, VGG16
from gc_jax.models.network import Architecture
from gc_jax.models.resnet import (
  RESNET8_SMALL,
  RESNET18,
  RESNET34,
  RESNET50,
  RESNET101,
)
from gc_jax.models.squeezenet import SQUEEZENET1_1

_GMP = "-gmp"


def _poolings(name: str, architecture: Architecture) -> dict[str, Architecture]:
  """Returns an architecture under either global pooling, by name."""
  return {
    name: architecture.changed(pooling="average"),
    name + _GMP: architecture.changed(pooling="max"),
  }


MODELS: dict[str, Architecture] = {
  "alexnet": ALEXNET,
  "vgg16": VGG16,
  **_poolings("resnet8-small", RESNET8_SMALL),
  **_poolings("resnet18", RESNET18),
  **_poolings("resnet34", RESNET34),
  **_poolings("resnet50", RESNET50),
  **_poolings("resnet101", RESNET101),
  **_poolings("squeezenet1_1", SQUEEZENET1_1),
}


def is_gmp(name: str) -> bool:
  """Returns whether a model of this name pools by the global maximum."""
  return name.endswith(_GMP)


def without_gmp(name: str) -> str:
  """Returns the name of the model with the same weights that does not."""
  return name.removesuffix(_GMP)


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
