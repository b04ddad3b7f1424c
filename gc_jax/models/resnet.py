"""ResNets as torchvision builds them, with either global pooling.

Source: He et al. 2016, arXiv:1512.03385, in torchvision's variant: the stride
of a bottleneck sits on its 3x3 convolution. Module names are torchvision's,
so that a checkpoint is exchanged by renaming leaves.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.models.layers import (
  BatchNorm,
  Network,
  at_least_float32,
  conv,
  linear,
)
from gc_jax.models.pooling import max_pool, pool_globally


class BasicBlock(nnx.Module):
  """Two 3x3 convolutions and a shortcut (ResNet18, ResNet34)."""

  expansion = 1

  def __init__(
    self,
    in_channels: int,
    channels: int,
    stride: int,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    make_conv = partial(conv, use_bias=False, dtype=dtype, rngs=rngs)
    make_norm = partial(BatchNorm, dtype=dtype, rngs=rngs)
    self.conv1 = make_conv(in_channels, channels, 3, stride)
    self.bn1 = make_norm(channels)
    self.conv2 = make_conv(channels, channels, 3)
    self.bn2 = make_norm(channels)
    self.downsample = _shortcut(
      in_channels, channels, stride, make_conv, make_norm
    )

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    """Returns the block's output, after its ReLU."""
    out = nnx.relu(self.bn1(self.conv1(x)))
    out = self.bn2(self.conv2(out))
    return nnx.relu(out + _apply(self.downsample, x))


class Bottleneck(nnx.Module):
  """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet50, ResNet101)."""

  expansion = 4

  def __init__(
    self,
    in_channels: int,
    channels: int,
    stride: int,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    make_conv = partial(conv, use_bias=False, dtype=dtype, rngs=rngs)
    make_norm = partial(BatchNorm, dtype=dtype, rngs=rngs)
    out_channels = channels * self.expansion
    self.conv1 = make_conv(in_channels, channels, 1)
    self.bn1 = make_norm(channels)
    self.conv2 = make_conv(channels, channels, 3, stride)
    self.bn2 = make_norm(channels)
    self.conv3 = make_conv(channels, out_channels, 1)
    self.bn3 = make_norm(out_channels)
    self.downsample = _shortcut(
      in_channels, out_channels, stride, make_conv, make_norm
    )

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    """Returns the block's output, after its ReLU."""
    out = nnx.relu(self.bn1(self.conv1(x)))
    out = nnx.relu(self.bn2(self.conv2(out)))
    out = self.bn3(self.conv3(out))
    return nnx.relu(out + _apply(self.downsample, x))


class ResNet(Network):
  """A ResNet split where Grad-CAM looks: `features`, then `classify`.

  Args:
    stage_sizes: blocks in each stage; every stage after the first halves the
      resolution and doubles the channels.
    block: `BasicBlock` or `Bottleneck`.
    num_classes: K, logits of the head.
    width: channels of the first stage (before the block's expansion).
    stem_kernel: side of the first convolution: 7, or 3 for pictures of 32 to
      96 pixels. A max-pool follows; the stem's stride is 4 in all.
    pooling: "average" or "max", over all cells. The paper's GMP is "max".
    dtype: of activations. Parameters and BatchNorm statistics are float32.
    rngs: initialises the parameters.
  """

  last_layer = ("fc",)  # its outputs are the logits

  def __init__(
    self,
    stage_sizes: Sequence[int],
    block: Callable[..., nnx.Module],
    num_classes: int,
    *,
    width: int = 64,
    stem_kernel: int = 7,
    pooling: str = "average",
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.pooling = pooling
    self.dtype = dtype
    self.conv1 = conv(
      3, width, stem_kernel, 2, use_bias=False, dtype=dtype, rngs=rngs
    )
    self.bn1 = BatchNorm(width, dtype=dtype, rngs=rngs)
    self.num_stages = len(stage_sizes)
    in_channels = width
    for stage, num_blocks in enumerate(stage_sizes):
      channels = width * 2**stage
      blocks = nnx.List([])
      for i in range(num_blocks):
        stride = 2 if stage > 0 and i == 0 else 1
        blocks.append(
          block(in_channels, channels, stride, dtype=dtype, rngs=rngs)
        )
        in_channels = channels * block.expansion
      setattr(self, f"layer{stage + 1}", blocks)
    self.fc = linear(in_channels, num_classes, rngs=rngs)

  def features(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B h w D"]:
    """Returns the last convolutional activations, after their ReLU.

    Args:
      images: as `normalize` returns them; any H and W.
    """
    x = nnx.relu(self.bn1(self.conv1(images)))
    x = max_pool(x, 3, 2, padding=1)
    for stage in range(self.num_stages):
      for block in getattr(self, f"layer{stage + 1}"):
        x = self.segment(_call, block, x)
    return x

  def classify(
    self, features: Float[Array, "B h w D"], key: PRNGKeyArray | None = None
  ) -> Float[Array, "B K"]:
    """Returns the logits, float32 whatever the compute dtype.

    Args:
      features: of any h and w.
      key: of dropout, which a ResNet has none of.
    """
    del key
    pooled = pool_globally(at_least_float32(features), self.pooling)
    return self.fc(pooled)


def _shortcut(in_channels, out_channels, stride, make_conv, make_norm):
  """Returns a 1x1 convolution and its norm where the shape changes."""
  if stride == 1 and in_channels == out_channels:
    return nnx.List([])
  return nnx.List(
    [
      make_conv(in_channels, out_channels, 1, stride),
      make_norm(out_channels),
    ]
  )


def _call(module: nnx.Module, x: jax.Array) -> jax.Array:
  return module(x)


def _apply(layers: nnx.List, x: jax.Array) -> jax.Array:
  for layer in layers:
    x = layer(x)
  return x
