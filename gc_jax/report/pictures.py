"""Pictures of maps: heat over an image, outlines, frames; layers for a page.

Small images are enlarged by whole factors, so that their pixels stay crisp.
"""

import base64
import io
import sys
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from gc_jax.report import plots
from gc_jax.report.gallery import Example

DISPLAY_PX = 256  # enlarge until the shorter side is about this long
LINE_COLOR = (255, 255, 255)
EDGE_COLOR = (0, 0, 0)  # beside the line, one pixel: seen on bright pictures
LINE_PX = 2  # on the screen, whatever the size of the image
# Cyan to magenta, which photographs hardly hold: over those of scikit-image,
# whose colours are mostly warm, a full map differs from 95% of the pixels by
# more than 31 (CIEDE2000), and two maps a quarter apart by 7. With plasma,
# which ends in orange and yellow, it is 22 and 3; with viridis 21 and 2.7.
COLORMAP = matplotlib.colormaps["cool"]
EMPTY = "empty map"  # nothing speaks for the class
_MAX_PNG_BYTES = 60_000
_MAX_IMAGE_PX = 1024  # of a photograph within a page
_MAX_FIGURE_PX = 1100
_NUM_STEPS = 64  # of a map within a page
_MAX_ALPHA = 0.8
# Integrated gradients' median is 0.8% of their maximum: one pixel hides all.
_PERCENTILE = 99
SCALING = (
  "each map scaled to its own maximum, maps of pixels to their "
  f"{_PERCENTILE}th percentile"
)
_BAND_PX = 256  # rows blended at a time
_CELL_INCHES = (1.7, 1.62)  # width; height, of a square picture
_LETTER_INCHES = 0.065  # of a label, on average
_DPI = 160  # 270 pixels a picture


def display_scale(height: int, width: int) -> int:
  """Returns the whole factor by which to enlarge an image for the screen."""
  return max(1, DISPLAY_PX // min(height, width))


def enlarge_image(
  image: UInt8[np.ndarray, "H W 3"], scale: int
) -> UInt8[np.ndarray, "sH sW 3"]:
  """Repeats every pixel `scale` times both ways."""
  return image.repeat(scale, axis=0).repeat(scale, axis=1)


def enlarge_map(
  cam: Float[np.ndarray, "h w"], height: int, width: int
) -> Float32[np.ndarray, "H W"]:
  """Enlarges a map bilinearly; cell centres at half cells, edges clamped."""
  # Pillow works in mode F (float32), without rounding.
  picture = Image.fromarray(np.asarray(cam, np.float32))
  picture = picture.resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(picture)


def _heat(
  cam: Float[np.ndarray, "h w"], height: int, width: int, is_of_pixels: bool
) -> Float32[np.ndarray, "H W"]:
  """Returns the map enlarged and scaled to 0..1; all 0 of an empty map."""
  total = float(cam.sum(dtype=np.float64))  # of float16 it may be too large
  if not (np.isfinite(total) and total > 0):  # as `metrics.is_empty`
    return np.zeros((height, width), np.float32)
  heat = enlarge_map(cam, height, width)
  peak = float(heat.max())
  if is_of_pixels:
    peak = float(np.percentile(cam, _PERCENTILE)) or peak
  return np.clip(heat / peak, 0.0, 1.0)


def heat_overlay(
  image: UInt8[np.ndarray, "H W 3"],
  cam: Float[np.ndarray, "h w"],
  scale: int = 1,
  seen: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "sH sW 3"]:
  """Returns the image with the map over it, hot where the map is high.

  heat = enlarged map / its maximum, as in the paper's figures, or for a map of
  pixels their 99th percentile; colour and opacity both follow the heat, so the
  image shows where the map is empty.

  Args:
    image: RGB.
    cam: a map >= 0 in any unit. An empty one is no heat: the image comes back
      with the words "empty map" on it.
    scale: whole factor of enlargement.
    seen: (height, width) at which the model saw the image, if not its own.
  """
  is_of_pixels = cam.shape == tuple(seen or image.shape[:2])
  image = enlarge_image(image, scale)
  heat = _heat(cam, *image.shape[:2], is_of_pixels)
  if not heat.any():
    return _marked_empty(image)
  picture = np.empty_like(image)
  # In bands: a photograph's colours in floats would take a gigabyte.
  for top in range(0, len(image), _BAND_PX):
    band = slice(top, top + _BAND_PX)
    colors = COLORMAP(heat[band])[..., :3] * 255.0
    alpha = _MAX_ALPHA * heat[band][..., None]
    blended = (1 - alpha) * image[band] + alpha * colors
    picture[band] = np.rint(blended).astype(np.uint8)
  return picture


def _marked_empty(
  picture: UInt8[np.ndarray, "H W 3"],
) -> UInt8[np.ndarray, "H W 3"]:
  """Returns the picture with "empty map" on a dark band at its top."""
  width = picture.shape[1]
  image = Image.fromarray(picture)
  draw = ImageDraw.Draw(image, "RGBA")
  # As wide as half of it, legible, and never wider than the picture.
  font = ImageFont.load_default(max(6.0, min(width / 8, 40.0)))
  left, top, right, bottom = draw.textbbox((0, 0), EMPTY, font=font)
  pad = max(1, (bottom - top) // 3)
  draw.rectangle((0, 0, width, bottom - top + 2 * pad), fill=(0, 0, 0, 190))
  place = (width - right + left) / 2 - left, pad - top
  draw.text(place, EMPTY, font=font, fill=LINE_COLOR)
  return np.asarray(image)


def _edges(
  object_mask: Bool[np.ndarray, "H W"], scale: int
) -> UInt8[np.ndarray, "sH sW"]:
  """Returns 1 for the line around a mask and 2 for the line's dark edge.

  Both lie outside, so that thin objects stay visible within them.
  """
  enlarged = object_mask.repeat(scale, axis=0).repeat(scale, axis=1)

  def around(px):
    square = np.ones((2 * px + 1, 2 * px + 1), np.uint8)
    return cv2.dilate(enlarged.view(np.uint8), square) & ~enlarged

  return np.where(around(LINE_PX), 1, 2 * around(LINE_PX + 1)).astype(np.uint8)


def _frame(height: int, width: int, cell: int) -> UInt8[np.ndarray, "H W"]:
  """Returns as `_edges` the frame inside one cell (0..3, row-major)."""
  found = np.zeros((height, width), np.uint8)
  top, left = cell // 2 * (height // 2), cell % 2 * (width // 2)
  own = found[top : top + height // 2, left : left + width // 2]
  own[:] = 1
  own[2 * LINE_PX : -2 * LINE_PX, 2 * LINE_PX : -2 * LINE_PX] = 2
  inner = 2 * LINE_PX + 1
  own[inner:-inner, inner:-inner] = 0
  return found


def _drawn(
  picture: UInt8[np.ndarray, "H W 3"], lines: UInt8[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "H W 3"]:
  picture = picture.copy()
  for number, color in enumerate((LINE_COLOR, EDGE_COLOR), start=1):
    picture[lines == number] = color
  return picture


def draw_outline(
  picture: UInt8[np.ndarray, "sH sW 3"],
  object_mask: Bool[np.ndarray, "H W"],
) -> UInt8[np.ndarray, "sH sW 3"]:
  """Returns the picture with a line around the mask, finer than its pixels.

  Args:
    picture: the image the mask belongs to, enlarged by a whole factor.
    object_mask: at the image's own size.
  """
  scale = picture.shape[0] // object_mask.shape[0]
  return _drawn(picture, _edges(object_mask, scale))


def outlined(example: Example) -> UInt8[np.ndarray, "sH sW 3"]:
  """Returns an example's image, enlarged, with its object outlined."""
  scale = display_scale(*example.image.shape[:2])
  return draw_outline(enlarge_image(example.image, scale), example.object_mask)


def explained(
  example: Example, cam: Float32[np.ndarray, "h w"] | None
) -> UInt8[np.ndarray, "sH sW 3"] | None:
  """Returns an example under a map, with its object outlined; None for none."""
  if cam is None:
    return None
  scale = display_scale(*example.image.shape[:2])
  heat = heat_overlay(example.image, cam, scale)
  return draw_outline(heat, example.object_mask)


def compact(picture: UInt8[np.ndarray, "H W 3"]) -> tuple[bytes, str]:
  """Returns the picture's file, and its kind: "png", of a photograph "jpeg".

  For pages with a map by every method of every image: of a photograph, a JPEG
  takes a fifth. Where pixels were enlarged, PNG keeps them crisp and is small.
  """
  png = plots.png_bytes(picture)
  if len(png) <= _MAX_PNG_BYTES:
    return png, "png"
  buffer = io.BytesIO()
  image = Image.fromarray(picture)
  image.save(buffer, format="JPEG", quality=88, subsampling=0)
  return buffer.getvalue(), "jpeg"


def color_bar() -> str:
  """Returns the overlay's colours as a CSS gradient, low to high."""
  stops = [to_hex(COLORMAP(position / 8)) for position in range(9)]
  return f"linear-gradient(90deg, {', '.join(stops)})"


# Layers, for a page: a picture, a map over it, lines over both.


class Layer(NamedTuple):
  """A picture's file, and its size on the page in pixels."""

  content: bytes
  kind: str  # "png" or "jpeg"
  width: int
  height: int
  is_enlarged: bool = False  # whole pixels of the screen for each of its own

  @property
  def uri(self) -> str:
    """The file as a data URI."""
    text = base64.b64encode(self.content).decode("ascii")
    return f"data:image/{self.kind};base64,{text}"


def image_layer(image: UInt8[np.ndarray, "H W 3"]) -> Layer:
  """Returns the image at its own size, or shrunk to what a page needs."""
  height, width = image.shape[:2]
  scale = display_scale(height, width)
  if max(height, width) > _MAX_IMAGE_PX:
    shrunk = Image.fromarray(image)
    shrunk.thumbnail((_MAX_IMAGE_PX, _MAX_IMAGE_PX), Image.Resampling.LANCZOS)
    image = np.asarray(shrunk)
    height, width = image.shape[:2]
  return Layer(*compact(image), scale * width, scale * height, scale > 1)


def figure_layer(png: bytes) -> Layer:
  """Returns a figure's file, no wider than a page."""
  picture = Image.fromarray(plots.read_png(png))
  picture.thumbnail((_MAX_FIGURE_PX, sys.maxsize), Image.Resampling.LANCZOS)
  return Layer(*compact(np.asarray(picture)), *picture.size)


def heat_layer(
  cam: Float[np.ndarray, "h w"],
  image_size: tuple[int, int],
  seen: tuple[int, int] | None = None,
) -> Layer:
  """Returns the map alone, transparent where it is low; see `heat_overlay`.

  Over the image it shows what `heat_overlay` does, in steps of 1/63. The page
  enlarges it smoothly: half as many pixels as on the screen do for cells.

  Args:
    cam: a map >= 0 in any unit; all zero: nothing is seen.
    image_size: (height, width) of the image it lies over.
    seen: as for `heat_overlay`.
  """
  is_of_pixels = cam.shape == tuple(seen or image_size)
  # A map of pixels keeps them.
  shorter = min(max(min(cam.shape), DISPLAY_PX // 2), DISPLAY_PX)
  height, width = _layer_size(*image_size, shorter)
  steps = np.linspace(0.0, 1.0, _NUM_STEPS)
  heat = _heat(cam, height, width, is_of_pixels) * (_NUM_STEPS - 1)
  colors = np.rint(COLORMAP(steps)[:, :3] * 255.0).astype(np.uint8)
  alphas = np.rint(_MAX_ALPHA * steps * 255.0).astype(np.uint8)
  return _indexed(np.rint(heat).astype(np.uint8), colors, alphas)


def outline_layer(object_mask: Bool[np.ndarray, "H W"]) -> Layer:
  """Returns the line around a mask alone."""
  scale = display_scale(*object_mask.shape)
  return _line_layer(_edges(object_mask, scale))


def frame_layer(composite_size: tuple[int, int], cell: int) -> Layer:
  """Returns the frame of a composite's cell alone."""
  return _line_layer(_frame(*_layer_size(*composite_size), cell))


def _layer_size(
  height: int, width: int, shorter_px: int = DISPLAY_PX
) -> tuple[int, int]:
  """Returns height and width with a shorter side of `shorter_px` or less."""
  scale = shorter_px / min(height, width)
  scale = max(1, int(scale)) if scale >= 1 else scale
  return round(scale * height), round(scale * width)


def _line_layer(lines: UInt8[np.ndarray, "H W"]) -> Layer:
  colors = np.array([EDGE_COLOR, LINE_COLOR, EDGE_COLOR], np.uint8)
  return _indexed(lines, colors, np.array([0, 255, 255], np.uint8))


def _indexed(
  index: UInt8[np.ndarray, "H W"],
  colors: UInt8[np.ndarray, "N 3"],
  alphas: UInt8[np.ndarray, "N"],
) -> Layer:
  """Returns a PNG of few colours, each with its opacity."""
  image = Image.fromarray(index).convert("L")
  image.putpalette(colors.tobytes())
  buffer = io.BytesIO()
  image.save(
    buffer,
    format="PNG",
    transparency=alphas.tobytes(),
    compress_level=plots.PNG_LEVEL,
  )
  return Layer(buffer.getvalue(), "png", *index.shape[::-1])


# Side by side, as in the paper's Figure 2.


def draw_grid(
  headings: Sequence[str],
  rows: Sequence[tuple[str, Sequence[UInt8[np.ndarray, "_ _ 3"] | None]]],
) -> bytes:
  """Returns the pictures as one PNG, on white.

  Args:
    headings: of the columns.
    rows: at least one: what stands at its left, and a picture for each
      heading; None leaves a gap.
  """
  width, height = _CELL_INCHES
  aspects = [_aspect(pictures) for _, pictures in rows]
  labels_inches = _LETTER_INCHES * max(len(label) for label, _ in rows)
  figure = Figure(
    figsize=(
      width * len(headings) + labels_inches,
      height * sum(aspects) + 0.35,
    ),
    layout="constrained",
    facecolor="white",
    dpi=_DPI,
  )
  figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
  grid = figure.subplots(
    len(rows), len(headings), squeeze=False, height_ratios=aspects
  )
  for (label, pictures), cells in zip(rows, grid, strict=True):
    for axes, picture in zip(cells, pictures, strict=True):
      axes.set_xticks([])
      axes.set_yticks([])
      axes.spines[:].set_visible(False)
      if picture is not None:
        axes.imshow(picture, interpolation="antialiased")
    cells[0].set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center")
  for axes, heading in zip(grid[0], headings, strict=True):
    axes.set_title(heading.replace(", ", "\n"), fontsize=9)
  return plots.figure_png(figure, _DPI)


def _aspect(pictures: Sequence[UInt8[np.ndarray, "_ _ 3"] | None]) -> float:
  """Returns height by width of a row's pictures, within reason."""
  for picture in pictures:
    if picture is not None:
      return min(max(picture.shape[0] / picture.shape[1], 0.4), 2.5)
  return 1.0
