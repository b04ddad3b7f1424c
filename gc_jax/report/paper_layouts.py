"""Evaluations laid out as the paper's Tables 1-6, its numbers beside ours.

Every layout is made for any data set and any model: what was not measured
stays empty and is named in a note. The paper's numbers stand in rows of
their own, where data set, architecture and pooling are the same.
"""

from collections.abc import Sequence

from gc_jax import data
from gc_jax.attribution import CONTROLS, title_of
from gc_jax.method.metrics import EPSILONS, METRICS, Key
from gc_jax.report import describe, paper_tables, tables
from gc_jax.report.tables import Column, Models, Row, Table

GRADCAMS = ("gradcam_elementwise", "gradcam")


def make_layouts(models: Models) -> list[Table]:
  """Returns the paper's tables; 1 or 2, as pictures show one class or several.

  Where few questions were asked, those without a number of ours are left out.

  Args:
    models: as for `tables.overview`.
  """
  number = 2 if tables.first(models).about.multi_label else 1
  made = [
    _maps_table(models, number, GRADCAMS),
    _maps_table(models, 3, ("cmwp",)),
    _maps_table(models, 4, ("fullgrad",)),
    _variants_table(models),
    _attacks_table(models),
  ]
  asked = {q for group in models.values() for q in group[0].about.questions}
  return [table for table in made if "attacks" in asked or _has_numbers(table)]


def _has_numbers(table: Table) -> bool:
  """Returns whether anything but clean accuracy was measured of a model."""
  clean = {
    column.key
    for column in table.columns
    if not METRICS[column.metric].is_of_maps and column.epsilon is None
  }
  return any(
    row.cells.keys() - clean
    for row in table.rows
    if not row.is_control and not row.is_reference
  )


def _maps_table(models: Models, number: int, methods: Sequence[str]) -> Table:
  """Returns Table 1, 2, 3 or 4: a block of rows for each method."""
  names = paper_tables.TABLES[number].rows[0].cells
  columns = [tables.column(name, decimals=2) for name in names]
  rows = [
    row
    for method in (*methods, *CONTROLS)
    for row in tables.method_rows(models, method, columns)
  ]
  return _finished(models, number, columns, rows)


def _variants_table(models: Models) -> Table:
  """Returns Table 5: both variants of Grad-CAM beside each other."""
  columns = []
  for metric, method in paper_tables.VARIANTS:
    is_plain = method == "gradcam"
    known = METRICS[metric]
    columns.append(
      tables.column(
        metric,
        decimals=2,
        key=paper_tables.variant(metric, method),
        title=f"{known.title}, {'GCAM' if is_plain else 'element-wise'}",
        meaning=known.meaning if is_plain else "",
        method=method,
      )
    )
  rows = [
    tables.make_row(label, "", members, columns)
    for label, members in models.items()
  ]
  rows += [
    # A control knows no variant: its number stands under both.
    tables.make_row(
      title_of(control),
      control,
      [tables.first(models)],
      columns,
      key_of=lambda column, control=control: Key(column.metric, control),
    )
    for control in CONTROLS
  ]
  return _finished(models, 5, columns, rows)


def _attacks_table(models: Models) -> Table:
  """Returns Table 6, with rows for what else was tried of each model."""
  columns = tables.attack_columns(models, 2, EPSILONS)
  rows = tables.attack_rows(models, columns)
  return _finished(models, 6, columns, rows)


def _finished(
  models: Models, number: int, columns: Sequence[Column], rows: Sequence[Row]
) -> Table:
  """Returns the table, the paper's rows before the controls, with notes."""
  paper = paper_tables.TABLES[number]
  about = tables.first(models).about
  own = [row for row in rows if not row.is_control]
  controls = [row for row in rows if row.is_control]
  quoted = _paper_rows(models, number)
  laid_out = f"Laid out as the paper's Table {number}, {paper.caption}"
  if not quoted and about.data_name != paper.data_name:
    of = data.title(paper.data_name)
    laid_out += f"; that is of {of}, so none of its rows stands here"
  elif not quoted:
    laid_out += "; it has no row of such a model, so none stands here"
  notes = [f"{laid_out}."]
  notes += _unmeasured(rows, columns)
  notes += tables.costly_notes(models, rows, columns)
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
    title=f"Table {number}: {what}, {data.title(about.data_name)}",
    notes=tuple(notes),
  )


def _paper_rows(models: Models, number: int) -> list[Row]:
  """Returns the paper's rows that ours compare with, in its order."""
  paper = paper_tables.TABLES[number]
  abouts = [members[0].about for members in models.values()]
  wanted = {
    (about.architecture.removesuffix("-gmp"), name)
    for about in abouts
    if about.data_name == paper.data_name
    for name in describe.paper_names(about)
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
      if row.is_control and not METRICS[column.metric].is_of_maps:
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
