"""Evaluations laid out as the paper's Tables 1-6, its numbers beside ours.

Every layout is made for any data set and any model: what was not measured
stays empty and is named in a note. The paper's numbers stand in rows of
their own, where data set, architecture and pooling are the same.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from gc_jax.report import describe, describe_evaluated, paper_tables, tables
from gc_jax.report.evaluated import Evaluated
from gc_jax.report.tables import Cell, Column, Row, Table

Models = Mapping[str, Sequence[Evaluated]]  # label to repetitions by seed

GRADCAMS = ("gradcam_elementwise", "gradcam")
ATTACKS = {
  "fgsm": "FGSM",
  "fgsm-within": "FGSM, any step up to ε",
  "fgsm-few": "FGSM, on PGD's pictures",
  "pgd": "PGD",
}
CLASSIFICATION = (
  tables.CLASSIFICATION_COLUMNS[0],
  Column("top5", "Top-5", "images with the class among the five highest"),
  *tables.CLASSIFICATION_COLUMNS[1:],
)
MAPS = (
  *tables.MAP_COLUMNS,
  Column(
    "insertion_auc",
    "Insertion",
    "probability of the class while pixels appear, highest of the map first",
  ),
  Column(
    "deletion_auc",
    "Deletion",
    "probability of the class while pixels vanish, highest of the map first",
    higher_is_better=False,
  ),
  Column(
    "max_box_acc_50",
    "MaxBoxAcc 0.5",
    "boxes around the map that overlap the object's by half",
  ),
  Column(
    "max_box_acc_v2",
    "MaxBoxAccV2",
    "the same, averaged over overlaps of 0.3, 0.5 and 0.7",
  ),
  Column("zero_map_frac", "Empty", "maps that are zero everywhere", None),
  Column(
    "num_pairs",
    "Pairs",
    "image and class pairs measured",
    None,
    decimals=0,
    unit="",
  ),
)
# Measured by every method on as few pairs as costly methods are.
_COSTLY_METRICS = (
  "insertion_auc",
  "deletion_auc",
  "max_box_acc_50",
  "max_box_acc_v2",
)
_ON_FEW = ("fgsm-few", "pgd")
_KNOWN = {column.key: column for column in (*CLASSIFICATION, *MAPS)}
_OF_MODELS = {column.key for column in CLASSIFICATION}
_OF_MAPS = {column.key for column in MAPS}
FRACTIONS = ("zero_map_frac",)  # in results; percent in tables


def make_tables(models: Models) -> list[Table]:
  """Returns the paper's layouts, then everything that was measured.

  Table 1 where pictures show one class, Table 2 where they show several.

  Args:
    models: label to its evaluations, which differ by seed only; all on the
      same data.
  """
  number = 2 if _first(models).about.multi_label else 1
  return [
    _maps_table(models, number, GRADCAMS),
    _maps_table(models, 3, ("cmwp",)),
    _maps_table(models, 4, ("fullgrad",)),
    _variants_table(models),
    _robustness_table(models),
    accuracy_table(models),
    full_table(models),
  ]


def accuracy_table(models: Models) -> Table:
  """Returns classification alone, every number with its 95% interval."""
  rows = [
    _row(label, "", members, CLASSIFICATION, interval=True)
    for label, members in models.items()
  ]
  columns = tuple(_measured(CLASSIFICATION, rows))
  return Table(columns, tuple(rows), "Accuracy")


def full_table(models: Models) -> Table:
  """Returns all methods by all metrics of maps, with their 95% intervals."""
  rows = [
    _counted(models, row)
    for method in _methods(models)
    for row in _method_rows(models, method, MAPS, interval=True)
    if row.cells
  ]
  columns = _measured(MAPS, rows)
  return Table(
    tuple(columns),
    tuple(rows),
    "All methods, all metrics",
    tuple(_costly_notes(models, rows, columns)),
    across_methods=len(models) == 1,
  )


def _counted(models: Models, row: Row) -> Row:
  """Returns a model's row that says what of it is of fewer pairs."""
  first = _first(models) if row.is_control else models[row.label][0]
  if not describe_evaluated.fewer_pairs(first):
    return row
  is_costly = row.method in first.about.costly_methods
  cells = {
    key: dataclasses.replace(
      cell, is_on_fewer=is_costly or key in _COSTLY_METRICS
    )
    for key, cell in row.cells.items()
  }
  count = f"{title_of(row.method)}, {first.about.num_costly_images:,} pairs"
  title = count if is_costly else row.title
  return dataclasses.replace(row, cells=cells, title=title)


def _costly_notes(
  models: Models, rows: Sequence[Row], columns: Sequence[Column]
) -> list[str]:
  """Returns what of a table was measured on fewer pairs."""
  shown = {row.method for row in rows if row.cells}
  metrics = [c.title for c in columns if c.key in _COSTLY_METRICS]
  attacks = [ATTACKS[attack] for attack in _ON_FEW if attack in shown]
  notes = {}
  for members in models.values():
    costly = members[0].about.costly_methods
    words = [title_of(method) for method in costly if method in shown]
    if metrics:
      words.append(f"by every method {', '.join(metrics)}")
    fewer = describe_evaluated.fewer_pairs(members[0])
    if fewer and words:
      sentence = f"Measured on {fewer}, as they take many passes each: "
      notes[f"{sentence}{'; '.join(words)}."] = None
    if fewer and attacks:
      sentence = f"Measured on the images of {fewer}, clean ones too: "
      notes[f"{sentence}{'; '.join(attacks)}."] = None
  return list(notes)


def title_of(method: str) -> str:
  """Returns a method's name in words."""
  return tables.METHOD_TITLES.get(method, method)


def accuracy_key(evaluated: Evaluated) -> str:
  """Returns the metric of accuracy, as pictures show one class or several."""
  return "f1_overall" if evaluated.about.multi_label else "top1"


def accuracy_title(evaluated: Evaluated) -> str:
  """Returns "Top-1" or "F1-Overall"."""
  return _KNOWN[accuracy_key(evaluated)].title


def epsilons(evaluations: Iterable[Evaluated]) -> list[str]:
  """Returns the paper's epsilons and those measured, in 1/255, ascending."""
  found = set(paper_tables.TABLES[6].rows[0].cells)
  for evaluated in evaluations:
    for key in evaluated.results:
      attack = re.fullmatch(r"val/([\w-]+?)_(\d+(?:\.\d+)?)/\w+", key)
      if attack and attack[1] in ATTACKS and attack[2] != "0":
        found.add(attack[2])
  return sorted(found, key=float)


def _maps_table(models: Models, number: int, methods: Sequence[str]) -> Table:
  """Returns Table 1, 2, 3 or 4: a block of rows for each method."""
  names = paper_tables.TABLES[number].rows[0].cells
  columns = [dataclasses.replace(_KNOWN[name], decimals=2) for name in names]
  rows = [
    row
    for method in (*methods, *tables.CONTROLS)
    for row in _method_rows(models, method, columns)
  ]
  return _finished(models, number, columns, rows)


def _variants_table(models: Models) -> Table:
  """Returns Table 5: both variants of Grad-CAM beside each other."""
  columns = []
  for key in paper_tables.TABLES[5].rows[0].cells:
    method, metric = key.split("/")
    word = "GCAM" if method == "gradcam" else "element-wise"
    known = _KNOWN[metric]
    columns.append(
      Column(
        key,
        f"{known.title}, {word}",
        known.meaning if method == "gradcam" else "",
        known.higher_is_better,
        decimals=2,
      )
    )
  rows = [
    _row(label, "", members, columns) for label, members in models.items()
  ]
  for control in tables.CONTROLS:
    # A control knows no variant: its number stands under both.
    cells = {
      column.key: _cell(
        [_first(models)], f"{control}/{column.key.partition('/')[2]}"
      )
      for column in columns
    }
    rows.append(_control_row(control, cells))
  return _finished(models, 5, columns, rows)


def _robustness_table(models: Models) -> Table:
  """Returns Table 6, with rows for what else was tried of each model."""
  metric = accuracy_key(_first(models))
  word = _KNOWN[metric].title
  columns = [Column(metric, "clean", f"{word} without an attack", decimals=2)]
  for epsilon in epsilons(e for group in models.values() for e in group):
    columns.append(Column(epsilon, f"ε = {epsilon}", "", decimals=2))
  rows = []
  for attack, title in ATTACKS.items():
    for label, members in models.items():
      # Measured on fewer pictures, an attack has a clean number of its own.
      clean = f"{attack}_0/{metric}"
      if f"val/{clean}" not in members[0].results:
        clean = metric
      cells = {
        column.key: _cell(
          members,
          clean if column.key == metric else f"{attack}_{column.key}/{metric}",
        )
        for column in columns
      }
      if attack != "fgsm" and len(_present(cells)) < 2:
        continue
      rows.append(
        Row(label, attack, _present(cells), len(members), title=title)
      )
  return _finished(models, 6, columns, rows)


def _finished(
  models: Models, number: int, columns: Sequence[Column], rows: Sequence[Row]
) -> Table:
  """Returns the table, the paper's rows before the controls, with notes."""
  paper = paper_tables.TABLES[number]
  about = _first(models).about
  own = [row for row in rows if not row.is_control]
  controls = [row for row in rows if row.is_control]
  quoted = _paper_rows(models, number)
  laid_out = f"Laid out as the paper's Table {number}, {paper.caption}"
  if not quoted and about.data_name != paper.data_name:
    of = describe.data_title(paper.data_name)
    laid_out += f"; that is of {of}, so none of its rows stands here"
  elif not quoted:
    laid_out += "; it has no row of such a model, so none stands here"
  notes = [f"{laid_out}."]
  notes += _unmeasured(rows, columns)
  notes += _costly_notes(models, rows, columns)
  if number == 6:
    notes.append(
      "ε is in 1/255. Ours: untargeted, away from the ground truth, within ε "
      "of every pixel in [0, 1] and clipped there. FGSM's step of the whole ε "
      "may lead too far: “any step up to ε” counts a decision as right if it "
      "is so without an attack and at every measured ε up to this one. PGD "
      "stands beside them because a maximum may only hide gradients from a "
      "single step."
    )
  if quoted and paper.caveat:
    notes.append(paper.caveat)
  what = paper.caption.partition(" on the ")[0]
  return Table(
    columns=tuple(columns),
    rows=(*own, *quoted, *controls),
    title=f"Table {number}: {what}, {describe.data_title(about.data_name)}",
    notes=tuple(notes),
  )


def _paper_rows(models: Models, number: int) -> list[Row]:
  """Returns the paper's rows that ours compare with, in its order."""
  paper = paper_tables.TABLES[number]
  abouts = [members[0].about for members in models.values()]
  wanted = {
    (describe_evaluated.architecture(about), name)
    for about in abouts
    if about.data_name == paper.data_name
    for name in describe_evaluated.paper_names(about)
  }
  titles = {
    paper_tables.EITHER: "Grad-CAM, both variants",
    paper_tables.UNKNOWN: "Grad-CAM, variant uncertain",
    "": "FGSM, ε without unit" if number == 6 else "as headed",
  }
  return [
    Row(
      label="paper: "
      f"{describe.architecture_title(row.architecture)} {row.model}",
      method=row.method,
      cells=row.cells,
      num_runs=1,
      title=titles.get(row.method, title_of(row.method)),
      is_reference=True,
    )
    for row in paper.rows
    if (row.architecture, row.model) in wanted
  ]


def _unmeasured(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
  """Returns a sentence that names the empty cells, if there are any."""
  missing: dict[str, dict[str, list[str]]] = {}  # method, heading, models
  for row in rows:
    method = row.title or title_of(row.method)
    for column in columns:
      if row.is_control and column.key in _OF_MODELS:
        continue  # a control classifies nothing
      if column.key not in row.cells:
        headings = missing.setdefault(method, {})
        headings.setdefault(column.title, []).append(row.label)
  parts = []
  for method, headings in missing.items():
    models = [
      r.label for r in rows if (r.title or title_of(r.method)) == method
    ]
    words = []
    for heading, labels in headings.items():
      whose = "" if labels == models else f" of {' and '.join(labels)}"
      words.append(heading + whose)
    all_of_it = words == [column.title for column in columns]
    listed = "everything" if all_of_it else ", ".join(words)
    parts.append(f"{method}: {listed}" if method else listed)
  return [f"Not measured, and so empty: {'; '.join(parts)}."] if parts else []


def _method_rows(
  models: Models,
  method: str,
  columns: Sequence[Column],
  *,
  interval: bool = False,
) -> list[Row]:
  """Returns a row for each model; one for a control: it knows no model."""
  if method in tables.CONTROLS:
    row = _row("", method, [_first(models)], columns, interval=interval)
    of_maps = {k: cell for k, cell in row.cells.items() if k in _OF_MAPS}
    return [_control_row(method, of_maps)]
  return [
    _row(label, method, members, columns, interval=interval)
    for label, members in models.items()
  ]


def _control_row(method: str, cells: Mapping[str, Cell | None]) -> Row:
  return Row(title_of(method), method, _present(cells), 1)


def _row(
  label: str,
  method: str,
  members: Sequence[Evaluated],
  columns: Sequence[Column],
  *,
  interval: bool = False,
) -> Row:
  cells = {}
  for column in columns:
    of_method = method and column.key in _OF_MAPS
    key = f"{method}/{column.key}" if of_method else column.key
    cells[column.key] = _cell(members, key, interval=interval)
  return Row(label, method, _present(cells), len(members))


def _cell(
  members: Sequence[Evaluated], key: str, *, interval: bool = False
) -> Cell | None:
  """Returns the number at val/KEY; fractions become percent."""
  runs = [evaluated.results for evaluated in members]
  cell = tables.make_cell(runs, f"val/{key}", interval=interval)
  if cell is None or key.rpartition("/")[2] not in FRACTIONS:
    return cell
  ends = cell.interval
  return dataclasses.replace(
    cell,
    mean=100.0 * cell.mean,
    std=None if cell.std is None else 100.0 * cell.std,
    interval=None if ends is None else (100.0 * ends[0], 100.0 * ends[1]),
  )


def _present(cells: Mapping[str, Cell | None]) -> dict[str, Cell]:
  return {key: cell for key, cell in cells.items() if cell is not None}


def _measured(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
  return [c for c in columns if any(c.key in row.cells for row in rows)]


def _methods(models: Models) -> list[str]:
  """Returns all methods measured: known order, others, controls."""
  found = {
    method: None
    for members in models.values()
    for evaluated in members
    for method in evaluated.about.methods
  }
  known = [m for m in tables.METHOD_TITLES if m in found]
  others = [m for m in found if m not in tables.METHOD_TITLES]
  return [*known, *others, *tables.CONTROLS]


def _first(models: Models) -> Evaluated:
  return next(iter(models.values()))[0]
