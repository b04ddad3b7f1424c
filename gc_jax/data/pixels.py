"""The meaning of pixels: a picture's RGB, a mask's inside and outside.

A mask shows one object. One bit: white is inside. Otherwise there are two
levels: 0 is outside and the other inside, be it 1 or 255. Edges may be soft:
then levels above half of white are inside.

Brightness does not decide what a level means. A palette of grey colours holds
levels; in any other palette the numbers count, and 0 is outside. Among colours,
black is outside. Transparent pixels are outside.

A file with several classes or objects, or with a border to be ignored beside
an object (VOC's 255), is refused: reading it would lose one of them silently.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import PIL.Image
from jaxtyping import Bool, Shaped, UInt8

from gc_jax.data.dataset import DecodeError

_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_SHOWN = 8  # how many of a mask's levels an error lists
# Pixels to be ignored, as VOC marks them: their number and its colour.
_VOC_IGNORED = 255, (224, 224, 192)


@contextlib.contextmanager
def broken_told() -> Iterator[None]:
  """Raises as `DecodeError` whatever a parser raises on a broken file."""
  try:
    yield
  except DecodeError:
    raise
  except Exception as error:
    reason = str(error) or type(error).__name__
    raise DecodeError(f"it is broken: {reason}") from error


def rgb(image: PIL.Image.Image) -> PIL.Image.Image:
  """Returns the picture in RGB of 8 bits, transparent pixels put on white.

  Raises:
    DecodeError: if it has 32 bits and levels out of range.
  """
  image = _with_8_bits(image)
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    image = PIL.Image.alpha_composite(white, image)
  return image if image.mode == "RGB" else image.convert("RGB")


def _with_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
  """Returns deep grey as L, or as LA where a level is transparent."""
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
  """Scales the transparent level of a PNG as Pillow scales its pixels.

  Args:
    image: its `info` gives the level as the file does; changed.
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

  Pillow does so up to 8 bits; above, it leaves 0 as white, and 12 bits as they
  are.
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


def inside(mask: PIL.Image.Image) -> Bool[np.ndarray, "H W"]:
  """Returns the pixels of a mask's object; there may be none.

  Raises:
    DecodeError: if it shows more than one object; lists its levels or colours.
  """
  if mask.mode == "P":
    return _of_palette(mask)
  if mask.has_transparency_data:
    return _of_transparency(_converted(_with_8_bits(mask), "RGBA"))
  if mask.mode == "1":
    return np.asarray(mask)
  if mask.mode == "L":
    return _of_levels(np.asarray(mask), _in_use(mask), 255)
  if mask.mode == "F" or mask.mode.startswith("I"):
    levels = np.asarray(mask)
    white = 1 if mask.mode == "F" else 65535
    return _of_levels(levels, np.unique(levels).tolist(), white)
  return _of_colors(_converted(mask, "RGB"))


def _converted(image: PIL.Image.Image, mode: str) -> UInt8[np.ndarray, "H W _"]:
  with broken_told():
    return np.asarray(image.convert(mode))


def _in_use(image: PIL.Image.Image) -> list[int]:
  """Returns the levels, or the numbers of a palette, that occur."""
  return [level for level, count in enumerate(image.histogram()) if count]


def _of_levels(
  levels: Shaped[np.ndarray, "H W"], in_use: Sequence[int | float], white: int
) -> Bool[np.ndarray, "H W"]:
  low, high = in_use[0], in_use[-1]
  if low >= 0 and np.isfinite(high):
    if len(in_use) == 1 or (len(in_use) == 2 and low == 0):
      return levels != 0
    if low == 0 and high > white / 2 and _is_soft(levels, high):
      return levels > white / 2
  raise _refusal("levels, 0", [f"{level:.10g}" for level in in_use])


def _is_soft(levels: Shaped[np.ndarray, "H W"], high: int | float) -> bool:
  """Returns whether the levels between 0 and `high` are edges.

  A pixel of an edge has a darker and a brighter one beside it. In a region of
  a class, however thin, most have one of the two at most.
  """
  if levels.dtype not in (np.uint8, np.uint16):
    levels = levels.astype(np.float32)
  beside = np.ones((3, 3), np.uint8)
  between = (levels > 0) & (levels < high)
  sloping = between & (cv2.erode(levels, beside) < levels)
  sloping &= levels < cv2.dilate(levels, beside)
  return bool(2 * np.count_nonzero(sloping) >= np.count_nonzero(between))


def _of_palette(image: PIL.Image.Image) -> Bool[np.ndarray, "H W"]:
  in_use, numbers = _in_use(image), np.asarray(image)
  row = image.crop((0, 0, 256, 1))  # with every number, to see their colours
  row.putdata(range(256))
  looks = _converted(row, "RGBA")[0]
  opaque = looks[:, 3] > 127
  visible = [number for number in in_use if opaque[number]]
  clear = len(visible) < len(in_use)
  if clear and len(visible) == 1:
    return numbers == visible[0]
  colors = [tuple(looks[number, :3].tolist()) for number in visible]
  # Numbers that look alike can only be told apart as numbers.
  distinct = len(set(colors)) == len(visible)
  if distinct and all(len(set(color)) == 1 for color in colors):
    levels = np.where(opaque, looks[:, 0], np.uint8(0))
    return _of_levels(levels[numbers], np.unique(levels[in_use]).tolist(), 255)
  black = {
    number
    for number, color in zip(visible, colors, strict=True)
    if distinct and color == (0, 0, 0)
  }
  outside = black if clear else black | {0}
  found = [number for number in visible if number not in outside]
  if len(found) > 1:
    raise _refusal("numbers of a palette, 0", list(map(str, in_use)))
  if _VOC_IGNORED in zip(visible, colors, strict=True):
    raise DecodeError(
      "a mask must show its object; in VOC's palette its 255 are pixels to be "
      "ignored, and there is no other number. Save it with 0 outside and 255 "
      "inside, in grey"
    )
  if black and not clear and 0 in visible and 0 not in black:
    raise DecodeError(
      "in the palette of a mask, 0 must be outside of the object or black; "
      f"black is number {min(black)}, and 0 is another colour. Save it without "
      "a palette, 0 outside and 255 inside"
    )
  return np.isin(numbers, found)


def _of_transparency(
  pixels: UInt8[np.ndarray, "H W 4"],
) -> Bool[np.ndarray, "H W"]:
  colors, alpha = pixels[..., :3], pixels[..., 3]
  seen = alpha > 0
  if seen.all() and (alpha == 255).all():
    return _of_colors(colors)
  first = colors.reshape(-1, 3)[seen.argmax()]
  if (colors == first).all(-1)[seen].all():
    return _of_levels(alpha, np.unique(alpha).tolist(), 255)
  if (colors == colors[..., :1]).all(-1)[seen].all():
    levels = (colors[..., 0].astype(np.uint16) * alpha + 127) // 255
    return _of_levels(levels, np.unique(levels).tolist(), 255)
  return _of_colors(np.where(alpha[..., None] > 127, colors, 0))


def _of_colors(colors: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "H W"]:
  if (colors == colors[..., :1]).all():
    grey = np.ascontiguousarray(colors[..., 0])
    return _of_levels(grey, np.unique(grey).tolist(), 255)
  packed = colors.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
  in_use = np.unique(packed)
  if np.count_nonzero(in_use) > 1:
    raise _refusal("colours, black", [f"#{color:06x}" for color in in_use])
  return packed != 0


def _refusal(kind: str, found: Sequence[str]) -> DecodeError:
  *shown, last = found[:_SHOWN]
  if len(found) > _SHOWN:
    shown, last = [*shown, last], f"{len(found) - _SHOWN:,} more"
  return DecodeError(
    f"a mask must have two {kind} outside of its object and another inside; "
    f"it has {', '.join(shown)} and {last}. Save one mask for each object, 0 "
    "outside and 255 inside; a border to be ignored goes to either"
  )
