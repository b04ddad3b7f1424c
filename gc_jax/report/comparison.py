"""Several models beside each other: the paper's tables and its Figure 2.

With a chart of accuracy against content heatmap, a point for each model.
"""

import json
import os
from collections.abc import Mapping, Sequence

from gc_jax import data
from gc_jax.attribution import title_of
from gc_jax.method.metrics import METRICS, Key
from gc_jax.report import (
  cards,
  charts,
  describe,
  formats,
  page,
  paper,
  pareto,
  pictures,
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
  points = pareto.points(models)
  chart = pareto.chart(points)
  robustness = charts.robustness_chart(firsts)
  figure, shown, method, missing = _figure(firsts)
  remarks = [*describe.shared_seeds(models), *remarks, *missing]
  glance_words, full_words = formats.for_page(
    [[overview(models, interval=True), *differing], [*layouts, *full]]
  )

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
    glance=glance_words,
    tables=full_words,
    chart=chart,
    robustness=robustness,
    cards=shown,
    class_names=next(
      (one.class_names for one in firsts.values() if one.class_names), []
    ),
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
    contents["pareto.csv"] = pareto.to_csv(points).encode()
    contents["pareto.png"] = chart.png
  if robustness is not None:
    contents["robustness.png"] = robustness.png
  return contents, remarks


def _figure(
  models: Mapping[str, Evaluated],
) -> tuple[bytes | None, list[cards.Card], str, list[str]]:
  """Returns the paper's Figure 2 over models, as a picture and as cards.

  And the method shown, and remarks.

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
    return None, [], "", remarks
  named = next(one for one in models.values() if one.examples)
  rows, found = [], []
  for key in common[:_MAX_ROWS]:
    examples = {label: by_key[key] for label, by_key in shown.items()}
    cells = [pictures.outlined(own[key])]
    cells += [
      pictures.explained(one, one.maps[methods[0]]) for one in examples.values()
    ]
    rows.append((named.class_name(own[key].target), cells))
    found.append(cards.beside(named, examples, methods[0]))
  figure = pictures.draw_grid(["Image", *shown], rows)
  return figure, found, methods[0], remarks


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
