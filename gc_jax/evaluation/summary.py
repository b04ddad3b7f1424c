"""Numbers of pairs to results: means by protocol, by class, with intervals.

A picture is the unit of chance: the bootstrap draws its pairs together. Means
weigh pairs equally (the paper), except the pointing game under the protocol
"release" and "corrected", a mean over classes of each one's mean.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from gc_jax.data.dataset import Pairs
from gc_jax.evaluation import classification
from gc_jax.evaluation.ledger import Ledger
from gc_jax.evaluation.localisation import BOXES, DIFFICULT, max_box_acc
from gc_jax.method import metrics
from gc_jax.method.metrics import METRICS, POINTING_GAMES, Key
from gc_jax.method.protocols import PROTOCOLS
from gc_jax.report.artefact import Curves
from gc_jax.report.rows import (
  CASES,
  PREDICTED,
  interval,
  mean,
  resampled,
  sample,
)

# The number of each pair, in [0, 1]; NaN where it does not count.
Columns = Mapping[Key, Float[np.ndarray, "N"]]


class Estimate(NamedTuple):
  """A result, in percent unless its metric has another unit."""

  value: float | int
  std: float | None = None  # over draws, if it is drawn
  interval: tuple[float, float] | None = None  # of 95%, if there is one


def results(
  ledger: Ledger,
  pairs: Pairs,
  settings: ConfigDict,
  class_names: Sequence[str],
) -> tuple[dict[Key, Estimate], dict[str, dict[Key, float]]]:
  """Returns what a ledger says, of all rows and by class.

  Args:
    ledger: after its passes.
    pairs: its rows.
    settings: `config.eval`, here and below.
    class_names: of the data set.
  """
  columns = counting(ledger, settings)
  columns.pop(Key(PREDICTED), None)  # a class, which has no mean
  # The counts that F1 is made of say nothing alone.
  pooled = {
    key._replace(metric="f1_overall"): np.stack(
      [columns.pop(key._replace(metric=name)) for name in CASES], 1
    )
    for key in ledger.columns
    if key.metric == CASES[0]
  }
  read = columns.get(Key("top1"), np.zeros(0))
  if Key("f1_overall") in pooled:
    read = pooled[Key("f1_overall")][:, 0]
  located = [v for key, v in columns.items() if key.metric == "content_heatmap"]
  counted = {"num_examples": read, "num_pairs": [*located, np.zeros(0)][0]}
  found = {
    Key(name): Estimate(int((~np.isnan(column)).sum()))
    for name, column in counted.items()
  }
  found |= accuracies(ledger)
  num_classes = len(class_names)
  for key, estimate in summarize(columns, pairs, settings, num_classes).items():
    if key.attack:  # the interval is new, the number is known from its sums
      estimate = estimate._replace(value=found[key].value)
    found[key] = estimate
  for key, counts in pooled.items() if settings.num_resamples else ():
    one = sample(key.metric, counts, pairs, settings.protocol)
    means = resampled({key: one}, one.index, settings.num_resamples)
    low, high = interval(means[key], one)
    found[key] = found[key]._replace(interval=(100 * low, 100 * high))
  for key, (correct, count) in ledger.totals.items():
    if key.metric == BOXES:
      for metric, value in max_box_acc(correct, float(count)).items():
        found[key._replace(metric=metric)] = Estimate(value)
    elif key.method and key.metric in METRICS and count > 0:
      found[key] = Estimate(_scale(key) * float(correct / count))
  return found, by_class(columns, pairs.target, class_names)


def flat(found: Mapping[Key, Estimate]) -> dict[str, float | int]:
  """Returns results by their names in results.json, "val/top1" and so on."""
  named = {}
  for key, estimate in found.items():
    name = f"val/{key.name}"
    named[name] = estimate.value
    if estimate.std is not None:
      named[f"{name}_std"] = estimate.std
    if estimate.interval is not None:
      named[f"{name}_low"], named[f"{name}_high"] = estimate.interval
  return named


def curves(
  ledger: Ledger,
  found: Mapping[Key, Estimate],
  settings: ConfigDict,
  **sanity: Any,
) -> Curves:
  """Returns accuracy by epsilon, insertion and deletion, beside the sanity."""
  metric = metrics.accuracy(Key("f1_overall") in found)
  robustness: dict[str, dict[str, float]] = {}
  for key, estimate in found.items():
    if key.attack and key.metric == metric:
      # Those on few pictures have a clean row of their own.
      start = (
        {}
        if metrics.ATTACKS[key.attack].on_few
        else {"0": found[Key(metric)].value}
      )
      curve = robustness.setdefault(key.attack, start)
      curve[f"{key.epsilon:g}"] = estimate.value
  means = {"insertion": {}, "deletion": {}}
  for key, (total, weight) in ledger.totals.items():
    if key.metric in means:
      means[key.metric][key.method] = (total / max(weight, 1)).tolist()
  steps = settings.faithfulness_steps if means["insertion"] else 0
  fractions = [i / steps for i in range(steps + 1)] if steps else []
  return Curves(robustness, fractions, **means, **sanity)


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
    # Under attack, only what the attack is about.
    if not key.attack or metric not in ("loss", "top5")
  }


def counting(ledger: Ledger, settings: ConfigDict) -> dict[Key, np.ndarray]:
  """Returns the columns, NaN also where the protocol passes a pair over."""
  columns = dict(ledger.columns)
  difficult = columns.pop(DIFFICULT, np.zeros(ledger.num_rows)) > 0
  if not PROTOCOLS[settings.protocol].whole:
    return columns
  return {
    key: np.where(difficult, np.nan, values)
    if key.metric in POINTING_GAMES
    else values
    for key, values in columns.items()
  }


def summarize(
  columns: Columns, pairs: Pairs, settings: ConfigDict, num_classes: int
) -> dict[Key, Estimate]:
  """Returns the mean of every column, with its interval.

  A column in which no row counts is left out. Beside a stochastic pointing
  game's expectation stands the game: the mean over runs, and their sample
  standard deviation.
  """
  found: dict[Key, Estimate] = {}
  samples = {}
  for key, values in columns.items():
    if np.isnan(values).all():
      continue
    one = sample(key.metric, values, pairs, settings.protocol, num_classes)
    if _scale(key) != 1.0:
      samples[key] = one
    found[key] = Estimate(_scale(key) * mean(one))
    if key.metric == "stochastic_pointing_game_exact":
      runs = 100 * stochastic_runs(one.above, settings)
      spread = runs.std(ddof=1) if len(runs) > 1 else 0.0
      game = key._replace(metric="stochastic_pointing_game")
      found[game] = Estimate(float(runs.mean()), float(spread))
  if settings.num_resamples and samples:
    drawn = resampled(samples, pairs.index, settings.num_resamples)
    for key, means in drawn.items():
      low, high = interval(means, samples[key])
      found[key] = found[key]._replace(interval=(100 * low, 100 * high))
  return found


def by_class(
  columns: Columns, target: Int[np.ndarray, "N"], class_names: Sequence[str]
) -> dict[str, dict[Key, float]]:
  """Returns the mean of every column for each class that was explained."""
  found: dict[str, dict[Key, float]] = {}
  for key, values in columns.items():
    real = ~np.isnan(values) & (target >= 0)
    sums = np.bincount(target[real], values[real], len(class_names))
    counts = np.bincount(target[real], minlength=len(class_names))
    for k in np.flatnonzero(counts):
      value = float(_scale(key) * sums[k] / counts[k])
      found.setdefault(class_names[k], {})[key] = value
  return found


def stochastic_runs(
  expected: Float[np.ndarray, "N"], settings: ConfigDict
) -> Float[np.ndarray, "runs"]:
  """Returns the stochastic pointing game of each run, in [0, 1].

  Points are drawn independently, with replacement, and hit with the chance
  that is the game's expectation: how many hit is binomial, and no point need
  be drawn. Every method gets the same seed.
  """
  generator = np.random.default_rng(0)
  chance = np.clip(expected.astype(np.float64), 0, 1)
  samples = settings.spg_samples
  return np.array(
    [
      generator.binomial(samples, chance).mean() / samples
      for _ in range(settings.spg_runs)
    ]
  )


def _scale(key: Key) -> float:
  metric = METRICS.get(key.metric)
  return 1.0 if metric and metric.unit == "fraction" else 100.0
