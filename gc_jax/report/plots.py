"""Charts: as inline SVG that follows the page's colours, and as PNG files.

On a page, text and lines take `currentColor` and the CSS variables
`--series-1` to `--series-7`, `--grid` and `--muted`, so one picture suits a
light and a dark page.
"""

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

PNG_LEVEL = 4  # of zlib: much sooner than its default, files little larger
_DPI = 200


class Palette(NamedTuple):
  """The colours of a chart."""

  text: str
  grid: str
  muted: str
  series: tuple[str, ...]


# Colours that stand for CSS until the SVG is text.
_STAND_INS = Palette(
  "#0a0b0c", "#0d0e0f", "#0e0f10", tuple(f"#1a1b{n:02x}" for n in range(7))
)
_CSS = {
  _STAND_INS.text: "currentColor",
  _STAND_INS.grid: "var(--grid)",
  _STAND_INS.muted: "var(--muted)",
  **{c: f"var(--series-{i})" for i, c in enumerate(_STAND_INS.series, start=1)},
}
# On white: those of the light page.
PAPER = Palette(
  "#1c1e22",
  "#d5d7da",
  "#5b616b",
  (
    *("#0a58b5", "#b8480c", "#11703a", "#8a2a8f"),
    *("#a3123f", "#0b7285", "#6b5a00"),
  ),
)
# What is taken out of a chart within a page: namespaces, ids that may clash,
# the size, the font.
_NOT_INLINE = re.compile(
  r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->"
  r'|font-family: [^;]*; | xmlns(?::\w+)?="[^"]*"|(?<=<g) id="[^"]*"',
  re.DOTALL,
)


class Chart(NamedTuple):
  """A drawn chart; its SVGs are safe to place in a page unescaped.

  Several SVGs are panels, of the same axes. `png` is empty where a chart is for
  a page alone.
  """

  title: str
  unit: str
  svgs: tuple[str, ...]
  png: bytes = b""


def clean(axes: Axes, palette: Palette) -> None:
  """Takes away what says nothing: frame, tick marks."""
  axes.grid(axis="y", color=palette.grid, linewidth=0.8)
  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.tick_params(length=0, which="both")


def drawn(
  title: str,
  unit: str,
  parts: Sequence[tuple[Callable[[Palette], Figure], str]],
  *,
  png: bool,
) -> Chart:
  """Returns a chart.

  Args:
    title: what it shows; another for every chart of a page.
    unit: of y.
    parts: of each panel what makes its figure in given colours, and its
      numbers, for those who do not see it.
    png: whether to draw it for a file as well.
  """
  svgs = tuple(
    _to_svg(draw, f"{title} {number}", f"{title} ({unit}): {numbers}.")
    for number, (draw, numbers) in enumerate(parts)
  )
  pictures = [_to_png(draw) for draw, _ in parts] if png else []
  return Chart(title, unit, svgs, _beside(pictures) if png else b"")


def _beside(pngs: Sequence[bytes]) -> bytes:
  """Returns pictures beside each other, on white, as one PNG."""
  if len(pngs) == 1:
    return pngs[0]
  pictures = [read_png(png) for png in pngs]
  height = max(len(picture) for picture in pictures)
  padded = [
    np.pad(
      picture,
      ((0, height - len(picture)), (0, _DPI // 10), (0, 0)),
      constant_values=255,
    )
    for picture in pictures
  ]
  return png_bytes(np.concatenate(padded, axis=1))


def _to_svg(
  draw: Callable[[Palette], Figure], salt: str, description: str
) -> str:
  """Returns a chart for use within HTML: no ids to clash, no fixed size."""
  # Real text, in the page's own font; the same ids in every build.
  own = {"svg.fonttype": "none", "svg.hashsalt": salt}
  with matplotlib.rc_context(_settings(_STAND_INS) | own):
    buffer = io.StringIO()
    FigureCanvasSVG(draw(_STAND_INS)).print_svg(
      buffer, metadata={"Date": None, "Creator": None}
    )
  svg = buffer.getvalue()
  svg = _NOT_INLINE.sub("", svg[svg.index("<svg") :])
  for size in ("width", "height"):
    svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg)
  for color, css in _CSS.items():
    svg = svg.replace(color, css)
  label = html.escape(description, quote=True)
  return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _to_png(draw: Callable[[Palette], Figure]) -> bytes:
  """Returns a chart on white, as a file, with room for all its words."""
  with matplotlib.rc_context(_settings(PAPER)):
    figure = draw(PAPER)
    figure.set_facecolor("white")
    return figure_png(figure, _DPI, bbox_inches="tight")


def figure_png(
  figure: Figure, dpi: int, bbox_inches: str | None = None
) -> bytes:
  """Returns a figure as a PNG file that does not name its maker."""
  buffer = io.BytesIO()
  FigureCanvasAgg(figure).print_figure(
    buffer,
    format="png",
    dpi=dpi,
    bbox_inches=bbox_inches,
    metadata={"Software": None},
    pil_kwargs={"compress_level": PNG_LEVEL},
  )
  return buffer.getvalue()


def png_bytes(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
  """Returns the picture as a PNG file."""
  buffer = io.BytesIO()
  image = Image.fromarray(picture)
  image.save(buffer, format="PNG", compress_level=PNG_LEVEL)
  return buffer.getvalue()


def read_png(png: bytes) -> UInt8[np.ndarray, "H W 3"]:
  """Returns the picture in a PNG file, as RGB."""
  with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
    return np.asarray(picture.convert("RGB"))


def stack(charts: Sequence[Chart]) -> bytes:
  """Returns charts below each other, under their titles, as one PNG.

  Args:
    charts: at least one, each drawn for a file; their pixels are not scaled.
  """
  pictures = [read_png(chart.png) for chart in charts]
  title_px, gap_px = _DPI // 4, _DPI // 5
  width = max(picture.shape[1] for picture in pictures)
  heights = [title_px + picture.shape[0] + gap_px for picture in pictures]
  top = total = sum(heights)
  figure = Figure(
    figsize=(width / _DPI, total / _DPI), facecolor="white", dpi=_DPI
  )
  for chart, picture, height in zip(charts, pictures, heights, strict=True):
    figure.text(
      0.01,
      (top - title_px / 2) / total,
      chart.title,
      fontsize=11.0,
      fontweight="bold",
      color=PAPER.text,
      va="center",
    )
    figure.figimage(picture, 0, top - title_px - picture.shape[0])
    top -= height
  return figure_png(figure, _DPI)


def _settings(palette: Palette) -> dict[str, object]:
  texts = ("text.color", "axes.labelcolor", "xtick.labelcolor")
  grids = ("axes.edgecolor", "xtick.color", "ytick.color")
  return {
    "font.size": 9.0,
    **dict.fromkeys((*texts, "ytick.labelcolor"), palette.text),
    **dict.fromkeys(grids, palette.grid),
  }
