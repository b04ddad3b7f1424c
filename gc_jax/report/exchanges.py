"""Is the difference between two sets of runs chance? By exchanging labels.

Chance in training: under the null hypothesis two models are made alike, so that
the labels of their runs may be exchanged, within an architecture and a set of
pictures. Two numbers of one run, two explanations of it, exchange within it.
Chance in the pictures: they are a sample too. What their choice does to a mean,
beyond the noise of single runs, is added to every exchange. The interval has
the same two parts, added in squares, as in `report.differences`.
"""

import math
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
  value, null, variance, free = 0.0, np.zeros(_NUM_EXCHANGES), 0.0, 0
  of_pictures: dict[str, list[np.ndarray]] = {}
  noise: dict[str, float] = {}
  for one in strata:
    ours, theirs = one.ours.mean(1) + shift, one.theirs.mean(1)
    value += (ours.mean() - theirs.mean()) / len(strata)
    null += _exchanged(generator, ours, theirs, one.of_one) / len(strata)
    if len(ours) > 1:
      spread = np.var(ours - theirs, ddof=1) / len(ours)
      variance += spread / len(strata) ** 2
      free += len(ours) - 1
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
  null += math.sqrt(by_pictures) * generator.standard_normal(len(null))
  # Exchanges that only round otherwise are equal.
  extreme = np.abs(null) >= abs(value) * (1 - 1e-9)
  half = 1.96 * math.sqrt(by_pictures)
  if free:
    student = scipy.special.stdtrit(free, 0.975)
    half = math.hypot(half, student * math.sqrt(variance))
  return Finding(
    value - shift,
    value - shift - half,
    value - shift + half,
    (1 + int(extreme.sum())) / (1 + len(null)),
  )


def _exchanged(generator, ours, theirs, of_one: bool) -> np.ndarray:
  """Returns differences of means after exchanges of labels."""
  if of_one:
    signs = generator.choice((-1.0, 1.0), (_NUM_EXCHANGES, len(ours)))
    return (signs * (ours - theirs)).mean(1)
  runs = np.tile(np.concatenate([ours, theirs]), (_NUM_EXCHANGES, 1))
  runs = generator.permuted(runs, axis=1)
  return runs[:, : len(ours)].mean(1) - runs[:, len(ours) :].mean(1)


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
