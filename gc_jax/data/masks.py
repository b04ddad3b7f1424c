"""Which pixels of an encoded mask are inside of the object.

A mask shows one object. Of one bit, white is inside; otherwise there are two
levels, of which 0 is outside and the other inside, whatever it is: 1 as well
as 255. Edges may be soft: then what is above half of white is inside.

What a level means is not guessed from how bright it looks. A palette whose
colours are grey holds levels; of another the numbers count, and 0 is outside.
Of colours, black is outside. What is transparent is outside.

Several classes or objects in one file, or a border to be ignored beside an
object (VOC's 255), are refused: one of them would be lost without a word.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image
from jaxtyping import Bool, Shaped, UInt8

from gc_jax.data import decode, modes

_SHOWN = 8  # of many levels, how many are told
# Pixels to be ignored, as VOC marks them: their number and its colour.
_VOC_IGNORED = 255, (224, 224, 192)


def inside(header: decode.Header) -> Bool[np.ndarray, "H W"]:
  """Returns the pixels of the object, in the mask's own stored frame.

  A mask without any is not refused here.

  Raises:
    DecodeError: if it cannot be read, or shows more than one object; says the
      levels or colours that it has.
  """
  image = decode.stored(header)
  if image.mode == "P":
    return _of_palette(image)
  if image.has_transparency_data:
    return _of_transparency(_converted(modes.with_8_bits(image), "RGBA"))
  if image.mode == "1":
    return np.asarray(image)
  if image.mode == "L":
    return _of_levels(np.asarray(image), _in_use(image), 255)
  if image.mode == "F" or image.mode.startswith("I"):
    levels = np.asarray(image)
    white = 1 if image.mode == "F" else 65535
    return _of_levels(levels, np.unique(levels).tolist(), white)
  return _of_colors(_converted(image, "RGB"))


def _converted(image: PIL.Image.Image, mode: str) -> UInt8[np.ndarray, "H W _"]:
  with decode.broken_told():
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
  """Returns whether what lies between 0 and `high` are edges.

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
    raise decode.DecodeError(
      "a mask must show its object; in VOC's palette its 255 are pixels to be "
      "ignored, and there is no other number. Save it with 0 outside and 255 "
      "inside, in grey"
    )
  if black and not clear and 0 in visible and 0 not in black:
    raise decode.DecodeError(
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


def _refusal(kind: str, found: Sequence[str]) -> decode.DecodeError:
  *shown, last = found[:_SHOWN]
  if len(found) > _SHOWN:
    shown, last = [*shown, last], f"{len(found) - _SHOWN:,} more"
  return decode.DecodeError(
    f"a mask must have two {kind} outside of its object and another inside; "
    f"it has {', '.join(shown)} and {last}. Save one mask for each object, 0 "
    "outside and 255 inside; a border to be ignored goes to either"
  )
