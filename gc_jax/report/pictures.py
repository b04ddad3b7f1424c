"""Pictures of maps: heat over an image, outlines, frames, cards for a page.

Small images are enlarged by whole factors, so that their pixels stay crisp.
"""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from gc_jax.attribution import title_of
from gc_jax.method.metrics import METRICS
from gc_jax.report import plots, tables
from gc_jax.report.artefact import Evaluated
from gc_jax.report.gallery import Example

DISPLAY_PX = 256  # enlarge until the shorter side is about this long
LINE_COLOR = (0, 245, 255)  # cyan: in no part of the colormap
LINE_PX = 2  # on the screen, whatever the size of the image
_COLORMAP = "plasma"
_MAX_PNG_BYTES = 60_000
_MAX_ALPHA = 0.8
# Integrated gradients' median is 0.8% of their maximum: one pixel hides all.
_PERCENTILE = 99
SCALING = (
  "each map scaled to its own maximum, maps of pixels to their "
  f"{_PERCENTILE}th percentile"
)
_BAND_PX = 256  # rows blended at a time
_PLACES = ("top left", "top right", "bottom left", "bottom right")
_MAX_PAIRS = 12
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
    cam: a map >= 0 in any unit. All zero: the image comes back bare.
    scale: whole factor of enlargement.
    seen: (height, width) at which the model saw the image, if not its own.
  """
  is_of_pixels = cam.shape == tuple(seen or image.shape[:2])
  image = enlarge_image(image, scale)
  heat = enlarge_map(cam, *image.shape[:2])
  peak = float(heat.max())
  if peak <= 0.0:
    return image
  if is_of_pixels:
    peak = float(np.percentile(cam, _PERCENTILE)) or peak
  heat = np.clip(heat / peak, 0.0, 1.0)
  picture = np.empty_like(image)
  # In bands: a photograph's colours in floats would take a gigabyte.
  for top in range(0, len(image), _BAND_PX):
    band = slice(top, top + _BAND_PX)
    colors = matplotlib.colormaps[_COLORMAP](heat[band])[..., :3] * 255.0
    alpha = _MAX_ALPHA * heat[band][..., None]
    blended = (1 - alpha) * image[band] + alpha * colors
    picture[band] = np.rint(blended).astype(np.uint8)
  return picture


def draw_outline(
  picture: UInt8[np.ndarray, "sH sW 3"],
  object_mask: Bool[np.ndarray, "H W"],
) -> UInt8[np.ndarray, "sH sW 3"]:
  """Returns the picture with a line around the mask, finer than its pixels.

  The line lies outside, so that thin objects stay visible within it.

  Args:
    picture: the image the mask belongs to, enlarged by a whole factor.
    object_mask: at the image's own size.
  """
  scale = picture.shape[0] // object_mask.shape[0]
  enlarged = object_mask.repeat(scale, axis=0).repeat(scale, axis=1)
  window = (2 * LINE_PX + 1, 2 * LINE_PX + 1)
  around = np.lib.stride_tricks.sliding_window_view(
    np.pad(enlarged, LINE_PX), window
  ).any(axis=(2, 3))
  picture = picture.copy()
  picture[around & ~enlarged] = LINE_COLOR
  return picture


def draw_frame(
  composite: UInt8[np.ndarray, "sH2 sW2 3"],
  cell: int,
) -> UInt8[np.ndarray, "sH2 sW2 3"]:
  """Returns the composite with a frame inside one cell (0..3, row-major)."""
  height, width = composite.shape[0] // 2, composite.shape[1] // 2
  top, left = cell // 2 * height, cell % 2 * width
  composite = composite.copy()
  frame = np.ones((height, width), bool)
  frame[2 * LINE_PX : -2 * LINE_PX, 2 * LINE_PX : -2 * LINE_PX] = False
  composite[top : top + height, left : left + width][frame] = LINE_COLOR
  return composite


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


def png_bytes(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
  """Returns the picture as a PNG file."""
  buffer = io.BytesIO()
  image = Image.fromarray(picture)
  image.save(buffer, format="PNG", compress_level=plots.PNG_LEVEL)
  return buffer.getvalue()


def compact_uri(picture: UInt8[np.ndarray, "H W 3"]) -> str:
  """Returns the picture in a data URI: as a PNG, a photograph as a JPEG.

  For pages with a map by every method of every image: of a photograph, a JPEG
  takes a fifth. Where pixels were enlarged, PNG keeps them crisp and is small.
  """
  png = png_bytes(picture)
  if len(png) <= _MAX_PNG_BYTES:
    return as_data_uri(png)
  buffer = io.BytesIO()
  image = Image.fromarray(picture)
  image.save(buffer, format="JPEG", quality=88, subsampling=0)
  return as_data_uri(buffer.getvalue(), "jpeg")


def as_data_uri(content: bytes, kind: str = "png") -> str:
  """Returns a picture's file as a data URI."""
  text = base64.b64encode(content).decode("ascii")
  return f"data:image/{kind};base64,{text}"


def color_bar() -> str:
  """Returns the overlay's colours as a CSS gradient, low to high."""
  colormap = matplotlib.colormaps[_COLORMAP]
  stops = [to_hex(colormap(position / 8)) for position in range(9)]
  return f"linear-gradient(90deg, {', '.join(stops)})"


# Cards, for a page.


class MapPicture(NamedTuple):
  """A map over its image, for the page."""

  uri: str
  title: str
  by: str  # the method
  share: float | None  # percent on the object, of a composite outside its cell


class Card(NamedTuple):
  """One example: its words, and its pictures as data URIs."""

  index: int
  target: str
  predicted: str
  is_correct: bool | None  # None: another scored highest, but several may show
  facts: Sequence[tuple[str, str]]
  image: str
  maps: Sequence[MapPicture]
  place: str = ""  # of the image in the composite
  composite: str = ""
  composite_maps: Sequence[MapPicture] = ()


def card(evaluated: Evaluated, example: Example) -> Card:
  """Returns an example's image, its maps, its composite and that one's maps."""
  facts = [
    # By the first method.
    (METRICS[metric].title, f"{next(iter(by_method.values())):.1f}%")
    for metric, by_method in example.scores.items()
    if by_method
  ]
  maps = [
    _map(example, method, title_of(method))
    for method in tables.in_order(example.maps)
  ]
  made = _card(evaluated, example, facts, maps)
  if example.composite is None:
    return made
  scale = display_scale(*example.composite.shape[:2])
  framed = lambda square: compact_uri(draw_frame(square, example.cell))
  outside = example.scores.get("negative_quadrants_heatmap", {})
  return made._replace(
    place=_PLACES[example.cell],
    composite=framed(enlarge_image(example.composite, scale)),
    composite_maps=[
      MapPicture(
        framed(heat_overlay(example.composite, cam, scale)),
        "Its map",
        title_of(method),
        outside.get(method),
      )
      for method, cam in example.composite_maps.items()
    ],
  )


def pairs(evaluated: Evaluated, other: Evaluated) -> list[Card]:
  """Returns the fixed images that both show, with the maps of both."""
  theirs = {(e.index, e.target): e for e in other.examples if e.kind == "fixed"}
  cards = []
  for example in evaluated.examples:
    before = theirs.get((example.index, example.target))
    if example.kind != "fixed" or before is None:
      continue
    methods = [m for m in tables.in_order(example.maps) if m in before.maps]
    if not methods:
      continue
    maps = [
      _map(before, methods[0], "Before"),
      _map(example, methods[0], "This run"),
    ]
    was, now = (one.share or 0.0 for one in maps)
    words = f"{now - was:+.1f} points".replace("-", "−")
    cards.append(_card(evaluated, example, [("CH", words)], maps))
  return cards[:_MAX_PAIRS]


def _card(
  evaluated: Evaluated,
  example: Example,
  facts: Sequence[tuple[str, str]],
  maps: Sequence[MapPicture],
) -> Card:
  is_right = example.predicted == example.target
  return Card(
    example.index,
    evaluated.class_name(example.target),
    evaluated.class_name(example.predicted),
    None if evaluated.about.multi_label and not is_right else is_right,
    [*facts, ("image", str(example.index))],
    compact_uri(outlined(example)),
    maps,
  )


def _map(example: Example, method: str, title: str) -> MapPicture:
  uri = compact_uri(explained(example, example.maps[method]))
  share = example.scores.get("content_heatmap", {}).get(method)
  if share is None:
    heat = enlarge_map(example.maps[method], *example.object_mask.shape)
    total = float(heat.sum())
    if total > 0:
      share = 100.0 * float(heat[example.object_mask].sum()) / total
  return MapPicture(uri, title, title_of(method), share)


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
