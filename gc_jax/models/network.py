"""Layers as PyTorch defines them, and the base class of the architectures."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.method.cam import at_least_float32
from gc_jax.models.convolution import Conv
from gc_jax.models.pixels import normalize_pixels


@dataclasses.dataclass(frozen=True)
class Init:
  """How a layer starts."""

  kernel: nnx.initializers.Initializer
  # Whether the bias starts at 0; otherwise it is uniform in +-1/sqrt(fan_in),
  # as in PyTorch's layers.
  zero_bias: bool

  def bias(self, fan_in: int) -> nnx.initializers.Initializer:
    """Returns the initialiser of a bias."""
    if self.zero_bias:
      return nnx.initializers.zeros_init()
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
      key, shape, dtype, -bound, bound
    )


_scaling = nnx.initializers.variance_scaling
# PyTorch's default: uniform in +-1/sqrt(fan_in), kernel and bias alike.
TORCH_INIT = Init(_scaling(1 / 3, "fan_in", "uniform"), zero_bias=False)
# He's rule on the fan-out (the release's ResNets), and uniform on the fan-in.
HE_INIT = Init(_scaling(2.0, "fan_out", "normal"), zero_bias=True)
HE_UNIFORM_INIT = Init(_scaling(2.0, "fan_in", "uniform"), zero_bias=True)


def conv(
  in_channels: int,
  out_channels: int,
  kernel_size: int,
  stride: int = 1,
  *,
  padding: int | None = None,
  use_bias: bool = True,
  init: Init = HE_INIT,
  dtype: DTypeLike,
  rngs: nnx.Rngs,
) -> Conv:
  """Returns a square convolution with float32 parameters.

  The padding, on every side, is (kernel_size - 1) / 2 unless given. Flax's
  "SAME" pads asymmetrically under a stride, and would move every cell by half a
  pixel against PyTorch.
  """
  layer = Conv(
    in_channels,
    out_channels,
    (kernel_size, kernel_size),
    strides=stride,
    padding=(kernel_size - 1) // 2 if padding is None else padding,
    use_bias=use_bias,
    dtype=dtype,
    kernel_init=init.kernel,
    bias_init=init.bias(in_channels * kernel_size**2),
    rngs=rngs,
  )
  layer.init = init  # the sanity check draws it anew
  return layer


def linear(
  in_features: int,
  out_features: int,
  *,
  init: Init = TORCH_INIT,
  dtype: DTypeLike | None = None,
  rngs: nnx.Rngs,
) -> nnx.Linear:
  """Returns a dense layer with float32 parameters.

  By default it is initialised as PyTorch's, and its outputs are float32.
  """
  layer = nnx.Linear(
    in_features,
    out_features,
    dtype=dtype,
    kernel_init=init.kernel,
    bias_init=init.bias(in_features),
    rngs=rngs,
  )
  layer.init = init
  return layer


class LayerNorm(nnx.LayerNorm):
  """Layer normalisation as torch.nn.LayerNorm(eps=1e-6) computes it.

  Everything inside is float32; a dtype of None gives outputs of the input's.
  """

  def __init__(
    self,
    num_features: int,
    *,
    dtype: DTypeLike | None = None,
    rngs: nnx.Rngs,
  ):
    super().__init__(
      num_features, use_fast_variance=False, dtype=dtype, rngs=rngs
    )

  def initialize(self, key: PRNGKeyArray) -> None:
    """Sets scale and bias as they start."""
    del key
    self.scale[...] = jnp.ones_like(self.scale[...])
    self.bias[...] = jnp.zeros_like(self.bias[...])


class Origin(nnx.Variable):
  """What a BatchNorm subtracts before it squares, during one step: `[D]`."""


class BatchNorm(nnx.BatchNorm):
  """Batch normalisation as torch.nn.BatchNorm2d computes it.

  Everything inside is float32 whatever the dtype of the activations; Flax's own
  rounds the running statistics to that dtype. It also keeps the biased variance
  of each batch, by which both normalise; PyTorch keeps the unbiased one.

  A training batch may be normalised in groups, each by its own mean and
  variance, like the replicas of PyTorch. The running statistics then follow the
  mean over the groups of their means, and of their unbiased variances; PyTorch
  keeps those of the first replica and drops the others.
  """

  # Equal, contiguous groups of a training batch, which they must divide; set by
  # `train(bn_groups=...)`. One that lies whole on a device needs no numbers of
  # other devices.
  bn_groups: int = 1
  origin: Origin | None = None  # set by `hold_origins`; None: the running mean

  def __init__(self, num_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    # Flax's momentum of 0.9 is PyTorch's 0.1.
    super().__init__(
      num_features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs
    )
    # Batches seen. PyTorch's checkpoints hold it; nothing here depends on it.
    self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.int32))

  def initialize(self, key: PRNGKeyArray) -> None:
    """Sets parameters and statistics as they start.

    Statistics are learned too, and belong to the weights before them.
    """
    del key
    for variable in (self.scale, self.var):
      variable[...] = jnp.ones_like(variable[...])
    for variable in (self.bias, self.mean):
      variable[...] = jnp.zeros_like(variable[...])

  def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
    """Returns the normalised activations; training updates the statistics."""
    groups = 1 if self.use_running_average else self.bn_groups
    grouped = at_least_float32(x).reshape(groups, -1, *x.shape[1:])
    if self.use_running_average:
      mean, var = self.mean[...][None], self.var[...][None]
    else:
      # Squares are taken about the running mean, which is near the batch's: the
      # variance then takes one pass over the activations, and the difference of
      # squares loses no digits. About 0 it would lose three where the mean is
      # 30 times the standard deviation, which happens after a ReLU.
      origin = self.mean if self.origin is None else self.origin
      origin = jax.lax.stop_gradient(origin[...])[None]
      mean = grouped.mean((1, 2, 3))
      squares = jnp.square(grouped - _channels(origin)).mean((1, 2, 3))
      var = jnp.maximum(squares - jnp.square(mean - origin), 0)
      old, new = self.momentum, 1 - self.momentum
      count = x.size // x.shape[-1] // groups
      unbiased = jax.lax.stop_gradient(var) * (count / max(count - 1, 1))
      seen = jax.lax.stop_gradient(mean)
      self.mean[...] = old * self.mean[...] + new * seen.mean(0)
      self.var[...] = old * self.var[...] + new * unbiased.mean(0)
      self.num_batches_tracked[...] += 1
    scale = self.scale[...][None] * jax.lax.rsqrt(var + self.epsilon)
    shift = self.bias[...][None] - mean * scale
    grouped = grouped * _channels(scale) + _channels(shift)
    return grouped.reshape(x.shape).astype(self.dtype)


def hold_origins(model: nnx.Module) -> None:
  """Makes every BatchNorm square about the current running mean from now on.

  That changes only rounding. About a running mean that a first pass has just
  moved, a second pass would wait for all devices at every BatchNorm. The
  `Origin` that each gets is not part of a checkpoint.
  """
  for _, module in nnx.iter_modules(model):
    if isinstance(module, BatchNorm):
      module.origin = Origin(module.mean[...])


def _channels(x: Float[Array, "G D"]) -> Float[Array, "G 1 1 1 D"]:
  return x[:, None, None, None]


def dropout(
  x: Float[Array, "*B"], rate: float, key: PRNGKeyArray | None
) -> Float[Array, "*B"]:
  """Returns x with numbers dropped at a rate, the others divided by 1 - rate.

  The mask is a function of the key; None drops nothing.
  """
  if key is None or rate == 0:
    return x
  kept = jax.random.bernoulli(key, 1 - rate, x.shape)
  return jnp.where(kept, x / (1 - rate), 0)


def average_to_grid(
  x: Float[Array, "B H W D"], grid: int | tuple[int, int]
) -> Float[Array, "B g k D"]:
  """Returns the means over `grid` windows that cover the input.

  The grid is (g, k), or the g of a square one.

  Window i reaches from floor(i n / g) to ceil((i + 1) n / g), as in PyTorch's
  adaptive pooling: where g does not divide n, windows overlap.
  """
  cells = (grid, grid) if isinstance(grid, int) else grid
  rows, columns = (
    np.zeros(shape, np.float32)
    for shape in zip(cells, x.shape[1:3], strict=True)
  )
  for weights in (rows, columns):
    num, size = weights.shape
    for i in range(num):
      start, stop = i * size // num, -(-(i + 1) * size // num)
      weights[i, start:stop] = 1 / (stop - start)
  return jnp.einsum("gh,bhwd,kw->bgkd", rows, x, columns, precision="highest")


def pool_globally(
  features: Float[Array, "B h w D"], pooling: str
) -> Float[Array, "B D"]:
  """Returns one value a channel: the mean ("average") or maximum ("max").

  The maximum is taken at the *first* argmax in row-major order, as in PyTorch.
  `jnp.max` would split the gradient between ties, which are common after a ReLU
  and in bfloat16.

  Raises:
    ValueError: the pooling is neither.
  """
  if pooling == "average":
    return features.mean((1, 2))
  if pooling != "max":
    raise ValueError(f"pooling must be 'average' or 'max'; it is {pooling!r}.")
  cells = features.reshape(features.shape[0], -1, features.shape[-1])
  first = jnp.argmax(cells, axis=1, keepdims=True)
  return jnp.take_along_axis(cells, first, axis=1)[:, 0]


# Stands for the path of a module: none has the last layer as its input.
FEATURES = ""


class Network(nnx.Module):
  """The base class of all architectures, which state what others must know.

  A subclass has

    features(images): the explained activations, of pixels as `normalize`
      returns them;
    classify(features, key=None): the logits, float32 whatever the compute
      dtype, of features of any h and w. Dropout masks are a function of the
      key; without one nothing is dropped. A network whose head pools globally
      has `classify_pooled` instead, of what `pool` gives;
    torch_features(ops, x), torch_classify(ops, features): both by PyTorch, if
      `gc_jax.export --verify` is to know them. `ops` are
      `torch_io.proof.Operations`, with the weights of a file; x are normalised
      pixels, a tensor `[B 3 H W]`;
    layer_inputs(): the layers that maps can be taken at, from the picture up:
      torchvision's name -> dotted path of the module whose input is the layer's
      output, after the nonlinearity; `FEATURES` for the last layer;
    excitation_layer: the input of the last stage, for excitation maps;
    parts(): what the sanity check randomises together, from the picture up:
      torchvision's name -> dotted paths of modules that hold the layers.

  Attributes:
    pooling: how the head pools all cells, "average" or "max"; "" if a
      perceptron takes a grid of them instead, or attention all of them.
    num_context: how many of the last channels of `features` are no explained
      activations, but what `classify` needs besides: the class token of a
      ViT, the same in every cell. Maps are made of the channels before them.
    unit_px: what must divide the sides of pictures: the side of a ViT's patch.
    dtype: of the activations that `features` returns.
    last_layer: path of the layer whose outputs are the logits; of a
      convolution, once pooled.
    torch_names: first part of a path -> PyTorch's name for it, if it differs;
      None: files have the model's own names and layouts.
    remat: whether the backward pass recomputes the insides of each `segment`
      instead of keeping them; set by `train(remat=True)`.
    class_names: of the outputs, in their order; set by `gc_jax.load`, empty if
      unknown. Part of the graph, as the shapes are: no number depends on it.
    multi_label: whether the outputs say each for itself whether its class is
      there; set as `class_names` is.
    anew: key -> the network, initialised anew, all of it; None if its layers
      say how each is drawn.
  """

  pooling: str = ""
  num_context: int = 0
  unit_px: int = 1
  dtype: DTypeLike
  last_layer: tuple[str, ...]
  torch_names: Mapping[str, str] | None = MappingProxyType({})
  remat: bool = False
  class_names: tuple[str, ...] = ()
  multi_label: bool = False
  anew: Callable[[PRNGKeyArray], "Network"] | None = None

  def check(self) -> None:
    """Raises ValueError if what it states cannot hold; computes nothing."""

  def pool(
    self, features: Float[Array, "B h w D"], key: PRNGKeyArray | None = None
  ) -> Float[Array, "B C"]:
    """Returns what the head pools over all cells: here a value a channel."""
    return pool_globally(at_least_float32(features), self.pooling)

  def classify_pooled(self, pooled: Float[Array, "B C"]) -> Float[Array, "B K"]:
    """Returns the logits of what `pool` returned."""
    raise NotImplementedError

  def classify(
    self, features: Float[Array, "B h w D"], key: PRNGKeyArray | None = None
  ) -> Float[Array, "B K"]:
    """Returns the logits."""
    return self.classify_pooled(self.pool(features, key))

  def parted(
    self, features: Float[Array, "*B D"]
  ) -> tuple[Float[Array, "*B E"], Float[Array, "*B C"]]:
    """Returns the explained channels, and the `num_context` others."""
    count = features.shape[-1] - self.num_context
    return features[..., :count], features[..., count:]

  def segment(
    self, call: Callable[[nnx.Module, Array], Array], module: nnx.Module, x
  ) -> Array:
    """Returns `call(module, x)`; under `remat` only x is kept of it."""
    return (nnx.remat(call) if self.remat else call)(module, x)

  def normalize(self, images: Array) -> Float[Array, "B H W 3"]:
    """Returns RGB pixels as `features` takes them; see `normalize_pixels`."""
    return normalize_pixels(images).astype(self.dtype)


def context_of(model: nnx.Module) -> int:
  """Returns how many channels of a model's features no map is made of."""
  return model.num_context if isinstance(model, Network) else 0
