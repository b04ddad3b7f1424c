"""Several models beside each other: the paper's tables and its Figure 2.

With a chart of accuracy against content heatmap, a point for each model.
"""

import dataclasses
import json
import os
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from gc_jax import data
from gc_jax.attribution import title_of
from gc_jax.method.metrics import METRICS, Key, accuracy
from gc_jax.report import (
  charts,
  describe,
  formats,
  page,
  paper,
  pictures,
  plots,
)
from gc_jax.report.artefact import Evaluated, load_finished
from gc_jax.report.rows import CASES, Difference, load_mean, paired
from gc_jax.report.tables import (
  OF_MAPS,
  Cell,
  Models,
  Row,
  Table,
  column,
  costly_notes,
  first,
  in_order,
  measured,
  overview,
)
from gc_jax.runtime import files

FILENAMES = (
  *("comparison.md", "comparison.csv", "comparison.html", "figure.png"),
  *("tables.md", "tables.csv", "tables.tex"),
  *("pareto.csv", "pareto.png", "robustness.png", "differences.json"),
)
_MAX_ROWS = 8  # images in the figure
# Label to what a model differs in from the first.
Differences = Mapping[str, Mapping[Key, Difference]]
_PARETO_METHODS = ("gradcam_elementwise", "gradcam")  # the first is drawn


def compare(
  folders: Sequence[str | os.PathLike], out: str | os.PathLike
) -> tuple[list[files.AnyPath], list[str]]:
  """Writes the tables of some models, and their figures.

  Args:
    folders: finished runs and evaluations, on the same data.
    out: a folder: new, empty, or with an earlier comparison.

  Returns:
    The files written, and remarks on what could not be shown.

  Raises:
    ValueError: a folder is neither, their data or settings differ, or `out`
      holds something else.
  """
  out = files.as_path(out)
  _check_out(out)
  names: dict[files.AnyPath, files.AnyPath] = {}
  for folder in map(files.as_path, folders):
    names.setdefault(folder.resolve(), folder)  # as named, each once
  evaluations = [load_finished(folder) for folder in names.values()]
  describe.check_comparable(evaluations)
  contents, remarks = _contents(describe.group(evaluations))
  written = page.write_files(out, contents, FILENAMES)
  return written, remarks


def _contents(models: Models) -> tuple[dict[str, bytes], list[str]]:
  """Returns name to content of the files, and what could not be shown."""
  firsts = {label: members[0] for label, members in models.items()}
  about = first(models).about
  protocol = describe.protocols([one.about for one in firsts.values()])
  glance, layouts, full = (
    overview(models),
    paper.make_layouts(models),
    measured(models),
  )
  found, remarks = differences(models)
  differing = [difference_table(models, found)] if found else []
  points = pareto_points(models)
  chart = pareto_chart(points)
  robustness = charts.robustness_chart(firsts)
  figure, method, missing = _figure(firsts)
  remarks = [*describe.shared_seeds(models), *remarks, *missing]

  html = formats.render(
    "comparison.html",
    data_name=data.title(about.data_name),
    preface=protocol,
    groups=[
      (
        label,
        describe.sentence(
          members[0].about, [member.about for member in members]
        ),
        [str(member.folder) for member in members],
      )
      for label, members in models.items()
    ],
    tables=formats.for_page(
      [[overview(models, interval=True), *differing, *layouts, *full]]
    )[0],
    chart=chart,
    robustness=robustness,
    figure=figure and pictures.figure_layer(figure),
    map_title=title_of(method),
    remarks=remarks,
    color_bar=pictures.color_bar(),
    scaling=pictures.SCALING,
  )
  contents = {
    "comparison.md": formats.to_markdown(glance, *differing).encode(),
    "comparison.csv": formats.to_csv(glance).encode(),
    **formats.to_files([*layouts, glance, *full, *differing], protocol),
    "comparison.html": html.encode(),
  }
  if figure is not None:
    contents["figure.png"] = figure
  if found:
    told = {
      label: {key.name: one._asdict() for key, one in own.items()}
      for label, own in found.items()
    }
    contents["differences.json"] = json.dumps(told, indent=2).encode()
  if chart is not None:
    contents["pareto.csv"] = pareto_csv(points).encode()
    contents["pareto.png"] = chart.png
  if robustness is not None:
    contents["robustness.png"] = robustness.png
  return contents, remarks


def _figure(
  models: Mapping[str, Evaluated],
) -> tuple[bytes | None, str, list[str]]:
  """Returns the paper's Figure 2 over models, the method shown, and remarks.

  A row for each image that all galleries hold as "fixed"; columns: the image
  with its object outlined, then each model's map by the first method all have.
  """
  remarks = [
    f"{label} is not in the figure: {evaluated.folder} has no gallery."
    for label, evaluated in models.items()
    if not evaluated.examples
  ]
  shown = {
    label: {
      (e.index, e.target): e for e in evaluated.examples if e.kind == "fixed"
    }
    for label, evaluated in models.items()
    if evaluated.examples
  }
  own = next(iter(shown.values()), {})
  common = [k for k in own if all(k in by_key for by_key in shown.values())]
  methods = [
    method
    for method in in_order(m for k in common for m in own[k].maps)
    if all(
      method in by_key[k].maps for by_key in shown.values() for k in common
    )
  ]
  if not methods:
    remarks.append("No figure: the galleries share no images and maps.")
    return None, "", remarks
  named = next(one for one in models.values() if one.examples)
  rows = []
  for key in common[:_MAX_ROWS]:
    cells = [pictures.outlined(own[key])]
    cells += [
      pictures.explained(by_key[key], by_key[key].maps[methods[0]])
      for by_key in shown.values()
    ]
    rows.append((named.class_name(own[key].target), cells))
  return pictures.draw_grid(["Image", *shown], rows), methods[0], remarks


def _check_out(out: files.AnyPath) -> None:
  """Refuses a place that holds anything but an earlier comparison."""
  if out.exists() and not out.is_dir():
    raise ValueError(
      f"--out must be a folder. {str(out)!r} is a file. Choose another name."
    )
  if not out.is_dir() or (out / "comparison.html").is_file():
    return
  others = sorted(path.name for path in out.iterdir())
  if others:
    raise ValueError(
      "--out must be a new folder, an empty one, or one with an earlier "
      f"comparison. {str(out)!r} holds {', '.join(others[:3])}"
      f"{' and more' if len(others) > 3 else ''}. Choose another folder."
    )


# Paired differences.


def differences(models: Models) -> tuple[Differences, list[str]]:
  """Returns what models differ in from the first, and why some are left out.

  Of accuracy and of the headline method's maps.
  """
  (baseline, own), *others = models.items()
  if not others:
    return {}, []
  about, method = own[0].about, page.headline_method(own[0])
  keys = [Key(name) for name in ("top1", *CASES)]
  keys += [
    Key(c.metric, method) for c in OF_MAPS if c.higher_is_better is not None
  ]
  num_classes = max(len(m.class_names) for own in models.values() for m in own)
  theirs, why = load_mean([one.folder for one in own], keys)
  if theirs is None:
    return {}, [f"No paired differences from {baseline}: {why}"]
  found, remarks = {}, []
  for label, members in others:
    folders = [one.folder for one in members]
    ours, why = load_mean(folders, keys, like=theirs)
    if any(describe.by_protocols([about, members[0].about])):
      ours, why = None, "it was measured by another protocol."
    if ours is None:
      remarks.append(f"No paired differences of {label}: {why}")
    elif both := paired(ours, theirs, about.protocol, num_classes):
      found[label] = both
  return found, remarks


def difference_table(models: Models, found: Differences) -> Table:
  """Returns paired differences from the first model, a row for each other."""
  method = page.headline_method(first(models))
  shown = {key.metric for own in found.values() for key in own}
  columns = [column(name, decimals=2) for name in METRICS if name in shown]
  rows = []
  for label, own in found.items():
    cells = {
      key.metric: Cell(one.value, interval=(one.low, one.high))
      for key, one in own.items()
    }
    rows.append(Row(label, method, cells, len(models[label])))
  note = (
    "Each number less the first model's, over the pairs of image and class "
    "that both have; every resample takes the same images for both. An "
    "interval without 0 rules out chance in the images, not in training: that "
    "takes several seeds."
  )
  notes = [note, *costly_notes(models, rows, columns)]
  title = f"Difference from {next(iter(models))}"
  return Table(columns, rows, title, notes, sign="+")


# Accuracy against content heatmap.


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


def pareto_points(models: Models) -> list[Point]:
  """Returns the points of every method that has any, its front marked."""
  found = []
  for method in _PARETO_METHODS:
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


def pareto_csv(points: Sequence[Point]) -> str:
  """Returns a line for each point."""
  names = ["model", "method", "metric", "accuracy", "content_heatmap"]
  lines = [dataclasses.astuple(point) for point in points]
  return formats.csv_text(
    [
      [*names, "num_runs", "on_front"],
      *([*line[:-1], int(line[-1])] for line in lines),
    ]
  )


def pareto_chart(points: Sequence[Point]) -> plots.Chart | None:
  """Returns the chart of the first method that two models have, or None."""
  for method in _PARETO_METHODS:
    own = [point for point in points if point.method == method]
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
