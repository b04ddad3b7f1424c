"""Tables as data: columns, rows, means over seeds, the best; and which."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gc_jax.attribution import CONTROLS, METHODS, title_of
from gc_jax.method.metrics import ATTACKS, METRICS, Key, accuracy
from gc_jax.report import describe
from gc_jax.report.artefact import Evaluated

Models = Mapping[str, Sequence[Evaluated]]  # label to repetitions by seed
_NOT_AT_A_GLANCE = ("top5", "zero_map_frac")


@dataclasses.dataclass(frozen=True)
class Column:
  """A column, and how to read it.

  Attributes:
    key: unique in its table.
    title: the heading.
    meaning: a few words.
    higher_is_better: None where neither direction is.
    decimals: printed.
    metric: of `METRICS`, which the numbers are of.
    method: whose maps, where it is not the row's.
    epsilon: of the row's attack; None where pictures are clean.
  """

  key: str
  title: str
  meaning: str
  metric: str
  higher_is_better: bool | None = True
  decimals: int = 1
  method: str = ""
  epsilon: float | int | None = None

  @property
  def heading(self) -> str:
    """Returns the title with an arrow towards better."""
    if self.higher_is_better is None:
      return self.title
    return f"{self.title} {'↑' if self.higher_is_better else '↓'}"

  def number(self, method: str) -> Key:
    """Returns which number stands in the row of a method, or of none."""
    is_of_maps = METRICS[self.metric].is_of_maps
    return Key(self.metric, (self.method or method) if is_of_maps else "")


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
    method: the explanation's, or an attack's; rows of one method compete for
      the best.
    cells: by the columns' keys.
    num_runs: that differ by seed only.
    title: the method in words, where it has no title of its own.
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


def column(metric: str, decimals: int = 1, **changes: Any) -> Column:
  """Returns the column of a metric, with what is said otherwise."""
  known = METRICS[metric]
  made = Column(
    metric, known.title, known.meaning, metric, known.higher_is_better, decimals
  )
  return dataclasses.replace(made, **changes)


_COLUMNS = tuple(column(name) for name in METRICS)
OF_MODELS = tuple(c for c in _COLUMNS if not METRICS[c.metric].is_of_maps)
OF_MAPS = tuple(c for c in _COLUMNS if METRICS[c.metric].is_of_maps)


def overview(models: Models) -> Table:
  """Returns accuracy and maps at a glance, a row a method and model.

  Args:
    models: label to its evaluations, which differ by seed only; all on the
      same data.
  """
  columns = [
    c
    for c in _COLUMNS
    if c.key not in _NOT_AT_A_GLANCE and not METRICS[c.metric].is_costly
  ]
  maps = {c.key for c in columns} & {c.key for c in OF_MAPS}
  rows = [
    row
    for method in methods_of(models)
    for row in method_rows(models, method, columns)
    if maps & row.cells.keys()
  ]
  if not rows:  # no explanation was evaluated
    rows = [
      make_row(label, "", group, columns) for label, group in models.items()
    ]
  kept = _measured(columns, rows)
  notes = costly_notes(models, rows, kept)
  return Table(tuple(kept), tuple(rows), "At a glance", tuple(notes))


def accuracy_table(models: Models) -> Table:
  """Returns classification alone, every number with its 95% interval."""
  rows = [
    make_row(label, "", members, OF_MODELS, interval=True)
    for label, members in models.items()
  ]
  return Table(tuple(_measured(OF_MODELS, rows)), tuple(rows), "Accuracy")


def attacks_table(models: Models) -> list[Table]:
  """Returns accuracy under attack, with intervals; none where none was made."""
  columns = attack_columns(models, decimals=1)
  rows = [
    row
    for row in attack_rows(models, columns, interval=True)
    if len(row.cells) > 1
  ]
  if not rows:
    return []
  columns = _measured(columns, rows)
  notes = costly_notes(models, rows, columns)
  title = "Accuracy under attack"
  return [Table(tuple(columns), tuple(rows), title, tuple(notes))]


def full_table(models: Models) -> Table:
  """Returns all methods by all metrics of maps, with their 95% intervals."""
  rows = [
    _counted(models, row)
    for method in methods_of(models)
    for row in method_rows(models, method, OF_MAPS, interval=True)
    if row.cells
  ]
  columns = _measured(OF_MAPS, rows)
  return Table(
    tuple(columns),
    tuple(rows),
    "All methods, all metrics",
    tuple(costly_notes(models, rows, columns)),
    across_methods=len(models) == 1,
  )


def _counted(models: Models, row: Row) -> Row:
  """Returns a model's row that says what of it is of fewer pairs."""
  one = first(models) if row.is_control else models[row.label][0]
  if not describe.fewer_pairs(one):
    return row
  is_costly = row.method in one.about.costly_methods
  cells = {
    key: dataclasses.replace(
      cell, is_on_fewer=is_costly or METRICS[key].is_costly
    )
    for key, cell in row.cells.items()
  }
  title = row.title
  if is_costly:
    pairs = f"{one.about.num_costly_images:,} pairs"
    title = f"{title_of(row.method)}, {pairs}"
  return dataclasses.replace(row, cells=cells, title=title)


def _measured(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
  return [c for c in columns if any(c.key in row.cells for row in rows)]


def methods_of(models: Models) -> list[str]:
  """Returns all methods measured: known order, others, controls."""
  return in_order(
    method
    for members in models.values()
    for evaluated in members
    for method in (*evaluated.about.methods, *CONTROLS)
  )


def in_order(found: Iterable[str]) -> list[str]:
  """Returns methods in the order of tables: known ones, others, controls."""
  found = dict.fromkeys(found)
  others = [m for m in found if m not in METHODS and m not in CONTROLS]
  known, controls = (
    [m for m in own if m in found] for own in (METHODS, CONTROLS)
  )
  return [*known, *others, *controls]


def method_rows(
  models: Models,
  method: str,
  columns: Sequence[Column],
  *,
  interval: bool = False,
) -> list[Row]:
  """Returns a row for each model; one for a control: it knows no model."""
  if method in CONTROLS:
    of_maps = [c for c in columns if METRICS[c.metric].is_of_maps]
    row = make_row(
      title_of(method), method, [first(models)], of_maps, interval=interval
    )
    return [row]
  return [
    make_row(label, method, members, columns, interval=interval)
    for label, members in models.items()
  ]


def make_row(
  label: str,
  method: str,
  members: Sequence[Evaluated],
  columns: Sequence[Column],
  *,
  key_of: Callable[[Column], Key] | None = None,
  title: str = "",
  interval: bool = False,
) -> Row:
  """Returns a row, with the cells that were measured.

  Args:
    label: of the row.
    method: the explanation's, or an attack's, or "".
    members: repetitions by seed.
    columns: of the table.
    key_of: which number stands in a column; None = the method's.
    title: see `Row`.
    interval: whether numbers come with their 95% intervals.
  """
  cells = {}
  for one in columns:
    key = one.number(method) if key_of is None else key_of(one)
    cell = make_cell(members, key, interval=interval)
    if cell is not None:
      cells[one.key] = cell
  return Row(label, method, cells, len(members), title)


def make_cell(
  members: Sequence[Evaluated], key: Key, *, interval: bool = False
) -> Cell | None:
  """Returns a number over repetitions, or None; fractions become percent."""
  values = [v for one in members if (v := one.number(key)) is not None]
  stds = [v for one in members if (v := one.std(key)) is not None]
  if not values:
    return None
  scale = 100.0 if METRICS[key.metric].unit == "fraction" else 1.0
  ends = members[0].interval(key) if interval and len(members) == 1 else None
  return Cell(
    mean=scale * statistics.fmean(values),
    std=scale * statistics.stdev(values) if len(values) > 1 else None,
    sampling_std=scale * statistics.fmean(stds) if stds else None,
    num_runs=len(values),
    interval=None if ends is None else (scale * ends[0], scale * ends[1]),
  )


def epsilons(evaluations: Iterable[Evaluated]) -> list[float | int]:
  """Returns the epsilons under which accuracy was measured, ascending."""
  found = {
    float(epsilon)
    for evaluated in evaluations
    for curve in evaluated.curves.robustness.values()
    for epsilon in curve
  }
  return sorted(found - {0.0})


def attack_columns(
  models: Models, decimals: int, also: Iterable[float | int] = ()
) -> list[Column]:
  """Returns a column without an attack, and one for each epsilon.

  Args:
    models: as for `overview`.
    decimals: printed.
    also: epsilons that have a column even where they were not measured.
  """
  metric = accuracy(first(models).about.multi_label)
  meaning = f"{METRICS[metric].title} without an attack"
  measured = epsilons(one for members in models.values() for one in members)
  return [
    column(metric, decimals, title="clean", meaning=meaning),
    *(
      column(
        metric,
        decimals,
        key=f"{epsilon:g}",
        title=f"ε = {epsilon:g}",
        meaning="",
        epsilon=epsilon,
      )
      for epsilon in sorted({*measured, *also})
    ),
  ]


def attack_rows(
  models: Models, columns: Sequence[Column], *, interval: bool = False
) -> list[Row]:
  """Returns a row for each attack and model.

  FGSM has one even where it was not measured: it is the paper's.

  Args:
    models: as for `overview`.
    columns: from `attack_columns`.
    interval: whether numbers come with their 95% intervals.
  """
  rows = []
  for attack, known in ATTACKS.items():
    for label, members in models.items():

      def key_of(one, attack=attack, members=members):
        key = Key(one.metric, "", attack, one.epsilon or 0)
        # Measured on fewer pictures, an attack has a clean number of its own.
        if one.epsilon is None and members[0].number(key) is None:
          return Key(one.metric)
        return key

      row = make_row(
        label,
        attack,
        members,
        columns,
        key_of=key_of,
        title=known.title,
        interval=interval,
      )
      if attack == "fgsm" or len(row.cells) > 1:
        rows.append(row)
  return rows


def costly_notes(
  models: Models, rows: Sequence[Row], columns: Sequence[Column]
) -> list[str]:
  """Returns what of a table was measured on fewer pairs."""
  shown = {row.method for row in rows if row.cells}
  metrics = [c.title for c in columns if METRICS[c.metric].is_costly]
  attacks = [a.title for k, a in ATTACKS.items() if a.on_few and k in shown]
  notes = {}
  for members in models.values():
    costly = members[0].about.costly_methods
    words = [title_of(method) for method in costly if method in shown]
    if metrics:
      words.append(f"by every method {', '.join(metrics)}")
    fewer = describe.fewer_pairs(members[0])
    if fewer and words:
      sentence = f"Measured on {fewer}, as they take many passes each: "
      notes[f"{sentence}{'; '.join(words)}."] = None
    if fewer and attacks:
      sentence = f"Measured on the images of {fewer}, clean ones too: "
      notes[f"{sentence}{'; '.join(attacks)}."] = None
  return list(notes)


def first(models: Models) -> Evaluated:
  """Returns any one of the evaluations: data and settings are those of all."""
  return next(iter(models.values()))[0]
