"""The charts and figures of an evaluation, and the curves of a training run.

The sanity check is that of Adebayo et al. 2018, arXiv:1810.03292: maps must
change when the model's weights are randomised, from the head down.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gc_jax.attribution import CONTROLS, title_of
from gc_jax.method.metrics import ATTACKS, METRICS, accuracy
from gc_jax.report import logs, pictures, tables
from gc_jax.report.artefact import Evaluated
from gc_jax.report.gallery import Example
from gc_jax.report.lines import Line, line_chart
from gc_jax.report.plots import Chart

MAX_ROWS = 8  # images in the figure of all methods
MAX_SANITY_ROWS = 12  # methods in the strip of maps by stage
MAX_SANITY_STAGES = 8  # evenly spread over them, the last among them
STAYS_HIGH = 0.5  # rank correlation after the last stage, of either sign


class Sanity(NamedTuple):
  """How a method took the randomisation."""

  title: str  # the method in words
  correlations: tuple[float, ...]  # with the trained model's map, by stage
  last: float  # the size of the last one; NaN where there is none
  verdict: str  # "stays high", "changes" or "not measured"


def charts(evaluated: Evaluated) -> dict[str, Chart]:
  """Returns name of the file, without suffix, to chart; those with numbers."""
  curves = evaluated.curves
  percent = [100.0 * fraction for fraction in curves.fractions]
  stages = ["trained", *curves.stages]
  randomized = {  # first with itself
    method: [1.0, *values] for method, values in curves.randomization.items()
  }
  lines = {
    "insertion": _method_lines(curves.insertion, percent),
    "deletion": _method_lines(curves.deletion, percent),
    "randomization": _method_lines(randomized, range(len(stages))),
  }
  found = {"robustness": robustness_chart({"": evaluated})}
  for name, done in (("insertion", "inserted"), ("deletion", "deleted")):
    if lines[name]:
      found[name] = line_chart(
        name.capitalize(),
        "mean probability of the class",
        lines[name],
        f"percent of pixels {done}",
        y_limits=(-0.02, 1.02),
        png=True,
      )
  if lines["randomization"]:
    lowest = min(float(np.nanmin(line.y)) for line in lines["randomization"])
    found["randomization"] = line_chart(
      "Sanity check",
      "rank correlation with the trained model's map",
      lines["randomization"],
      "weights randomised from the head down to",
      ticks={float(place): word for place, word in enumerate(stages)},
      y_limits=(min(0.0, lowest) - 0.05, 1.05),
      png=True,
    )
  return {name: chart for name, chart in found.items() if chart is not None}


def robustness_chart(models: Mapping[str, Evaluated]) -> Chart | None:
  """Returns accuracy against epsilon, a line for each model and attack.

  Of several models FGSM's line is that of any step up to epsilon alone, where
  it is known: that of the whole epsilon differs by what it stepped over.

  Args:
    models: label to evaluation; a single one may go without a label.
  """
  by_attack: dict[str, list[Line]] = {}  # the models of an attack together
  for label, evaluated in models.items():
    curves = dict(evaluated.curves.robustness)
    if len(models) > 1 and "fgsm-within" in curves:
      curves.pop("fgsm", None)
    for attack, by_epsilon in curves.items():
      word = ATTACKS[attack].title if attack in ATTACKS else attack
      word = f"{label}, {word}" if label else word
      points = sorted((float(e), value) for e, value in by_epsilon.items())
      found = _line(word, *zip(*points, strict=True)) if points else []
      by_attack.setdefault(attack, []).extend(found)
  lines = [line for found in by_attack.values() for line in found]
  if not lines:
    return None
  places = sorted({x for line in lines for x in line.x.tolist()})
  first = next(iter(models.values()))
  return line_chart(
    "Robustness",
    f"{METRICS[accuracy(first.about.multi_label)].title}, percent",
    lines,
    "ε in 1/255",
    x_scale="doubling",
    ticks={place: f"{place:g}" for place in places},
    y_limits=(-2.0, 102.0),
    png=True,
  )


def _method_lines(
  curves: Mapping[str, Sequence[float | None]], x: Sequence[float | int]
) -> list[Line]:
  """Returns a line for each method, in the order of tables.

  So a method looks the same in every chart; the controls come last.
  """
  return [
    line
    for method in tables.in_order(curves)
    if len(curves[method]) == len(x)
    for line in _line(title_of(method), x, curves[method], method in CONTROLS)
  ]


def _line(
  word: str,
  x: Sequence[float | int],
  y: Sequence[float | None],
  is_control: bool = False,
) -> list[Line]:
  """Returns a line, or none where no point is finite; None becomes NaN."""
  values = np.array(y, dtype=float)
  if not np.isfinite(values).any():
    return []
  return [Line(word, np.array(x, dtype=float), values, is_control)]


def sanity(evaluated: Evaluated) -> list[Sanity]:
  """Returns how each method took the randomisation, the worst first."""
  found = []
  for method, values in evaluated.curves.randomization.items():
    correlations = tuple(
      math.nan if value is None else float(value) for value in values
    )
    last = abs(correlations[-1]) if correlations else math.nan
    verdict = "stays high" if last >= STAYS_HIGH else "changes"
    verdict = "not measured" if math.isnan(last) else verdict
    found.append(Sanity(title_of(method), correlations, last, verdict))
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
    cells = [pictures.outlined(example)]
    cells += [pictures.explained(example, example.maps.get(m)) for m in methods]
    rows.append((evaluated.class_name(example.target), cells))
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
    cams = [example.maps[method], *map(by_stage.get, stages)]
    cells = [pictures.explained(example, cam) for cam in cams]
    rows.append((title_of(method), cells))
  return pictures.draw_grid(["trained", *stages], rows) if rows else None


def sanity_example(evaluated: Evaluated) -> Example | None:
  """Returns the first example that has maps of randomised models."""
  return next((e for e in evaluated.examples if e.randomized), None)


# Of training.


def training_charts(metrics: Sequence[dict[str, Any]]) -> list[Chart]:
  """Returns the charts of a run's training, those without any number left out.

  Args:
    metrics: the lines of metrics.jsonl. A None (not finite) breaks the line.
  """
  axis = "epoch" if all("epoch" in line for line in metrics) else "step"
  terms = logs.terms({key: None for line in metrics for key in line})
  metrics = [_with_weighted(line, terms) for line in metrics]
  made = []

  def add(title, unit, words, scale="linear", constant=True):
    """Draws metrics, key to word; a constant one only where that is told."""
    lines = []
    for key, word in words.items():
      x, y = _series(metrics, key, axis)
      y = np.where(y > 0, y, np.nan) if scale == "log" else y
      if np.isfinite(y).any():
        lines.append(Line(word, x, y))
    if lines and (constant or np.nanmin(lines[0].y) < np.nanmax(lines[0].y)):
      made.append(line_chart(title, unit, lines, axis, scale=scale))

  losses = {f"weighted/{term}_loss": f"λ × {term}" for term in terms}
  norms = {
    f"train/grad_norm_features/{part}": part
    for part in ("classification", *terms)
  }
  add(
    "Loss", "nats", {"train/loss": "training", "val/loss": "validation split"}
  )
  add(
    "Parts of the training loss",
    "nats",
    {"train/classification_loss": "classification", **losses},
  )
  percent = "percent, validation split"
  add("Top-1", percent, {"val/top1": "top-1"})
  f1 = {"val/f1_overall": "overall", "val/f1_per_class": "per class"}
  add("F1", percent, f1)
  for term in terms:
    add(
      f"Weight of the {term} loss",
      "λ, log axis",
      {f"train/{term}_weight": "λ"},
      "log",
      constant=False,  # the page's first sentence names it
    )
  add("Gradient at the features", "norm by loss term, log axis", norms, "log")
  return made


def count_not_finite(metrics: Sequence[dict[str, Any]]) -> int:
  """Returns how many lines hold a number that was not finite."""
  return sum(any(v is None for v in line.values()) for line in metrics)


def _with_weighted(
  line: dict[str, Any], terms: Sequence[str]
) -> dict[str, Any]:
  """Returns a line of metrics, with each term as it enters the loss."""
  weighted = {}
  for term in terms:
    loss, weight = (
      line.get(f"train/{term}_loss"),
      line.get(f"train/{term}_weight"),
    )
    if loss is not None and weight:
      weighted[f"weighted/{term}_loss"] = loss * weight
  return line | weighted


def _series(
  metrics: Sequence[dict[str, Any]], key: str, axis: str
) -> tuple[np.ndarray, np.ndarray]:
  points = [(line[axis], line[key]) for line in metrics if key in line]
  points = [(x, y) for x, y in points if x is not None]
  values = np.array(points, dtype=float).reshape(-1, 2)  # None becomes NaN
  return values[:, 0], values[:, 1]
