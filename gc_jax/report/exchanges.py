"""Is the difference between two sets of runs chance? By exchanging labels.

Chance in training: under the null hypothesis two models are made alike, so that
the labels of their runs may be exchanged, within an architecture and a set of
pictures. Two numbers of one run, two explanations of it, exchange within it.
Chance in the pictures: they are a sample too. What their choice does to a mean,
beyond the noise of single runs, is added to every exchange. The interval has
the same two parts, added in squares, as in `report.differences`.

What is compared with its exchanges is the difference in standard errors, each
exchange in its own: sets on which models differ by more, or by less, are then
no chance (studentized exchanges: Chung and Romano, Annals of Statistics 2013).
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float

_NUM_EXCHANGES = 20_000


class Finding(NamedTuple):
  """A difference, in the unit of the numbers."""

  value: float
  low: float  # ends of the 95% interval
  high: float
  p: float  # of two sides


class Stratum(NamedTuple):
  """The runs of two models on some pictures, in the order of their seeds."""

  ours: Float[np.ndarray, "S P"]
  theirs: Float[np.ndarray, "S P"]
  pictures: str  # of which set; strata of one share them
  of_one: bool = False  # whether both are numbers of the same runs


def compared(strata: Sequence[Stratum], shift: float = 0.0) -> Finding:
  """Returns the mean difference over strata, with its interval and p.

  Args:
    strata: one at least; each weighs the same.
    shift: p is of the difference and this together: with 2, whether ours fall
      short by 2, exactly.
  """
  generator = np.random.default_rng(0)
  # Of the labels as they are, then of exchanges: a difference, its variance.
  means, variances = np.zeros((2, 1 + _NUM_EXCHANGES))
  of_pictures: dict[str, list[np.ndarray]] = {}
  noise: dict[str, float] = {}
  for one in strata:
    ours, theirs = one.ours.mean(1) + shift, one.theirs.mean(1)
    mean, variance = _exchanged(generator, ours, theirs, one.of_one)
    means += mean / len(strata)
    variances += variance / len(strata) ** 2
    sides = [one.ours - one.theirs] if one.of_one else [one.ours, one.theirs]
    differing = one.ours.mean(0) - one.theirs.mean(0)
    of_pictures.setdefault(one.pictures, []).append(differing)
    noise[one.pictures] = noise.get(one.pictures, 0.0) + sum(map(_noise, sides))
  by_pictures = 0.0
  for name, own in of_pictures.items():
    # Of the mean over the strata of one set, which share their pictures.
    total = np.sum(own, 0) / len(strata)
    beyond = np.var(total, ddof=1) - noise[name] / len(strata) ** 2
    by_pictures += max(0.0, float(beyond)) / len(total)
  chance = generator.standard_normal(_NUM_EXCHANGES)
  means[1:] += math.sqrt(by_pictures) * chance
  # Where there is no error at all, a difference is infinitely many.
  variances = np.maximum(variances + by_pictures, np.finfo(float).tiny)
  in_errors = np.abs(means) / np.sqrt(variances)
  # Exchanges that only round otherwise are equal.
  extreme = in_errors[1:] >= in_errors[0] * (1 - 1e-9)
  value, half = float(means[0]) - shift, _half_width(strata, by_pictures)
  p = (1 + int(extreme.sum())) / (1 + _NUM_EXCHANGES)
  return Finding(value, value - half, value + half, p)


def _half_width(strata: Sequence[Stratum], by_pictures: float) -> float:
  """Returns half of the 95% interval of the mean difference over strata.

  Args:
    strata: one at least.
    by_pictures: the variance that their choice makes.
  """
  half = 1.96 * math.sqrt(by_pictures)
  of_runs = [one.ours.mean(1) - one.theirs.mean(1) for one in strata]
  known = [np.var(own, ddof=1) for own in of_runs if len(own) > 1]
  if not known:
    return half
  # One run on each side is taken to vary as those of the others do.
  usual = statistics.fmean(known)
  variances = [
    np.var(own, ddof=1) / len(own) if len(own) > 1 else usual for own in of_runs
  ]
  free = sum(len(own) - 1 for own in of_runs)
  student = scipy.special.stdtrit(free, 0.975)
  return math.hypot(half, student * math.sqrt(sum(variances)) / len(strata))


def _exchanged(generator, ours, theirs, of_one: bool) -> np.ndarray:
  """Returns differences of means and their variances `[2 1+N]`.

  The first are of the labels as they are, the others of exchanges. Of one run
  on each side no variance is known, and it is 0.
  """
  if of_one:
    signs = generator.choice((-1.0, 1.0), (_NUM_EXCHANGES, len(ours)))
    sides = [np.vstack([ours - theirs, signs * (ours - theirs)])]
  else:
    runs = np.tile(np.concatenate([ours, theirs]), (1 + _NUM_EXCHANGES, 1))
    runs[1:] = generator.permuted(runs[1:], axis=1)
    sides = [runs[:, : len(ours)], -runs[:, len(ours) :]]
  means = sum(side.mean(1) for side in sides)
  if len(ours) < 2:
    return np.stack([means, np.zeros_like(means)])
  return np.stack([means, sum(np.var(s, 1, ddof=1) / len(ours) for s in sides)])


def _noise(values: Float[np.ndarray, "S P"]) -> float:
  """Returns what runs and pictures do together to a picture's mean."""
  if len(values) < 2:
    return 0.0
  rest = values - values.mean(0) - values.mean(1)[:, None] + values.mean()
  free = (values.shape[0] - 1) * (values.shape[1] - 1)
  return float(np.square(rest).sum() / free / len(values))


def holm(p: Sequence[float]) -> list[float]:
  """Returns p-values as Holm corrects them for their number."""
  order = np.argsort(p, kind="stable")
  adjusted, highest = [0.0] * len(p), 0.0
  for rank, i in enumerate(order):
    highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
    adjusted[i] = highest
  return adjusted
