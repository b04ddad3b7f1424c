"""ConvNeXts with torchvision's names and numbers.

Source: Liu et al. 2022, arXiv:2201.03545.
"""

from collections.abc import Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.models import network
from gc_jax.models.architecture import Architecture, from_torchvision

_INIT = network.Init(nnx.initializers.truncated_normal(0.02), zero_bias=True)


class Block(nnx.Module):
  """A 7x7 convolution of each channel, and a perceptron, beside a shortcut."""

  def __init__(
    self,
    channels: int,
    layer_scale: float,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    make_linear = partial(network.linear, init=_INIT, dtype=dtype, rngs=rngs)
    depthwise = nnx.Conv(
      channels,
      channels,
      (7, 7),
      padding=3,
      feature_group_count=channels,
      kernel_init=_INIT.kernel,
      dtype=dtype,
      rngs=rngs,
    )
    depthwise.init = _INIT
    self.block = nnx.Dict(  # torchvision numbers what moves axes, and the GELU
      {
        "0": depthwise,
        "2": network.LayerNorm(channels, dtype=dtype, rngs=rngs),
        "3": make_linear(channels, 4 * channels),
        "5": make_linear(4 * channels, channels),
      }
    )
    self.start = layer_scale
    self.layer_scale = nnx.Param(
      jnp.full((channels, 1, 1), layer_scale, jnp.float32)
    )

  def initialize(self, key: PRNGKeyArray) -> None:
    """Sets the scale as it starts, for the sanity check."""
    del key
    scale = self.layer_scale
    scale[...] = jnp.full(scale.shape, self.start, scale.dtype)

  def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
    """Returns the activations after the block."""
    depthwise, norm, expand, shrink = (self.block[n] for n in "0235")
    hidden = nnx.gelu(expand(norm(depthwise(x))), approximate=False)
    scale = self.layer_scale[...].reshape(1, 1, 1, -1)
    return x + scale.astype(x.dtype) * shrink(hidden)

  def torch_call(self, ops: Any, x: Any, name: str) -> Any:
    """Computes the block of a name by PyTorch."""
    out = ops.conv(x, f"{name}.block.0", groups=x.shape[1])
    out = ops.layer_norm(out.movedim(1, -1), f"{name}.block.2")
    out = ops.gelu(ops.linear(out, f"{name}.block.3"))
    out = ops.linear(out, f"{name}.block.5").movedim(-1, 1)
    return x + ops.weight(f"{name}.layer_scale") * out


class Layers(nnx.Dict):
  """Layers by torchvision's numbers, each on what the last one returned."""

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    """Returns what the last layer returns."""
    for number in range(len(self)):
      x = self[str(number)](x)
    return x


class ConvNeXt(network.Network):
  """A ConvNeXt. Parameters and the head are float32, whatever the dtype.

  The explained activations are the output of the last stage, a sum without a
  nonlinearity behind it.

  Args:
    stage_sizes: blocks in each stage.
    widths: channels of each stage.
    layer_scale: what a block's branch is multiplied with at the start.
    pooling: "average" or "max", over all cells.

  Differs: torchvision drops whole blocks in training (stochastic depth); none
    is here.
  """

  torch_names = MappingProxyType({"trunk": "features", "head": "classifier"})
  last_layer = ("head", "2")  # its outputs are the logits

  def __init__(
    self,
    num_classes: int,
    *,
    stage_sizes: Sequence[int],
    widths: Sequence[int],
    layer_scale: float = 1e-6,
    pooling: str = "average",
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.pooling = pooling
    self.dtype = dtype
    self.num_stages = len(stage_sizes)
    make_norm = partial(network.LayerNorm, dtype=dtype, rngs=rngs)

    def shrinking(before, channels, side):
      return network.conv(
        *(before, channels, side, side),
        padding=0,
        init=_INIT,
        dtype=dtype,
        rngs=rngs,
      )

    parts, before = [], widths[0]
    for count, channels in zip(stage_sizes, widths, strict=True):
      if not parts:
        layers = [shrinking(3, channels, 4), make_norm(channels)]
      else:
        layers = [make_norm(before), shrinking(before, channels, 2)]
      stage = [
        Block(channels, layer_scale, dtype=dtype, rngs=rngs)
        for _ in range(count)
      ]
      parts += [layers, stage]
      before = channels
    numbered = lambda layers: {str(i): each for i, each in enumerate(layers)}
    self.trunk = nnx.Dict(numbered([Layers(numbered(p)) for p in parts]))
    self.head = nnx.Dict(
      {
        "0": network.LayerNorm(before, rngs=rngs),
        "2": network.linear(before, num_classes, init=_INIT, rngs=rngs),
      }
    )

  def features(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B h w D"]:
    """Returns the output of the last stage."""
    x = images
    for number in range(2 * self.num_stages):
      x = self.segment(lambda part, x: part(x), self.trunk[str(number)], x)
    return x

  def classify_pooled(self, pooled: Float[Array, "B D"]) -> Float[Array, "B K"]:
    """Returns the logits."""
    return self.head["2"](self.head["0"](pooled))

  def torch_features(self, ops: Any, x: Any) -> Any:
    """Computes `features` by PyTorch."""
    norm = lambda x, name: ops.layer_norm(x.movedim(1, -1), name).movedim(-1, 1)
    for number in range(2 * self.num_stages):
      name = f"features.{number}"
      if number == 0:
        x = norm(ops.conv(x, f"{name}.0", 4, padding=0), f"{name}.1")
      elif number % 2 == 0:
        x = ops.conv(norm(x, f"{name}.0"), f"{name}.1", 2, padding=0)
      else:
        stage = self.trunk[str(number)]
        for i in range(len(stage)):
          x = stage[str(i)].torch_call(ops, x, f"{name}.{i}")
    return x

  def torch_classify(self, ops: Any, features: Any) -> Any:
    """Computes `classify` by PyTorch."""
    pooled = ops.pool_globally(features, self.pooling)
    return ops.linear(ops.layer_norm(pooled, "classifier.0"), "classifier.2")

  def layer_inputs(self) -> dict[str, str]:
    """Returns the stages, and what halves the grid between them."""
    last = 2 * self.num_stages - 1
    below = {f"features.{i}": f"trunk.{i + 1}" for i in range(last)}
    return below | {f"features.{last}": network.FEATURES}

  @property
  def excitation_layer(self) -> str:
    """The last stage but one."""
    return f"features.{max(0, 2 * self.num_stages - 3)}"

  def parts(self) -> dict[str, tuple[str, ...]]:
    """Returns the stem, the stages and what is between them, the head."""
    numbers = range(2 * self.num_stages)
    trunk = {f"features.{i}": (f"trunk.{i}",) for i in numbers}
    return {**trunk, "classifier": ("head",)}


CONVNEXT_TINY = Architecture(
  title="ConvNeXt-T",
  network=ConvNeXt,
  fields={"stage_sizes": (3, 3, 9, 3), "widths": (96, 192, 384, 768)},
  min_px=32,
  torch_code=from_torchvision("convnext_tiny"),
  torch_pooling="avgpool",
)
