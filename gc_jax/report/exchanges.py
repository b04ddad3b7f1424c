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

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float

_NUM_EXCHANGES = 200_000
# Ways to exchange the labels of one stratum: all of them if there are no more
# (five runs on each side: 252), else so many by chance.
_MOST_WAYS = 5_000


class Finding(NamedTuple):
  """A difference, in the unit of the numbers."""

  value: float
  low: float  # ends of the 95% interval
  high: float
  p: float  # of two sides
  least: float  # p of the clearest difference that so many runs could show


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
    ways = _exchanged(generator, ours, theirs, one.of_one)
    drawn = np.zeros(1 + _NUM_EXCHANGES, int)
    drawn[1:] = generator.integers(1, ways.shape[1], _NUM_EXCHANGES)
    means += ways[0, drawn] / len(strata)
    variances += ways[1, drawn] / len(strata) ** 2
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
  least = 2 / math.prod(_num_ways(len(o.ours), o.of_one) for o in strata)
  least = min(1.0, max(least, 1 / (1 + _NUM_EXCHANGES)))
  return Finding(value, value - half, value + half, p, least)


def _half_width(strata: Sequence[Stratum], by_pictures: float) -> float:
  """Returns half of the 95% interval of the mean difference over strata.

  Strata vary by more and by less, so Student's t has Satterthwaite's degrees of
  freedom (Biometrics Bulletin 1946): few if a stratum of few runs varies most.

  Args:
    strata: one at least.
    by_pictures: the variance that their choice makes.
  """
  half = 1.96 * math.sqrt(by_pictures)
  of_runs = [one.ours.mean(1) - one.theirs.mean(1) for one in strata]
  known = [own for own in of_runs if len(own) > 1]
  if not known:
    return half
  # One run on each side is taken to vary as those of the others do on average.
  borrowed = (len(strata) - len(known)) / len(known)
  parts = [np.var(own, ddof=1) * (1 / len(own) + borrowed) for own in known]
  if not any(parts):
    return half
  free = sum(parts) ** 2 / sum(
    part**2 / (len(own) - 1) for part, own in zip(parts, known, strict=True)
  )
  student = scipy.special.stdtrit(free, 0.975)
  return math.hypot(half, student * math.sqrt(sum(parts)) / len(strata))


def _num_ways(num_runs: int, of_one: bool) -> int:
  """Returns how many ways there are to exchange a stratum's labels."""
  return 2**num_runs if of_one else math.comb(2 * num_runs, num_runs)


def _exchanged(generator, ours, theirs, of_one: bool) -> np.ndarray:
  """Returns the difference of means and its variance, each way `[2 1+W]`.

  First of the labels as they are, then of every way to exchange them, or of
  `_MOST_WAYS` by chance. Of one run on each side no variance is known: 0.
  """
  num = len(ours)
  is_every = _num_ways(num, of_one) <= _MOST_WAYS
  if of_one:
    if is_every:
      signs = np.array([*itertools.product((-1.0, 1.0), repeat=num)])
    else:
      signs = generator.choice((-1.0, 1.0), (_MOST_WAYS, num))
    sides = [np.vstack([ours - theirs, signs * (ours - theirs)])]
  else:
    if is_every:
      first = np.array([*itertools.combinations(range(2 * num), num)])
      is_first = np.zeros((len(first), 2 * num), bool)
      np.put_along_axis(is_first, first, True, 1)
      order = np.argsort(~is_first, axis=1, kind="stable")
    else:
      order = np.tile(np.arange(2 * num), (_MOST_WAYS, 1))
      order = generator.permuted(order, axis=1)
    order = np.vstack([np.arange(2 * num), order])
    runs = np.concatenate([ours, theirs])[order]
    sides = [runs[:, :num], -runs[:, num:]]
  means = sum(side.mean(1) for side in sides)
  if num < 2:
    return np.stack([means, np.zeros_like(means)])
  return np.stack([means, sum(np.var(s, 1, ddof=1) / num for s in sides)])


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
  scaled = np.minimum(1.0, np.arange(len(p), 0, -1) * np.array(p)[order])
  adjusted = np.empty(len(p))
  adjusted[order] = np.maximum.accumulate(scaled)
  return adjusted.tolist()
