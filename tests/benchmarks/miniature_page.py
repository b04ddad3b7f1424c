"""The page of the miniature experiments, made from their runs' own files."""

import io
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from matplotlib.figure import Figure

from gc_jax.attribution import title_of
from gc_jax.method.metrics import METRICS, Key, accuracy
from gc_jax.report import (
  artefact,
  claims,
  comparison,
  describe,
  differences,
  formats,
  logs,
  paper,
  pictures,
  plots,
  tables,
)
from gc_jax.report.artefact import Evaluated
from gc_jax.runtime import files

METHOD = "gradcam_elementwise"
# Ours to those of the paper whose rows stand beside them.
STANDS_FOR = {
  "alexnet-small": "alexnet",
  "resnet8-small": "resnet18",
  "resnet11-small": "resnet50",
}
# What is kept of a comparison, beside the page.
_KEPT = ("tables.md", "tables.csv", "differences.json", "robustness.png")
_FIGURE = "figure.jpg"
SHOWN = "shown.jpg"  # at the head of the README
_NUM_SHOWN = 4
_FEW_STEPS = 10
REMARKS = "remarks.md"  # what people make of it; the page takes it in
_INTRODUCTION = """\
# The paper's experiments in small

{finished} of {total} runs are finished{took}. What is not measured is empty,
and says so. Recipe: [configs/miniature.py]({root}configs/miniature.py). One
command makes all runs, and this page:

```
python -m tests.benchmarks.miniature --out={out} --small
```

Numbers are mean ± standard deviation over seeds, of 1,000 test pictures; the
[glossary]({root}gc_jax/docs/glossary.md) says what they mean.
"""


def write(out: Path, sets, questions, experiments) -> None:
  """Writes the page and its figures.

  Args:
    out: with a folder for each run.
    sets: name to the cells of its tables, the first the plain one.
    questions: with `title` and `cells`.
    experiments: all there may be.
  """
  runs: dict[str, list[Evaluated]] = {}
  secs = []
  for one in experiments:
    if (took := one.secs(out)) is not None:
      runs.setdefault(one.cell, []).append(
        artefact.load_finished(out / one.name)
      )
      secs.append(took)
  took = f", in {logs.format_secs(sum(secs))} of computing" if secs else ""
  parts = [
    _INTRODUCTION.format(
      finished=len(secs),
      total=len(experiments),
      took=took,
      root=_root(out),
      out=out.name if out.is_absolute() else out,
    )
  ]
  if (out / REMARKS).exists():
    parts.append((out / REMARKS).read_text(encoding="utf-8"))
  of_sets = {
    name: [one for cell in cells for one in runs.get(cell, [])]
    for name, cells in sets.items()
  }
  measured = {name: own for name, own in of_sets.items() if own}
  tested = claims.to_markdown(claims.tested(measured))
  parts += ["## The paper's claims\n", tested]
  asked = [_models(one.cells, runs) for one in questions]
  made = [_layouts(own) for own in measured.values()]
  made += [_answers(models) for models in asked]
  # A note stands below the first table it is of.
  words = dict(
    zip([*measured, *questions], formats.for_page(made), strict=True)
  )
  for name, own in of_sets.items():
    parts.append(_of_set(out, name, own, words.get(name, [])))
  parts.append("## What the paper leaves open\n")
  for one, models in zip(questions, asked, strict=True):
    parts.append(_of_question(out, one, models, words[one]))
  text = "\n".join(part.rstrip() + "\n" for part in parts)
  files.write_text(out / "README.md", text)
  pictured = [one for own in of_sets.values() for one in own if one.examples]
  if pictured:
    _show(out / SHOWN, pictured)


def _show(path: Path, evaluations: Sequence[Evaluated]) -> None:
  """Draws a few photographs as each model sees them, for the README.

  They are the first of those that every run shows, whatever the maps.
  """
  of = {describe.paper_names(one.about)[0]: one for one in evaluations}
  names = ["plain" if name == "Baseline" else name for name in of]
  first = next(iter(of.values()))
  found = [
    {
      (one.index, one.target): one
      for one in each.examples
      if one.kind == "fixed"
    }
    for each in of.values()
  ]
  lines = []
  for key, own in list(found[0].items())[:_NUM_SHOWN]:
    cells = [
      pictures.explained(one[key], one[key].maps[METHOD]) for one in found
    ]
    shown = [pictures.outlined(own), *cells]
    lines.append((first.class_name(own.target), shown))
  _save_photographs(path, pictures.draw_grid(["picture", *names], lines))


def _save_photographs(path: Path, png: bytes) -> None:
  """Writes a figure of photographs, as a JPEG, which is much smaller."""
  drawn = PIL.Image.open(io.BytesIO(png)).convert("RGB")
  with files.replacing(path) as file:
    drawn.save(file, "JPEG", quality=88)


def _root(out: Path) -> str:
  """Returns the way from the page to the repository, where it lies in it."""
  root = Path(__file__).parents[2].resolve()
  own = out.resolve()
  if own.is_relative_to(root):
    return "../" * len(own.relative_to(root).parts)
  return ""


def _layouts(evaluations: Sequence[Evaluated]) -> list[tables.Table]:
  """Returns the paper's tables of one set."""
  models = describe.group(evaluations)
  made = paper.make_layouts(models, STANDS_FOR)
  return differences.settle(models, [made]).groups[0]


def _of_set(
  out: Path, name: str, evaluations: Sequence[Evaluated], words
) -> str:
  """Returns what is to be said of one set; writes its files into a folder."""
  if not evaluations:
    return f"## {name}\n\nNot measured.\n"
  folder = out / f"of_{name}"
  folder.mkdir(exist_ok=True)
  with tempfile.TemporaryDirectory() as compared:
    comparison.compare([one.folder for one in evaluations], compared)
    pictured = any(one.examples for one in evaluations)
    for each in _KEPT:
      path = Path(compared, each)
      if path.exists():
        (folder / each).write_bytes(path.read_bytes())
    if pictured:
      figure = Path(compared, "figure.png").read_bytes()
      _save_photographs(folder / _FIGURE, figure)
  title = _chart(folder / "points.png", describe.group(evaluations), name)
  parts = [f"## {name}\n", *map(_rendered, words)]
  parts.append(f"![{title}](of_{name}/points.png)\n")
  if (folder / _FIGURE).exists():
    parts.append(f"![The same pictures by every model](of_{name}/{_FIGURE})\n")
  listed = ", ".join(
    f"[{each}](of_{name}/{each})" for each in _KEPT if (folder / each).exists()
  )
  return "\n".join([*parts, f"All that was measured: {listed}.\n"])


def _rendered(table: formats.TableText) -> str:
  text = formats.render("tables.md", tables=[table], preface="")
  return f"#### {table.title}\n\n{text}" if table.title else text


def _models(cells: Sequence[str], runs: Mapping[str, list]) -> dict[str, list]:
  """Returns the runs of cells, of the seeds that all of them have.

  Empty unless there are the first and another.
  """
  found = {cell: runs[cell] for cell in cells if runs.get(cell)}
  if cells[0] not in found or len(found) < 2:
    return {}
  of = lambda one: one.about.trained_with("seed")
  common = set.intersection(*({of(o) for o in own} for own in found.values()))
  return {
    name: [one for one in own if of(one) in common] or own
    for name, own in found.items()
  }


def _answers(models: Mapping[str, list]) -> list[tables.Table]:
  """Returns what cells score, and how they differ from the first."""
  if not models:
    return []
  whole = tables.overview(models)
  kept = [row for row in whole.rows if row.method == METHOD]
  wanted = differences.from_first(models, METHOD)
  settled = differences.settle(
    models, [[tables.Table(whole.columns, kept)]], wanted
  )
  made = settled.groups[0]
  if differing := differences.table(models, METHOD, settled.found):
    made.append(differing)
  return made


def _of_question(out: Path, question, models: Mapping[str, list], words) -> str:
  parts = [f"### {question.title}\n"]
  if lacking := [cell for cell in question.cells if cell not in models]:
    parts.append(
      f"Not measured, or not yet to compare: {', '.join(lacking)}.\n"
    )
  if models:
    parts += map(_rendered, words)
    path = out / f"of_questions/{question.cells[-1]}.png"
    path.parent.mkdir(exist_ok=True)
    title = _chart(path, models, question.title)
    parts.append(f"![{title}]({path.relative_to(out)})\n")
    path = path.with_stem(f"{path.stem}-gradients")
    if title := _gradients(path, models):
      parts.append(f"![{title}]({path.relative_to(out)})\n")
  return "\n".join(parts)


def _chart(path: Path, models: Mapping[str, list], title: str) -> str:
  """Draws accuracy against NQH and CH, a cross of ± std; returns its words."""
  metric = accuracy(tables.first(models).about.multi_label)
  panels = ("negative_quadrants_heatmap", "content_heatmap")
  figure = Figure(figsize=(9.6, 3.8))
  words = METRICS[metric].title
  for axes, name in zip(
    figure.subplots(1, 2, sharey=True), panels, strict=True
  ):
    for number, (label, own) in enumerate(models.items()):
      x, y = (
        [one.number(key) for one in own]
        for key in (Key(name, METHOD), Key(metric))
      )
      color = plots.PAPER.series[number % len(plots.PAPER.series)]
      axes.errorbar(
        statistics.fmean(x),
        statistics.fmean(y),
        xerr=np.std(x, ddof=1) if len(x) > 1 else None,
        yerr=np.std(y, ddof=1) if len(y) > 1 else None,
        marker="o" if number < len(plots.PAPER.series) else "s",
        color=color,
        label=label,
        linestyle="none",
      )
    axes.set_xlabel(f"{METRICS[name].title} in percent, {title_of(METHOD)}")
    plots.clean(axes, plots.PAPER)
  figure.axes[0].set_ylabel(f"{words} in percent")
  _save(path, figure)
  return f"{words} against NQH and CH: {title}"


def _gradients(path: Path, models: Mapping[str, list]) -> str:
  """Draws how strong the consistency loss is; returns the figure's words.

  Its gradient by the features, λ in it, over that of the cross-entropy. Empty,
  and nothing drawn, unless two models were trained with it.
  """
  found = {label: _shares(own) for label, own in models.items()}
  found = {label: shares for label, shares in found.items() if shares}
  if len(found) < 2:
    return ""
  figure = Figure(figsize=(9.6, 3.8))
  axes = figure.subplots()
  for number, (label, shares) in enumerate(found.items()):
    color = plots.PAPER.series[number % len(plots.PAPER.series)]
    axes.plot(*zip(*shares.items(), strict=True), color=color, label=label)
  axes.set_yscale("log")
  axes.set_xlabel("step")
  axes.set_ylabel("consistency / cross-entropy")
  plots.clean(axes, plots.PAPER)
  _save(path, figure)
  return "The two losses' gradients by the features, one over the other"


def _shares(evaluations: Sequence[Evaluated]) -> dict[int, float]:
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
