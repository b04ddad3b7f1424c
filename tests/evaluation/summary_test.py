"""Means, intervals and the stochastic game of columns, against brute force."""

import numpy as np
import pytest

from configs import base
from gc_jax.data.dataset import Pairs
from gc_jax.evaluation import summary
from gc_jax.evaluation.classification import CASES
from gc_jax.evaluation.ledger import Ledger
from gc_jax.evaluation.localisation import DIFFICULT
from gc_jax.evaluation.summary import Estimate
from gc_jax.method.metrics import Key

PG = Key("pointing_game", "a")
EXACT = Key("stochastic_pointing_game_exact", "a")
SPG = Key("stochastic_pointing_game", "a")
CH = Key("content_heatmap", "a")
EMPTY = Key("zero_map_frac", "a")
NUM_CLASSES = 4


def settings(protocol="paper", spg_samples=100, spg_runs=5, num_resamples=0):
  chosen = base.get_config().eval
  chosen.protocol, chosen.num_resamples = protocol, num_resamples
  chosen.spg_samples, chosen.spg_runs = spg_samples, spg_runs
  return chosen


def pairs_of(index, target=None):
  target = np.zeros(len(index), int) if target is None else target
  return Pairs(index, target, np.ones(len(index), bool))


def made(count=60, seed=0):
  """Columns of pairs, one to three a picture; some of them not measured."""
  rng = np.random.default_rng(seed)
  index = np.sort(rng.integers(0, count // 2, count))
  pairs = pairs_of(index, rng.integers(0, 4, count))
  columns = {
    PG: (rng.random(count) < 0.6).astype(np.float32),
    EXACT: rng.random(count).astype(np.float32),
    CH: rng.random(count).astype(np.float32),
    EMPTY: (rng.random(count) < 0.1).astype(np.float32),
  }
  for values in columns.values():
    values[rng.random(count) < 0.1] = np.nan
  return columns, pairs


def test_the_release_takes_means_over_classes_and_passes_over_difficult_pairs():
  """The paper weighs all pairs equally."""
  columns, pairs = made()
  ledger = Ledger(len(pairs.index))
  difficult = np.random.default_rng(1).random(len(pairs.index)) < 0.2
  ledger.columns = columns | {DIFFICULT: difficult.astype(np.float32)}
  names = list("abcde")
  for protocol, counts in (
    ("paper", np.ones_like(difficult)),
    ("corrected", ~difficult),
    ("release", ~difficult),
  ):
    chosen = settings(protocol)
    found, by_class = summary.results(ledger, pairs, chosen, names)
    assert set(by_class) == set("abcd")  # none shows an e
    means = [
      100 * np.nanmean(columns[PG][counts & (pairs.target == k)])
      for k in range(4)
    ]
    assert [by_class[k][PG] for k in "abcd"] == pytest.approx(means)
    exact = 100 * np.nanmean(columns[EXACT][counts])
    assert found[EXACT].value == pytest.approx(exact)
    if protocol == "paper":
      assert found[PG].value == pytest.approx(100 * np.nanmean(columns[PG]))
    elif protocol == "corrected":
      assert found[PG].value == pytest.approx(np.mean(means))
    elif protocol == "release":  # the class that none shows counts 0
      assert found[PG].value == pytest.approx(np.sum(means) / 5)
    # These count all; a fraction stays one.
    assert found[CH].value == pytest.approx(100 * np.nanmean(columns[CH]))
    assert found[EMPTY].value == pytest.approx(np.nanmean(columns[EMPTY]))


def test_the_stochastic_game_has_the_law_of_drawn_points():
  """Points hit independently with the expected chance: mean and spread."""
  chance = np.array([0.0, 0.3, 1.0, 0.75])
  chosen = settings(spg_samples=100, spg_runs=4_000)
  runs = summary.stochastic_runs(chance, chosen)
  variance = (chance * (1 - chance)).sum() / 100 / 4**2
  assert abs(runs.mean() - chance.mean()) < 4 * np.sqrt(variance / 4_000)
  # The variance of a variance: 2 / n of its square.
  assert runs.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / 4_000))


def test_the_game_is_given_as_mean_and_deviation_over_runs():
  columns, pairs = made()
  chosen = settings(spg_samples=10, spg_runs=5)
  results = summary.summarize(columns, pairs, chosen, NUM_CLASSES)
  expected = columns[EXACT][~np.isnan(columns[EXACT])]
  runs = 100 * summary.stochastic_runs(expected, chosen)
  assert results[SPG].value == pytest.approx(runs.mean())
  assert results[SPG].std == pytest.approx(runs.std(ddof=1))
  once = summary.summarize(columns, pairs, settings(spg_runs=1), NUM_CLASSES)
  assert once[SPG].std == 0


def test_results_have_their_names_in_results_json():
  found = {
    Key("top1"): Estimate(80.0, None, (70.0, 90.0)),
    SPG: Estimate(50.0, 0.5),
    Key("top1", attack="fgsm-within", epsilon=0.5): Estimate(3.0),
  }
  assert summary.flat(found) == {
    "val/top1": 80.0,
    "val/top1_low": 70.0,
    "val/top1_high": 90.0,
    "val/a/stochastic_pointing_game": 50.0,
    "val/a/stochastic_pointing_game_std": 0.5,
    "val/fgsm-within_0.5/top1": 3.0,
  }


@pytest.mark.parametrize("name", ["paper", "release", "corrected"])
def test_intervals_are_those_of_resampled_pictures(name):
  """Pictures drawn one by one, with all their pairs."""
  columns, pairs = made(200)
  chosen = settings(name, num_resamples=1_000)
  results = summary.summarize(columns, pairs, chosen, NUM_CLASSES)
  rng = np.random.default_rng(7)
  pictures = np.unique(pairs.index)
  of = {p: np.flatnonzero(pairs.index == p) for p in pictures}
  for key in (PG, CH):
    means = []
    for _ in range(1_000):
      drawn = np.concatenate([of[p] for p in rng.choice(pictures, len(of))])
      some = pairs_of(pairs.index[drawn], pairs.target[drawn])
      again = summary.summarize(
        {key: columns[key][drawn]}, some, settings(name), NUM_CLASSES
      )
      means.append(again[key].value)
    low, high = np.quantile(means, (0.025, 0.975))
    width = high - low
    # Two bootstraps of 1,000 agree on a quantile to a few percent.
    ends = results[key].interval
    assert ends == pytest.approx((low, high), abs=0.12 * width)
    assert ends[0] < results[key].value < ends[1]


def test_pairs_of_one_picture_stand_or_fall_together():
  """Copies of a pair add no certainty, copies of pictures do."""
  rng = np.random.default_rng(0)
  values = rng.random(50).astype(np.float32)
  chosen = settings(num_resamples=1_000)

  def width(index, values):
    results = summary.summarize(
      {CH: values}, pairs_of(index), chosen, NUM_CLASSES
    )
    low, high = results[CH].interval
    return high - low

  alone = width(np.arange(50), values)
  same = width(np.repeat(np.arange(50), 4), np.repeat(values, 4))
  more = width(np.arange(200), np.repeat(values, 4))
  assert same == pytest.approx(alone)
  assert more == pytest.approx(alone / 2, rel=0.15)


@pytest.mark.parametrize("name", ["paper", "corrected"])
@pytest.mark.parametrize(("hit", "ends"), [(1, (47.8, 100)), (0, (0, 52.2))])
def test_five_pictures_of_five_are_no_certainty(name, hit, ends):
  """As scipy.stats.binomtest(5, 5).proportion_ci() has it."""
  columns = {PG: np.full(10, hit, np.float32)}
  pairs = pairs_of(np.repeat(np.arange(5), 2))  # two of each picture
  chosen = settings(name, num_resamples=100)
  found = summary.summarize(columns, pairs, chosen, NUM_CLASSES)[PG]
  assert found.value == 100 * hit
  assert found.interval == pytest.approx(ends, abs=0.1)


@pytest.mark.parametrize(
  ("case", "ends"),
  [("true_positives", (47.8, 100)), ("false_negatives", (0, 52.2))],
)
def test_f1_of_five_pictures_of_five_is_no_certainty(case, ends):
  ledger = Ledger(5)
  for name in CASES:
    ledger.columns[Key(name)] = np.full(5, name == case, np.float32)
    ledger.totals[Key(name)] = (
      np.array([5.0 * (name == case)]),
      np.float64(5),
    )
  ledger.totals[Key("loss")] = (np.float64(1), np.float64(5))
  found, _ = summary.results(
    ledger, pairs_of(np.arange(5)), settings(num_resamples=50), ["only"]
  )
  assert found[Key("f1_overall")].interval == pytest.approx(ends, abs=0.1)


def test_a_column_or_class_without_a_measurement_is_left_out():
  columns, pairs = made()
  nothing = np.full(60, np.nan, np.float32)
  chosen = settings(num_resamples=10)
  assert summary.summarize({CH: nothing}, pairs, chosen, 4) == {}
  assert summary.by_class({CH: nothing}, pairs.target, list("abcd")) == {}
  pairs.target[pairs.target == 2] = -1  # pictures without a class
  found = summary.by_class(columns, pairs.target, list("abcd"))
  assert set(found) == set("abd")


@pytest.mark.parametrize("attack", [{}, {"attack": "fgsm", "epsilon": 8}])
def test_f1_has_the_interval_of_resampled_pictures(attack):
  rng = np.random.default_rng(0)
  counts = rng.integers(0, 3, (100, 3)).astype(np.float32)
  ledger = Ledger(100)
  for name, column in zip(CASES, counts.T, strict=True):
    total = column.sum(keepdims=True), np.float64(100)
    ledger.columns[Key(name, **attack)] = column
    ledger.totals[Key(name, **attack)] = total
  ledger.totals[Key("loss", **attack)] = (np.float64(1), np.float64(100))
  found, by_class = summary.results(
    ledger, pairs_of(np.arange(100)), settings(num_resamples=500), ["only"]
  )

  def f1(rows):
    hits, alarms, misses = rows.sum(0)
    return 100 * 2 * hits / (2 * hits + alarms + misses)

  estimate = found[Key("f1_overall", **attack)]
  assert estimate.value == pytest.approx(f1(counts))
  means = [f1(counts[rng.integers(0, 100, 100)]) for _ in range(2_000)]
  # Two bootstraps agree on a quantile to a few percent of the width.
  expected = np.quantile(means, (0.025, 0.975))
  assert estimate.interval == pytest.approx(tuple(expected), abs=1.0)
  # The counts say nothing alone.
  assert not any("positives" in key.metric for key in found)
  assert by_class == {}
