"""Photographs to draw objects on: those in scikit-image's wheel, by region.

What one split sees of a photograph, no other does.
"""

import functools
import pathlib

import numpy as np
from jaxtyping import UInt8

# The first ten belong to the classes 0..9, the others to none. All are in
# scikit-image's wheel; its other photographs would be fetched.
PHOTOGRAPHS = (
  "brick.png",
  "chelsea.png",
  "coffee.png",
  "coins.png",
  "grass.png",
  "gravel.png",
  "hubble_deep_field.jpg",
  "ihc.png",
  "moon.png",
  "motorcycle_left.png",
  "astronaut.png",
  "camera.png",
  "cell.png",
  "clock_motion.png",
)

SPLITS = ("train", "validation", "test")
MIN_CROP_PX, MAX_CROP_PX = 64, 128  # side of a background, in the photograph


@functools.cache
def load_photograph(photograph: int) -> UInt8[np.ndarray, "H W 3"]:
  """Returns the photograph `PHOTOGRAPHS[photograph]`, grey ones as RGB."""
  import PIL.Image
  import skimage

  folder = pathlib.Path(skimage.__file__).parent / "data"
  with PIL.Image.open(
    folder / PHOTOGRAPHS[photograph], formats=("PNG", "JPEG")
  ) as image:
    return np.asarray(image.convert("RGB"))


def region(photograph: int, split: str) -> tuple[int, int, int, int]:
  """Returns (left, top, right, bottom) of what a split may see of it.

  The longer side is cut in three, the first part for training. The other two
  are a quarter of it each, but never shorter than the largest crop.
  """
  height, width = load_photograph(photograph).shape[:2]
  longer = max(height, width)
  part = max(MAX_CROP_PX, longer // 4)
  start, stop = {
    "train": (0, longer - 2 * part),
    "validation": (longer - 2 * part, longer - part),
    "test": (longer - part, longer),
  }[split]
  if width >= height:
    return start, 0, stop, height
  return 0, start, width, stop


def draw_background(
  photograph: int, split: str, image_size: int, generator: np.random.Generator
) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[int, int, int, int]]:
  """Draws a square crop of what a split may see, scaled to `image_size`.

  Args:
    photograph: index into `PHOTOGRAPHS`.
    split: of `SPLITS`.
    image_size: side of the result, in pixels.
    generator: the side of the crop, then its place come from it.

  Returns:
    The background, and (left, top, right, bottom) of the crop in the
    photograph, in pixels, the last two exclusive.
  """
  import PIL.Image

  left, top, right, bottom = region(photograph, split)
  side = int(generator.integers(MIN_CROP_PX, MAX_CROP_PX + 1))
  x = int(generator.integers(left, right - side + 1))
  y = int(generator.integers(top, bottom - side + 1))
  # Crop, then resize: resize(box=...) looks at pixels beyond the box.
  crop = load_photograph(photograph)[y : y + side, x : x + side]
  background = PIL.Image.fromarray(crop).resize(
    (image_size, image_size), PIL.Image.Resampling.BILINEAR
  )
  return np.asarray(background), (x, y, x + side, y + side)
