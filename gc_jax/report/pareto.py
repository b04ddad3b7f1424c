"""Accuracy against content heatmap: a point for each model, and the front."""

import dataclasses
import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from gc_jax.attribution import title_of
from gc_jax.method.metrics import METRICS, Key, accuracy
from gc_jax.report import formats, plots
from gc_jax.report.artefact import Evaluated
from gc_jax.report.tables import Models

_METHODS = ("gradcam_elementwise", "gradcam")  # the first is drawn


@dataclasses.dataclass(frozen=True)
class Point:
  """A model under one explanation: means over its seeds, in percent."""

  label: str
  method: str
  metric: str  # of accuracy
  accuracy: float
  content_heatmap: float
  num_runs: int
  is_on_front: bool = False  # no other is as good in both and better in one


def points(models: Models) -> list[Point]:
  """Returns the points of every method that has any, its front marked."""
  found = []
  for method in _METHODS:
    own = [
      point
      for label, members in models.items()
      if (point := _point(label, method, members))
    ]
    found += [
      dataclasses.replace(
        point, is_on_front=not any(_beats(other, point) for other in own)
      )
      for point in own
    ]
  return found


def _point(
  label: str, method: str, members: Sequence[Evaluated]
) -> Point | None:
  for metric in (accuracy(multi_label=False), accuracy(multi_label=True)):
    pairs = [
      (one.number(Key(metric)), one.number(Key("content_heatmap", method)))
      for one in members
    ]
    whole = [pair for pair in pairs if None not in pair]
    if whole:
      means = map(statistics.fmean, zip(*whole, strict=True))
      return Point(label, method, metric, *means, num_runs=len(whole))
  return None


def _beats(one: Point, other: Point) -> bool:
  ours = (one.accuracy, one.content_heatmap)
  theirs = (other.accuracy, other.content_heatmap)
  return ours != theirs and all(
    a >= b for a, b in zip(ours, theirs, strict=True)
  )


def to_csv(found: Sequence[Point]) -> str:
  """Returns a line for each point."""
  names = ["model", "method", "metric", "accuracy", "content_heatmap"]
  lines = [dataclasses.astuple(point) for point in found]
  return formats.csv_text(
    [
      [*names, "num_runs", "on_front"],
      *([*line[:-1], int(line[-1])] for line in lines),
    ]
  )


def chart(found: Sequence[Point]) -> plots.Chart | None:
  """Returns the chart of the first method that two models have, or None."""
  for method in _METHODS:
    own = [point for point in found if point.method == method]
    if len(own) >= 2:
      return _drawn(own)
  return None


def _drawn(own: Sequence[Point]) -> plots.Chart:
  title = "Accuracy against content heatmap"
  method = title_of(own[0].method)
  word = METRICS[own[0].metric].title
  front = sorted(
    (p for p in own if p.is_on_front), key=lambda p: p.content_heatmap
  )

  def draw(palette: plots.Palette) -> Figure:
    figure = Figure(figsize=(7.2, 3.6), facecolor="none")
    axes = figure.add_axes((0.09, 0.14, 0.88, 0.82), facecolor="none")
    axes.plot(
      [point.content_heatmap for point in front],
      [point.accuracy for point in front],
      color=palette.muted,
      linewidth=1.0,
      zorder=1,
    )
    axes.margins(0.16)
    places = [point.content_heatmap for point in own]
    middle = (min(places) + max(places)) / 2
    for point in own:
      is_right = point.content_heatmap > middle
      axes.plot(
        [point.content_heatmap],
        [point.accuracy],
        marker="o",
        markersize=7.0 if point.is_on_front else 5.0,
        color=palette.series[0 if point.is_on_front else 1],
        linestyle="none",
        zorder=2,
      )
      axes.annotate(
        # "$" would begin a formula.
        point.label.replace("$", r"\$"),
        (point.content_heatmap, point.accuracy),
        # Towards the middle: there is room whatever the name's length.
        xytext=(-7 if is_right else 7, 6),
        ha="right" if is_right else "left",
        textcoords="offset points",
        fontsize=8.5,
        color=palette.text,
      )
    axes.set_xlabel(f"CH in percent, {method}")
    axes.set_ylabel(f"{word} in percent")
    plots.clean(axes, palette)
    return figure

  listed = "; ".join(
    f"{p.label}: {word} {p.accuracy:.1f}, CH {p.content_heatmap:.1f}"
    + (", on the front" if p.is_on_front else "")
    for p in own
  )
  unit = f"{word} and CH in percent, maps of {method}"
  return plots.drawn(title, unit, [(draw, listed)], png=True)
