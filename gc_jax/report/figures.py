"""The curves of a run, for its page."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gc_jax.report.plots import Chart, Line, line_chart


@dataclasses.dataclass(frozen=True)
class Panel:
  """One chart: metric to its word in the legend; `scale` linear or log."""

  title: str
  unit: str
  series: dict[str, str]
  scale: str = "linear"


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
    lines = []
    for key, word in panel.series.items():
      x, y = _series(metrics, key, "epoch" if in_epochs else "step")
      if panel.scale == "log":
        y = np.where(y > 0, y, np.nan)
      if np.isfinite(y).any():
        lines.append(Line(word, x, y))
    if panel.scale == "log" and len(panel.series) == 1:
      values = lines[0].y if lines else np.zeros(0)
      if np.nanmin(values, initial=np.inf) == np.nanmax(values, initial=0.0):
        continue  # a constant weight: the page's first sentence names it
    if lines:
      chart = line_chart(
        panel.title,
        panel.unit,
        lines,
        "epoch" if in_epochs else "step",
        scale=panel.scale,
        legend="above" if len(panel.series) > 1 else "none",
      )
      charts.append(chart)
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
