"""AlexNet and VGG16: convolutions in a chain, then a perceptron.

Source: Krizhevsky 2014, arXiv:1404.5997 (torchvision's AlexNet); Simonyan and
Zisserman 2015, arXiv:1409.1556. Layers carry torchvision's numbers, so that a
checkpoint is exchanged by renaming leaves.

The explained activations are the output of the last max-pool, as in the
authors' release. Neither has a global pooling, hence no `-gmp` (the paper's
"AlexNet doesn't have any pooling layer").
"""

from collections.abc import Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.models import convolution, network

# A layer of a chain is POOL or, of a convolution with a ReLU behind it,
# (channels, kernel, stride, padding).
POOL = ()
Layer = tuple[int, ...]

ALEXNET_LAYERS = (
  (64, 11, 4, 2),
  POOL,
  (192, 5, 1, 2),
  POOL,
  (384, 3, 1, 1),
  (256, 3, 1, 1),
  (256, 3, 1, 1),
  POOL,
)
VGG16_LAYERS = tuple(
  layer
  for count, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
  for layer in (*[(channels, 3, 1, 1)] * count, POOL)
)


class NumberedNetwork(network.Network):
  """A network whose `trunk` and `head` hold layers by torchvision's numbers.

  Attributes:
    chain: the layers of the trunk.
  """

  torch_names = MappingProxyType({"trunk": "features", "head": "classifier"})
  chain: Sequence[Layer]

  def numbered(self) -> list[tuple[str, Layer]]:
    """Returns the chain with torchvision's numbers."""
    numbered, number = [], 0
    for layer in self.chain:
      numbered.append((str(number), layer))
      number += 2 if len(layer) == 4 else 1  # a ReLU takes one too
    return numbered

  def layer_inputs(self) -> dict[str, str]:
    """Returns the inputs of the trunk's layers."""
    inputs = {f"features.{int(n) - 1}": f"trunk.{n}" for n in self.trunk}
    inputs.pop("features.-1")  # the picture
    last, _ = self.numbered()[-1]
    return inputs | {f"features.{last}": network.FEATURES}

  @property
  def excitation_layer(self) -> str:
    """The last pooling below the features: of VGG16 the fourth."""
    below = [number for number, kind in self.numbered()[:-1] if kind == POOL]
    return f"features.{below[-1]}"

  def parts(self) -> dict[str, tuple[str, ...]]:
    """Returns single layers: "features.0", ..., "classifier.6"."""
    return {
      f"{name}.{number}": (f"{part}.{number}",)
      for part, name in self.torch_names.items()
      for number in getattr(self, part)
    }


class Chain(NumberedNetwork):
  """A chain of convolutions split where Grad-CAM looks.

  Args:
    chain: convolutions and poolings.
    pool_window: side of the max-pool windows; their stride is 2.
    grid: side of the grid that the features are averaged to: the perceptron
      sees `grid * grid * D` numbers.
    hidden: width of the perceptron's two hidden layers.
    drops_features: whether dropout falls on the averaged features and the
      first hidden layer (AlexNet), or on both hidden layers (VGG).
    dropout_rate: fraction of activations that are dropped.
    dtype: of the trunk's activations. Parameters and the head are float32.
  """

  last_layer = ("head", "6")  # its outputs are the logits

  def __init__(
    self,
    chain: Sequence[Layer],
    num_classes: int,
    *,
    pool_window: int,
    grid: int,
    hidden: int = 4096,
    drops_features: bool,
    dropout_rate: float = 0.5,
    conv_init: network.Init,
    linear_init: network.Init,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.dtype = dtype
    self.chain = tuple(chain)
    self.pool_window = pool_window
    self.grid = grid
    self.drops_features = drops_features
    self.dropout_rate = dropout_rate
    make_conv = partial(network.conv, init=conv_init, dtype=dtype, rngs=rngs)
    trunk, channels = {}, 3
    for number, layer in self.numbered():
      if layer != POOL:
        trunk[number] = make_conv(channels, *layer[:3], padding=layer[3])
        channels = layer[0]
    self.trunk = nnx.Dict(trunk)
    # As torchvision numbers them: with a dropout before the layer or after.
    first, second = ("1", "4") if drops_features else ("0", "3")
    make_linear = partial(network.linear, init=linear_init, rngs=rngs)
    self.head = nnx.Dict(
      {
        first: make_linear(grid * grid * channels, hidden),
        second: make_linear(hidden, hidden),
        "6": make_linear(hidden, num_classes),
      }
    )

  def features(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B h w D"]:
    """Returns the activations after the last max-pool."""
    x, stage, numbered = images, [], self.numbered()
    for number, layer in numbered:
      stage.append((number, layer))
      if layer == POOL or number == numbered[-1][0]:
        run = partial(_run_stage, stage, self.pool_window)
        x, stage = self.segment(run, self.trunk, x), []
    return x

  def classify(
    self, features: Float[Array, "B h w D"], key: PRNGKeyArray | None = None
  ) -> Float[Array, "B K"]:
    """Returns the logits."""
    first, second, last = self.head.values()
    keys = (None, None) if key is None else jax.random.split(key)
    drop = lambda x, i: network.dropout(x, self.dropout_rate, keys[i])

    x = network.average_to_grid(network.at_least_float32(features), self.grid)
    # PyTorch flattens channels first.
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    if self.drops_features:
      x = drop(nnx.relu(first(drop(x, 0))), 1)
      x = nnx.relu(second(x))
    else:
      x = drop(nnx.relu(first(x)), 0)
      x = drop(nnx.relu(second(x)), 1)
    return last(x)

  def torch_features(self, ops: Any, x: Any) -> Any:
    """Computes `features` by PyTorch."""
    for number, layer in self.numbered():
      if layer == POOL:
        x = ops.max_pool(x, self.pool_window, 2)
      else:
        x = ops.conv(x, f"features.{number}", layer[2], layer[3]).relu()
    return x

  def torch_classify(self, ops: Any, features: Any) -> Any:
    """Computes `classify` by PyTorch."""
    x = ops.average_to_grid(features, self.grid)
    first, second, last = sorted(self.head)
    x = ops.linear(x, f"classifier.{first}").relu()
    x = ops.linear(x, f"classifier.{second}").relu()
    return ops.linear(x, f"classifier.{last}")


def _run_stage(stage, pool_window: int, trunk: nnx.Dict, x: Array) -> Array:
  for number, layer in stage:
    if layer == POOL:
      x = convolution.max_pool(x, pool_window, 2)
    else:
      x = nnx.relu(trunk[number](x))
  return x


ALEXNET = network.Architecture(
  title="AlexNet",
  network=Chain,
  fields={
    "chain": ALEXNET_LAYERS,
    "pool_window": 3,
    "grid": 6,
    "drops_features": True,
    "conv_init": network.TORCH_INIT,
    "linear_init": network.TORCH_INIT,
  },
  min_px=63,
  torch_code=network.from_torchvision("alexnet"),
)
VGG16 = network.Architecture(
  title="VGG16",
  network=Chain,
  fields={
    "chain": VGG16_LAYERS,
    "pool_window": 2,
    "grid": 7,
    "drops_features": False,
    "conv_init": network.HE_INIT,
    "linear_init": network.Init(nnx.initializers.normal(0.01), zero_bias=True),
  },
  min_px=32,
  torch_code=network.from_torchvision("vgg16"),
)
