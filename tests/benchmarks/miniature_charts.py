"""The figures of the miniature experiments' page."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gc_jax.attribution import title_of
from gc_jax.method.metrics import METRICS, Key, accuracy
from gc_jax.models import without_gmp
from gc_jax.report import describe, plots, tables
from gc_jax.report.artefact import Evaluated
from gc_jax.runtime import files

METHOD = "gradcam_elementwise"
_COLORS = plots.PAPER.series
_MARKERS = "os^Dv"
_SIZE = (9.6, 3.8)
_FEW_STEPS = 10
# Label to evaluations, one a seed.
Models = Mapping[str, Sequence[Evaluated]]


def points(
  path: Path, models: Models, title: str, *, in_order: bool = False
) -> str:
  """Draws accuracy against NQH and CH; returns the figure's words.

  A small dot is a run, a large mark the mean of a model's. A row of the paper
  has a colour, a network a mark, where there are several networks.

  Args:
    path: of the PNG file.
    models: one at least.
    title: what they are.
    in_order: whether to join the means, for they are one number's steps.
  """
  metric = accuracy(tables.first(models).about.multi_label)
  words = METRICS[metric].title
  figure = Figure(figsize=_SIZE)
  left, right = figure.subplots(1, 2, sharey=True)
  for axes, name in (
    (left, "negative_quadrants_heatmap"),
    (right, "content_heatmap"),
  ):
    means = []
    for number, (label, (color, marker)) in enumerate(_looks(models).items()):
      x, y = (
        [one.number(key) for one in models[label]]
        for key in (Key(name, METHOD), Key(metric))
      )
      look = {"color": color, "marker": marker, "linestyle": "none"}
      axes.plot(x, y, markersize=4, alpha=0.5, markeredgewidth=0, **look)
      means.append((statistics.fmean(x), statistics.fmean(y)))
      # Rings, ever smaller, so that one that is equal is seen through it.
      look |= {"markerfacecolor": "none", "markeredgewidth": 2}
      size = max(7.0, 12.0 - 2.5 * number)
      axes.plot(*means[-1], markersize=size, label=label, **look)
    if in_order:
      axes.plot(*zip(*means, strict=True), color=plots.PAPER.muted, zorder=0)
    axes.set_xlabel(f"{METRICS[name].title} in percent, {title_of(METHOD)}")
    plots.clean(axes, plots.PAPER)
  left.set_ylabel(f"{words} in percent")
  _save(path, figure)
  return f"{words} against NQH and CH: {title}"


def _looks(models: Models) -> dict[str, tuple[str, str]]:
  """Returns label to colour and mark."""
  about = {label: own[0].about for label, own in models.items()}
  networks = [without_gmp(one.architecture) for one in about.values()]
  networks = list(dict.fromkeys(networks))
  if len(networks) < 2:
    return {
      label: (_COLORS[number % len(_COLORS)], "o")
      for number, label in enumerate(models)
    }
  of_row = {label: describe.paper_names(one)[0] for label, one in about.items()}
  rows = list(dict.fromkeys(of_row.values()))
  return {
    label: (
      _COLORS[rows.index(of_row[label])],
      _MARKERS[networks.index(without_gmp(one.architecture))],
    )
    for label, one in about.items()
  }


def backgrounds(path: Path, found: Mapping[int, Models]) -> str:
  """Draws what becomes of models as more backgrounds follow the class.

  Args:
    path: of the PNG file.
    found: percent of backgrounds to models, the same labels each time.

  Returns:
    The figure's words.
  """
  first = tables.first(found[min(found)])
  keys = [Key(accuracy(first.about.multi_label))]
  keys += [
    Key(name, METHOD)
    for name in ("content_heatmap", "negative_quadrants_heatmap")
  ]
  figure = Figure(figsize=_SIZE)
  for axes, key in zip(figure.subplots(1, 3), keys, strict=True):
    for label, color in zip(found[min(found)], _COLORS, strict=False):
      means = {}
      for percent, models in sorted(found.items()):
        values = [one.number(key) for one in models[label]]
        axes.plot(
          [percent] * len(values), values, "o", color=color, alpha=0.5, ms=4
        )
        means[percent] = statistics.fmean(values)
      axes.plot(*zip(*means.items(), strict=True), color=color, label=label)
    axes.set_title(f"{METRICS[key.metric].title} in percent", fontsize=9)
    axes.set_xlabel("% of backgrounds that follow the class")
    axes.set_xticks(sorted(found))
    plots.clean(axes, plots.PAPER)
  _save(path, figure)
  return "Accuracy, CH and NQH where more backgrounds follow the class"


def gradients(path: Path, models: Models) -> str:
  """Draws how strong the consistency loss is; returns the figure's words.

  Its gradient by the features, λ in it, over that of the cross-entropy. Empty,
  and nothing drawn, unless two models were trained with it.
  """
  found = {label: shares(own) for label, own in models.items()}
  found = {label: own for label, own in found.items() if own}
  if len(found) < 2:
    return ""
  figure = Figure(figsize=_SIZE)
  axes = figure.subplots()
  for label, (color, _) in _looks({k: models[k] for k in found}).items():
    axes.plot(*zip(*found[label].items(), strict=True), color, label=label)
  _log_scale(axes)
  axes.set_xlabel("step")
  axes.set_ylabel("norm of consistency's gradient\nover cross-entropy's")
  plots.clean(axes, plots.PAPER)
  _save(path, figure)
  return "The two losses' gradients by the features, one over the other"


def _log_scale(axes: Axes) -> None:
  """Makes y logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
  axes.set_yscale("log")
  axes.yaxis.set_major_locator(
    matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0))
  )
  axes.yaxis.set_major_formatter("{x:g}")
  axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def shares(evaluations: Sequence[Evaluated]) -> dict[int, float]:
  """Returns step -> that share, the mean of the seeds that logged it.

  What is logged where a checkpoint is saved is the mean of a few steps only,
  and left out.
  """
  losses = ("consistency", "classification")
  found: dict[int, list[float]] = {}
  for one in evaluations:
    last = -_FEW_STEPS
    for line in one.training:
      is_short, last = line["step"] - last < _FEW_STEPS, line["step"]
      if is_short:
        continue
      ours, theirs = (
        line.get(f"train/grad_norm_features/{loss}") for loss in losses
      )
      if ours and theirs:
        found.setdefault(line["step"], []).append(ours / theirs)
  return {step: statistics.fmean(own) for step, own in sorted(found.items())}


def _save(path: Path, figure: Figure) -> None:
  """Writes a figure with one legend below it."""
  figure.legend(
    *figure.axes[0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=4,
    fontsize=8,
    frameon=False,
  )
  figure.set_layout_engine("constrained")
  with files.replacing(path) as file:
    file.write(plots.figure_png(figure, 120))
