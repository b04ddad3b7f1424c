"""Draws objects with an alpha channel on backgrounds, and keeps their masks.

An object is a `Cutout`, be it a handwritten stroke without colours of its own
or a photographed thing with them.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import Bool, UInt8

# Least difference between the luma (0..255) of a drawn colour and the mean luma
# of the pixels under it. Some colour always is that far from any mean.
MIN_CONTRAST = 72.0

_LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601
_PLACE_TRIES = 100


class Cutout(NamedTuple):
  """An object to draw; without colours, `draw` picks one at random."""

  alpha: np.ndarray  # uint8 [h w]; 255 is opaque
  colors: np.ndarray | None = None  # uint8 [h w 3], not multiplied by alpha


class Picture(NamedTuple):
  """A drawn picture, and the opacity of each object. No two share a pixel."""

  image: np.ndarray  # uint8 [H W 3]
  alphas: np.ndarray  # uint8 [n H W]

  @property
  def masks(self) -> Bool[np.ndarray, "n H W"]:
    """Pixels that belong at least half to the object."""
    return self.alphas >= 128


def luma(colors: UInt8[np.ndarray, "*n 3"]) -> np.ndarray | np.floating:
  """Returns the brightness 0..255 of RGB colours, weighted as in Rec. 601."""
  return np.asarray(colors, np.float64) @ _LUMA


def contrasting_color(
  covered: UInt8[np.ndarray, "n 3"], generator: np.random.Generator
) -> UInt8[np.ndarray, "3"]:
  """Draws a colour that differs in brightness from the pixels it will cover.

  Colours are uniform over RGB, given that their luma is at least
  `MIN_CONTRAST` away from the mean luma of `covered`. Brightness, not hue:
  red strokes on green of the same luma are hard to read.
  """
  candidates = generator.integers(0, 256, (256, 3), dtype=np.uint8)
  contrasts = np.abs(luma(candidates) - luma(covered).mean())
  # The first; one draw in billions has none.
  return candidates[np.argmax(contrasts >= MIN_CONTRAST)]


def trim(cutout: Cutout) -> Cutout:
  """Cuts away the rows and columns around the object."""
  alpha, colors = cutout
  if alpha.max() < 128:
    raise ValueError(
      "a cutout must have a pixel with alpha >= 128, or its mask is empty; "
      f"the greatest is {alpha.max()}"
    )
  rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
  window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  return Cutout(alpha[window], None if colors is None else colors[window])


def resize(cutout: Cutout, longest_side_px: int) -> Cutout:
  """Scales the object, with smooth edges, keeping its proportions.

  The most opaque pixel keeps its opacity: a thin stroke would otherwise fade
  as it shrinks, until its mask is empty.
  """
  alpha, colors = cutout
  height, width = alpha.shape
  scale = longest_side_px / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  pixels = alpha
  if colors is not None:
    # Pillow weighs the colours of RGBA by alpha, so that the colours of fully
    # transparent pixels do not bleed into the edges.
    pixels = np.concatenate([colors, alpha[..., None]], axis=-1)
  resized = np.asarray(
    PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BILINEAR)
  )
  faded = resized if colors is None else resized[..., 3]
  gain = int(alpha.max()) / max(1, int(faded.max()))
  alpha = np.clip(np.round(faded * gain), 0, 255).astype(np.uint8)
  return Cutout(alpha, None if colors is None else resized[..., :3])


def place(
  sizes: Sequence[tuple[int, int]],
  canvas: tuple[int, int],
  generator: np.random.Generator,
) -> list[tuple[int, int]]:
  """Draws top left corners, uniform given that the boxes do not overlap.

  Sizes are (height, width) in pixels.
  """
  for height, width in sizes:
    if height > canvas[0] or width > canvas[1]:
      raise ValueError(
        f"an object of {height}x{width} pixels must fit into the background "
        f"of {canvas[0]}x{canvas[1]}; draw it smaller"
      )
  # All boxes are drawn anew when two overlap: moving only the later one would
  # make the places of the first depend on how many follow.
  tries = _PLACE_TRIES * len(sizes) ** 2
  for _ in range(tries):
    corners = [
      (
        int(generator.integers(canvas[0] - height + 1)),
        int(generator.integers(canvas[1] - width + 1)),
      )
      for height, width in sizes
    ]
    boxes = zip(corners, sizes, strict=True)
    if not any(_overlap(*pair) for pair in itertools.combinations(boxes, 2)):
      return corners
  raise ValueError(
    f"{len(sizes)} objects of {list(sizes)} pixels must fit into "
    f"{canvas[0]}x{canvas[1]} without overlap and did not in {tries} tries; "
    "draw fewer or smaller ones"
  )


def _overlap(a, b) -> bool:
  (y, x), (height, width) = a
  (other_y, other_x), (other_height, other_width) = b
  return (
    y < other_y + other_height
    and other_y < y + height
    and x < other_x + other_width
    and other_x < x + width
  )


def draw(
  background: UInt8[np.ndarray, "H W 3"],
  cutouts: Sequence[Cutout],
  generator: np.random.Generator,
  side_frac: tuple[float, float],
) -> Picture:
  """Puts every object somewhere on the background, none over another.

  image = round( (1 - a) * background + a * color ),  a = alpha / 255

  The generator gives the sizes, then the places, then the colours. `side_frac`
  is (least, greatest) longer side of a trimmed object, as a share of the
  shorter side of the background; uniform in between.

  Raises:
    ValueError: if the objects do not fit without overlap.
  """
  canvas = background.shape[:2]
  cutouts = [
    resize(trim(cutout), max(1, round(side * min(canvas))))
    for cutout, side in zip(
      cutouts, generator.uniform(*side_frac, len(cutouts)), strict=True
    )
  ]
  corners = place([c.alpha.shape for c in cutouts], canvas, generator)

  image = background.copy()
  alphas = np.zeros((len(cutouts), *canvas), np.uint8)
  for cutout, mask, (y, x) in zip(cutouts, alphas, corners, strict=True):
    alpha, colors = cutout
    window = np.s_[y : y + alpha.shape[0], x : x + alpha.shape[1]]
    mask[window] = alpha
    if colors is None:
      colors = contrasting_color(background[window][alpha >= 128], generator)
    a = alpha[..., None] / 255
    mixed = (1 - a) * background[window] + a * colors
    image[window] = np.round(mixed).astype(np.uint8)
  return Picture(image, alphas)
