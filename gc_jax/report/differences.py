"""Is a model better than another, or is it chance? Differences in pairs.

Chance in the pictures: they are resampled, for both sides at once, so that what
is hard for both cancels. Chance in training, where a side has several seeds:
Student's interval of the difference between seeds, which are pairs too where
both sides have the same ones, else of the means with the spread of both pooled.
The two lengths are added in squares (Zou & Donner 2008, 10.1002/sim.3095): what
seeds and pictures do to a mean is independent.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float

from gc_jax.method.metrics import METRICS, Key
from gc_jax.report import cautions, describe, rows
from gc_jax.report.rows import Rows
from gc_jax.report.tables import (
  OF_MAPS,
  Cell,
  Column,
  Models,
  Row,
  Table,
  column,
  costly_notes,
)

NOT_SHOWN = "no difference shown"
NOT_TESTED = "not tested"
_NUM_RESAMPLES = 1_000
_BOLD = (
  "Bold is the best of its group, where the paired 95% interval of its "
  "difference from each of the others excludes 0."
)


class Difference(NamedTuple):
  """A number less another, in percentage points."""

  value: float
  low: float  # ends of the 95% interval
  high: float
  num_pairs: int  # that both have
  over_seeds: bool = False  # whether the interval holds chance in training

  @property
  def is_shown(self) -> bool:
    """Returns whether the interval excludes 0."""
    return self.low > 0 or self.high < 0

  def verdict(self, metric: str) -> str:
    """Returns "better", "worse" or `NOT_SHOWN`; "differs" if neither is."""
    if not self.is_shown:
      return NOT_SHOWN
    higher_is_better = METRICS[metric].higher_is_better
    if higher_is_better is None:
      return "differs"
    return "better" if (self.value > 0) == higher_is_better else "worse"


class Side(NamedTuple):
  """A number of a model."""

  label: str
  key: Key


Found = Mapping[tuple[Side, Side], Difference]


def paired(
  models: Models, wanted: Iterable[tuple[Side, Side]]
) -> tuple[dict[tuple[Side, Side], Difference], dict[str, str]]:
  """Returns the first of two numbers less the second, with its interval.

  Pairs of picture and class that either lacks are left out.

  Args:
    models: label to evaluations of its seeds.
    wanted: numbers to compare.

  Returns:
    The differences that there are, and label to the reason why a model's
    numbers were not paired, a sentence.
  """
  wanted = list(dict.fromkeys(wanted))
  if not wanted:
    return {}, {}
  keys = dict.fromkeys(
    part for sides in wanted for side in sides for part in rows.parts(side.key)
  )
  read, whys = _read(models, list(keys))
  samples: dict[tuple, rows.Sample] = {}
  used: dict[tuple[Side, Side], tuple[list, list]] = {}
  about = next(iter(models.values()))[0].about
  num_classes = max(len(m.class_names) for own in models.values() for m in own)
  of = lambda side, values: rows.sample(
    side.key.metric, values, pairs, about.protocol, num_classes
  )
  for sides in wanted:
    columns = [_columns(read.get(side.label, []), side.key) for side in sides]
    if not all(columns):
      continue
    pairs = read[sides[0].label][0]
    means = [np.mean(own, 0, np.float64) for own in columns]
    lacking = np.isnan(means[0] + means[1])
    if lacking.all():
      continue
    names = []
    for side, mean, own in zip(sides, means, columns, strict=True):
      # A mean over pairs may be taken of the seeds' mean; F1 is each seed's.
      parts = own if side.key.metric == "f1_overall" else [mean]
      names.append([(side, lacking.tobytes(), i) for i in range(len(parts))])
      for name, values in zip(names[-1], parts, strict=True):
        if name not in samples:
          samples[name] = of(side, np.where(lacking, np.nan, values))
    of_seeds = [
      [100 * rows.mean(of(side, np.where(lacking, np.nan, one))) for one in own]
      if any(len(each) > 1 for each in columns)
      else []
      for side, own in zip(sides, columns, strict=True)
    ]
    used[sides] = names, of_seeds
  if not used:
    return {}, whys
  index = next(iter(read.values()))[0].index
  resampled = rows.resampled(samples, index, _NUM_RESAMPLES)
  found = {}
  for sides, (names, of_seeds) in used.items():
    own, other = (
      np.mean([rows.mean(samples[name]) for name in of_side])
      for of_side in names
    )
    drawn = [
      np.mean([resampled[name] for name in of_side], 0) for of_side in names
    ]
    value = float(100 * (own - other))
    ends = rows.interval(drawn[0] - drawn[1])
    low, high = (100 * end for end in ends)
    seeds = [_seeds(models[side.label]) for side in sides]
    more = _half_width(of_seeds, seeds[0] == seeds[1] and len(seeds[0]) > 1)
    found[sides] = Difference(
      value,
      value - math.hypot(value - low, more) if more else low,
      value + math.hypot(high - value, more) if more else high,
      len(samples[names[0][0]].index),
      more is not None,
    )
  return found, whys


def _read(
  models: Models, keys: Sequence[Key]
) -> tuple[dict[str, list[Rows]], dict[str, str]]:
  """Returns the rows of every model's seeds, of the same pairs; or why not."""
  read: dict[str, list[Rows]] = {}
  whys = {}
  like = first = None
  for label, members in models.items():
    # In the order of seeds, so that those of two models are pairs.
    ordered = sorted(members, key=lambda m: str(m.about.trained_with("seed")))
    own, why = rows.of_seeds(ordered, keys, like)
    about = members[0].about
    if first and any(describe.by_protocols([first, about])):
      own, why = None, "it was measured by another protocol."
    if own is None:
      whys[label] = why
      continue
    like, first = like or own[0], first or about
    read[label] = own
  return read, whys


def _seeds(members) -> list[str]:
  """Returns the seeds of some evaluations; none if two share one."""
  seeds = sorted(str(one.about.trained_with("seed")) for one in members)
  return seeds if len(set(seeds)) == len(seeds) else []


def _columns(
  members: Sequence[Rows], key: Key
) -> list[Float[np.ndarray, "N *cases"]]:
  """Returns a number's column of each seed; none unless all have it."""
  found = [rows.column(one, key) for one in members]
  return [] if any(each is None for each in found) else found


def _half_width(
  of_seeds: Sequence[Sequence[float]], are_pairs: bool
) -> float | None:
  """Returns half of the 95% interval that training's chance makes, if known.

  Args:
    of_seeds: the numbers of each side, one a seed.
    are_pairs: whether both sides have the same seeds, in the same order.
  """
  if are_pairs:
    of_seeds = [np.subtract(*of_seeds)]
  counts = [len(own) for own in of_seeds if len(own)]
  free = sum(count - 1 for count in counts)
  if free < 1:
    return None
  squares = sum(len(own) * np.var(own) for own in of_seeds if len(own))
  spread = math.sqrt(squares / free * sum(1 / count for count in counts))
  return float(scipy.special.stdtrit(free, 0.975)) * spread


# In tables.


def from_first(models: Models, *methods: str) -> list[tuple[Side, Side]]:
  """Returns what to compare of every model with the first.

  Accuracy, and the maps of some methods.
  """
  baseline, *others = models
  keys = [Key("top1"), Key("f1_overall")]
  keys += [
    Key(c.metric, method)
    for method in methods
    if method not in cautions.differing_methods(models)
    for c in OF_MAPS
    if c.higher_is_better is not None
  ]
  return [(Side(o, key), Side(baseline, key)) for o in others for key in keys]


def remarks(models: Models, whys: Mapping[str, str]) -> list[str]:
  """Returns why models were not compared in pairs, a sentence each."""
  baseline, *others = models
  if others and baseline in whys:
    return [f"No paired differences from {baseline}: {whys[baseline]}"]
  return [
    f"No paired differences of {label}: {whys[label]}"
    for label in others
    if label in whys
  ]


def table(models: Models, methods: Sequence[str], found: Found) -> Table | None:
  """Returns rows of differences for each model but the first.

  Args:
    models: as for `paired`.
    methods: one at least; each has a row of a model, accuracy is in the first.
    found: differences, those of `from_first` among them.
  """
  baseline, *others = models
  wanted = [
    (sides, found[sides])
    for sides in from_first(models, *methods)
    if sides in found
  ]
  if not wanted:
    return None
  shown = {sides[0].key.metric for sides, _ in wanted}
  columns = [column(name, decimals=2) for name in METRICS if name in shown]
  made = []
  for label, method in itertools.product(others, methods):
    cells = {
      sides[0].key.metric: Cell(
        one.value,
        interval=(one.low, one.high),
        verdict=one.verdict(sides[0].key.metric),
      )
      for sides, one in wanted
      if sides[0].label == label
      and (sides[0].key.method or methods[0]) == method
    }
    if cells:
      made.append(Row(label, method, cells, len(models[label])))
  over_seeds = [one.over_seeds for _, one in wanted]
  notes = [
    "Each number less the first model's, over the pairs of image and class "
    "that both have; every resample takes the same images for both. “Better” "
    "and “worse” stand where the 95% interval excludes 0. Of "
    f"{len(wanted)} such intervals, chance alone makes "
    f"{0.05 * len(wanted):.2g} exclude it on average."
  ]
  if not all(over_seeds):
    notes.append(
      "With one seed on either side, an interval without 0 rules out chance in "
      "the images, not in training: that takes several seeds."
    )
  if any(over_seeds):
    notes.append(
      "With several seeds, the interval also holds their spread (Student's t, "
      "seed by seed where both have the same ones), added in squares."
    )
  notes += costly_notes(models, made, columns)
  return Table(columns, made, f"Difference from {baseline}", notes, sign="+")


def contests(made: Iterable[Table]) -> list[tuple[Side, Side]]:
  """Returns what must differ for the best numbers of tables to be the best."""
  return [
    sides
    for each in made
    for row in each.rows
    for one in each.columns
    for sides in _contests(each, row, one)
  ]


class Settled(NamedTuple):
  """Tables whose claims were tested, and what the tests found."""

  groups: list[list[Table]]
  found: Found
  whys: Mapping[str, str]  # label to why it was not compared


def settle(
  models: Models,
  groups: Sequence[Sequence[Table]],
  wanted: Sequence[tuple[Side, Side]] = (),
) -> Settled:
  """Returns tables with only those numbers as best that are shown to be.

  Args:
    models: whose tables they are.
    groups: tables.
    wanted: what else to compare, of the same pictures.
  """
  every = [one for made in groups for one in made]
  found, whys = paired(models, [*wanted, *contests(every)])
  return Settled([settled(made, found) for made in groups], found, whys)


def settled(made: Iterable[Table], found: Found) -> list[Table]:
  """Returns tables whose best are only those that are shown to be."""
  tables = []
  for each in made:
    new_rows, is_any = [], False
    for row in each.rows:
      cells = dict(row.cells)
      for one in each.columns:
        sides = _contests(each, row, one)
        is_any = is_any or bool(sides)
        if not all(s in found and found[s].is_shown for s in sides):
          cells[one.key] = dataclasses.replace(cells[one.key], is_unshown=True)
      new_rows.append(dataclasses.replace(row, cells=cells))
    notes = [*each.notes, _BOLD] if is_any else each.notes
    tables.append(dataclasses.replace(each, rows=new_rows, notes=notes))
  return tables


def _contests(made: Table, row: Row, one: Column) -> list[tuple[Side, Side]]:
  """Returns the best number with each that it must be better than.

  None of a number that is not the best.
  """
  if not made.is_best(row, one):
    return []
  return [
    (_side(row, one), _side(other, one))
    for other in made.competing(row, one)
    if one.printed(other) != one.printed(row)
  ]


def _side(row: Row, one: Column) -> Side:
  """Returns which number stands in a cell, as rows.npz has it."""
  key = one.number(row.method)
  if key.metric == "stochastic_pointing_game":  # drawn; this is what from
    key = key._replace(metric="stochastic_pointing_game_exact")
  if key.attack and not key.epsilon:
    key = Key(key.metric)
  return Side(row.label, key)
