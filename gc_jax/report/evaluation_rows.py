"""Rows of tables of evaluations: of models, methods, controls and attacks."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from gc_jax.report import describe_evaluated, paper_tables, tables
from gc_jax.report.evaluated import Evaluated
from gc_jax.report.tables import Cell, Column, Row

Models = Mapping[str, Sequence[Evaluated]]  # label to repetitions by seed

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
COSTLY_METRICS = (
  "insertion_auc",
  "deletion_auc",
  "max_box_acc_50",
  "max_box_acc_v2",
)
_ON_FEW = ("fgsm-few", "pgd")
KNOWN = {column.key: column for column in (*CLASSIFICATION, *MAPS)}
OF_MODELS = {column.key for column in CLASSIFICATION}
_OF_MAPS = {column.key for column in MAPS}
FRACTIONS = ("zero_map_frac",)  # in results; percent in tables


def title_of(method: str) -> str:
  """Returns a method's name in words."""
  return tables.METHOD_TITLES.get(method, method)


def accuracy_key(evaluated: Evaluated) -> str:
  """Returns the metric of accuracy, as pictures show one class or several."""
  return "f1_overall" if evaluated.about.multi_label else "top1"


def accuracy_title(evaluated: Evaluated) -> str:
  """Returns "Top-1" or "F1-Overall"."""
  return KNOWN[accuracy_key(evaluated)].title


def epsilons(evaluations: Iterable[Evaluated]) -> list[str]:
  """Returns the paper's epsilons and those measured, in 1/255, ascending."""
  found = set(paper_tables.TABLES[6].rows[0].cells)
  for evaluated in evaluations:
    for key in evaluated.results:
      attack = re.fullmatch(r"val/([\w-]+?)_(\d+(?:\.\d+)?)/\w+", key)
      if attack and attack[1] in ATTACKS and attack[2] != "0":
        found.add(attack[2])
  return sorted(found, key=float)


def method_rows(
  models: Models,
  method: str,
  columns: Sequence[Column],
  *,
  interval: bool = False,
) -> list[Row]:
  """Returns a row for each model; one for a control: it knows no model."""
  if method in tables.CONTROLS:
    row = make_row("", method, [first(models)], columns, interval=interval)
    of_maps = {k: cell for k, cell in row.cells.items() if k in _OF_MAPS}
    return [control_row(method, of_maps)]
  return [
    make_row(label, method, members, columns, interval=interval)
    for label, members in models.items()
  ]


def control_row(method: str, cells: Mapping[str, Cell | None]) -> Row:
  """Returns the row of a control, without the cells that are None."""
  return Row(title_of(method), method, _present(cells), 1)


def make_row(
  label: str,
  method: str,
  members: Sequence[Evaluated],
  columns: Sequence[Column],
  *,
  interval: bool = False,
) -> Row:
  """Returns a model's row, of a method or of none."""
  cells = {}
  for column in columns:
    of_method = method and column.key in _OF_MAPS
    key = f"{method}/{column.key}" if of_method else column.key
    cells[column.key] = make_cell(members, key, interval=interval)
  return Row(label, method, _present(cells), len(members))


def make_cell(
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


def attack_columns(models: Models, decimals: int) -> list[Column]:
  """Returns a column without an attack, and one for each epsilon."""
  metric = accuracy_key(first(models))
  meaning = f"{KNOWN[metric].title} without an attack"
  return [
    Column(metric, "clean", meaning, decimals=decimals),
    *(
      Column(epsilon, f"ε = {epsilon}", "", decimals=decimals)
      for epsilon in epsilons(e for group in models.values() for e in group)
    ),
  ]


def attack_rows(
  models: Models, columns: Sequence[Column], *, interval: bool = False
) -> list[Row]:
  """Returns a row for each attack and model.

  FGSM has one even where it was not measured: it is the paper's.

  Args:
    models: as for `evaluation_tables.make_tables`.
    columns: from `attack_columns`.
    interval: whether numbers come with their 95% intervals.
  """
  metric = columns[0].key
  rows = []
  for attack, title in ATTACKS.items():
    for label, members in models.items():
      # Measured on fewer pictures, an attack has a clean number of its own.
      clean = f"{attack}_0/{metric}"
      if f"val/{clean}" not in members[0].results:
        clean = metric
      keys = [clean, *(f"{attack}_{c.key}/{metric}" for c in columns[1:])]
      cells = _present(
        {
          column.key: make_cell(members, key, interval=interval)
          for column, key in zip(columns, keys, strict=True)
        }
      )
      if attack == "fgsm" or len(cells) > 1:
        rows.append(Row(label, attack, cells, len(members), title=title))
  return rows


def costly_notes(
  models: Models, rows: Sequence[Row], columns: Sequence[Column]
) -> list[str]:
  """Returns what of a table was measured on fewer pairs."""
  shown = {row.method for row in rows if row.cells}
  metrics = [c.title for c in columns if c.key in COSTLY_METRICS]
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


def first(models: Models) -> Evaluated:
  """Returns any one of the evaluations: data and settings are those of all."""
  return next(iter(models.values()))[0]
