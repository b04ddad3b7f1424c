"""What an evaluation shows in charts and figures; and a run of its training.

The sanity check is that of Adebayo et al. 2018, arXiv:1810.03292: maps must
change when the model's weights are randomised, from the head down.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gc_jax.attribution import CONTROLS, title_of
from gc_jax.method.metrics import ATTACKS, METRICS, accuracy
from gc_jax.report import pictures, plots, tables
from gc_jax.report.artefact import Evaluated, Example
from gc_jax.report.plots import Chart, Line

MAX_ROWS = 8  # images in the figure of all methods
MAX_SANITY_ROWS = 12  # methods in the strip of maps by stage
MAX_SANITY_STAGES = 8  # evenly spread over them, the last among them
STAYS_HIGH = 0.5  # rank correlation after the last stage


@dataclasses.dataclass(frozen=True)
class Sanity:
  """How a method took the randomisation.

  Attributes:
    title: the method in words.
    correlations: with the trained model's map, after each stage.
  """

  title: str
  correlations: tuple[float, ...]

  @property
  def last(self) -> float:
    """Returns the size of the last correlation; NaN where there is none."""
    return abs(self.correlations[-1]) if self.correlations else math.nan

  @property
  def stays_high(self) -> bool:
    """Returns whether the map hardly depends on what the model learned."""
    return self.last >= STAYS_HIGH

  @property
  def verdict(self) -> str:
    """Returns "stays high", "changes" or "not measured"."""
    if math.isnan(self.last):
      return "not measured"
    return "stays high" if self.stays_high else "changes"


def charts(evaluated: Evaluated) -> dict[str, Chart]:
  """Returns name of the file, without suffix, to chart; those with numbers."""
  found = {
    "robustness": robustness_chart({"": evaluated}),
    "insertion": _faithfulness_chart(
      evaluated, "Insertion", evaluated.curves.insertion
    ),
    "deletion": _faithfulness_chart(
      evaluated, "Deletion", evaluated.curves.deletion
    ),
    "randomization": _randomization_chart(evaluated),
  }
  return {name: chart for name, chart in found.items() if chart is not None}


def robustness_chart(models: Mapping[str, Evaluated]) -> Chart | None:
  """Returns accuracy against epsilon, a line for each model and attack.

  Of several models FGSM's line is that of any step up to epsilon alone, where
  it is known: that of the whole epsilon differs by what it stepped over.

  Args:
    models: label to evaluation; a single one may go without a label.
  """
  lines = []
  for label, evaluated in models.items():
    curves = dict(evaluated.curves.robustness)
    if len(models) > 1 and "fgsm-within" in curves:
      curves.pop("fgsm", None)
    for attack, by_epsilon in curves.items():
      word = ATTACKS[attack].title if attack in ATTACKS else attack
      word = f"{label}, {word}" if label else word
      points = sorted((float(e), value) for e, value in by_epsilon.items())
      lines += _line(word, *zip(*points, strict=True)) if points else []
  if not lines:
    return None
  places = sorted({x for line in lines for x in line.x.tolist()})
  first = next(iter(models.values()))
  return plots.line_chart(
    "Robustness",
    f"{METRICS[accuracy(first.about.multi_label)].title}, percent",
    lines,
    "ε in 1/255",
    x_scale="doubling",
    ticks={place: f"{place:g}" for place in places},
    y_limits=(-2.0, 102.0),
    legend="above" if len(lines) <= 2 else "right",
    png=True,
  )


def sanity(evaluated: Evaluated) -> list[Sanity]:
  """Returns how each method took the randomisation, the worst first."""
  found = []
  for method, values in evaluated.curves.randomization.items():
    correlations = tuple(
      math.nan if value is None else float(value) for value in values
    )
    found.append(Sanity(title_of(method), correlations))
  return sorted(found, key=lambda s: 1.0 if math.isnan(s.last) else -s.last)


def methods_figure(evaluated: Evaluated) -> bytes | None:
  """Returns the paper's Figure 2 over methods: a PNG, or None.

  Rows: images; columns: the image with its object outlined, then its map by
  each method that any image has.
  """
  examples = evaluated.examples[:MAX_ROWS]
  methods = tables.in_order(m for e in examples for m in e.maps)
  if not methods:
    return None
  rows = []
  for example in examples:
    cells = [pictures.outlined(example.image, example.object_mask)]
    cells += [pictures.explained_by(example, method) for method in methods]
    name = evaluated.class_name(example.target)
    rows.append(pictures.GridRow(name, cells))
  return pictures.draw_grid(["Image", *map(title_of, methods)], rows)


def sanity_figure(evaluated: Evaluated) -> bytes | None:
  """Returns the maps of an image by stage: a PNG, or None.

  Rows: methods; columns: the trained model's map, then that of the model with
  weights randomised down to each stage.
  """
  example = sanity_example(evaluated)
  if example is None:
    return None
  stages = [
    stage
    for stage in evaluated.curves.stages
    if any(stage in by_stage for by_stage in example.randomized.values())
  ]
  if len(stages) > MAX_SANITY_STAGES:  # VGG16 has 16
    places = np.linspace(0, len(stages) - 1, MAX_SANITY_STAGES)
    stages = [stages[place] for place in places.round().astype(int)]
  rows = []
  methods = [m for m in example.randomized if m in example.maps]
  for method in methods[:MAX_SANITY_ROWS]:
    by_stage = example.randomized[method]
    cells = [pictures.explained_by(example, method)]
    cells += [
      None
      if stage not in by_stage
      else pictures.explained(
        example.image, example.object_mask, by_stage[stage]
      )
      for stage in stages
    ]
    rows.append(pictures.GridRow(title_of(method), cells))
  if not rows:
    return None
  return pictures.draw_grid(["trained", *stages], rows)


def sanity_example(evaluated: Evaluated) -> Example | None:
  """Returns the first example that has maps of randomised models."""
  return next((e for e in evaluated.examples if e.randomized), None)


def _faithfulness_chart(
  evaluated: Evaluated, title: str, curves: Mapping[str, Sequence[float]]
) -> Chart | None:
  percent = [100.0 * fraction for fraction in evaluated.curves.fractions]
  lines = _method_lines(curves, percent)
  if not lines:
    return None
  done = "inserted" if title == "Insertion" else "deleted"
  return plots.line_chart(
    title,
    "mean probability of the class",
    lines,
    f"percent of the pixels {done}, highest of the map first",
    y_limits=(-0.02, 1.02),
    legend="right",
    png=True,
  )


def _randomization_chart(evaluated: Evaluated) -> Chart | None:
  stages = evaluated.curves.stages
  curves = {
    method: [1.0, *values]  # with itself
    for method, values in evaluated.curves.randomization.items()
  }
  lines = _method_lines(curves, [float(i) for i in range(len(stages) + 1)])
  if not lines:
    return None
  words = ["trained", *stages]
  lowest = min(float(np.nanmin(line.y)) for line in lines)
  return plots.line_chart(
    "Sanity check",
    "rank correlation with the trained model's map",
    lines,
    "weights randomised from the head down to",
    ticks={float(place): word for place, word in enumerate(words)},
    y_limits=(min(0.0, lowest) - 0.05, 1.05),
    legend="right",
    png=True,
  )


def _method_lines(
  curves: Mapping[str, Sequence[float]], x: Sequence[float]
) -> list[Line]:
  """Returns a line for each method, in the order of tables.

  So a method looks the same in every chart; the controls come last.
  """
  methods = tables.in_order(curves)
  return [
    line
    for method in methods
    if len(curves[method]) == len(x)
    for line in _line(title_of(method), x, curves[method], method in CONTROLS)
  ]


def _line(
  word: str,
  x: Sequence[float],
  y: Sequence[float | None],
  is_control: bool = False,
) -> list[Line]:
  """Returns a line, or none where no point is finite; None becomes NaN."""
  values = np.array(y, dtype=float)
  if not np.isfinite(values).any():
    return []
  return [Line(word, np.array(x, dtype=float), values, is_control)]


# Of training.


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


def training_charts(metrics: Sequence[dict[str, Any]]) -> list[Chart]:
  """Returns the charts of a run's training, those without any number left out.

  Args:
    metrics: the lines of metrics.jsonl. A None (not finite) breaks the line.
  """
  metrics = [_with_weighted(line) for line in metrics]
  in_epochs = all("epoch" in line for line in metrics)
  made = []
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
      chart = plots.line_chart(
        panel.title,
        panel.unit,
        lines,
        "epoch" if in_epochs else "step",
        scale=panel.scale,
        legend="above" if len(panel.series) > 1 else "none",
      )
      made.append(chart)
  return made


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
