"""AlexNet, VGG16 and SqueezeNet: chains of layers with torchvision's numbers.

So a checkpoint is exchanged by renaming leaves.

Source: Krizhevsky 2014, arXiv:1404.5997 (torchvision's AlexNet); Simonyan and
Zisserman 2015, arXiv:1409.1556; Iandola et al. 2016, arXiv:1602.07360, in the
authors' version 1.1.
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
from gc_jax.models.architecture import Architecture, Timm, from_torchvision

# A layer of a chain is POOL; of a convolution with a ReLU behind it, (channels,
# kernel, stride, padding); of a fire module, (squeezed, expanded) channels.
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
SQUEEZENET_LAYERS = (
  (64, 3, 2, 0),
  POOL,
  (16, 64),
  (16, 64),
  POOL,
  (32, 128),
  (32, 128),
  POOL,
  (48, 192),
  (48, 192),
  (64, 256),
  (64, 256),
)
SMALL_INIT = network.Init(nnx.initializers.normal(0.01), zero_bias=True)


class NumberedNetwork(network.Network):
  """A network whose `trunk` and `head` hold layers by torchvision's numbers."""

  torch_names = MappingProxyType({"trunk": "features", "head": "classifier"})
  chain: Sequence[Layer]  # of the trunk

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
  """A chain of convolutions, then a perceptron: AlexNet, VGG16.

  The explained activations are the output of the last max-pool, as in the
  authors' release. There is no global pooling, hence no `-gmp` (the paper's
  "AlexNet doesn't have any pooling layer"). Parameters and the head are
  float32, whatever the dtype.

  Args:
    pool_window: side of the max-pool windows; their stride is 2.
    grid: side of the grid that the features are averaged to.
    hidden: width of the perceptron's two hidden layers.
    drops_features: whether dropout falls on the averaged features and the
      first hidden layer (AlexNet), or on both hidden layers (VGG).
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
    x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
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


ALEXNET = Architecture(
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
  torch_code=from_torchvision("alexnet"),
)
# For pictures of 64 pixels: a 7x7 feature grid.
ALEXNET_SMALL = Architecture(
  title="AlexNet-small",
  network=Chain,
  fields={
    "chain": (
      (32, 5, 2, 2),
      POOL,
      (64, 3, 1, 1),
      (64, 3, 1, 1),
      POOL,
    ),
    "pool_window": 3,
    "grid": 7,
    "hidden": 256,
    "drops_features": True,
    "dropout_rate": 0.25,
    "conv_init": network.HE_INIT,
    "linear_init": network.TORCH_INIT,
  },
  min_px=13,
  torch_code="""\
from torch import nn
from torchvision.models import alexnet

model = alexnet(num_classes={num_classes})
model.features = nn.Sequential(
  *(nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
  *(nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU()),
  *(nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2)),
)
model.avgpool = nn.AdaptiveAvgPool2d((7, 7))
model.classifier = nn.Sequential(
  *(nn.Dropout(0.25), nn.Linear(7 * 7 * 64, 256), nn.ReLU()),
  *(nn.Dropout(0.25), nn.Linear(256, 256), nn.ReLU()),
  nn.Linear(256, {num_classes}),
)
""",
)
VGG16 = Architecture(
  title="VGG16",
  network=Chain,
  fields={
    "chain": VGG16_LAYERS,
    "pool_window": 2,
    "grid": 7,
    "drops_features": False,
    "conv_init": network.HE_INIT,
    "linear_init": SMALL_INIT,
  },
  min_px=32,
  torch_code=from_torchvision("vgg16"),
  timm=Timm("vgg16", first_conv="features.0", classifier="head.fc"),
)


class Fire(nnx.Module):
  """A 1x1 convolution to few channels, then 1x1 and 3x3 ones side by side."""

  def __init__(self, in_channels: int, squeezed: int, expanded: int, make_conv):
    self.squeeze = make_conv(in_channels, squeezed, 1)
    self.expand1x1 = make_conv(squeezed, expanded, 1)
    self.expand3x3 = make_conv(squeezed, expanded, 3)

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
    """Returns both expansions, after their ReLU, stacked in channels."""
    x = nnx.relu(self.squeeze(x))
    wide = [self.expand1x1(x), self.expand3x3(x)]
    return nnx.relu(jnp.concatenate(wide, axis=-1))


class SqueezeNet(NumberedNetwork):
  """SqueezeNet 1.1: a convolution, fire modules and poolings; a convolution.

  The last one makes a map of each class, whose "average" or "max" over all
  cells is the logit. Parameters and the head are float32, whatever the dtype.
  """

  last_layer = ("head", "1")  # its outputs, pooled, are the logits

  def __init__(
    self,
    num_classes: int,
    *,
    chain: Sequence[Layer] = SQUEEZENET_LAYERS,
    pooling: str = "average",
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.chain = tuple(chain)
    self.pooling = pooling
    self.dtype = dtype
    make_conv = partial(
      network.conv, init=network.HE_UNIFORM_INIT, dtype=dtype, rngs=rngs
    )
    trunk, channels = {}, 3
    for number, layer in self.numbered():
      if len(layer) == 4:
        trunk[number] = make_conv(3, *layer[:3], padding=layer[3])
        channels = layer[0]
      elif layer != POOL:
        trunk[number] = Fire(channels, *layer, make_conv)
        channels = 2 * layer[1]
    self.trunk = nnx.Dict(trunk)
    last = network.conv(
      channels, num_classes, 1, init=SMALL_INIT, dtype=jnp.float32, rngs=rngs
    )
    self.head = nnx.Dict({"1": last})

  def features(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B h w D"]:
    """Returns the output of the last fire module."""
    x = nnx.relu(self.trunk["0"](images))
    for number, layer in self.numbered()[1:]:
      if layer == POOL:
        x = convolution.max_pool(x, 3, 2, partial_windows=True)
      else:
        x = self.segment(lambda fire, x: fire(x), self.trunk[number], x)
    return x

  def pool(
    self, features: Float[Array, "B h w D"], key: PRNGKeyArray | None = None
  ) -> Float[Array, "B K"]:
    """Returns a value a class, the logits: all >= 0."""
    features = network.at_least_float32(features)
    x = network.dropout(features, 0.5, key)
    return network.pool_globally(nnx.relu(self.head["1"](x)), self.pooling)

  def classify_pooled(self, pooled: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """Returns the logits, which the classes' maps are pooled to."""
    return pooled

  def torch_features(self, ops: Any, x: Any) -> Any:
    """Computes `features` by PyTorch."""
    x = ops.conv(x, "features.0", 2, padding=0).relu()
    for number, layer in self.numbered()[1:]:
      if layer == POOL:
        x = ops.max_pool(x, 3, 2, partial_windows=True)
      else:
        fire = f"features.{number}"
        x = ops.conv(x, f"{fire}.squeeze").relu()
        wide = [ops.conv(x, f"{fire}.expand{k}") for k in ("1x1", "3x3")]
        x = ops.concatenate(wide).relu()
    return x

  def torch_classify(self, ops: Any, features: Any) -> Any:
    """Computes `classify` by PyTorch."""
    maps = ops.conv(features, "classifier.1").relu()
    return ops.pool_globally(maps, self.pooling)


SQUEEZENET1_1 = Architecture(
  title="SqueezeNet 1.1",
  network=SqueezeNet,
  fields={},
  min_px=17,
  torch_code=from_torchvision("squeezenet1_1"),
  torch_pooling="classifier[3]",
)
