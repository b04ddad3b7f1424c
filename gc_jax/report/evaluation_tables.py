"""All tables of evaluations: the paper's layouts, then all with intervals."""

import dataclasses
from collections.abc import Sequence

from gc_jax.report import (
  describe_evaluated,
  evaluation_rows,
  paper_layouts,
  tables,
)
from gc_jax.report.evaluation_rows import CLASSIFICATION, MAPS, Models
from gc_jax.report.tables import Column, Row, Table


def make_tables(models: Models) -> list[Table]:
  """Returns the paper's layouts, then all that was measured, with intervals.

  Args:
    models: label to its evaluations, which differ by seed only; all on the
      same data.
  """
  return [
    *paper_layouts.make_layouts(models),
    accuracy_table(models),
    *attacks_table(models),
    full_table(models),
  ]


def accuracy_table(models: Models) -> Table:
  """Returns classification alone, every number with its 95% interval."""
  rows = [
    evaluation_rows.make_row(label, "", members, CLASSIFICATION, interval=True)
    for label, members in models.items()
  ]
  columns = tuple(_measured(CLASSIFICATION, rows))
  return Table(columns, tuple(rows), "Accuracy")


def attacks_table(models: Models) -> list[Table]:
  """Returns accuracy under attack, with intervals; none where none was made."""
  columns = evaluation_rows.attack_columns(models, decimals=1)
  rows = [
    row
    for row in evaluation_rows.attack_rows(models, columns, interval=True)
    if len(row.cells) > 1
  ]
  if not rows:
    return []
  columns = _measured(columns, rows)
  notes = evaluation_rows.costly_notes(models, rows, columns)
  title = "Accuracy under attack"
  return [Table(tuple(columns), tuple(rows), title, tuple(notes))]


def full_table(models: Models) -> Table:
  """Returns all methods by all metrics of maps, with their 95% intervals."""
  rows = [
    _counted(models, row)
    for method in _methods(models)
    for row in evaluation_rows.method_rows(models, method, MAPS, interval=True)
    if row.cells
  ]
  columns = _measured(MAPS, rows)
  return Table(
    tuple(columns),
    tuple(rows),
    "All methods, all metrics",
    tuple(evaluation_rows.costly_notes(models, rows, columns)),
    across_methods=len(models) == 1,
  )


def _counted(models: Models, row: Row) -> Row:
  """Returns a model's row that says what of it is of fewer pairs."""
  first = (
    evaluation_rows.first(models) if row.is_control else models[row.label][0]
  )
  if not describe_evaluated.fewer_pairs(first):
    return row
  is_costly = row.method in first.about.costly_methods
  cells = {
    key: dataclasses.replace(
      cell, is_on_fewer=is_costly or key in evaluation_rows.COSTLY_METRICS
    )
    for key, cell in row.cells.items()
  }
  title = row.title
  if is_costly:
    method = evaluation_rows.title_of(row.method)
    title = f"{method}, {first.about.num_costly_images:,} pairs"
  return dataclasses.replace(row, cells=cells, title=title)


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
