"""Numbers of pairs to results: means by protocol, by class, with intervals.

A picture is the unit of chance: its pairs stand or fall together in the
bootstrap. Means weigh pairs equally (the paper), but the pointing game under
the protocol "release", which is a mean over classes of each one's mean.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from gc_jax.data.pairs import Pairs
from gc_jax.evaluation import boxes, classification
from gc_jax.evaluation.ledger import Ledger
from gc_jax.evaluation.localisation import DIFFICULT
from gc_jax.method.metrics import METRICS, POINTING_GAMES, Key

_BLOCK = 16  # resamples at a time
_POOLED = ("true_positives", "false_positives", "false_negatives")


class Estimate(NamedTuple):
  """A result.

  Attributes:
    value: in percent, unless its metric says another unit.
    std: its spread over draws, where it is drawn.
    interval: both ends of its 95% interval, where there is one.
  """

  value: float | int
  std: float | None = None
  interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How numbers of pairs become one.

  Attributes:
    name: "paper" or "release".
    spg_samples: points of the stochastic pointing game in each run.
    spg_runs: repetitions, of which mean and standard deviation are given.
    num_resamples: of the bootstrap; 0 = no intervals.
  """

  name: str = "paper"
  spg_samples: int = 100
  spg_runs: int = 5
  num_resamples: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
  """What the rows of the columns are.

  Attributes:
    index: `[N]`, picture.
    target: `[N]`, class explained.
    difficult: `[N]`, whether the pointing games pass over the pair, under the
      protocol "release".
  """

  index: Int[np.ndarray, "N"]
  target: Int[np.ndarray, "N"]
  difficult: Bool[np.ndarray, "N"]


def results(
  ledger: Ledger,
  pairs: Pairs,
  config: ConfigDict,
  class_names: Sequence[str],
) -> tuple[dict[Key, Estimate], dict[str, dict[Key, float]]]:
  """Returns what a ledger says, of all rows and by class.

  Args:
    ledger: after its passes.
    pairs: its rows.
    config: of the evaluation.
    class_names: of the data set.
  """
  columns = dict(ledger.columns)
  difficult = columns.pop(DIFFICULT, np.zeros(ledger.num_rows))
  pooled = _pooled(columns)
  rows = Rows(pairs.index, pairs.target, difficult > 0)
  protocol = Protocol(
    name=config.eval.protocol,
    spg_samples=config.eval.spg_samples,
    spg_runs=config.eval.spg_runs,
    num_resamples=config.eval.num_resamples,
  )
  read = columns.get(Key("top1"), np.zeros(0))
  if Key("f1_overall") in pooled:
    read = pooled[Key("f1_overall")][:, 0]
  located = [v for key, v in columns.items() if key.metric == "content_heatmap"]
  found = {
    Key("num_examples"): Estimate(_count(read)),
    Key("num_pairs"): Estimate(_count(located[0]) if located else 0),
  }
  found |= accuracies(ledger)
  for key, estimate in summarize(columns, rows, protocol).items():
    if key.attack:  # the interval is new, the number is known from its sums
      estimate = estimate._replace(value=found[key].value)
    found[key] = estimate
  for key, counts in pooled.items() if protocol.num_resamples else ():
    real = ~np.isnan(counts[:, 0])
    interval = f1_interval(
      pairs.index[real], counts[real], protocol.num_resamples
    )
    found[key] = found[key]._replace(interval=interval)
  for key, (correct, count) in ledger.totals.items():
    if key.metric == boxes.TOTAL:
      for metric, value in boxes.max_box_acc(correct, float(count)).items():
        found[key._replace(metric=metric)] = Estimate(value)
  return found, by_class(columns, rows, protocol, class_names)


def flat(found: Mapping[Key, Estimate]) -> dict[str, float | int]:
  """Returns results as results.json holds them, "val/top1" and so on.

  Beside a number, its interval has its ends under `NAME_low` and `NAME_high`,
  and its spread stands under `NAME_std`.
  """
  named = {}
  for key, estimate in found.items():
    name = f"val/{key.name}"
    named[name] = estimate.value
    if estimate.std is not None:
      named[f"{name}_std"] = estimate.std
    if estimate.interval is not None:
      named[f"{name}_low"], named[f"{name}_high"] = estimate.interval
  return named


def _count(column) -> int:
  return int((~np.isnan(column)).sum())


def accuracies(ledger: Ledger) -> dict[Key, Estimate]:
  """Returns classification, of clean pictures and under every attack."""
  totals: dict[Key, dict[str, Any]] = {}
  for key, total in ledger.totals.items():
    if not key.method:
      group = totals.setdefault(key._replace(metric=""), {})
      group[key.metric] = total
  return {
    key._replace(metric=metric): Estimate(value)
    for key, sums in totals.items()
    for metric, value in classification.summarize(sums).items()
    # Under attack, what the attack is about.
    if not key.attack or metric not in ("loss", "top5")
  }


def _pooled(columns: dict[Key, np.ndarray]) -> dict[Key, np.ndarray]:
  """Takes out the counts that F1 is made of; F1's key -> `[N, 3]`."""
  found = {}
  for key in [key for key in columns if key.metric == _POOLED[0]]:
    counts = [columns.pop(key._replace(metric=name)) for name in _POOLED]
    found[key._replace(metric="f1_overall")] = np.stack(counts, 1)
  return found


def summarize(
  columns: Mapping[Key, Float[np.ndarray, "N"]],
  rows: Rows,
  protocol: Protocol,
) -> dict[Key, Estimate]:
  """Returns the mean of every column, with its interval.

  Args:
    columns: number of each row, in [0, 1]; NaN where none counts.
    rows: what they are of.
    protocol: how to take means.

  Returns:
    For each stochastic pointing game's expectation also the game: the mean over
    runs, and their sample standard deviation. Nothing for a column in which no
    row counts.
  """
  found: dict[Key, Estimate] = {}
  samples = {}
  for key, values in columns.items():
    values = _counting(key, values, rows, protocol)
    real = ~np.isnan(values)
    if not real.any():
      continue
    sample = values[real].astype(np.float64)
    groups = rows.target[real] if _is_by_class(key, protocol) else None
    if _scale(key) != 1.0:
      samples[key] = rows.index[real], sample, groups
    found[key] = Estimate(_scale(key) * _mean(sample, groups))
    if key.metric == "stochastic_pointing_game_exact":
      runs = 100 * stochastic_runs(sample, protocol)
      spread = runs.std(ddof=1) if len(runs) > 1 else 0.0
      game = key._replace(metric="stochastic_pointing_game")
      found[game] = Estimate(float(runs.mean()), float(spread))
  if protocol.num_resamples and samples:
    intervals = _intervals(samples, rows.index, protocol.num_resamples)
    for key, (low, high) in intervals.items():
      ends = _scale(key) * low, _scale(key) * high
      found[key] = found[key]._replace(interval=ends)
  return found


def by_class(
  columns: Mapping[Key, Float[np.ndarray, "N"]],
  rows: Rows,
  protocol: Protocol,
  class_names: Sequence[str],
) -> dict[str, dict[Key, float]]:
  """Returns the mean of every column for each class that was explained.

  Args:
    columns: as for `summarize`.
    rows: what they are of.
    protocol: which rows count.
    class_names: what the classes are called.
  """
  found: dict[str, dict[Key, float]] = {}
  for key, values in columns.items():
    values = _counting(key, values, rows, protocol)
    real = ~np.isnan(values) & (rows.target >= 0)
    sums = np.bincount(rows.target[real], values[real], len(class_names))
    counts = np.bincount(rows.target[real], minlength=len(class_names))
    for k in np.flatnonzero(counts):
      mean = float(_scale(key) * sums[k] / counts[k])
      found.setdefault(class_names[k], {})[key] = mean
  return found


def stochastic_runs(
  expected: Float[np.ndarray, "N"], protocol: Protocol
) -> Float[np.ndarray, "runs"]:
  """Returns the stochastic pointing game of each run, in [0, 1].

  Points are drawn independently, with replacement, and hit with the chance
  that is the game's expectation: how many hit is binomial, and no point need
  be drawn. The same seed for every method.

  Args:
    expected: of each pair, in [0, 1].
    protocol: how many points and runs.
  """
  generator = np.random.default_rng(0)
  chance = np.clip(expected.astype(np.float64), 0, 1)
  samples = protocol.spg_samples
  return np.array(
    [
      generator.binomial(samples, chance).mean() / samples
      for _ in range(protocol.spg_runs)
    ]
  )


def _counting(key: Key, values, rows: Rows, protocol: Protocol):
  """Returns a column with NaN where the protocol passes over the pair."""
  if protocol.name == "release" and key.metric in POINTING_GAMES:
    return np.where(rows.difficult, np.nan, values)
  return values


def _is_by_class(key: Key, protocol: Protocol) -> bool:
  return protocol.name == "release" and key.metric == "pointing_game"


def _scale(key: Key) -> float:
  metric = METRICS.get(key.metric)
  return 1.0 if metric and metric.unit == "fraction" else 100.0


def _mean(values, groups, times=None) -> float:
  """Returns the mean, or the mean over groups; each value counted so often."""
  if groups is None:
    return float(values.mean())
  times = np.ones_like(values) if times is None else times
  sums, counts = np.bincount(groups, values * times), np.bincount(groups, times)
  return float((sums[counts > 0] / counts[counts > 0]).mean())


def f1_interval(
  index: Int[np.ndarray, "N"],
  counts: Float[np.ndarray, "N 3"],
  num_resamples: int,
) -> tuple[float, float]:
  """Returns the 95% interval of the F1 of pooled counts, in percent.

  Args:
    index: picture of each row.
    counts: true positives, false positives and false negatives of each.
    num_resamples: of the bootstrap.
  """
  hits, alarms, misses = counts.astype(np.float64).T
  pictures, place = np.unique(index, return_inverse=True)
  sums = _by_picture(place, len(pictures), (2 * hits, hits + hits + alarms))
  sums[1] += _by_picture(place, len(pictures), (misses,))[0]
  ratios = [
    _ratio(*(weights @ sums.T).T)
    for weights in _resamples(len(pictures), num_resamples)
  ]
  low, high = _quantiles(np.concatenate(ratios))
  return 100 * low, 100 * high


def _intervals(samples, index, num_resamples) -> dict[Key, tuple[float, float]]:
  """Returns the 95% interval of every sample's mean.

  Args:
    samples: key -> (picture of each value, the values, their groups or None).
    index: of all rows.
    num_resamples: of the bootstrap.
  """
  pictures = np.unique(index)
  count = len(pictures)
  plain = [key for key, (*_, groups) in samples.items() if groups is None]
  sums = [
    _by_picture(np.searchsorted(pictures, own), count, (x, np.ones_like(x)))
    for own, x, _ in (samples[key] for key in plain)
  ]
  means: dict[Key, list] = {key: [] for key in samples}
  for weights in _resamples(count, num_resamples):
    for key, (above, below) in zip(plain, sums, strict=True):
      means[key].append(_ratio(weights @ above, weights @ below))
    for key, (own, values, groups) in samples.items():
      if groups is not None:
        times = weights[:, np.searchsorted(pictures, own)]
        means[key] += [[_mean(values, groups, row)] for row in times]
  return {
    key: _quantiles(np.concatenate(found)) for key, found in means.items()
  }


def _by_picture(place, count, values) -> np.ndarray:
  return np.stack([np.bincount(place, x, count) for x in values])


def _resamples(num_pictures: int, num_resamples: int):
  """Yields how often each picture is drawn, of some resamples at a time."""
  generator = np.random.default_rng(0)
  for start in range(0, num_resamples, _BLOCK):
    size = min(_BLOCK, num_resamples - start)
    drawn = generator.integers(0, num_pictures, (size, num_pictures))
    drawn += num_pictures * np.arange(size)[:, None]
    weights = np.bincount(drawn.ravel(), minlength=size * num_pictures)
    yield weights.reshape(size, num_pictures).astype(np.float64)


def _ratio(above, below) -> np.ndarray:
  """Returns the quotients of resamples in which anything counts."""
  return above[below > 0] / below[below > 0]


def _quantiles(values) -> tuple[float, float]:
  low, high = np.quantile(values, (0.025, 0.975))
  return float(low), float(high)
