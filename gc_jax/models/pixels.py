"""Pictures as networks take them: the range, the normalisation, the sides."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from gc_jax.method.cam import at_least_float32

# Mean and standard deviation of ImageNet's RGB pixels in [0, 1], which every
# torchvision checkpoint was trained with.
RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)


def check_divisible(height: int, width: int, unit_px: int) -> None:
  """Refuses pictures of which a rim would be lost beside the last patch.

  Raises:
    ValueError: a side is not a multiple of `unit_px`.
  """
  if height % unit_px or width % unit_px:
    raise ValueError(
      f"images must have sides divisible by {unit_px} pixels, the side of a "
      f"patch, for this model; they are {height} by {width}. Resize them."
    )


def in_unit_range(images: Array) -> Float[Array, "B H W 3"]:
  """Returns RGB pixels, uint8 or float in [0, 1], as float in [0, 1].

  They are float32, unless they came as float64.
  """
  if images.dtype == jnp.uint8:
    return images.astype(jnp.float32) / 255
  return at_least_float32(images)


def mean_colour(
  pixels: Float[Array, "B H W 3"],
) -> Float[Array, "B H W 3"]:
  """Returns what is 0 after normalisation, for RGB pixels in [0, 1]."""
  # Not broadcast, so that it lies on devices as the pixels do.
  return jnp.zeros_like(pixels) + jnp.array(RGB_MEAN, pixels.dtype, ndmin=4)


def normalize_pixels(images: Array) -> Float[Array, "B H W 3"]:
  """Returns `(pixels - mean) / std` of RGB pixels, uint8 or float in [0, 1]."""
  images = in_unit_range(images)
  mean, std = (
    jnp.array(each, images.dtype, ndmin=4) for each in (RGB_MEAN, RGB_STD)
  )
  return (images - mean) / std
