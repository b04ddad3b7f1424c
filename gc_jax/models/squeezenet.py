"""SqueezeNet 1.1, whose head is a convolution.

Source: Iandola et al. 2016, arXiv:1602.07360, in the authors' version 1.1 as
torchvision builds it. Layers carry torchvision's numbers.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.models import network
from gc_jax.models.chain import POOL, Layer, NumberedNetwork
from gc_jax.models.convolution import max_pool

# A fire module is (squeezed, expanded) channels; the stem, a convolution.
LAYERS = (
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
_HEAD_INIT = network.Init(nnx.initializers.normal(0.01), zero_bias=True)

_conv = partial(network.conv, init=network.HE_UNIFORM_INIT)


class Fire(nnx.Module):
  """A 1x1 convolution to few channels, then 1x1 and 3x3 ones side by side."""

  def __init__(
    self,
    in_channels: int,
    squeezed: int,
    expanded: int,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    make_conv = partial(_conv, dtype=dtype, rngs=rngs)
    self.squeeze = make_conv(in_channels, squeezed, 1)
    self.expand1x1 = make_conv(squeezed, expanded, 1)
    self.expand3x3 = make_conv(squeezed, expanded, 3)

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
    """Returns both expansions, after their ReLU, stacked in channels."""
    x = nnx.relu(self.squeeze(x))
    wide = [self.expand1x1(x), self.expand3x3(x)]
    return nnx.relu(jnp.concatenate(wide, axis=-1))


class SqueezeNet(NumberedNetwork):
  """SqueezeNet 1.1 split where Grad-CAM looks.

  Args:
    chain: a convolution, then fire modules and poolings.
    pooling: of the class maps, "average" or "max", over all cells.
    dropout_rate: fraction of the features that are dropped before the head.
    dtype: of the trunk's activations. Parameters and the head are float32.
  """

  last_layer = ("head", "1")  # its outputs, pooled, are the logits

  def __init__(
    self,
    num_classes: int,
    *,
    chain: Sequence[Layer] = LAYERS,
    pooling: str = "average",
    dropout_rate: float = 0.5,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.chain = tuple(chain)
    self.pooling = pooling
    self.dropout_rate = dropout_rate
    self.dtype = dtype
    (number, (channels, *rest, padding)), *fires = self.numbered()
    stem = _conv(3, channels, *rest, padding=padding, dtype=dtype, rngs=rngs)
    trunk = {number: stem}
    for number, layer in fires:
      if layer != POOL:
        trunk[number] = Fire(channels, *layer, dtype=dtype, rngs=rngs)
        channels = 2 * layer[1]
    self.trunk = nnx.Dict(trunk)
    last = network.conv(
      channels, num_classes, 1, init=_HEAD_INIT, dtype=jnp.float32, rngs=rngs
    )
    self.head = nnx.Dict({"1": last})

  def features(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B h w D"]:
    """Returns the output of the last fire module."""
    x = nnx.relu(self.trunk["0"](images))
    for number, layer in self.numbered()[1:]:
      if layer == POOL:
        x = max_pool(x, 3, 2, partial_windows=True)
      else:
        x = self.segment(lambda fire, x: fire(x), self.trunk[number], x)
    return x

  def classify(
    self, features: Float[Array, "B h w D"], key: PRNGKeyArray | None = None
  ) -> Float[Array, "B K"]:
    """Returns the logits, all >= 0."""
    features = network.at_least_float32(features)
    x = network.dropout(features, self.dropout_rate, key)
    return network.pool_globally(nnx.relu(self.head["1"](x)), self.pooling)

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


SQUEEZENET1_1 = network.Architecture(
  title="SqueezeNet 1.1",
  network=SqueezeNet,
  fields={},
  min_px=17,
  torch_code=network.from_torchvision("squeezenet1_1"),
  torch_pooling="classifier[3]",
)
