"""Training augmentation: draws a crop, a shift and a flip, and applies them."""

import dataclasses
import math
from typing import NamedTuple

import cv2
import numpy as np
import PIL.Image
from jaxtyping import Bool, UInt8

from gc_jax.data import decode, geometry

AREA_FRAC = (0.08, 1.0)  # torchvision's defaults
ASPECT = (3 / 4, 4 / 3)  # width / height
_TRIES = 10


def draw_crop(
  width: int, height: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
  """Draws the part of a picture that a random resized crop shows.

  Its share of the area is uniform in `AREA_FRAC`, the logarithm of its aspect
  uniform between those of `ASPECT`, its place uniform; drawn again up to ten
  times if it does not fit. Then: the largest centred part whose aspect is
  within `ASPECT`.

  Returns:
    left, top, width, height, in pixels.

  Source: torchvision.transforms.RandomResizedCrop.
  Differs: none in law; the random numbers are others.
  """
  log_aspect = tuple(map(math.log, ASPECT))
  for _ in range(_TRIES):
    area = width * height * generator.uniform(*AREA_FRAC)
    aspect = math.exp(generator.uniform(*log_aspect))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      left = int(generator.integers(width - w + 1))
      top = int(generator.integers(height - h + 1))
      return left, top, w, h
  aspect = min(max(width / height, ASPECT[0]), ASPECT[1])
  w = min(width, max(1, round(height * aspect)))
  h = min(height, max(1, round(width / aspect)))
  return (width - w) // 2, (height - h) // 2, w, h


class View(NamedTuple):
  """What a training example shows of a picture, and of its objects' masks."""

  size: int  # side of the square it becomes
  # Left, top, width, height of what fills the square; None: its centre square.
  box: tuple[int, int, int, int] | None
  shift: tuple[int, int]  # of the centre square, down and right; border repeats
  flip: bool

  def show(
    self, header: decode.Header, out: UInt8[np.ndarray, "S S 3"]
  ) -> None:
    """Writes the picture into `out`, contiguous and of side `size`."""
    if self.box is None:
      image = geometry.picture(header, self.size)
      out[...] = self._shifted(np.asarray(image))
    else:
      decode.crop(header, self.box, out)
    if self.flip:
      # 30 times as fast as numpy's way of reversing an axis.
      cv2.flip(out, 1, dst=out)

  def of_mask(self, mask: PIL.Image.Image) -> Bool[np.ndarray, "S S"]:
    """Returns the pixels of an object where the shown picture has them.

    The mask is upright, of the size of the picture, mode L.
    """
    if self.box is None:
      mask = geometry.resize_and_crop(mask, self.size, self.size)
      pixels = self._shifted(np.asarray(mask))
    else:
      left, top, width, height = self.box
      mask = mask.resize(
        (self.size, self.size),
        PIL.Image.Resampling.BILINEAR,
        box=(left, top, left + width, top + height),
      )
      pixels = np.asarray(mask)
    return (pixels[:, ::-1] if self.flip else pixels) >= 128

  def _shifted(self, pixels: np.ndarray) -> np.ndarray:
    if not any(self.shift):
      return pixels
    rows, columns = (
      np.clip(np.arange(self.size) + by, 0, self.size - 1) for by in self.shift
    )
    return pixels[np.ix_(rows, columns)]


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Encoded picture -> a square for training."""

  image_size: int  # side of the square, in pixels
  crop: str = "center"  # the centre square; "random_resized": see `draw_crop`
  # Shift the centre square at random by up to this many pixels either way; the
  # border is repeated outwards.
  crop_padding_px: int = 0
  flip: bool = False  # whether to mirror every second picture, at random

  def __call__(
    self,
    encoded: bytes,
    generator: np.random.Generator,
    out: UInt8[np.ndarray, "S S 3"],
  ) -> View:
    """Writes the picture into its place in the batch; returns what is shown.

    It is a function of the bytes and the generator. (Stacking pictures
    afterwards took a twelfth of the time.)
    """
    header = decode.read_header(encoded)
    box, shift, pad = None, (0, 0), self.crop_padding_px
    if self.crop == "random_resized":
      box = draw_crop(*header.size, generator)
    elif pad:
      y, x = generator.integers(2 * pad + 1, size=2)
      shift = int(y) - pad, int(x) - pad
    flip = self.flip and bool(generator.random() < 0.5)
    view = View(self.image_size, box, shift, flip)
    view.show(header, out)
    return view
