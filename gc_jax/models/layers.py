"""Layers shared by the architectures, each as PyTorch defines it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# Mean and standard deviation of ImageNet's RGB pixels in [0, 1], which every
# torchvision checkpoint was trained with.
RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)

# The release initialises convolutions by He's rule on the fan-out.
_conv_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# torch.nn.Linear: uniform in +-1/sqrt(fan_in), kernel and bias alike.
_linear_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv(
  in_channels: int,
  out_channels: int,
  kernel_size: int,
  stride: int = 1,
  *,
  dtype: DTypeLike,
  rngs: nnx.Rngs,
) -> nnx.Conv:
  """Returns a square convolution without bias, padded by (kernel - 1) / 2.

  The padding is written out: "SAME" pads asymmetrically under a stride, and
  would move every cell by half a pixel against PyTorch.
  """
  return nnx.Conv(
    in_channels,
    out_channels,
    (kernel_size, kernel_size),
    strides=stride,
    padding=(kernel_size - 1) // 2,
    use_bias=False,
    dtype=dtype,
    kernel_init=_conv_init,
    rngs=rngs,
  )


def linear(in_features: int, out_features: int, *, rngs: nnx.Rngs):
  """Returns a float32 dense layer, initialised as torch.nn.Linear."""

  def bias_init(key, shape, dtype=jnp.float32):
    bound = in_features**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return nnx.Linear(
    in_features,
    out_features,
    kernel_init=_linear_init,
    bias_init=bias_init,
    rngs=rngs,
  )


class BatchNorm(nnx.BatchNorm):
  """Batch normalisation with torch.nn.BatchNorm2d's constants.

  Flax's momentum of 0.9 is PyTorch's 0.1. Running statistics are float32.
  """

  def __init__(self, num_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    super().__init__(
      num_features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs
    )


def max_pool(
  x: Float[Array, "B H W D"], window: int, stride: int, *, padding: int
) -> Float[Array, "B h w D"]:
  """Returns the maximum of each window; the border counts as -inf."""
  return nnx.max_pool(
    x,
    (window, window),
    strides=(stride, stride),
    padding=((padding, padding), (padding, padding)),
  )


def pool_globally(
  features: Float[Array, "B h w D"], pooling: str
) -> Float[Array, "B D"]:
  """Returns one value a channel: the mean ("average") or maximum ("max").

  The maximum is taken at the *first* argmax in row-major order, as PyTorch
  does; `jnp.max` would split the gradient between ties, which after a ReLU
  and in bfloat16 are common.
  """
  if pooling == "average":
    return features.mean((1, 2))
  cells = features.reshape(features.shape[0], -1, features.shape[-1])
  first = jnp.argmax(cells, axis=1, keepdims=True)
  return jnp.take_along_axis(cells, first, axis=1)[:, 0]


def normalize_pixels(images: Array) -> Float[Array, "B H W 3"]:
  """Returns `(pixels - mean) / std`, float32.

  Args:
    images: RGB, uint8 in 0..255 or float in [0, 1], `[B H W 3]`.
  """
  if images.dtype == jnp.uint8:
    images = images.astype(jnp.float32) / 255
  mean, std = jnp.array(RGB_MEAN, ndmin=4), jnp.array(RGB_STD, ndmin=4)
  return (images.astype(jnp.float32) - mean) / std
