"""What the pixels of a decoded picture mean, in every mode that Pillow has."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image

_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


class DecodeError(ValueError):
  """A picture cannot be read; says why, and which where that is known."""


def rgb(image: PIL.Image.Image) -> PIL.Image.Image:
  """Returns the picture in RGB of 8 bits, what is transparent put on white.

  Raises:
    DecodeError: if it has 32 bits and levels out of range.
  """
  image = with_8_bits(image)
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    image = PIL.Image.alpha_composite(white, image)
  return image if image.mode == "RGB" else image.convert("RGB")


def with_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
  """Returns deep grey as L, or as LA where a level is transparent.

  Raises:
    DecodeError: if there are 32 bits and the levels are out of range.
  """
  if image.mode == "La":  # which converts to nothing else
    return image.convert("LA")
  if image.mode != "F" and not image.mode.startswith("I"):
    return image
  levels = np.asarray(image)
  limit = 1 if image.mode == "F" else 65535
  if image.mode in ("I", "F"):
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= limit):  # NaN is neither
      raise DecodeError(
        f"its grey values of 32 bits span {low:g} to {high:g}, and must be in "
        f"0 to {limit}; scale them, or save it with 8 or 16 bits"
      )
  grey = np.rint(levels * np.float32(255 / limit)).astype(np.uint8)
  clear = image.info.get("transparency")
  if clear is None:
    return PIL.Image.fromarray(grey)
  alpha = np.where(levels == clear, 0, 255).astype(np.uint8)
  return PIL.Image.fromarray(np.stack([grey, alpha], -1))


def scale_clear_level(image: PIL.Image.Image, depth: int) -> None:
  """Brings the level that is transparent in a PNG to the scale of its pixels.

  Args:
    image: whose `info` says it as it is in the file.
    depth: bits of a channel in the file.
  """
  clear = image.info.get("transparency")
  if image.mode == "L" and depth < 8 and isinstance(clear, int):
    image.info["transparency"] = clear * 255 // (2**depth - 1)
  elif image.mode == "RGB" and depth == 16 and isinstance(clear, tuple):
    image.info["transparency"] = tuple(level >> 8 for level in clear)


def with_white_at_the_top(
  image: PIL.Image.Image, tags: Mapping[int, Any]
) -> PIL.Image.Image:
  """Returns deep grey of a TIFF with white as its highest level.

  Pillow leaves 0 as white, and 12 bits as they are. (Up to 8 it sees to it.)

  Args:
    image: of any mode.
    tags: of the TIFF.
  """
  bits = tags.get(_TIFF_BITS, ())
  inverted = tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
  if image.mode.startswith("I;16") and (inverted or bits == (12,)):
    levels = np.asarray(image).astype(np.uint16)
    if bits == (12,):
      levels = levels << 4 | levels >> 8  # 0xFFF becomes 0xFFFF
    return PIL.Image.fromarray(65535 - levels if inverted else levels)
  if image.mode == "F" and inverted:
    return PIL.Image.fromarray(1 - np.asarray(image))
  return image
