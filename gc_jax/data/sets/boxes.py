"""Boxes in pixels, as annotation files state them: xmin ymin xmax ymax.

The last two are exclusive: the box of the first pixel is 0 0 1 1.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

Box = tuple[float, float, float, float]
Size = tuple[int | float, int | float]  # width, height
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def words(box: Sequence[int | float]) -> str:
  """Returns a box for messages: "xmin=1 ymin=2 xmax=3 ymax=4"."""
  return " ".join(f"{n}={v:g}" for n, v in zip(CORNERS, box, strict=True))


def has_extent(box: Box) -> bool:
  """Returns whether a box has an area; one with NaN has none."""
  xmin, ymin, xmax, ymax = box
  return xmin < xmax and ymin < ymax


def of_mask(mask: Bool[np.ndarray, "H W"]) -> Box | None:
  """Returns the smallest box around a mask's pixels; None: it has none."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  if not len(rows):
    return None
  edges = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
  return tuple(map(float, edges))


def clipped(box: Box, size: Size) -> Box | None:
  """Returns the part of a box within a picture; None where nothing is left."""
  found = tuple(map(float, np.clip(box, 0, (*size, *size))))
  return found if has_extent(found) else None


def scaled(box: Box, size: Size) -> Box:
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
    """Looks at a box.

    Args:
      where: what it is called in a message.
      written: its four numbers as the file has them.
      box: what they mean if they are pixels. Without extent it tells nothing.
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
