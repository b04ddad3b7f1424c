"""The architectures, by name. A `-gmp` suffix pools by the global maximum."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.models import chain, convnext, resnet, vit
from gc_jax.models.architecture import Architecture, made_by
from gc_jax.runtime.messages import unknown_name_message

_GMP = "-gmp"

_NOT_POOLED = {
  "alexnet-small": chain.ALEXNET_SMALL,
  "alexnet": chain.ALEXNET,
  "vgg16": chain.VGG16,
  "vit_tiny": vit.VIT_TINY,
  "vit_small": vit.VIT_SMALL,
  "vit_base": vit.VIT_BASE,
}
_POOLED = {
  "resnet8-small": resnet.RESNET8_SMALL,
  "resnet11-small": resnet.RESNET11_SMALL,
  "resnet18": resnet.RESNET18,
  "resnet34": resnet.RESNET34,
  "resnet50": resnet.RESNET50,
  "resnet101": resnet.RESNET101,
  "squeezenet1_1": chain.SQUEEZENET1_1,
  "convnext_tiny": convnext.CONVNEXT_TINY,
}
# Those that pool globally come with either pooling.
MODELS: dict[str, Architecture] = _NOT_POOLED | {
  name + suffix: architecture.changed(pooling=pooling)
  for name, architecture in _POOLED.items()
  for suffix, pooling in (("", "average"), (_GMP, "max"))
}


def is_gmp(name: str) -> bool:
  """Returns whether the model of a name pools by the global maximum."""
  return name.endswith(_GMP)


def without_gmp(name: str) -> str:
  """Returns the name of the model with the same weights and mean pooling."""
  return name.removesuffix(_GMP)


def find(name: str, what: str = "model") -> Architecture:
  """Returns an architecture by its name.

  Args:
    name: a key of `MODELS`; or "package.module:function", a function
      (num_classes, dtype, key) that returns `gc_jax.wrap(model, at=...)`.
    what: names it in messages, as "--config.model.name".

  Raises:
    ValueError: there is none.
  """
  if name in MODELS:
    return MODELS[name]
  if ":" in name:
    return made_by(name, what)
  raise ValueError(
    f"{unknown_name_message(what, name, MODELS)} A function of yours that "
    "makes a model is named package.module:function."
  )


def create(
  name: str,
  num_classes: int,
  *,
  dtype: jax.typing.DTypeLike = jnp.float32,
  key: PRNGKeyArray | None = None,
) -> nnx.Module:
  """Returns a freshly initialised model.

  Args:
    name: of `find`.
    num_classes: K.
    dtype: of activations; parameters are float32.
    key: the initialisation is a function of it; by default `init_key(0)`.

  Raises:
    ValueError: there is no such model, or not one class.
  """
  if num_classes < 1:
    raise ValueError(f"num_classes must be at least 1; it is {num_classes}.")
  rngs = nnx.Rngs(init_key(0) if key is None else key)
  return find(name)(num_classes, dtype=dtype, rngs=rngs)


def init_key(seed: int) -> PRNGKeyArray:
  """Returns a key to initialise a model with.

  Its generator is XLA's own ("rbg"). JAX's default is compiled for every shape
  of kernel: on a CPU a ResNet8 took ten times as long to start.
  """
  return jax.random.key(seed, impl="rbg")


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
  """A network's head as pure functions of the features: see `pure_head`."""

  graphdef: nnx.GraphDef
  state: nnx.State
  key: PRNGKeyArray | None  # of the dropout masks, the same at every call

  def __call__(self, features: Float[Array, "B h w D"]) -> Float[Array, "B K"]:
    """Returns `classify` of the features."""
    return self._model().classify(features, self.key)

  def pool(self, features: Float[Array, "B h w D"]) -> Float[Array, "B C"]:
    """Returns `pool` of the features."""
    return self._model().pool(features, self.key)

  def classify_pooled(self, pooled: Float[Array, "B C"]) -> Float[Array, "B K"]:
    """Returns `classify_pooled` of what was pooled."""
    return self._model().classify_pooled(pooled)

  def _model(self) -> nnx.Module:
    return nnx.merge(self.graphdef, self.state, copy=True)


def pure_head(model: nnx.Module, key: PRNGKeyArray | None = None) -> Head:
  """Returns the head of a model; call it for `classify` of features.

  NNX refuses to differentiate the method itself inside an outer gradient, which
  would touch the module's variables at another trace level. The key is that of
  the dropout masks, the same at every call; None drops nothing.
  """
  return Head(*nnx.split(model), key)
