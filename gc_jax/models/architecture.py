"""What is known of an architecture beside its network: an entry of `MODELS`."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from gc_jax.models.network import Network
from gc_jax.runtime.messages import unknown_name_message


class Timm(NamedTuple):
  """An architecture in timm, whose loader takes torchvision's names too."""

  name: str  # as `timm.create_model` knows it
  # timm's names of the first convolution, and of the layer whose outputs are
  # the logits.
  first_conv: str
  classifier: str


@dataclasses.dataclass(frozen=True, eq=False)
class Architecture:
  """An entry of `MODELS`: an architecture's facts. Call it to build one."""

  title: str  # as papers write it, without the pooling: "ResNet18"
  network: type[Network]
  fields: Mapping[str, Any]  # arguments of `network`, beside K
  min_px: int  # the smallest side of a picture that leaves a cell of features
  # Lines of Python that make it as `model` in PyTorch, with average pooling;
  # `{num_classes}` is K, `{image_size}` the side of pictures. "" if there are
  # none.
  torch_code: str = ""
  # An expression for what that `model` loads, made of a file's `{weights}`.
  torch_weights: str = "{weights}"
  # The attribute of that `model` that pools globally; "" if a perceptron takes
  # a grid of features instead.
  torch_pooling: str = ""
  timm: Timm | None = None  # None: timm does not have it

  def __call__(
    self, num_classes: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
  ) -> Network:
    """Returns a network with activations of a dtype and float32 parameters."""
    return self.network(
      num_classes=num_classes, **self.fields, dtype=dtype, rngs=rngs
    )

  def changed(self, **fields: Any) -> "Architecture":
    """Returns the same architecture with other arguments of its constructor.

    PyTorch's code makes no other than the original, with either pooling: it is
    dropped when more changes than that.
    """
    changed = dataclasses.replace(self, fields={**self.fields, **fields})
    if fields.keys() <= {"pooling"}:
      return changed
    return dataclasses.replace(changed, torch_code="", timm=None)

  @property
  def pools_by_maximum(self) -> bool:
    """Whether the logits are of global maxima."""
    return self.fields.get("pooling") == "max"


# What `torchvision.models` calls the networks of our families.
TORCHVISION = frozenset(
  {
    "alexnet",
    *(f"vgg{depth}{bn}" for depth in (11, 13, 16, 19) for bn in ("", "_bn")),
    *("squeezenet1_0", "squeezenet1_1"),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *(f"convnext_{size}" for size in ("tiny", "small", "base", "large")),
    *("wide_resnet50_2", "wide_resnet101_2"),
  }
)


def from_torchvision(name: str) -> str:
  """Returns the `torch_code` of a model that torchvision has.

  Raises:
    ValueError: it has none of that name.
  """
  if name not in TORCHVISION:
    raise ValueError(
      unknown_name_message("model of torchvision", name, sorted(TORCHVISION))
      + " Of others, give lines of Python that make it as torch_code, or none."
    )
  return f"""\
import torchvision

model = torchvision.models.{name}(num_classes={{num_classes}})
"""


@dataclasses.dataclass(frozen=True)
class Maker:
  """Makes a network anew; two equal ones make the same of a key."""

  architecture: Architecture
  num_classes: int
  dtype: Any

  def __call__(self, key: PRNGKeyArray) -> Network:
    """Returns the network, initialised by the key."""
    rngs = nnx.Rngs(key)
    return self.architecture(self.num_classes, dtype=self.dtype, rngs=rngs)


@dataclasses.dataclass(frozen=True, eq=False)
class Made(Architecture):
  """An architecture that a function of a user's makes, "nets:make"."""

  # (num_classes, dtype, key) -> the network.
  make: Callable[[int, DTypeLike, PRNGKeyArray], Network] | None = None

  def __call__(
    self, num_classes: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
  ) -> Network:
    """Returns the network, which knows how to be made anew."""
    network = self.make(num_classes, dtype, rngs())
    network.anew = Maker(self, num_classes, jnp.dtype(dtype))
    return network

  def check_takes(self, side: int) -> None:
    """Raises the network's own error unless it takes squares of a side.

    Nothing is computed.
    """

    def logits(key, images):
      network = self(2, rngs=nnx.Rngs(key))
      return network.classify(network.features(network.normalize(images)))

    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
    jax.eval_shape(logits, jax.random.key(0), images)


def made_by(name: str, what: str) -> Architecture:
  """Returns the architecture that a function makes.

  It is traced once, not computed, so that whatever is wrong is told now.

  Args:
    name: "package.module:function".
    what: names it in messages, as "--config.model.name".

  Raises:
    ValueError: there is no such function, or it makes something else.
  """
  function = _imported(name, what)
  if (known := _MADE.get(name)) and known[0] is function:
    return known[1]
  wanted = (
    f"{what}={name!r} must be a function (num_classes, dtype, key) that "
    "returns gc_jax.wrap(model, at=...) of an nnx.Module"
  )
  try:
    inspect.signature(function).bind(num_classes=2, dtype=None, key=None)
  except TypeError as error:
    raise ValueError(f"{wanted}; it does not take these: {error}.") from error

  def make(num_classes, dtype, key):
    made = function(num_classes=num_classes, dtype=dtype, key=key)
    if isinstance(made, Network):
      return made
    # What `wrap` returns has it.
    as_network = getattr(made, "as_network", None)
    if as_network is None:
      raise ValueError(f"{wanted}; it returned a {type(made).__name__}.")
    return as_network()

  try:
    network = nnx.eval_shape(
      lambda key: make(2, jnp.float32, key), jax.random.key(0)
    )
    network.check()
  except Exception as error:
    if str(error).startswith(wanted):
      raise
    raise ValueError(
      f"{what}={name!r} must make a network, and fails: "
      f"{type(error).__name__}: {error}"
    ) from error
  architecture = Made(name, type(network), {}, min_px=1, make=make)
  _MADE[name] = function, architecture
  return architecture


# Name -> the function, and what was made of it.
_MADE: dict[str, tuple[Callable, Architecture]] = {}


def _imported(name: str, what: str) -> Callable:
  module_name, _, function_name = name.partition(":")
  hint = (
    "A command finds modules in the folder that it is started in, in "
    "PYTHONPATH and among what is installed."
  )
  if not all(part.isidentifier() for part in module_name.split(".")):
    raise ValueError(
      f"{what}={name!r} must name a module with dots and a function of it, as "
      f"package.module:function. {hint}"
    )
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    if not f"{module_name}.".startswith(f"{error.name}."):
      raise ValueError(
        f"{what}={name!r} must be importable; its module asks for "
        f"{error.name!r}, which is not here. Install it."
      ) from error
    raise ValueError(
      f"{what}={name!r} must name a module; there is no {error.name!r}. {hint}"
    ) from error
  except Exception as error:
    raise ValueError(
      f"{what}={name!r} must be importable; its module fails: "
      f"{type(error).__name__}: {error}."
    ) from error
  found = vars(module).get(function_name)
  if not callable(found):
    functions = [
      key
      for key, value in vars(module).items()
      if callable(value) and not key.startswith("_")
    ]
    raise ValueError(
      unknown_name_message(
        what,
        name,
        [f"{module_name}:{function}" for function in functions],
      )
    )
  return found
