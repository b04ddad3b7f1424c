"""ResNets as torchvision builds them, with either global pooling.

Source: He et al. 2016, arXiv:1512.03385, in torchvision's variant: the stride
of a bottleneck sits on its 3x3 convolution. Module names are torchvision's,
so that a checkpoint is exchanged by renaming leaves.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.models.network import (
  FEATURES,
  HE_INIT,
  TORCH_INIT,
  Architecture,
  BatchNorm,
  Init,
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

  def torch_call(self, ops: Any, x: Any, name: str, stride: int) -> Any:
    """Computes the block by PyTorch."""
    return _torch_block(ops, x, name, (stride, 1), bool(self.downsample))


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

  def torch_call(self, ops: Any, x: Any, name: str, stride: int) -> Any:
    """Computes the block by PyTorch."""
    return _torch_block(ops, x, name, (1, stride, 1), bool(self.downsample))


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

  def torch_features(self, ops: Any, x: Any) -> Any:
    """Computes `features` by PyTorch; see the base class."""
    x = ops.norm(ops.conv(x, "conv1", 2), "bn1").relu()
    x = ops.max_pool(x, 3, 2, 1)
    for stage in range(self.num_stages):
      for i, block in enumerate(getattr(self, f"layer{stage + 1}")):
        stride = 2 if stage > 0 and i == 0 else 1
        x = block.torch_call(ops, x, f"layer{stage + 1}.{i}", stride)
    return x

  def torch_classify(self, ops: Any, features: Any) -> Any:
    """Computes `classify` by PyTorch; see the base class."""
    return ops.linear(ops.pool_globally(features, self.pooling), "fc")

  @property
  def _stages(self) -> list[str]:
    return [f"layer{stage + 1}" for stage in range(self.num_stages)]

  def layer_inputs(self) -> dict[str, str]:
    """Returns "maxpool" and the stages; see the base class."""
    names = ["maxpool", *self._stages]
    paths = [*(f"{stage}.0" for stage in self._stages), FEATURES]
    return dict(zip(names, paths, strict=True))

  @property
  def excitation_layer(self) -> str:
    """The last stage but one: "layer3" of four, as in the release."""
    return f"layer{max(1, self.num_stages - 1)}"

  def parts(self) -> dict[str, tuple[str, ...]]:
    """Returns the stem with its norm, the stages, the head."""
    stages = {stage: (stage,) for stage in self._stages}
    return {"conv1": ("conv1", "bn1"), **stages, "fc": ("fc",)}

  def initializer(self, path: str, module: nnx.Module) -> Init:
    """Returns He's rule for convolutions, PyTorch's own for the head."""
    del path
    return HE_INIT if isinstance(module, nnx.Conv) else TORCH_INIT


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


def _torch_block(ops, x, name, strides, has_shortcut):
  out = x
  for i, stride in enumerate(strides, 1):
    out = ops.norm(ops.conv(out, f"{name}.conv{i}", stride), f"{name}.bn{i}")
    out = out.relu() if i < len(strides) else out
  if has_shortcut:
    x = ops.conv(x, f"{name}.downsample.0", max(strides))
    x = ops.norm(x, f"{name}.downsample.1")
  return (out + x).relu()


def _call(module: nnx.Module, x: jax.Array) -> jax.Array:
  return module(x)


def _apply(layers: nnx.List, x: jax.Array) -> jax.Array:
  for layer in layers:
    x = layer(x)
  return x


def _torchvisions(title: str, stage_sizes: tuple[int, ...], block: type):
  return Architecture(
    title=title,
    network=ResNet,
    fields={"stage_sizes": stage_sizes, "block": block},
    min_px=1,
    torch_code=f"""\
import torchvision

model = torchvision.models.{title.lower()}(num_classes={{num_classes}})
""",
    torch_pooling="avgpool",
  )


RESNET18 = _torchvisions("ResNet18", (2, 2, 2, 2), BasicBlock)
RESNET34 = _torchvisions("ResNet34", (3, 4, 6, 3), BasicBlock)
RESNET50 = _torchvisions("ResNet50", (3, 4, 6, 3), Bottleneck)
RESNET101 = _torchvisions("ResNet101", (3, 4, 23, 3), Bottleneck)
# For pictures of 64 pixels: two stages, an 8x8 feature grid.
RESNET8_SMALL = Architecture(
  title="ResNet8-small",
  network=ResNet,
  fields={
    "stage_sizes": (1, 2),
    "block": BasicBlock,
    "width": 32,
    "stem_kernel": 3,
  },
  min_px=1,
  # Not torchvision's: made of its blocks.
  torch_code="""\
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes={num_classes})
model.conv1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
model.bn1 = nn.BatchNorm2d(32)
shortcut = nn.Conv2d(32, 64, 1, 2, bias=False), nn.BatchNorm2d(64)
halving = BasicBlock(32, 64, 2, nn.Sequential(*shortcut))
model.layer1 = nn.Sequential(BasicBlock(32, 32))
model.layer2 = nn.Sequential(halving, BasicBlock(64, 64))
model.layer3 = model.layer4 = nn.Identity()
model.fc = nn.Linear(64, {num_classes})
""",
  torch_pooling="avgpool",
)
