"""Numbers by class: what stands out, a table, which is taken for which."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from gc_jax.method.metrics import METRICS, Key, Metric
from gc_jax.report import artefact, rows, tables
from gc_jax.report.artefact import Evaluated
from gc_jax.report.rows import PREDICTED, Rows

_ASKED = (
  "top1",
  "pointing_game",
  "content_heatmap",
  "negative_quadrants_heatmap",
)
_LEVEL = 0.05
_MIN_PAIRS = 10  # of a class, to say anything of it
_MIN_CLASSES = 5  # for the others' spread to be known
_MIN_POINTS = 5.0
_MIN_POINTS_OF_FEW = 10.0  # of fewer classes than that
_MIN_MISTAKES = 5
_MIN_MISTAKEN_FRAC = 0.1
_MAX_FINDINGS = 6
_MAX_MISTAKES = 3  # among the findings
MAX_MATRIX = 25  # classes in a matrix; of more, the most frequent mistakes
_MAX_LISTED = 20
_MAX_COLUMNS = 12
RULE = (
  "A class stands out if one of its numbers differs from the other classes' by "
  "more than chance (p < 0.05, exact or by ranks, corrected for all classes "
  "and metrics), and is an outlier among theirs: at least "
  f"{_MIN_POINTS:g} points from their mean, and p < 0.05 by Student's t of the "
  "class against the others, corrected for all classes. Of fewer than "
  f"{_MIN_CLASSES} classes the spread is unknown: there it must be "
  f"{_MIN_POINTS_OF_FEW:g} points from the next one. Classes with fewer than "
  f"{_MIN_PAIRS} pairs of picture and class are left out."
)


class Finding(NamedTuple):
  """A class whose number stands out from the others'."""

  label: int
  metric: Metric
  value: float  # in percent
  low: float  # the others' range
  high: float
  num_others: int
  num_pairs: int
  is_worse: bool


class Mistake(NamedTuple):
  """How often one class is taken for another."""

  label: int
  predicted: int
  count: int
  num_images: int  # of the class


class Table(NamedTuple):
  """Numbers of every class, as texts; "" for what is unknown."""

  headings: Sequence[tuple[str, str]]  # and what each means
  rows: Sequence["ClassRow"]
  numbers: dict[str, dict[int, list[str]]]  # method -> class -> its cells


class ClassRow(NamedTuple):
  """One class of `Table`."""

  label: int
  name: str
  num_pairs: str
  is_all_right: bool | None  # None where it is not known
  cells: Sequence[str]


def read_rows(evaluated: Evaluated, method: str) -> Rows | None:
  """Returns the numbers of pairs that this file needs; None without any."""
  if evaluated.rows is not None:
    return evaluated.rows
  keys = [Key(PREDICTED), *(_key(metric, method) for metric in _ASKED)]
  return rows.load(evaluated.folder, keys)


def _key(metric: str, method: str) -> Key:
  return Key(metric, method if METRICS[metric].is_of_maps else "")


def findings(pairs: Rows, method: str, num_classes: int) -> list[Finding]:
  """Returns what stands out by `RULE`, the worse ones first.

  Args:
    pairs: pictures with their numbers.
    method: whose maps.
    num_classes: K.
  """
  columns = {}
  for metric in _ASKED:
    values = pairs.columns.get(_key(metric, method))
    if values is not None and not np.isnan(values).all():
      columns[metric] = values
  found = []
  for metric, values in columns.items():
    real = ~np.isnan(values) & (pairs.target >= 0)
    target = pairs.target[real]
    enough = np.bincount(target, minlength=num_classes) >= _MIN_PAIRS
    kept = enough[target]
    found += _outliers(
      METRICS[metric], values[real][kept], target[kept], len(columns)
    )
  found.sort(key=lambda one: (not one.is_worse, -_distance(one)))
  return found[:_MAX_FINDINGS]


def _distance(one: Finding) -> float:
  return max(one.low - one.value, one.value - one.high)


def _outliers(
  metric: Metric,
  values: Float[np.ndarray, "N"],
  target: Int[np.ndarray, "N"],
  num_metrics: int,
) -> list[Finding]:
  """Returns the classes that stand out by one metric."""
  # Imported here: it takes half a second, and most commands end without it.
  from scipy import stats

  labels, place, counts = np.unique(
    target, return_inverse=True, return_counts=True
  )
  num = len(labels)
  if num < 2 or np.ptp(values) == 0:
    return []
  means = 100.0 * np.bincount(place, values) / counts
  if np.isin(values, (0, 1)).all():
    hits = np.bincount(place, values)
    drawn = stats.hypergeom(len(values), values.sum(), counts)
    chance = 2 * np.minimum(drawn.cdf(hits), drawn.sf(hits - 1))
  else:
    ranks = stats.rankdata(values)
    # Of the mean of so many ranks, drawn without putting back.
    variance = ranks.var(ddof=1) * (1 / counts - 1 / len(values))
    off = np.bincount(place, ranks) / counts - ranks.mean()
    chance = 2 * stats.norm.sf(np.abs(off) / np.sqrt(variance))
  found = []
  for k in np.flatnonzero(chance * num * num_metrics < _LEVEL):
    others = np.delete(means, k)
    low, high = float(others.min()), float(others.max())
    away = float(means[k] - others.mean())
    beyond = max(low - means[k], means[k] - high)
    if num < _MIN_CLASSES:
      stands_out = beyond >= _MIN_POINTS_OF_FEW
    else:
      spread = others.std(ddof=1) * np.sqrt(1 + 1 / (num - 1))
      outlying = 2 * stats.t.sf(abs(away) / max(spread, 1e-9), num - 2)
      stands_out = (
        beyond > 0 and abs(away) >= _MIN_POINTS and outlying * num < _LEVEL
      )
    if stands_out:
      found.append(
        Finding(
          int(labels[k]),
          metric,
          float(means[k]),
          low,
          high,
          num - 1,
          int(counts[k]),
          (away < 0) == metric.higher_is_better,
        )
      )
  if num == 2:  # one is as far from the other as that from it
    found = [one for one in found if one.is_worse]
  return found


def confusion(pairs: Rows, num_classes: int) -> Int[np.ndarray, "K K"] | None:
  """Returns how many pictures of each class (row) are taken for each (column).

  None where that is not known: of an older evaluation, of several labels.
  """
  predicted = pairs.columns.get(Key(PREDICTED))
  if predicted is None or not num_classes:
    return None
  real = ~np.isnan(predicted) & (pairs.target >= 0)
  found = np.zeros((num_classes, num_classes), np.int64)
  np.add.at(found, (pairs.target[real], predicted[real].astype(int)), 1)
  return found


def mistakes(counts: Int[np.ndarray, "K K"]) -> list[Mistake]:
  """Returns the most frequent mistakes, the most frequent first."""
  wrong = counts * ~np.eye(len(counts), dtype=bool)
  order = np.argsort(wrong, axis=None, kind="stable")[::-1][:_MAX_LISTED]
  found = [divmod(int(place), len(counts)) for place in order]
  return [
    Mistake(label, other, int(wrong[label, other]), int(counts[label].sum()))
    for label, other in found
    if wrong[label, other]
  ]


def telling_mistakes(counts: Int[np.ndarray, "K K"]) -> list[Mistake]:
  """Returns mistakes that fall on one class far more than on the others.

  At least five pictures and a tenth of their class, and more than if the
  class's mistakes fell on all others alike (p < 0.05, corrected for all pairs).
  """
  from scipy import stats  # see `_outliers`

  num = len(counts)
  if num < 3:
    return []
  found = []
  for one in mistakes(counts):
    errors = one.num_images - counts[one.label, one.label]
    chance = stats.binom.sf(one.count - 1, errors, 1 / (num - 1))
    if (
      one.count >= max(_MIN_MISTAKES, _MIN_MISTAKEN_FRAC * one.num_images)
      and chance * num * (num - 1) < _LEVEL
    ):
      found.append(one)
  return found[:_MAX_MISTAKES]


def table(
  evaluated: Evaluated, pairs: Rows | None, methods: Sequence[str]
) -> Table:
  """Returns the table of classes, with the numbers of the first method.

  Args:
    evaluated: what was measured.
    pairs: its rows, for the counts; or None.
    methods: whose numbers are wanted, the first one's in the cells.
  """
  names = evaluated.class_names or list(evaluated.per_class)
  of_maps = tables.OF_MAPS if methods else ()
  columns = [
    column
    for column in [*tables.OF_MODELS, *of_maps]
    if METRICS[column.metric].unit == "percent"
    and any(
      artefact.number(values, column.number(method).name) is not None
      for values in evaluated.per_class.values()
      for method in methods or [""]
    )
  ][:_MAX_COLUMNS]

  def cells(name: str, method: str) -> list[str]:
    values = evaluated.per_class.get(name, {})
    numbers = [artefact.number(values, c.number(method).name) for c in columns]
    return ["" if n is None else f"{n:,.1f}" for n in numbers]

  counts = np.zeros(len(names), int)
  if pairs is not None:
    shown = pairs.target[pairs.target >= 0]
    counts = np.bincount(shown, minlength=len(names))
  found = []
  for label, name in enumerate(names):
    top1 = artefact.number(evaluated.per_class.get(name, {}), "top1")
    found.append(
      ClassRow(
        label,
        name,
        f"{counts[label]:,}" if pairs is not None else "",
        None if top1 is None else top1 == 100.0,
        cells(name, methods[0] if methods else ""),
      )
    )
  return Table(
    [(column.heading, column.meaning) for column in columns],
    found,
    {
      method: {label: cells(name, method) for label, name in enumerate(names)}
      for method in (methods if columns and len(methods) > 1 else ())
    },
  )
