"""The numbers of single pairs: rows.npz, and means of them with intervals.

rows.npz has one row for each pair of a picture and a class it shows, in the
order of the split. Its arrays, all of this length, have the names:

  index    position of the picture in the evaluated split
  target   the class explained; -1 where the picture shows none
  name     the picture's file, below the data set's folder; "" where the data
           set cannot tell it without reading the picture
  others   `Key.name` of a number, "top1" or "gradcam/pointing_game": a float32
           fraction (the cases of F1: a count; `predicted`: a class); NaN where
           the pair does not count, as `top1` on all but the first row of a
           picture

A picture is the unit of chance: the bootstrap draws its pairs together.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int, Shaped

from gc_jax.data.dataset import Pairs
from gc_jax.method.metrics import Key
from gc_jax.method.protocols import PROTOCOLS
from gc_jax.runtime import files

FILENAME = "rows.npz"
# What F1 is made of, in this order.
CASES = ("true_positives", "false_positives", "false_negatives")
CONFIDENCE = "confidence"  # in the class explained, of a picture's first row
PREDICTED = "predicted"  # the class with the highest score, if one is asked for
_BLOCK = 16  # resamples at a time
_TAIL = 0.025  # on either side of an interval
_K = TypeVar("_K", bound=Hashable)


class Rows(NamedTuple):
  """What rows.npz holds."""

  index: Int[np.ndarray, "N"]
  target: Int[np.ndarray, "N"]
  name: Shaped[np.ndarray, "N"]
  columns: Mapping[Key, Float[np.ndarray, "N"]]


def save(folder: files.AnyPath, rows: Rows) -> None:
  """Writes the file, completely or not at all."""
  arrays = rows._asdict()
  columns = arrays.pop("columns")
  arrays |= {key.name: np.float32(values) for key, values in columns.items()}
  with files.replacing(folder / FILENAME) as file:
    np.savez_compressed(file, **arrays)


def load(folder: files.AnyPath, keys: Iterable[Key]) -> Rows | None:
  """Returns those of some columns that there are; None without a file.

  Raises:
    ValueError: the file is broken.
  """
  path = folder / FILENAME
  if not path.is_file():
    return None
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      columns = {key: arrays[key.name] for key in keys if key.name in arrays}
      return Rows(arrays["index"], arrays["target"], arrays["name"], columns)
  except Exception as error:  # numpy, zipfile and zlib raise many kinds
    raise broken(path, str(error)) from error


def of_seeds(
  evaluations: Sequence[Any], keys: Sequence[Key], like: Rows | None = None
) -> tuple[list[Rows] | None, str]:
  """Returns the rows of evaluations, of the same pairs.

  Args:
    evaluations: `Evaluated`s of one model's seeds: `rows` where they are not
      saved yet, else those in their `folder`.
    keys: the wanted columns; those that a folder lacks are left out.
    like: rows of the pairs that all must have.

  Returns:
    Rows and ""; or None and the reason, a sentence.
  """
  found = []
  for one in evaluations:
    own = one.rows or load(one.folder, keys)
    if own is None:
      why = f"{one.folder} has no {FILENAME}, as an older version wrote it."
      return None, f"{why} Evaluate it again."
    like = like or own
    if not all(map(np.array_equal, own[:3], like[:3])):
      return None, f"{one.folder} is of other images or classes."
    found.append(own)
  return found, ""


def broken(path: files.AnyPath, why: str) -> ValueError:
  """Returns the error of a file that an evaluation did not write so."""
  return ValueError(
    f"{path} must be a file of a finished evaluation: {why}. Evaluate again: "
    "give the command that wrote it."
  )


class Sample(NamedTuple):
  """What a mean is made of: sum(above) / sum(below)."""

  index: np.ndarray  # picture of each value
  above: np.ndarray
  below: np.ndarray
  groups: np.ndarray | None = None  # the mean is over groups of each one's mean
  share: float = 1.0  # of the groups that have pairs; the others count 0


def sample(
  metric: str,
  values: Float[np.ndarray, "N *cases"],
  pairs: Pairs | Rows,
  protocol: str,
  num_classes: int = 0,
) -> Sample:
  """Returns the pairs that count, weighed as the protocol has it.

  Args:
    metric: a key of `METRICS`.
    values: its column; of "f1_overall" its `CASES`, `[N 3]`.
    pairs: their pictures and classes.
    protocol: a key of `PROTOCOLS`: how the pointing game is averaged.
    num_classes: of the data set, for the pointing game.
  """
  real = ~np.isnan(values.reshape(len(values), -1)[:, 0])
  index, values = pairs.index[real], values[real].astype(np.float64)
  if metric == "f1_overall":
    hits, alarms, misses = values.T
    return Sample(index, 2 * hits, 2 * hits + alarms + misses)
  made = Sample(index, values, np.ones_like(values))
  if PROTOCOLS[protocol].whole and metric == "pointing_game":
    made = made._replace(groups=pairs.target[real])
    if PROTOCOLS[protocol].counts_unseen and num_classes:
      # Of all pairs: a class is not unseen because few of them were measured,
      # or a resample has none of it.
      seen = np.unique(pairs.target[pairs.target >= 0])
      made = made._replace(share=len(seen) / num_classes)
  return made


def parts(key: Key) -> list[Key]:
  """Returns the columns of rows.npz that a number is made of."""
  if key.metric == "f1_overall":
    return [key._replace(metric=name) for name in CASES]
  return [key]


def column(own: Rows, key: Key) -> Float[np.ndarray, "N *cases"] | None:
  """Returns what `sample` takes of a number; None if a part is missing."""
  found = [own.columns.get(part) for part in parts(key)]
  if any(each is None for each in found):
    return None
  return found[0] if len(found) == 1 else np.stack(found, 1)


def mean(one: Sample, times: np.ndarray | float = 1.0) -> float:
  """Returns the mean with each value taken so many times."""
  if one.groups is None:
    return float((one.above * times).sum() / (one.below * times).sum())
  sums = np.bincount(one.groups, one.above * times)
  counts = np.bincount(one.groups, one.below * times)
  means = sums[counts > 0] / counts[counts > 0]
  return float(means.mean() * one.share)


def pseudo_values(
  one: Sample, pictures: Shaped[np.ndarray, "P"]
) -> Float[np.ndarray, "P"]:
  """Returns a number for each picture, whose mean is the sample's mean.

  A ratio of sums, or a mean of groups' means, is as much above its mean as the
  picture moves it, to first order.

  Args:
    one: of these pictures, or some of them.
    pictures: ascending.
  """
  middle = mean(one)
  if one.groups is None:
    shares = (one.above - middle * one.below) / one.below.sum()
  else:
    counts = np.bincount(one.groups)
    means = np.bincount(one.groups, one.above) / np.maximum(counts, 1)
    shares = one.share * (one.above - means[one.groups])
    shares /= counts[one.groups] * np.count_nonzero(counts)
  places = np.searchsorted(pictures, one.index)
  count = len(pictures)
  return middle + count * np.bincount(places, shares, count)


def resampled(
  samples: Mapping[_K, Sample], index: np.ndarray, num_resamples: int
) -> dict[_K, Float[np.ndarray, "R"]]:
  """Returns every sample's mean in resamples, which are the same for all.

  Args:
    samples: by any name.
    index: the pictures that are drawn from; repetitions do not matter.
    num_resamples: R.

  Returns:
    NaN for a resample in which nothing of a sample was drawn.
  """
  pictures = np.unique(index)
  count = len(pictures)
  places = {
    key: np.searchsorted(pictures, one.index) for key, one in samples.items()
  }
  sums = {
    key: [np.bincount(places[key], x, count) for x in (one.above, one.below)]
    for key, one in samples.items()
  }
  means: dict[_K, list] = {key: [] for key in samples}
  for weights in _resamples(count, num_resamples):
    for key, one in samples.items():
      if one.groups is None:
        above, below = (weights @ x for x in sums[key])
        empty = np.full(len(above), np.nan)
        means[key].append(np.divide(above, below, empty, where=below > 0))
      else:
        means[key].append([mean(one, row) for row in weights[:, places[key]]])
  return {key: np.concatenate(found) for key, found in means.items()}


def interval(
  means: Float[np.ndarray, "R"], one: Sample | None = None
) -> tuple[float, float]:
  """Returns the ends of the 95% interval, of the resamples with a mean.

  Args:
    means: of `resampled`.
    one: what they are means of. If all its values are 0, or all 1, so are all
      resamples; the interval then reaches to where this happens to one such
      set of pictures in forty: five right of five are [48, 100], not [100, 100]
      (Clopper and Pearson 1934; of F1, as if pictures weighed the same).
  """
  low, high = np.quantile(means[~np.isnan(means)], (_TAIL, 1 - _TAIL))
  if one is not None:
    end = one.share * _TAIL ** (1 / len(np.unique(one.index)))
    if (one.above == one.below).all():
      low = end
    elif (one.above == 0).all():
      high = one.share - end
  return float(low), float(high)


def _resamples(num_pictures: int, num_resamples: int):
  """Yields how often each picture is drawn, for some resamples at a time."""
  generator = np.random.default_rng(0)
  for start in range(0, num_resamples, _BLOCK):
    size = min(_BLOCK, num_resamples - start)
    drawn = generator.integers(0, num_pictures, (size, num_pictures))
    drawn += num_pictures * np.arange(size)[:, None]
    weights = np.bincount(drawn.ravel(), minlength=size * num_pictures)
    yield weights.reshape(size, num_pictures).astype(np.float64)
