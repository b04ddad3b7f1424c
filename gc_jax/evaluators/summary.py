"""Numbers of pairs to results: means by protocol, by class, with intervals.

A picture is the unit of chance: its pairs stand or fall together in the
bootstrap. Means weigh pairs equally (the paper), but the pointing game under
the protocol "release", which is a mean over classes of each one's mean.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

POINTING_GAME = "pointing_game"
STOCHASTIC = "stochastic_pointing_game"
EXACT = "stochastic_pointing_game_exact"
FRACTIONS = ("zero_map_frac",)  # not in percent
_BLOCK = 16  # resamples at a time


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


def summarize(
  columns: Mapping[str, Float[np.ndarray, "N"]],
  rows: Rows,
  protocol: Protocol,
) -> dict[str, float]:
  """Returns the results of every column, in percent but for fractions.

  Args:
    columns: "METHOD/METRIC" (or "METRIC") -> number of each row, in [0, 1];
      NaN where none counts.
    rows: what they are of.
    protocol: how to take means.

  Returns:
    For each column its mean; beside it, under `KEY_low` and `KEY_high`, the
    95% interval. For each stochastic pointing game's expectation also the
    game: the mean over runs, and their sample standard deviation (`_std`).
    Nothing for a column in which no row counts.
  """
  results: dict[str, float] = {}
  samples = {}
  for key, values in columns.items():
    values = _counting(key, values, rows, protocol)
    real = ~np.isnan(values)
    if not real.any():
      continue
    sample = values[real].astype(np.float64)
    groups = rows.target[real] if _is_by_class(key, protocol) else None
    if not key.endswith(FRACTIONS):
      samples[key] = rows.index[real], sample, groups
    results[key] = _scale(key) * _mean(sample, groups)
    if key.endswith(EXACT):
      game = key.removesuffix(EXACT) + STOCHASTIC
      runs = 100 * stochastic_runs(sample, protocol)
      results[game] = float(runs.mean())
      spread = runs.std(ddof=1) if len(runs) > 1 else 0.0
      results[f"{game}_std"] = float(spread)
  if protocol.num_resamples and samples:
    intervals = _intervals(samples, rows.index, protocol.num_resamples)
    for key, (low, high) in intervals.items():
      results[f"{key}_low"] = _scale(key) * low
      results[f"{key}_high"] = _scale(key) * high
  return results


def by_class(
  columns: Mapping[str, Float[np.ndarray, "N"]],
  rows: Rows,
  protocol: Protocol,
  class_names: Sequence[str],
) -> dict[str, dict[str, float]]:
  """Returns the mean of every column for each class that was explained.

  Args:
    columns: as for `summarize`.
    rows: what they are of.
    protocol: which rows count.
    class_names: what the classes are called.
  """
  found: dict[str, dict[str, float]] = {}
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


def _counting(key, values, rows, protocol):
  """Returns a column with NaN where the protocol passes over the pair."""
  games = key.endswith((POINTING_GAME, EXACT))
  if protocol.name == "release" and games:
    return np.where(rows.difficult, np.nan, values)
  return values


def _is_by_class(key: str, protocol: Protocol) -> bool:
  return protocol.name == "release" and key.endswith("/" + POINTING_GAME)


def _scale(key: str) -> float:
  return 1.0 if key.endswith(FRACTIONS) else 100.0


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


def _intervals(samples, index, num_resamples) -> dict[str, tuple[float, float]]:
  """Returns the 95% interval of every sample's mean.

  Args:
    samples: name -> (picture of each value, the values, their groups or None).
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
  means: dict[str, list] = {key: [] for key in samples}
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
