"""ResNets as torchvision builds them, with either global pooling.

Source: He et al. 2016, arXiv:1512.03385, in torchvision's variant: the stride
of a bottleneck sits on its 3x3 convolution. Module names are torchvision's,
so that a checkpoint is exchanged by renaming leaves.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gc_jax.models import network
from gc_jax.models.architecture import Architecture, Timm, from_torchvision
from gc_jax.models.convolution import max_pool

# (channels, kernel, stride) of the convolutions of a block.
Convs = tuple[tuple[int, int, int], ...]


def basic_block(channels: int, stride: int) -> Convs:
  """Two 3x3 convolutions (ResNet18, ResNet34)."""
  return (channels, 3, stride), (channels, 3, 1)


def bottleneck(channels: int, stride: int) -> Convs:
  """1x1, 3x3 and 1x1 convolutions (ResNet50, ResNet101)."""
  return (channels, 1, 1), (channels, 3, stride), (4 * channels, 1, 1)


class _Block(nnx.Module):
  """Convolutions, each with a BatchNorm, and a shortcut around them all."""

  def __init__(
    self,
    in_channels: int,
    convs: Convs,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    def make(channels, conv):
      return (
        network.conv(channels, *conv, use_bias=False, dtype=dtype, rngs=rngs),
        network.BatchNorm(conv[0], dtype=dtype, rngs=rngs),
      )

    self.strides = tuple(stride for _, _, stride in convs)
    channels = in_channels
    for i, conv in enumerate(convs, 1):
      layer, norm = make(channels, conv)
      setattr(self, f"conv{i}", layer)
      setattr(self, f"bn{i}", norm)
      channels = conv[0]
    # A 1x1 convolution and its norm, if the shape changes.
    stride = max(self.strides)
    is_same = stride == 1 and in_channels == channels
    self.downsample = nnx.List(
      [] if is_same else make(in_channels, (channels, 1, stride))
    )

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    """Returns the block's output, after its ReLU."""
    out = x
    for i in range(1, len(self.strides) + 1):
      out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
      out = nnx.relu(out) if i < len(self.strides) else out
    for layer in self.downsample:
      x = layer(x)
    return nnx.relu(out + x)

  def torch_call(self, ops: Any, x: Any, name: str) -> Any:
    """Computes the block of a name by PyTorch."""
    out = x
    for i, stride in enumerate(self.strides, 1):
      out = ops.norm(ops.conv(out, f"{name}.conv{i}", stride), f"{name}.bn{i}")
      out = out.relu() if i < len(self.strides) else out
    if self.downsample:
      x = ops.conv(x, f"{name}.downsample.0", max(self.strides))
      x = ops.norm(x, f"{name}.downsample.1")
    return (out + x).relu()


class ResNet(network.Network):
  """A ResNet. Parameters and statistics are float32, whatever the dtype.

  Args:
    stage_sizes: blocks in each stage; every stage after the first halves the
      resolution and doubles the channels.
    width: channels of the first stage's 3x3 convolutions.
    stem_kernel: side of the first convolution: 7, or 3 for pictures of 32 to
      96 pixels. A max-pool follows; the stem's stride is 4 in all.
    pooling: "average" or "max", over all cells. The paper's GMP is "max".
  """

  last_layer = ("fc",)  # its outputs are the logits

  def __init__(
    self,
    stage_sizes: Sequence[int],
    block: Callable[[int, int], Convs],
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
    self.conv1 = network.conv(
      3, width, stem_kernel, 2, use_bias=False, dtype=dtype, rngs=rngs
    )
    self.bn1 = network.BatchNorm(width, dtype=dtype, rngs=rngs)
    self.num_stages = len(stage_sizes)
    in_channels = width
    for stage, num_blocks in enumerate(stage_sizes):
      channels = width * 2**stage
      blocks = nnx.List([])
      for i in range(num_blocks):
        stride = 2 if stage > 0 and i == 0 else 1
        convs = block(channels, stride)
        blocks.append(_Block(in_channels, convs, dtype=dtype, rngs=rngs))
        in_channels = convs[-1][0]
      setattr(self, f"layer{stage + 1}", blocks)
    self.fc = network.linear(in_channels, num_classes, rngs=rngs)

  def features(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B h w D"]:
    """Returns the last convolutional activations, after their ReLU."""
    x = nnx.relu(self.bn1(self.conv1(images)))
    x = max_pool(x, 3, 2, padding=1)
    for stage in self._stages:
      for block in getattr(self, stage):
        x = self.segment(lambda block, x: block(x), block, x)
    return x

  def classify_pooled(self, pooled: Float[Array, "B D"]) -> Float[Array, "B K"]:
    """Returns the logits."""
    return self.fc(pooled)

  def torch_features(self, ops: Any, x: Any) -> Any:
    """Computes `features` by PyTorch."""
    x = ops.norm(ops.conv(x, "conv1", 2), "bn1").relu()
    x = ops.max_pool(x, 3, 2, 1)
    for stage in self._stages:
      for i, block in enumerate(getattr(self, stage)):
        x = block.torch_call(ops, x, f"{stage}.{i}")
    return x

  def torch_classify(self, ops: Any, features: Any) -> Any:
    """Computes `classify` by PyTorch."""
    return ops.linear(ops.pool_globally(features, self.pooling), "fc")

  @property
  def _stages(self) -> list[str]:
    return [f"layer{stage + 1}" for stage in range(self.num_stages)]

  def layer_inputs(self) -> dict[str, str]:
    """Returns "maxpool" and the stages."""
    names = ["maxpool", *self._stages]
    paths = [*(f"{stage}.0" for stage in self._stages), network.FEATURES]
    return dict(zip(names, paths, strict=True))

  @property
  def excitation_layer(self) -> str:
    """The last stage but one: "layer3" of four, as in the release."""
    return f"layer{max(1, self.num_stages - 1)}"

  def parts(self) -> dict[str, tuple[str, ...]]:
    """Returns the stem with its norm, the stages, the head."""
    stages = {stage: (stage,) for stage in self._stages}
    return {"conv1": ("conv1", "bn1"), **stages, "fc": ("fc",)}


def _torchvisions(title: str, stage_sizes: tuple[int, ...], block: Callable):
  return Architecture(
    title=title,
    network=ResNet,
    fields={"stage_sizes": stage_sizes, "block": block},
    min_px=1,
    torch_code=from_torchvision(title.lower()),
    torch_pooling="avgpool",
    timm=Timm(title.lower(), first_conv="conv1", classifier="fc"),
  )


RESNET18 = _torchvisions("ResNet18", (2, 2, 2, 2), basic_block)
RESNET34 = _torchvisions("ResNet34", (3, 4, 6, 3), basic_block)
RESNET50 = _torchvisions("ResNet50", (3, 4, 6, 3), bottleneck)
RESNET101 = _torchvisions("ResNet101", (3, 4, 23, 3), bottleneck)


def _small(title: str, block: Callable, torch_block: str, torch_code: str):
  """Returns one for pictures of 64 pixels, with an 8x8 feature grid."""
  # Not torchvision's, but made of its blocks.
  code = f"""\
from torch import nn
from torchvision.models.resnet import {torch_block} as Block, ResNet

model = ResNet(Block, [1, 1, 1, 1], num_classes={{num_classes}})
model.conv1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
model.bn1 = nn.BatchNorm2d(32)
{torch_code}
model.layer3 = model.layer4 = nn.Identity()
"""
  return Architecture(
    title=title,
    network=ResNet,
    fields={
      "stage_sizes": (1, 2),
      "block": block,
      "width": 32,
      "stem_kernel": 3,
    },
    min_px=1,
    torch_code=code,
    torch_pooling="avgpool",
  )


RESNET8_SMALL = _small(
  "ResNet8-small",
  basic_block,
  "BasicBlock",
  """\
shortcut = nn.Conv2d(32, 64, 1, 2, bias=False), nn.BatchNorm2d(64)
halving = Block(32, 64, 2, nn.Sequential(*shortcut))
model.layer1 = nn.Sequential(Block(32, 32))
model.layer2 = nn.Sequential(halving, Block(64, 64))
model.fc = nn.Linear(64, {num_classes})""",
)
RESNET11_SMALL = _small(
  "ResNet11-small",
  bottleneck,
  "Bottleneck",
  """\
widening = nn.Conv2d(32, 128, 1, bias=False), nn.BatchNorm2d(128)
shortcut = nn.Conv2d(128, 256, 1, 2, bias=False), nn.BatchNorm2d(256)
halving = Block(128, 64, 2, nn.Sequential(*shortcut))
model.layer1 = nn.Sequential(Block(32, 32, 1, nn.Sequential(*widening)))
model.layer2 = nn.Sequential(halving, Block(256, 64))
model.fc = nn.Linear(256, {num_classes})""",
)
