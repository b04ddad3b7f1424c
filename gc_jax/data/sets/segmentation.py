"""COCO's `segmentation`, polygons or run lengths, to the pixels of a mask.

Drawn as pycocotools draws them. What it would take for something else, or
read beyond its memory for, never reaches it.
"""

import io
import math
import reprlib
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Bool

Polygons = list[list[int | float]]
Size = tuple[int, int]  # width, height

# What pycocotools takes memory for: 20 bytes a fifth of a pixel.
_MAX_OUTLINE_PX = 4_000_000


class OtherSizeError(ValueError):
  """Run lengths are of a picture of another size."""


def clean(
  segmentation: Any, size: Size
) -> tuple[Polygons | dict[str, Any] | None, int]:
  """Returns what of a segmentation covers pixels of its picture.

  Args:
    segmentation: as COCO's JSON has it: polygons `[[x y x y ...] ...]` whose
      union counts, or one alone, `[x y x y ...]`; run lengths `{"counts",
      "size"}`, column by column, the counts a list or compressed to text.
    size: (width, height) of the picture, as stored.

  Returns:
    Polygons, or the run lengths as they are; None: no pixel is covered. And
    how many parts of it are not returned as they cover none: run lengths of
    nothing; polygons of fewer than three corners, of no numbers, outside.

  Raises:
    ValueError: it is neither polygons nor run lengths, or these cannot be.
    OtherSizeError: they are of another picture.
  """
  if segmentation is None:
    return None, 0
  if isinstance(segmentation, list):
    if segmentation and all(map(_is_number, segmentation)):
      segmentation = [segmentation]
    given = [polygon for polygon in segmentation if polygon != []]
    polygons = [polygon for polygon in given if _is_polygon(polygon)]
    if polygons:
      areas = _pycocotools().area(_drawn(polygons, size))
      polygons = [p for p, a in zip(polygons, areas, strict=True) if a]
    return polygons or None, len(given) - len(polygons)
  if isinstance(segmentation, dict):
    if not segmentation:
      return None, 0
    if not any(_lengths(segmentation, size)[1::2]):
      return None, 1
    return segmentation, 0
  raise ValueError(
    "its segmentation must be polygons or run lengths, and is "
    f"{reprlib.repr(segmentation)}"
  )


def draw(segmentation: Any, size: Size) -> Bool[np.ndarray, "H W"]:
  """Returns the pixels of an object.

  Args:
    segmentation: see `clean`.
    size: (width, height) of the picture, as stored.

  Raises:
    ValueError: see `clean`.
  """
  width, height = size
  segmentation, _ = clean(segmentation, size)
  if segmentation is None:
    return np.zeros((height, width), np.bool_)
  if isinstance(segmentation, list):
    masks = _pycocotools()
    return masks.decode(masks.merge(_drawn(segmentation, size))).astype(bool)
  lengths = _lengths(segmentation, size)
  inside = np.arange(len(lengths)) % 2 == 1
  return np.repeat(inside, lengths).reshape(height, width, order="F")


def encode(mask: Bool[np.ndarray, "H W"]) -> bytes:
  """Returns a PNG of one bit a pixel, white inside the object."""
  buffer = io.BytesIO()
  PIL.Image.fromarray(mask).save(buffer, format="png")
  return buffer.getvalue()


def _pycocotools():
  from pycocotools import mask

  return mask


def _drawn(polygons: Polygons, size: Size) -> list[dict[str, Any]]:
  width, height = size
  return _pycocotools().frPyObjects(polygons, height, width)


def _is_polygon(value: Any) -> bool:
  """Returns whether this is an outline that can be drawn.

  pycocotools takes four numbers for a box, passes over an odd one at the end,
  and counts in 32 bits.
  """
  if not (
    isinstance(value, list)
    and len(value) >= 6
    and len(value) % 2 == 0
    and all(map(_is_number, value))
  ):
    return False
  try:
    corners = np.array(value, np.float64).reshape(-1, 2)
  except OverflowError:  # a whole number of hundreds of digits
    return False
  edges = np.abs(corners - np.roll(corners, 1, axis=0)).max(1)
  # Of NaN and infinity, this is false as well.
  return bool(edges.sum() + np.abs(corners).max() <= _MAX_OUTLINE_PX)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _lengths(runs: dict[str, Any], size: Size) -> list[int]:
  """Returns run lengths that make the picture."""
  width, height = size
  counts = runs.get("counts")
  if isinstance(counts, str):
    lengths = _decompressed(counts)
  elif isinstance(counts, list) and all(map(_is_whole, counts)):
    lengths = [int(count) for count in counts]
  else:
    raise ValueError(
      "its run lengths must have counts, a list of whole numbers or a text, "
      f"and have {reprlib.repr(counts)}"
    )
  if runs.get("size") != [height, width]:
    raise OtherSizeError(
      "its run lengths must be of the picture as it is stored, of size "
      f"[{height}, {width}], and are of size {reprlib.repr(runs.get('size'))}"
    )
  pixels = width * height
  wrong = [length for length in lengths if not 0 <= length <= pixels]
  if wrong:
    raise ValueError(
      f"its run lengths must be from 0 to {pixels}, all pixels of {width}x"
      f"{height}, and one is {reprlib.repr(wrong[0])}"
    )
  if sum(lengths) != pixels:
    raise ValueError(
      f"its run lengths must add up to {pixels}, all pixels of {width}x"
      f"{height}, and make {sum(lengths)}"
    )
  return lengths


def _is_whole(value: Any) -> bool:
  if isinstance(value, float):
    return math.isfinite(value) and value.is_integer()
  return _is_number(value)


def _decompressed(text: str) -> list[int]:
  """Returns the run lengths that COCO's characters say.

  Each is a number in groups of five bits, the lowest first, in characters
  from "0"; the sixth bit says that more follow, the fifth of the last is the
  sign. From the fourth number on, they are differences to the one two before.

  Raises:
    ValueError: a character is none of these, or the last number is cut off.
  """
  lengths: list[int] = []
  number = shift = 0
  for place, character in enumerate(text, 1):
    bits = ord(character) - ord("0")
    if not 0 <= bits < 64 or shift > 60:
      raise ValueError(
        f"its run lengths cannot be read from character {place} on, "
        f"{character!r}: they are compressed to characters from '0' to 'o'"
      )
    number |= (bits & 31) << shift
    shift += 5
    if bits & 32:
      continue
    if bits & 16:
      number -= 1 << shift
    lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
    number = shift = 0
  if shift:
    raise ValueError(
      f"its run lengths break off after {len(text)} characters, within a number"
    )
  return lengths
