"""What is known of an architecture beside its network: an entry of `MODELS`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

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
  unit_px: int = 1  # what must divide the sides of training's pictures
  # Lines of Python that make it as `model` in PyTorch, with average pooling;
  # `{num_classes}` is K, `{image_size}` the side of pictures. "" if there are
  # none.
  torch_code: str = ""
  # An expression that makes what that `model` loads of a file's `{weights}`.
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
