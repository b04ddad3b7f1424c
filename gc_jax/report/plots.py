"""Charts: as inline SVG that follows the page's colours, and as PNG files.

On a page, text and lines take `currentColor` and the CSS variables
`--series-1` to `--series-7`, `--grid` and `--muted`, so one picture suits a
light and a dark page.
"""

import dataclasses
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

PNG_LEVEL = 4  # of zlib: much sooner than its default, files little larger
_DPI = 200
_MAX_LEVEL_TICKS = 8  # more words than these run into each other
_TURNED_FRAC = 0.13  # of the height, for words that stand upright
_DASHES = (
  "-",
  (0.0, (5.0, 1.5)),
  (0.0, (1.2, 1.4)),
  (0.0, (6.0, 1.5, 1.2, 1.5)),
)


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
_PAPER = Palette(
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


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
  """A curve. NaN breaks it; `is_control` makes it recede."""

  word: str
  x: Float[np.ndarray, " N"]
  y: Float[np.ndarray, " N"]
  is_control: bool = False


class Chart(NamedTuple):
  """A drawn chart; `svg` is safe to place in a page unescaped.

  `png` is empty where a chart is for a page alone.
  """

  title: str
  unit: str
  svg: str
  png: bytes = b""


def line_chart(
  title: str,
  unit: str,
  lines: Sequence[Line],
  x_label: str,
  *,
  scale: str = "linear",
  x_scale: str = "linear",
  ticks: Mapping[float, str] | None = None,
  y_limits: tuple[float, float] | None = None,
  legend: str = "above",
  png: bool = False,
) -> Chart:
  """Returns a chart of some curves.

  Args:
    title: what it shows.
    unit: of y.
    lines: at least one, each with a finite point.
    x_label: below the axis.
    scale: of y: linear or log.
    x_scale: of x: linear, or "doubling" for 0, 1, 2, 4, 8 at equal steps.
    ticks: of x, place to word; matplotlib's own where None.
    y_limits: both ends; where the curves end if None.
    legend: "above" for two words, "right" for many in a wider chart, "none".
    png: whether to draw it for a file as well.
  """
  many = legend == "right"
  is_turned = ticks is not None and len(ticks) > _MAX_LEVEL_TICKS

  def draw(palette: Palette) -> Figure:
    size = (7.2, 0.9 + max(2.3, 0.21 * len(lines))) if many else (3.7, 2.3)
    figure = Figure(figsize=size, facecolor="none")
    left, bottom, width, height = (
      (0.085, 0.19, 0.60, 0.76) if many else (0.13, 0.19, 0.85, 0.68)
    )
    if is_turned:
      bottom, height = bottom + _TURNED_FRAC, height - _TURNED_FRAC
    axes = figure.add_axes((left, bottom, width, height), facecolor="none")
    for line, (color, dash) in zip(lines, _looks(lines, palette), strict=True):
      axes.plot(
        line.x,
        line.y,
        label=line.word,
        color=color,
        linestyle=dash,
        linewidth=1.8,
        marker="o" if len(line.x) < 15 else None,
        markersize=3.5,
      )
    axes.set_yscale(scale)
    if x_scale == "doubling":
      axes.set_xscale("symlog", base=2, linthresh=1.0, linscale=1.0)
    axes.set_xlabel(x_label)
    if palette is _PAPER:  # a page says it above the chart
      axes.set_ylabel(unit)
    if y_limits is not None:
      axes.set_ylim(*y_limits)
    if ticks is not None:
      turned = 90.0 if is_turned else 0.0
      axes.set_xticks(list(ticks), list(ticks.values()), rotation=turned)
      axes.minorticks_off()
    clean(axes, palette)
    if legend == "above":
      axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=2,
        frameon=False,
        handlelength=2.4,
        borderaxespad=0.2,
      )
    elif many:
      axes.legend(
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        handlelength=3.2,
      )
    return figure

  return drawn(title, unit, draw, _read_aloud(lines, x_label), png=png)


def clean(axes: Axes, palette: Palette) -> None:
  """Takes away what says nothing: frame, tick marks."""
  axes.grid(axis="y", color=palette.grid, linewidth=0.8)
  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.tick_params(length=0, which="both")


def drawn(
  title: str,
  unit: str,
  draw: Callable[[Palette], Figure],
  numbers: str,
  *,
  png: bool,
) -> Chart:
  """Returns a chart.

  Args:
    title: what it shows; another for every chart of a page.
    unit: of y.
    draw: makes the figure in given colours.
    numbers: for those who do not see it.
    png: whether to draw it for a file as well.
  """
  svg = _to_svg(draw, title, f"{title} ({unit}): {numbers}.")
  return Chart(title, unit, svg, _to_png(draw) if png else b"")


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
  with matplotlib.rc_context(_settings(_PAPER)):
    figure = draw(_PAPER)
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
      color=_PAPER.text,
      va="center",
    )
    figure.figimage(picture, 0, top - title_px - picture.shape[0])
    top -= height
  return figure_png(figure, _DPI)


def _looks(
  lines: Sequence[Line], palette: Palette
) -> list[tuple[str, str | tuple[float, tuple[float, ...]]]]:
  """Returns colour and dashes of each line; no two models' are the same."""
  looks, models, controls = [], 0, 0
  for line in lines:
    if line.is_control:
      looks.append((palette.muted, _DASHES[2 + controls % 2]))
      controls += 1
      continue
    color = palette.series[models % len(palette.series)]
    looks.append((color, _DASHES[models % len(_DASHES)]))
    models += 1
  return looks


def _settings(palette: Palette) -> dict[str, object]:
  texts = ("text.color", "axes.labelcolor", "xtick.labelcolor")
  grids = ("axes.edgecolor", "xtick.color", "ytick.color")
  return {
    "font.size": 9.0,
    **dict.fromkeys((*texts, "ytick.labelcolor"), palette.text),
    **dict.fromkeys(grids, palette.grid),
  }


def _read_aloud(lines: Sequence[Line], x_label: str) -> str:
  parts = []
  for line in lines:
    kept = np.isfinite(line.y)
    x, y = line.x[kept], line.y[kept]
    parts.append(
      f"{line.word} from {y[0]:.4g} to {y[-1]:.4g} at {x_label} {x[-1]:g}"
    )
  return "; ".join(parts)
