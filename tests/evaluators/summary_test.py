"""Means, intervals and the stochastic game of columns, against brute force."""

import numpy as np
import pytest

from gc_jax.evaluators import summary
from gc_jax.evaluators.summary import Protocol, Rows

PG, EXACT = "a/pointing_game", "a/stochastic_pointing_game_exact"
CH = "a/content_heatmap"


def made(count=60, seed=0):
  """Columns of pairs, one to three a picture; some of them not measured."""
  rng = np.random.default_rng(seed)
  index = np.sort(rng.integers(0, count // 2, count))
  rows = Rows(index, rng.integers(0, 4, count), rng.random(count) < 0.2)
  columns = {
    PG: (rng.random(count) < 0.6).astype(np.float32),
    EXACT: rng.random(count).astype(np.float32),
    CH: rng.random(count).astype(np.float32),
    "a/zero_map_frac": (rng.random(count) < 0.1).astype(np.float32),
  }
  for values in columns.values():
    values[rng.random(count) < 0.1] = np.nan
  return columns, rows


def test_the_paper_weighs_pairs_equally():
  columns, rows = made()
  results = summary.summarize(columns, rows, Protocol("paper"))
  for key in (PG, EXACT, CH):
    assert results[key] == pytest.approx(100 * np.nanmean(columns[key]))
  assert results["a/zero_map_frac"] == pytest.approx(
    np.nanmean(columns["a/zero_map_frac"])
  )


def test_the_release_means_over_classes_and_passes_over_difficult_ones():
  columns, rows = made()
  results = summary.summarize(columns, rows, Protocol("release"))
  easy = ~rows.difficult
  means = [np.nanmean(columns[PG][easy & (rows.target == k)]) for k in range(4)]
  assert results[PG] == pytest.approx(100 * np.mean(means))
  assert results[EXACT] == pytest.approx(100 * np.nanmean(columns[EXACT][easy]))
  # The content heatmap counts all.
  assert results[CH] == pytest.approx(100 * np.nanmean(columns[CH]))


def test_the_stochastic_game_has_the_law_of_drawn_points():
  """Points hit independently with the expected chance: mean and spread."""
  chance = np.array([0.0, 0.3, 1.0, 0.75])
  protocol = Protocol(spg_samples=100, spg_runs=4_000)
  runs = summary.stochastic_runs(chance, protocol)
  variance = (chance * (1 - chance)).sum() / 100 / 4**2
  assert abs(runs.mean() - chance.mean()) < 4 * np.sqrt(variance / 4_000)
  # The variance of a variance: 2 / n of its square.
  assert runs.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / 4_000))


def test_the_game_is_given_as_mean_and_deviation_over_runs():
  columns, rows = made()
  protocol = Protocol(spg_samples=10, spg_runs=5)
  results = summary.summarize(columns, rows, protocol)
  expected = columns[EXACT][~np.isnan(columns[EXACT])]
  runs = 100 * summary.stochastic_runs(expected, protocol)
  key = "a/stochastic_pointing_game"
  assert results[key] == pytest.approx(runs.mean())
  assert results[f"{key}_std"] == pytest.approx(runs.std(ddof=1))
  once = summary.summarize(columns, rows, Protocol(spg_runs=1))
  assert once[f"{key}_std"] == 0


@pytest.mark.parametrize("name", ["paper", "release"])
def test_intervals_are_those_of_resampled_pictures(name):
  """Pictures drawn one by one, with all their pairs."""
  columns, rows = made(200)
  protocol = Protocol(name, num_resamples=2_000)
  results = summary.summarize(columns, rows, protocol)
  rng = np.random.default_rng(7)
  pictures = np.unique(rows.index)
  of = {p: np.flatnonzero(rows.index == p) for p in pictures}
  for key in (PG, CH):
    means = []
    for _ in range(2_000):
      drawn = np.concatenate([of[p] for p in rng.choice(pictures, len(of))])
      some = Rows(rows.index[drawn], rows.target[drawn], rows.difficult[drawn])
      again = summary.summarize(
        {key: columns[key][drawn]}, some, Protocol(name)
      )
      means.append(again[key])
    low, high = np.quantile(means, (0.025, 0.975))
    width = high - low
    # Two bootstraps of 2,000 agree on a quantile to a few percent.
    assert results[f"{key}_low"] == pytest.approx(low, abs=0.08 * width)
    assert results[f"{key}_high"] == pytest.approx(high, abs=0.08 * width)
    assert results[f"{key}_low"] < results[key] < results[f"{key}_high"]


def test_pairs_of_one_picture_stand_or_fall_together():
  """Copies of a pair add no certainty, copies of pictures do."""
  rng = np.random.default_rng(0)
  values = rng.random(50).astype(np.float32)
  protocol = Protocol(num_resamples=1_000)

  def width(index, values):
    rows = Rows(index, np.zeros(len(index), int), np.zeros(len(index), bool))
    results = summary.summarize({CH: values}, rows, protocol)
    return results[f"{CH}_high"] - results[f"{CH}_low"]

  alone = width(np.arange(50), values)
  same = width(np.repeat(np.arange(50), 4), np.repeat(values, 4))
  more = width(np.arange(200), np.repeat(values, 4))
  assert same == pytest.approx(alone)
  assert more == pytest.approx(alone / 2, rel=0.15)


def test_f1_has_an_interval_around_it():
  rng = np.random.default_rng(0)
  counts = rng.integers(0, 3, (100, 3)).astype(np.float32)
  low, high = summary.f1_interval(np.arange(100), counts, 500)
  hits, alarms, misses = counts.sum(0)
  f1 = 100 * 2 * hits / (2 * hits + alarms + misses)
  assert low < f1 < high
  means = []
  for _ in range(2_000):
    h, a, m = counts[rng.integers(0, 100, 100)].sum(0)
    means.append(100 * 2 * h / (2 * h + a + m))
  assert low == pytest.approx(np.quantile(means, 0.025), abs=1.0)
  assert high == pytest.approx(np.quantile(means, 0.975), abs=1.0)


def test_by_class_every_class_that_was_explained_has_its_own_mean():
  columns, rows = made()
  rows.target[:3] = -1
  found = summary.by_class(columns, rows, Protocol("release"), list("abcde"))
  assert set(found) == set("abcd")  # none shows an e
  for k, name in enumerate("abcd"):
    own = rows.target == k
    assert found[name][CH] == pytest.approx(100 * np.nanmean(columns[CH][own]))
    easy = own & ~rows.difficult
    assert found[name][PG] == pytest.approx(100 * np.nanmean(columns[PG][easy]))


def test_what_nothing_was_measured_of_is_left_out():
  rows = Rows(np.arange(3), np.zeros(3, int), np.zeros(3, bool))
  nothing = np.full(3, np.nan, np.float32)
  protocol = Protocol(num_resamples=10)
  assert summary.summarize({CH: nothing}, rows, protocol) == {}
  assert summary.by_class({CH: nothing}, rows, protocol, ["a"]) == {}
