"""Vision transformers with torchvision's names and numbers.

Source: Dosovitskiy et al. 2021, arXiv:2010.11929; the widths of tiny and small
are those of Touvron et al. 2021, arXiv:2012.12877.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.models import network
from gc_jax.models.architecture import Architecture
from gc_jax.models.pixels import check_divisible

_XAVIER_INIT = network.Init(nnx.initializers.xavier_uniform(), zero_bias=True)
_PATCH_INIT = network.Init(
  nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"),
  zero_bias=True,
)
# torchvision's starts at 0, where every gradient, and so every map, is 0.
_HEAD_INIT = network.Init(nnx.initializers.normal(0.01), zero_bias=True)


def _zeros(*shape: int) -> Array:
  return jnp.zeros(shape, jnp.float32)


class Attention(nnx.Module):
  """Self-attention with the weights of torch.nn.MultiheadAttention."""

  def __init__(
    self,
    channels: int,
    num_heads: int,
    *,
    dtype: DTypeLike | None,
    rngs: nnx.Rngs,
  ):
    self.num_heads = num_heads
    self.dtype = dtype
    self.in_proj_weight = nnx.Param(_zeros(channels, 3 * channels))
    self.in_proj_bias = nnx.Param(_zeros(3 * channels))
    self.out_proj = network.linear(
      channels, channels, init=network.TORCH_INIT, dtype=dtype, rngs=rngs
    )
    self.initialize(rngs.params())

  def initialize(self, key: PRNGKeyArray) -> None:
    """Draws the projections to queries, keys and values."""
    weight = self.in_proj_weight
    weight[...] = _XAVIER_INIT.kernel(key, weight.shape, weight.dtype)
    self.in_proj_bias[...] = jnp.zeros_like(self.in_proj_bias[...])

  def __call__(self, x: Float[Array, "B n D"]) -> Float[Array, "B n D"]:
    """Returns what each token gathers from all; the softmax is float32."""
    weight, bias = self.in_proj_weight[...], self.in_proj_bias[...]
    dtype = self.dtype or jnp.result_type(x, weight)
    x, weight, bias = (each.astype(dtype) for each in (x, weight, bias))
    projected = x @ weight + bias[None, None]
    in_heads = (*x.shape[:2], self.num_heads, -1)
    queries, keys, values = (
      part.reshape(in_heads) for part in jnp.split(projected, 3, axis=-1)
    )
    queries = queries * queries.shape[-1] ** -0.5
    scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys)
    shares = jax.nn.softmax(network.at_least_float32(scores)).astype(dtype)
    gathered = jnp.einsum("bhqk,bkhd->bqhd", shares, values)
    return self.out_proj(gathered.reshape(x.shape))


class Block(nnx.Module):
  """Attention and a perceptron, each behind a norm and beside a shortcut.

  The dtype of what follows the first norm may be None: that of the input.
  """

  def __init__(
    self,
    channels: int,
    num_heads: int,
    *,
    norm_dtype: DTypeLike,
    dtype: DTypeLike | None,
    rngs: nnx.Rngs,
  ):
    make_linear = partial(
      network.linear, init=_XAVIER_INIT, dtype=dtype, rngs=rngs
    )
    self.ln_1 = network.LayerNorm(channels, dtype=norm_dtype, rngs=rngs)
    self.self_attention = Attention(channels, num_heads, dtype=dtype, rngs=rngs)
    self.ln_2 = network.LayerNorm(channels, dtype=dtype, rngs=rngs)
    self.mlp = nnx.Dict(  # between them torchvision has a GELU and a dropout
      {
        "0": make_linear(channels, 4 * channels),
        "3": make_linear(4 * channels, channels),
      }
    )

  def __call__(self, x: Float[Array, "B n D"]) -> Float[Array, "B n D"]:
    """Returns the tokens after the block."""
    return self.after_norm(x, self.ln_1(x))

  def after_norm(
    self, x: Float[Array, "B m D"], normed: Float[Array, "B n D"]
  ) -> Float[Array, "B m D"]:
    """Returns the first m tokens, of those and of all behind the first norm."""
    x = x + self.self_attention(normed)[:, : x.shape[1]]
    hidden = nnx.gelu(self.mlp["0"](self.ln_2(x)), approximate=False)
    return x + self.mlp["3"](hidden)

  def torch_call(self, ops: Any, x: Any, normed: Any, name: str) -> Any:
    """Computes `after_norm` of the block of a name by PyTorch."""
    attention = f"{name}.self_attention"
    attended = ops.attention(normed, attention, self.self_attention.num_heads)
    x = x + attended[:, : x.shape[1]]
    hidden = ops.linear(ops.layer_norm(x, f"{name}.ln_2"), f"{name}.mlp.0")
    return x + ops.linear(ops.gelu(hidden), f"{name}.mlp.3")


class Encoder(nnx.Module):
  """Embeddings of positions, blocks, and a last norm."""

  def __init__(self, grid: int, channels: int, make_blocks, rngs: nnx.Rngs):
    self.pos_embedding = nnx.Param(_zeros(1, 1 + grid**2, channels))
    self.layers = nnx.Dict(
      {f"encoder_layer_{i}": make() for i, make in enumerate(make_blocks)}
    )
    self.ln = network.LayerNorm(channels, rngs=rngs)
    self.initialize(rngs.params())

  def initialize(self, key: PRNGKeyArray) -> None:
    """Draws the embeddings of positions."""
    shape, dtype = self.pos_embedding.shape, self.pos_embedding.dtype
    self.pos_embedding[...] = 0.02 * jax.random.normal(key, shape, dtype)


class VisionTransformer(network.Network):
  """A ViT. Parameters and all behind the features are float32.

  The explained activations are the patches behind the first norm of the last
  block. Behind that block they would be too late: the logits are made of the
  class token alone, so their gradient by any patch is 0. What the head needs
  besides is the class token before the last block; it is repeated in the last
  channels of every cell (`num_context`). There is no pooling, hence no `-gmp`.

  Any picture of whole patches will do: embeddings of positions are brought to
  its grid, also to a composite's.

  Args:
    num_layers: blocks.
    num_heads: of each block's attention.
    channels: D of the tokens.
    patch: side of a patch in pixels.
    grid: side of the grid that positions are embedded for.

  Source: the place is pytorch-grad-cam's for ViTs, `blocks[-1].norm1`.
  """

  unit_px = 16
  last_layer = ("heads", "head")  # its outputs are the logits

  def __init__(
    self,
    num_classes: int,
    *,
    num_layers: int = 12,
    num_heads: int,
    channels: int,
    patch: int = unit_px,
    grid: int = 14,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.dtype = dtype
    self.num_layers = num_layers
    self.unit_px = patch
    self.grid = grid
    self.num_context = channels
    self.conv_proj = network.conv(
      *(3, channels, patch, patch),
      padding=0,
      init=_PATCH_INIT,
      dtype=dtype,
      rngs=rngs,
    )
    self.class_token = nnx.Param(_zeros(1, 1, channels))
    make_block = partial(Block, channels, num_heads, norm_dtype=dtype)
    self.encoder = Encoder(
      grid,
      channels,
      # The last block is the head's, and computes in the float32 that it gets.
      [
        partial(make_block, dtype=of_block, rngs=rngs)
        for of_block in [dtype] * (num_layers - 1) + [None]
      ],
      rngs,
    )
    self.heads = nnx.Dict(
      {
        "head": network.linear(
          channels, num_classes, init=_HEAD_INIT, rngs=rngs
        )
      }
    )

  def initialize(self, key: PRNGKeyArray) -> None:
    """Sets the class token as it starts, for the sanity check."""
    del key
    self.class_token[...] = jnp.zeros_like(self.class_token[...])

  def features(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B h w D"]:
    """Returns the patches before the last attention, and the class token.

    Raises:
      ValueError: pixels are left over beside the last patch.
    """
    check_divisible(images.shape[1], images.shape[2], self.unit_px)
    patches = network.at_least_float32(self.conv_proj(images))
    batch, height, width, channels = patches.shape
    positions = enlarged(self.encoder.pos_embedding[...], (height, width))
    tokens = jnp.concatenate(
      [
        jnp.broadcast_to(self.class_token[...], (batch, 1, channels)),
        patches.reshape(batch, -1, channels),
      ],
      axis=1,
    )
    x = (tokens + positions).astype(self.dtype)
    *blocks, last = self._blocks
    for block in blocks:
      x = self.segment(lambda block, x: block(x), block, x)
    cells = last.ln_1(x[:, 1:]).reshape(patches.shape)
    token = jnp.broadcast_to(x[:, None, :1], patches.shape)
    return jnp.concatenate([cells, token], axis=-1)

  def classify(
    self, features: Float[Array, "B h w D"], key: PRNGKeyArray | None = None
  ) -> Float[Array, "B K"]:
    """Returns the logits, of the class token; there is no dropout."""
    last = self._blocks[-1]
    features = network.at_least_float32(features)
    cells, token = self.parted(features)
    token = token[:, 0, :1]  # the same in every cell
    normed = jnp.concatenate(
      [last.ln_1(token), cells.reshape(*token.shape[:1], -1, cells.shape[-1])],
      1,
    )
    found = self.encoder.ln(last.after_norm(token, normed))
    return self.heads["head"](found[:, 0])

  @property
  def _blocks(self) -> list[Block]:
    layers = self.encoder.layers
    return [layers[f"encoder_layer_{i}"] for i in range(self.num_layers)]

  @property
  def _last_norm(self) -> str:
    return f"encoder.layers.encoder_layer_{self.num_layers - 1}.ln_1"

  def torch_features(self, ops: Any, x: Any) -> Any:
    """Computes `features` by PyTorch."""
    patches = ops.conv(x, "conv_proj", self.unit_px, padding=0)
    shape = patches.shape
    token = ops.weight("class_token").expand(len(x), -1, -1)
    x = ops.tokens(token, patches)
    x = x + ops.positions("encoder.pos_embedding", self.grid, shape[2:])
    for i, block in enumerate(self._blocks[:-1]):
      name = f"encoder.layers.encoder_layer_{i}"
      normed = ops.layer_norm(x, f"{name}.ln_1")
      x = block.torch_call(ops, x, normed, name)
    cells = ops.layer_norm(x[:, 1:], self._last_norm).mT.reshape(shape)
    return ops.concatenate([cells, x[:, 0, :, None, None].expand(shape)])

  def torch_classify(self, ops: Any, features: Any) -> Any:
    """Computes `classify` by PyTorch."""
    cells, token = features.split(self.num_context, 1)
    token = token[:, None, :, 0, 0]
    normed = ops.tokens(ops.layer_norm(token, self._last_norm), cells)
    name = self._last_norm.removesuffix(".ln_1")
    x = self._blocks[-1].torch_call(ops, token, normed, name)
    return ops.linear(ops.layer_norm(x, "encoder.ln")[:, 0], "heads.head")

  def layer_inputs(self) -> dict[str, str]:
    """Returns the last block's first norm, the one layer of cells."""
    return {self._last_norm: network.FEATURES}

  @property
  def excitation_layer(self) -> str:
    """The same; excitation backprop has no rule for attention."""
    return self._last_norm

  def parts(self) -> dict[str, tuple[str, ...]]:
    """Returns the embedding, the blocks, the head with its norm."""
    blocks = [f"encoder_layer_{i}" for i in range(self.num_layers)]
    return {
      "conv_proj": ("conv_proj", "encoder", ""),
      **{name: (f"encoder.layers.{name}",) for name in blocks},
      "heads": ("encoder.ln", "heads"),
    }


def enlarged(
  positions: Float[Array, "1 n D"], grid: tuple[int, int]
) -> Float[Array, "1 m D"]:
  """Returns the class token's position and those of another grid.

  They are interpolated bicubically, corners aligned to corners.

  Source: torchvision's `interpolate_embeddings`.
  """
  token, cells = positions[:, :1], positions[:, 1:]
  side = round(cells.shape[1] ** 0.5)
  if grid == (side, side):
    return positions
  rows, columns = (
    jnp.asarray(_bicubic(side, count), cells.dtype) for count in grid
  )
  square = cells.reshape(side, side, -1)
  cells = jnp.einsum(
    "hg,gkd,wk->hwd", rows, square, columns, precision="highest"
  )
  return jnp.concatenate([token, cells.reshape(1, -1, cells.shape[-1])], axis=1)


def _bicubic(given: int, wanted: int) -> np.ndarray:
  """Returns what each of `given` numbers adds to each wanted: `[wanted given]`.

  Keys' cubic with PyTorch's a = -0.75; beyond the ends the last number holds.
  """
  a = -0.75
  near = lambda x: ((a + 2) * x - (a + 3)) * x * x + 1
  far = lambda x: ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
  at = np.linspace(0, given - 1, wanted)
  below = np.floor(at).astype(int)
  weights = np.zeros((wanted, given), np.float32)
  for step in (-1, 0, 1, 2):
    place = below + step
    distance = np.abs(at - place)
    share = np.where(distance <= 1, near(distance), far(distance))
    place = np.clip(place, 0, given - 1)
    np.add.at(weights, (np.arange(wanted), place), share)
  return weights


_TORCH_CODE = """\
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

model = VisionTransformer(
  image_size={{image_size}},
  patch_size=16,
  num_layers=12,
  num_heads={num_heads},
  hidden_dim={channels},
  mlp_dim={hidden},
  num_classes={{num_classes}},
)
"""


def _vit(title: str, num_heads: int, channels: int) -> Architecture:
  return Architecture(
    title=title,
    network=VisionTransformer,
    fields={"num_heads": num_heads, "channels": channels},
    min_px=16,
    torch_code=_TORCH_CODE.format(
      num_heads=num_heads, channels=channels, hidden=4 * channels
    ),
    # Positions are saved for 224 pixels, whatever the pictures were.
    torch_weights="interpolate_embeddings({image_size}, 16, {weights})",
  )


VIT_TINY = _vit("ViT-Ti/16", 3, 192)
VIT_SMALL = _vit("ViT-S/16", 6, 384)
VIT_BASE = _vit("ViT-B/16", 12, 768)  # torchvision's vit_b_16
