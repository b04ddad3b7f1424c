"""Draws objects with an alpha channel on backgrounds, and knows their masks.

Nothing here knows where objects or backgrounds come from: a handwritten
stroke without colours of its own and a photographed object with them are both
a `Cutout`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

# Least difference between the luma of a drawn colour and the mean luma of what
# it covers, of 255. Every mean leaves a side of the scale that is farther away
# than this, so that a colour always exists.
MIN_CONTRAST = 72.0

_LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601
_PLACE_TRIES = 100


@dataclasses.dataclass(frozen=True)
class Cutout:
  """An object to draw.

  Attributes:
    alpha: uint8 `[h w]`, opacity; 255 is opaque.
    colors: uint8 `[h w 3]`, RGB, not multiplied by alpha. None: one colour is
      drawn at random when the object is placed, see `contrasting_color`.
  """

  alpha: np.ndarray
  colors: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Picture:
  """What `draw` made.

  Attributes:
    image: uint8 `[H W 3]`, RGB.
    alphas: uint8 `[n H W]`, opacity of each object. No pixel is covered by
      two objects.
  """

  image: np.ndarray
  alphas: np.ndarray

  @property
  def masks(self) -> Bool[np.ndarray, "n H W"]:
    """Pixels that are at least half the object's."""
    return self.alphas >= 128


def luma(colors: UInt8[np.ndarray, "*n 3"]) -> np.ndarray | np.floating:
  """Brightness 0..255 of RGB colours as Rec. 601 weighs them."""
  return np.asarray(colors, np.float64) @ _LUMA


def contrasting_color(
  covered: UInt8[np.ndarray, "n 3"], generator: np.random.Generator
) -> UInt8[np.ndarray, "3"]:
  """Draws a colour that differs in brightness from the pixels it will cover.

  Colours are uniform over RGB, given that their luma is at least
  `MIN_CONTRAST` away from the mean luma of `covered`. Brightness, not hue:
  red strokes on green of the same luma are hard to read.

  Args:
    covered: pixels of the background where the object will be opaque.
    generator: 256 colours are taken from it, whatever the outcome.
  """
  mean = luma(covered).mean()
  candidates = generator.integers(0, 256, (256, 3), dtype=np.uint8)
  (far,) = np.nonzero(np.abs(luma(candidates) - mean) >= MIN_CONTRAST)
  if far.size:
    return candidates[far[0]]
  # One in thousands of millions of draws comes here.
  return np.full(3, 0 if mean > 127.5 else 255, np.uint8)


def trim(cutout: Cutout) -> Cutout:
  """Cuts away the rows and columns around the object.

  Raises:
    ValueError: if no pixel is at least half the object's.
  """
  if cutout.alpha.max() < 128:
    raise ValueError(
      "a cutout must have a pixel with alpha >= 128, or its mask is empty; "
      f"the greatest is {cutout.alpha.max()}"
    )
  rows = np.flatnonzero(cutout.alpha.any(axis=1))
  columns = np.flatnonzero(cutout.alpha.any(axis=0))
  window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  colors = None if cutout.colors is None else cutout.colors[window]
  return Cutout(cutout.alpha[window], colors)


def resize(cutout: Cutout, longest_side_px: int) -> Cutout:
  """Scales the object, with smooth edges, keeping its proportions.

  The most opaque pixel stays as opaque as it was: a thin stroke would
  otherwise fade as it shrinks, until no pixel is in its mask.
  """
  import PIL.Image

  height, width = cutout.alpha.shape
  scale = longest_side_px / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  if cutout.colors is None:
    pixels = cutout.alpha
  else:
    # Pillow weighs the colours of RGBA by alpha, so that the colours of wholly
    # transparent pixels do not bleed into the edges.
    pixels = np.concatenate([cutout.colors, cutout.alpha[..., None]], axis=-1)
  pixels = np.asarray(
    PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BILINEAR)
  )
  alpha = pixels if cutout.colors is None else pixels[..., 3]
  gain = int(cutout.alpha.max()) / max(1, int(alpha.max()))
  alpha = np.clip(np.round(alpha * gain), 0, 255).astype(np.uint8)
  return Cutout(alpha, None if cutout.colors is None else pixels[..., :3])


def place(
  sizes: Sequence[tuple[int, int]],
  canvas: tuple[int, int],
  generator: np.random.Generator,
) -> list[tuple[int, int]]:
  """Draws top left corners, uniform given that the boxes do not overlap.

  Args:
    sizes: (height, width) of each box, in pixels.
    canvas: (height, width) that all of them must lie in.
    generator: source of the draws.

  Raises:
    ValueError: if the boxes do not fit.
  """
  for height, width in sizes:
    if height > canvas[0] or width > canvas[1]:
      raise ValueError(
        f"an object of {height}x{width} pixels must fit into the background "
        f"of {canvas[0]}x{canvas[1]}; draw it smaller"
      )
  # All boxes are drawn anew when two overlap: moving only the later one would
  # make the places of the first depend on how many follow.
  for _ in range(_PLACE_TRIES * len(sizes) ** 2):
    corners = [
      (
        int(generator.integers(canvas[0] - height + 1)),
        int(generator.integers(canvas[1] - width + 1)),
      )
      for height, width in sizes
    ]
    if not _overlapping(corners, sizes):
      return corners
  raise ValueError(
    f"{len(sizes)} objects of {list(sizes)} pixels must fit into "
    f"{canvas[0]}x{canvas[1]} without overlap and did not in "
    f"{_PLACE_TRIES * len(sizes) ** 2} tries; draw fewer or smaller ones"
  )


def _overlapping(
  corners: Sequence[tuple[int, int]], sizes: Sequence[tuple[int, int]]
) -> bool:
  boxes = [
    (y, x, y + height, x + width)
    for (y, x), (height, width) in zip(corners, sizes, strict=True)
  ]
  return any(
    a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    for i, a in enumerate(boxes)
    for b in boxes[:i]
  )


def draw(
  background: UInt8[np.ndarray, "H W 3"],
  cutouts: Sequence[Cutout],
  generator: np.random.Generator,
  *,
  min_side_frac: float,
  max_side_frac: float,
) -> Picture:
  """Puts every object somewhere on the background, none over another.

  image = round( (1 - a) * background + a * color ),  a = alpha / 255

  Args:
    background: the picture to draw on; it is not changed.
    cutouts: what to draw, one after the other.
    generator: sizes, then places, then colours come from it.
    min_side_frac: least longer side of a trimmed object, as a share of the
      shorter side of the background. Uniform between this and the next.
    max_side_frac: greatest.

  Raises:
    ValueError: if the objects do not fit without overlap.
  """
  canvas = background.shape[:2]
  sides_frac = generator.uniform(min_side_frac, max_side_frac, len(cutouts))
  cutouts = [
    resize(trim(cutout), max(1, round(side_frac * min(canvas))))
    for cutout, side_frac in zip(cutouts, sides_frac, strict=True)
  ]
  sizes = [cutout.alpha.shape for cutout in cutouts]
  corners = place(sizes, canvas, generator)

  image = background.copy()
  alphas = np.zeros((len(cutouts), *canvas), np.uint8)
  for cutout, alpha, (y, x) in zip(cutouts, alphas, corners, strict=True):
    height, width = cutout.alpha.shape
    window = np.s_[y : y + height, x : x + width]
    alpha[window] = cutout.alpha
    colors = cutout.colors
    if colors is None:
      covered = background[window][cutout.alpha >= 128]
      colors = contrasting_color(covered, generator)
    a = cutout.alpha[..., None] / 255
    mixed = (1 - a) * background[window] + a * colors
    image[window] = np.round(mixed).astype(np.uint8)
  return Picture(image, alphas)
