"""Shapes of objects in pixels, as annotation files state them: boxes, masks.

A box is xmin ymin xmax ymax, the last two exclusive: that of the first pixel is
0 0 1 1. COCO's `segmentation`, polygons or run lengths, is drawn as pycocotools
draws it; `clean` keeps from it what it would take for something else, or read
beyond its memory for.
"""

import io
import math
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Bool
from pycocotools import mask as masks

Box = tuple[float, float, float, float]
Size = tuple[int | float, int | float]  # width, height
CORNERS = ("xmin", "ymin", "xmax", "ymax")
Polygons = list[list[int | float]]

# pycocotools allocates 20 bytes for every fifth of a pixel of an outline.
_MAX_OUTLINE_PX = 4_000_000


def has_extent(box: Box) -> bool:
  """Returns whether a box has an area; one with NaN has none."""
  xmin, ymin, xmax, ymax = box
  return xmin < xmax and ymin < ymax


def box_of_mask(mask: Bool[np.ndarray, "H W"]) -> Box | None:
  """Returns the smallest box around a mask's pixels; None: it has none."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  if not len(rows):
    return None
  edges = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
  return tuple(map(float, edges))


def clipped_box(box: Box, size: Size) -> Box | None:
  """Returns the part of a box within a picture; None where nothing is left."""
  found = tuple(map(float, np.clip(box, 0, (*size, *size))))
  return found if has_extent(found) else None


def scaled_box(box: Box, size: Size) -> Box:
  """Returns ymin xmin ymax xmax in 0..1 of a picture of (width, height)."""
  xmin, ymin, xmax, ymax = box
  width, height = size
  return ymin / height, xmin / width, ymax / height, xmax / width


class Fractions:
  """Finds files whose boxes are fractions of the picture instead of pixels.

  All boxes of a file must agree: every number is between 0 and 1, or each of
  several boxes is within one pixel. `str` is what is wrong; "" = nothing.
  """

  def __init__(self):
    self._count = 0
    self._first = ""
    self._all_are_fractions = self._all_within_a_pixel = True

  def add(self, where: str, written: Sequence[int | float], box: Box) -> None:
    """Looks at a box, the four numbers of which mean `box` if they are pixels.

    One without extent tells nothing.
    """
    if not (self._all_are_fractions or self._all_within_a_pixel):
      return
    if not has_extent(box):
      return
    if not self._count:
      numbers = ", ".join(f"{value:g}" for value in written)
      self._first = f"{where}, with {numbers}"
    self._count += 1
    xmin, ymin, xmax, ymax = box
    # Fractions stick out this far where a tool rounds or does not clip; two
    # pixels are no fraction.
    self._all_are_fractions &= all(-0.5 <= value <= 1.5 for value in written)
    self._all_within_a_pixel &= (
      xmax <= math.floor(xmin) + 1 and ymax <= math.floor(ymin) + 1
    )

  def __str__(self) -> str:
    # One alone may be a small object.
    one_pixel = self._all_within_a_pixel and self._count > 1
    if not self._count or not (self._all_are_fractions or one_pixel):
      return ""
    lie = f"all {self._count:,} boxes lie"
    if self._count == 1:
      lie = "the only box lies"
    within = "0 and 1" if self._all_are_fractions else "one pixel"
    return (
      f"boxes must be in pixels, and {lie} within {within}, the first "
      f"{self._first}. Are they fractions of the picture? Multiply them by its "
      "width and height. An object that is a single pixel can be given as a "
      "mask"
    )


# Masks.


class OtherSizeError(ValueError):
  """Run lengths belong to a picture of another size."""


def clean(
  segmentation: Any, size: Size
) -> tuple[Polygons | dict[str, Any] | None, int]:
  """Returns the parts of a segmentation that cover pixels of its picture.

  COCO's JSON has polygons `[[x y x y ...] ...]` whose union counts, or one
  alone, `[x y x y ...]`; or run lengths `{"counts", "size"}`, column by column,
  the counts a list or compressed to text.

  Returns:
    Polygons, or the run lengths unchanged; None: no pixel is covered. And how
    many parts are left out because they cover none: empty run lengths; polygons
    outside, of fewer than three corners, or not of numbers.

  Raises:
    ValueError: it is neither, or invalid; or `OtherSizeError`.
  """
  if segmentation is None or segmentation == {}:
    return None, 0
  if isinstance(segmentation, dict):
    covers = any(_lengths(segmentation, size)[1::2])
    return (segmentation, 0) if covers else (None, 1)
  if not isinstance(segmentation, list):
    raise ValueError(
      "its segmentation must be polygons or run lengths, and is "
      f"{reprlib.repr(segmentation)}"
    )
  if segmentation and all(map(is_number, segmentation)):
    segmentation = [segmentation]
  given = [polygon for polygon in segmentation if polygon != []]
  polygons = [polygon for polygon in given if _is_polygon(polygon)]
  if polygons:
    areas = masks.area(masks.frPyObjects(polygons, *size[::-1]))
    polygons = [p for p, a in zip(polygons, areas, strict=True) if a]
  return polygons or None, len(given) - len(polygons)


def draw(
  cleaned: Polygons | dict[str, Any] | None, size: Size
) -> Bool[np.ndarray, "H W"]:
  """Returns the pixels of what `clean` returned; may raise `OtherSizeError`."""
  width, height = size
  if cleaned is None:
    return np.zeros((height, width), np.bool_)
  if isinstance(cleaned, list):
    runs = masks.merge(masks.frPyObjects(cleaned, height, width))
    return masks.decode(runs).astype(bool)
  lengths = _lengths(cleaned, size)
  inside = np.arange(len(lengths)) % 2 == 1
  return np.repeat(inside, lengths).reshape(height, width, order="F")


def encode(mask: Bool[np.ndarray, "H W"]) -> bytes:
  """Returns a PNG of one bit a pixel, white inside the object."""
  buffer = io.BytesIO()
  PIL.Image.fromarray(mask).save(buffer, format="png")
  return buffer.getvalue()


def _is_polygon(value: Any) -> bool:
  # pycocotools takes four numbers for a box, passes over an odd one at the end,
  # and counts in 32 bits.
  if not isinstance(value, list) or len(value) < 6 or len(value) % 2:
    return False
  if not all(map(is_number, value)):
    return False
  try:
    corners = np.array(value, np.float64).reshape(-1, 2)
  except OverflowError:  # a whole number of hundreds of digits
    return False
  if not np.abs(corners).max() <= _MAX_OUTLINE_PX:  # NaN and infinity too
    return False
  edges = np.abs(corners - np.roll(corners, 1, axis=0)).max(1)
  return bool(edges.sum() + np.abs(corners).max() <= _MAX_OUTLINE_PX)


def is_number(value: Any) -> bool:
  """Returns whether a value of JSON is a number."""
  return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
  """Returns whether a value of JSON is a whole number, also as a float."""
  return value.is_integer() if isinstance(value, float) else is_number(value)


def _lengths(runs: dict[str, Any], size: Size) -> list[int]:
  """Returns run lengths as whole numbers that add up to the picture."""
  width, height = size
  counts = runs.get("counts")
  if isinstance(counts, str):
    lengths = _decompressed(counts)
  elif isinstance(counts, list) and all(map(is_whole, counts)):
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


def _decompressed(text: str) -> list[int]:
  """Returns the run lengths in COCO's compressed text.

  Each is a number in groups of five bits, the lowest first, in characters
  from "0"; the sixth bit says that more follow, the fifth of the last is the
  sign. From the fourth number on, they are differences to the one two before.
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
