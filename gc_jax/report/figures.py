"""The curves of a run as inline SVG that follows the page's colours.

Text and lines take `currentColor` and the CSS variables `--series-1`,
`--series-2` and `--grid`, so one picture suits a light and a dark page.
"""

import dataclasses
import html
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Colours that stand for CSS until the SVG is text.
_TEXT, _GRID = "#0a0b0c", "#0d0e0f"
_SERIES = ("#1a1b1c", "#1d1e1f")
_CSS = {
  _TEXT: "currentColor",
  _GRID: "var(--grid)",
  _SERIES[0]: "var(--series-1)",
  _SERIES[1]: "var(--series-2)",
}


@dataclasses.dataclass(frozen=True)
class Panel:
  """One chart: metric to its word in the legend; `scale` linear or log."""

  title: str
  unit: str
  series: dict[str, str]
  scale: str = "linear"


@dataclasses.dataclass(frozen=True)
class Chart:
  """A drawn panel; `svg` is safe to place in a page as it is."""

  title: str
  unit: str
  svg: str


# "weighted/..." is made here: the term as it enters the loss.
PANELS = (
  Panel(
    "Loss", "nats", {"train/loss": "training", "val/loss": "validation split"}
  ),
  Panel(
    "Parts of the training loss",
    "nats",
    {
      "train/classification_loss": "classification",
      "weighted/consistency_loss": "λ × consistency",
    },
  ),
  Panel("Top-1", "percent, validation split", {"val/top1": "top-1"}),
  Panel(
    "F1",
    "percent, validation split",
    {"val/f1_overall": "overall", "val/f1_per_class": "per class"},
  ),
  Panel(
    "Weight of the consistency loss",
    "λ, log axis",
    {"train/consistency_weight": "λ"},
    scale="log",
  ),
  Panel(
    "Gradient at the features",
    "norm by loss term, log axis",
    {
      "train/grad_norm_features/classification": "classification",
      "train/grad_norm_features/consistency": "consistency",
    },
    scale="log",
  ),
)


def curves(metrics: Sequence[dict[str, Any]]) -> list[Chart]:
  """Returns the charts of a run, those without any number left out.

  Args:
    metrics: the lines of metrics.jsonl. A None (not finite) breaks the line.
  """
  metrics = [_with_weighted(line) for line in metrics]
  in_epochs = all("epoch" in line for line in metrics)
  charts = []
  for panel in PANELS:
    series = {}
    for key, word in panel.series.items():
      x, y = _series(metrics, key, "epoch" if in_epochs else "step")
      if panel.scale == "log":
        y = np.where(y > 0, y, np.nan)
      if np.isfinite(y).any():
        series[word] = (x, y)
    if panel.scale == "log" and len(panel.series) == 1:
      values = next(iter(series.values()))[1] if series else np.zeros(0)
      if np.nanmin(values, initial=np.inf) == np.nanmax(values, initial=0.0):
        continue  # a constant weight: the page's first sentence names it
    if series:
      svg = _draw(panel, series, "epoch" if in_epochs else "step")
      charts.append(Chart(panel.title, panel.unit, svg))
  return charts


def count_not_finite(metrics: Sequence[dict[str, Any]]) -> int:
  """Returns how many lines hold a number that was not finite."""
  return sum(any(v is None for v in line.values()) for line in metrics)


def _with_weighted(line: dict[str, Any]) -> dict[str, Any]:
  loss = line.get("train/consistency_loss")
  weight = line.get("train/consistency_weight")
  if loss is None or not weight:
    return line
  return {**line, "weighted/consistency_loss": loss * weight}


def _series(
  metrics: Sequence[dict[str, Any]], key: str, axis: str
) -> tuple[np.ndarray, np.ndarray]:
  points = [(line[axis], line[key]) for line in metrics if key in line]
  points = [(x, y) for x, y in points if x is not None]
  values = np.array(points, dtype=float).reshape(-1, 2)  # None becomes NaN
  return values[:, 0], values[:, 1]


def _draw(
  panel: Panel,
  series: dict[str, tuple[np.ndarray, np.ndarray]],
  x_label: str,
) -> str:
  settings = {
    "svg.fonttype": "none",  # real text, in the page's own font
    "svg.hashsalt": panel.title,  # same ids in every build, others per chart
    "font.size": 9.0,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _GRID,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
  }
  with matplotlib.rc_context(settings):
    figure = Figure(figsize=(3.7, 2.3), facecolor="none")
    axes = figure.add_axes((0.13, 0.19, 0.85, 0.68), facecolor="none")
    for position, (word, (x, y)) in enumerate(series.items()):
      axes.plot(
        x,
        y,
        label=word,
        color=_SERIES[position],
        linestyle=("-", (0, (5, 1.5)))[position],
        linewidth=1.8,
        marker="o" if len(x) < 15 else None,
        markersize=3.5,
      )
    axes.set_yscale(panel.scale)
    axes.set_xlabel(x_label)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, which="both")
    if len(panel.series) > 1:
      axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=2,
        frameon=False,
        handlelength=2.4,
        borderaxespad=0.2,
      )
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(
      buffer, metadata={"Date": None, "Creator": None}
    )
  return _inline(buffer.getvalue(), _describe(panel, series, x_label))


def _describe(
  panel: Panel,
  series: dict[str, tuple[np.ndarray, np.ndarray]],
  x_label: str,
) -> str:
  """Returns what the chart says, for those who do not see it."""
  parts = []
  for word, (x, y) in series.items():
    kept = np.isfinite(y)
    first, last = y[kept][0], y[kept][-1]
    parts.append(
      f"{word} from {first:.4g} to {last:.4g} at {x_label} {x[kept][-1]:g}"
    )
  return f"{panel.title} ({panel.unit}): {'; '.join(parts)}."


def _inline(svg: str, description: str) -> str:
  """Returns the SVG for use within HTML: no ids to clash, no fixed size."""
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
  svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
  svg = re.sub(r"font-family: [^;]*; ", "", svg)
  svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
  svg = re.sub(r'<g id="[^"]*"', "<g", svg)
  svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
  svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
  svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
  for color, css in _CSS.items():
    svg = svg.replace(color, css)
  label = html.escape(description, quote=True)
  return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
