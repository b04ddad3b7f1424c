"""The paper's tables as data: columns, rows, means over seeds, the best."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Column:
  """A metric: its key after "val/" or "val/METHOD/", and how to read it.

  Attributes:
    key: unique in its table.
    title: the heading.
    meaning: a few words.
    higher_is_better: None where neither direction is.
    decimals: printed.
    unit: "percent", or "" for a plain number.
  """

  key: str
  title: str
  meaning: str
  higher_is_better: bool | None = True
  decimals: int = 1
  unit: str = "percent"

  @property
  def heading(self) -> str:
    """Returns the title with an arrow towards better."""
    if self.higher_is_better is None:
      return self.title
    return f"{self.title} {'↑' if self.higher_is_better else '↓'}"


CLASSIFICATION_COLUMNS = (
  Column("top1", "Top-1", "images classified correctly"),
  Column("f1_per_class", "F1-PerClass", "F1, averaged over classes"),
  Column("f1_overall", "F1-Overall", "F1 over all decisions"),
  Column("map", "mAP", "average precision, averaged over classes"),
)
MAP_COLUMNS = (
  Column("pointing_game", "PG", "pointing game: maps that peak on the object"),
  Column(
    "stochastic_pointing_game",
    "SPG",
    "stochastic pointing game: points drawn from the map that hit",
  ),
  Column(
    "stochastic_pointing_game_exact",
    "SPG exact",
    "the expectation of SPG, without drawing",
  ),
  Column("content_heatmap", "CH", "content heatmap: map within the object"),
  Column(
    "negative_quadrants_heatmap",
    "NQH",
    "negative quadrants heatmap: map of a composite on its distractors",
    higher_is_better=False,
  ),
)
METHOD_TITLES = {
  "gradcam_elementwise": "Grad-CAM, element-wise",
  "gradcam": "Grad-CAM",
  "gradcam_plus_plus": "Grad-CAM++",
  "layercam": "LayerCAM",
  "cmwp": "cMWP",
  "excitation_backprop": "Excitation backprop",
  "fullgrad": "FullGrad",
  "input_gradients": "Input gradients",
  "integrated_gradients": "Integrated gradients",
  "smoothgrad": "SmoothGrad",
  "uniform": "Uniform map",
  "center": "Centred Gaussian",
}
CONTROLS = ("uniform", "center")


@dataclasses.dataclass(frozen=True)
class Cell:
  """A number with its spread.

  Attributes:
    mean: over the runs of one configuration.
    std: sample standard deviation over runs; None for a single run.
    sampling_std: spread of a single run over the draws of a stochastic
      metric, averaged over runs; None where nothing is drawn.
    num_runs: how many runs have this number.
    interval: low and high end of its 95% interval, or None.
    is_on_fewer: whether it was measured on fewer examples than others may be.
  """

  mean: float
  std: float | None
  sampling_std: float | None
  num_runs: int
  interval: tuple[float, float] | None = None
  is_on_fewer: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
  """One model explained by one method; `cells` lacks what is not measured.

  Attributes:
    label: the model's name.
    method: the explanation's; rows of one method compete for the best.
    cells: by the columns' keys.
    num_runs: that differ by seed only.
    title: the method in words, where `METHOD_TITLES` does not say it.
    is_reference: whether the numbers are another's, quoted for comparison.
  """

  label: str
  method: str
  cells: Mapping[str, Cell]
  num_runs: int
  title: str = ""
  is_reference: bool = False

  @property
  def is_control(self) -> bool:
    """Returns whether the row's map knows nothing of the model."""
    return self.method in CONTROLS


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows in blocks of one method, controls last.

  Attributes:
    columns: as they stand from left to right.
    rows: from top to bottom.
    title: what stands above it, or "".
    notes: what a reader of this table must know, a sentence or more each.
    across_methods: whether rows of all methods compete for the best.
  """

  columns: tuple[Column, ...]
  rows: tuple[Row, ...]
  title: str = ""
  notes: tuple[str, ...] = ()
  across_methods: bool = False

  def is_best(self, row: Row, column: Column) -> bool:
    """Returns whether no other model does better under the row's method.

    Numbers that print the same count as the same. Never a control row nor
    one quoted, and never where all rows are the same: there is nothing to
    choose. Nor one measured on fewer examples than a rival.
    """
    if row.is_control or row.is_reference or column.key not in row.cells:
      return False
    cells = [
      r.cells[column.key]
      for r in self.rows
      if (self.across_methods or r.method == row.method)
      and column.key in r.cells
      and not (r.is_reference or r.is_control)
    ]
    on_fewer = all(cell.is_on_fewer for cell in cells)
    rivals = [
      round(cell.mean, column.decimals)
      for cell in cells
      if cell.is_on_fewer == on_fewer
    ]
    if row.cells[column.key].is_on_fewer != on_fewer:
      return False
    if column.higher_is_better is None or len(set(rivals)) < 2:
      return False
    best = max(rivals) if column.higher_is_better else min(rivals)
    return round(row.cells[column.key].mean, column.decimals) == best


def make_table(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
  """Returns the table of some models.

  Args:
    models: label to the results.json of its runs, which differ by seed only.
      Numbers in percent. Keys this table does not know are left out.
  """
  rows = []
  for method in _methods(models):
    for label, runs in models.items():
      row = _make_row(label, method, runs)
      if any(column.key in row.cells for column in MAP_COLUMNS):
        rows.append(row)
        if row.is_control:  # depends on the data only: once is enough
          break
  if not rows:  # no explanation was evaluated
    rows = [_make_row(label, "", runs) for label, runs in models.items()]
  columns = tuple(
    column
    for column in CLASSIFICATION_COLUMNS + MAP_COLUMNS
    if any(column.key in row.cells for row in rows)
  )
  return Table(columns=columns, rows=tuple(rows))


def number(results: Mapping[str, Any], key: str) -> float | None:
  """Returns a result as a float; None where it is missing or not finite."""
  value = results.get(key)
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  return float(value) if math.isfinite(value) else None


def _make_row(
  label: str, method: str, runs: Sequence[Mapping[str, Any]]
) -> Row:
  cells = {}
  if method in CONTROLS:
    label, runs = METHOD_TITLES[method], runs[:1]
  else:
    for column in CLASSIFICATION_COLUMNS:
      cells[column.key] = make_cell(runs, f"val/{column.key}")
  for column in MAP_COLUMNS:
    cells[column.key] = make_cell(runs, f"val/{method}/{column.key}")
  cells = {key: cell for key, cell in cells.items() if cell is not None}
  return Row(label=label, method=method, cells=cells, num_runs=len(runs))


def make_cell(
  runs: Sequence[Mapping[str, Any]], key: str, *, interval: bool = False
) -> Cell | None:
  """Returns a number over the runs of one configuration, or None.

  Args:
    runs: their results.json.
    key: of the number.
    interval: whether to take its 95% interval along, which a single run has
      under `KEY_low` and `KEY_high`.
  """
  values = [v for run in runs if (v := number(run, key)) is not None]
  stds = [v for run in runs if (v := number(run, f"{key}_std")) is not None]
  if not values:
    return None
  return Cell(
    mean=statistics.fmean(values),
    std=statistics.stdev(values) if len(values) > 1 else None,
    sampling_std=statistics.fmean(stds) if stds else None,
    num_runs=len(values),
    interval=(
      number_interval(runs[0], key) if interval and len(runs) == 1 else None
    ),
  )


def number_interval(
  results: Mapping[str, Any], key: str
) -> tuple[float, float] | None:
  """Returns the ends of a result's 95% interval, where it has one."""
  low, high = (number(results, f"{key}_{end}") for end in ("low", "high"))
  return None if low is None or high is None else (low, high)


def _methods(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
  """Returns the methods with any map metric: known order, others, controls."""
  keys = {column.key for column in MAP_COLUMNS}
  found = {
    parts[1]
    for runs in models.values()
    for results in runs
    for parts in (key.split("/") for key in results)
    if len(parts) == 3 and parts[0] == "val" and parts[2] in keys
  }
  known = [m for m in METHOD_TITLES if m in found and m not in CONTROLS]
  others = sorted(found - set(METHOD_TITLES))
  return known + others + [m for m in CONTROLS if m in found]
