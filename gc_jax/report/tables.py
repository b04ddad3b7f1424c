"""Tables as data: columns, rows, means over seeds, the best; and which."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gc_jax.attribution import CONTROLS, METHODS, title_of
from gc_jax.method.metrics import ATTACKS, METRICS, Key, accuracy
from gc_jax.report import cautions, describe
from gc_jax.report.artefact import Evaluated

# Label to evaluations, which differ by seed only; all on the same data.
Models = Mapping[str, Sequence[Evaluated]]
_NOT_AT_A_GLANCE = ("top5", "zero_map_frac", "zero_composite_frac")


@dataclasses.dataclass(frozen=True)
class Column:
  """A column, and how to read it."""

  key: str  # unique in its table
  title: str
  meaning: str  # a few words
  metric: str  # a key of `METRICS`
  higher_is_better: bool | None = True  # None where neither direction is
  decimals: int = 1
  method: str = ""  # whose maps, if not those of the row's method
  epsilon: float | int | None = None  # of the row's attack; None: not attacked

  @property
  def heading(self) -> str:
    """Returns the title with an arrow towards better."""
    if self.higher_is_better is None:
      return self.title
    return f"{self.title} {'↑' if self.higher_is_better else '↓'}"

  @property
  def is_of_maps(self) -> bool:
    """Returns whether its numbers are of a method's maps."""
    return METRICS[self.metric].is_of_maps

  def printed(self, row: "Row") -> float:
    """Returns a row's number as precisely as it is printed."""
    return round(row.cells[self.key].mean, self.decimals)

  def number(self, method: str) -> Key:
    """Returns which number stands in the row of a method, attack or control."""
    if method in ATTACKS:
      return Key(self.metric, "", method, self.epsilon or 0)
    if not self.is_of_maps:
      return Key(self.metric)
    return Key(
      self.metric, method if method in CONTROLS else self.method or method
    )


@dataclasses.dataclass(frozen=True)
class Cell:
  """A number with its spread, over the runs of one configuration."""

  mean: float
  std: float | None = None  # over runs, of the sample; None for a single run
  sampling_std: float | None = None  # over random draws within a run, if any
  interval: tuple[float, float] | None = None  # of 95%
  is_on_fewer: bool = False  # measured on fewer examples than other rows
  is_unshown: bool = False  # may be the best by chance
  verdict: str = ""  # of a difference: "better" and so on


@dataclasses.dataclass(frozen=True)
class Row:
  """One model explained by one method; `cells` lacks what is not measured."""

  label: str
  method: str  # an explanation's or an attack's; its rows compete for the best
  cells: Mapping[str, Cell]  # by the columns' keys
  num_runs: int = 1  # that differ by seed only
  title: str = ""  # of the method, if `title_of` does not know it
  is_reference: bool = False  # quoted from the paper

  @property
  def is_control(self) -> bool:
    """Returns whether the row's map knows nothing of the model."""
    return self.method in CONTROLS

  @property
  def kind(self) -> str:
    """Returns "model", "reference" or "control"."""
    if self.is_control:
      return "control"
    return "reference" if self.is_reference else "model"


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows in blocks of one method, controls last."""

  columns: Sequence[Column]
  rows: Sequence[Row]
  title: str = ""
  notes: Sequence[str] = ()  # what its reader must know, sentences
  across_methods: bool = False  # whether all rows compete for the best
  sign: str = ""  # "+" for differences, which tell their sign
  number: int | None = None  # of the paper's table that it is laid out as

  @property
  def heading(self) -> str:
    """Returns the title, after the number of the paper's table if any."""
    return f"Table {self.number}: {self.title}" if self.number else self.title

  @property
  def unit(self) -> str:
    """Returns what its numbers are in."""
    return "percentage points" if self.sign else "percent"

  def competing(self, row: Row, column: Column) -> list[Row]:
    """Returns the rows whose numbers compete for the best beside a row's.

    Controls and quoted rows do not. A number measured on fewer examples
    competes only if all were.
    """
    rows = [
      one
      for one in self.rows
      if (self.across_methods or one.method == row.method)
      and one.kind == "model"
      and column.key in one.cells
    ]
    on_fewer = all(one.cells[column.key].is_on_fewer for one in rows)
    return [o for o in rows if o.cells[column.key].is_on_fewer == on_fewer]

  def is_best(self, row: Row, column: Column) -> bool:
    """Returns whether a row competes and no other does better.

    Numbers that print the same are equally good; where all do, none is best,
    nor is one that may be so by chance (`is_unshown`), or a difference.
    """
    competing = self.competing(row, column)
    if self.sign or column.higher_is_better is None or row not in competing:
      return False
    numbers = {column.printed(one) for one in competing}
    best = max(numbers) if column.higher_is_better else min(numbers)
    is_unshown = row.cells[column.key].is_unshown
    return not is_unshown and len(numbers) > 1 and column.printed(row) == best


def column(metric: str, decimals: int = 1, **changes: Any) -> Column:
  """Returns the column of a metric; `changes` replace its fields."""
  known = METRICS[metric]
  made = Column(
    metric, known.title, known.meaning, metric, known.higher_is_better, decimals
  )
  return dataclasses.replace(made, **changes)


_COLUMNS = tuple(column(name) for name in METRICS)
OF_MODELS = tuple(c for c in _COLUMNS if not c.is_of_maps)
OF_MAPS = tuple(c for c in _COLUMNS if c.is_of_maps)


def overview(models: Models, interval: bool = False) -> Table:
  """Returns accuracy and maps at a glance, a row for each method and model."""
  columns = [
    c
    for c in _COLUMNS
    if c.key not in _NOT_AT_A_GLANCE and not METRICS[c.metric].is_costly
  ]
  maps = {c.key for c in columns if c.is_of_maps}
  rows = [
    row
    for method in methods_of(models)
    for row in method_rows(models, method, columns, interval)
    if maps & row.cells.keys()
  ]
  if not rows:  # no explanation was evaluated
    rows = [
      make_row(label, "", group, columns, interval)
      for label, group in models.items()
    ]
  table = _table(models, "At a glance", columns, rows)
  notes = [*table.notes, *cautions.below_controls(models)]
  return dataclasses.replace(table, notes=notes)


def measured(models: Models) -> list[Table]:
  """Returns all that was measured, with intervals; no table that is empty."""
  accuracies = [
    make_row(label, "", members, OF_MODELS, interval=True)
    for label, members in models.items()
  ]
  attacks = attack_columns(models, decimals=1)
  attacked = [
    row
    for row in attack_rows(models, attacks, interval=True)
    if len(row.cells) > 1
  ]
  maps = [
    _counted(models, row)
    for method in methods_of(models)
    for row in method_rows(models, method, OF_MAPS, interval=True)
    if row.cells
  ]
  made = [
    _table(models, "Accuracy", OF_MODELS, accuracies),
    _table(models, "Accuracy under attack", attacks, attacked),
    dataclasses.replace(
      _table(models, "All methods, all metrics", OF_MAPS, maps),
      across_methods=len(models) == 1,
    ),
  ]
  return [table for table in made if table.columns]


def _table(
  models: Models, title: str, columns: Sequence[Column], rows: Sequence[Row]
) -> Table:
  """Returns a table of the columns that hold a number."""
  kept = [c for c in columns if any(c.key in row.cells for row in rows)]
  return Table(kept, rows, title, costly_notes(models, rows, kept))


def _counted(models: Models, row: Row) -> Row:
  """Returns a model's row with its numbers on fewer pairs marked."""
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
    title = f"{title_of(row.method)}, {one.about.num_costly_images:,} pairs"
  return dataclasses.replace(row, cells=cells, title=title)


def methods_of(models: Models) -> list[str]:
  """Returns all methods measured, in the order of tables."""
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
  order = [*METHODS, *others, *CONTROLS]
  return [method for method in order if method in found]


def method_rows(
  models: Models,
  method: str,
  columns: Sequence[Column],
  interval: bool = False,
) -> list[Row]:
  """Returns a row for each model; of a control, one for each protocol."""
  if method in CONTROLS:  # it knows no model
    ones = [members[0] for members in models.values()]
    models = {}
    named = describe.by_protocols([one.about for one in ones])
    for how, one in zip(named, ones, strict=True):
      models.setdefault(title_of(method) + how, [one])
    columns = [c for c in columns if c.is_of_maps]
  return [
    make_row(label, method, members, columns, interval)
    for label, members in models.items()
  ]


def make_row(
  label: str,
  method: str,
  members: Sequence[Evaluated],
  columns: Sequence[Column],
  interval: bool = False,
) -> Row:
  """Returns a row of repetitions by seed, with the cells that were measured."""
  cells = {}
  for one in columns:
    key = one.number(method)
    # Only attacks on fewer pictures have a clean number of their own.
    if key.attack and not key.epsilon and members[0].number(key) is None:
      key = Key(one.metric)
    cell = _cell(members, key, interval)
    if cell is not None:
      cells[one.key] = cell
  title = ATTACKS[method].title if method in ATTACKS else ""
  return Row(label, method, cells, len(members), title)


def _cell(
  members: Sequence[Evaluated], key: Key, interval: bool
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
    interval=None if ends is None else (scale * ends[0], scale * ends[1]),
  )


def attack_columns(
  models: Models, decimals: int, also: Iterable[float | int] = ()
) -> list[Column]:
  """Returns a column without an attack, and one for each epsilon.

  The epsilons are those measured, and `also`.
  """
  metric = accuracy(first(models).about.multi_label)
  meaning = f"{METRICS[metric].title} without an attack"
  epsilons = {float(epsilon) for epsilon in also} | {
    float(epsilon)
    for members in models.values()
    for evaluated in members
    for curve in evaluated.curves.robustness.values()
    for epsilon in curve
  }
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
      for epsilon in sorted(epsilons - {0.0})
    ),
  ]


def attack_rows(
  models: Models, columns: Sequence[Column], interval: bool = False
) -> list[Row]:
  """Returns a row for each attack and model.

  FGSM has one even where it was not measured: it is the paper's.
  """
  rows = [
    make_row(label, attack, members, columns, interval)
    for attack in ATTACKS
    for label, members in models.items()
  ]
  return [row for row in rows if row.method == "fgsm" or len(row.cells) > 1]


def costly_notes(
  models: Models, rows: Sequence[Row], columns: Sequence[Column]
) -> list[str]:
  """Returns what in a table was measured on fewer pairs, a sentence each."""
  shown = {row.method for row in rows if row.cells}
  metrics = [c.title for c in columns if METRICS[c.metric].is_costly]
  attacks = [a.title for k, a in ATTACKS.items() if a.on_few and k in shown]
  notes = []
  for members in models.values():
    costly = members[0].about.costly_methods
    words = [title_of(method) for method in costly if method in shown]
    if metrics:
      words.append(f"by every method {', '.join(metrics)}")
    fewer = describe.fewer_pairs(members[0])
    if fewer and words:
      start = f"Measured on {fewer}, as they take many passes each: "
      notes.append(f"{start}{'; '.join(words)}.")
    if fewer and attacks:
      start = f"Measured on the images of {fewer}, clean ones too: "
      notes.append(f"{start}{'; '.join(attacks)}.")
  return list(dict.fromkeys(notes))


def first(models: Models) -> Evaluated:
  """Returns any one of the evaluations: data and settings are those of all."""
  return next(iter(models.values()))[0]
