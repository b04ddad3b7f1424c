"""Tests by exchange: a null is found by chance alone, a shift is found."""

import itertools

import numpy as np
import pytest
import scipy.stats

from gc_jax.report import exchanges
from gc_jax.report.exchanges import Stratum


def runs(rng, seeds, pictures, *, by_run, by_picture, noise, shift=0.0):
  """Runs of two models: pictures are as hard for both, or not quite."""
  hard = rng.standard_normal(pictures)

  def side(own_shift):
    own = by_picture * rng.standard_normal(pictures)
    of_runs = by_run * rng.standard_normal((seeds, 1))
    each = noise * rng.standard_normal((seeds, pictures))
    return own_shift + hard + own + of_runs + each

  return side(shift), side(0.0)


@pytest.mark.parametrize(
  ("by_run", "by_picture", "noise", "seeds"),
  [
    (1.0, 0.0, 1.0, (5, 5)),
    (0.05, 2.0, 1.0, (5, 5)),
    (0.0, 0.0, 1.0, (5, 5)),
    (0.3, 2.0, 3.0, (5, 5)),
    (0.5, 0.0, 1.0, (5, 3, 1)),  # of one run, nobody knows how much it varies
  ],
)
def test_under_the_null_p_is_uniform_and_intervals_hold_the_truth(
  by_run, by_picture, noise, seeds, monkeypatch
):
  """Whatever the chance comes from: runs, pictures, or both together."""
  monkeypatch.setattr(exchanges, "_NUM_EXCHANGES", 5_000)  # are enough here
  rng = np.random.default_rng(0)
  found = []
  for _ in range(200):
    strata = [
      Stratum(
        *runs(rng, n, 60, by_run=by_run, by_picture=by_picture, noise=noise),
        str(number),
      )
      for number, n in enumerate(seeds)
    ]
    found.append(exchanges.compared(strata))
  p = np.array([one.p for one in found])
  # 0.05 of 200 is 10, give or take 3.1.
  assert 2 <= (p < 0.05).sum() <= 20
  assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
  covered = np.mean([one.low <= 0 <= one.high for one in found])
  assert 0.9 <= covered <= 0.99


def test_intervals_hold_the_truth_where_few_runs_vary_most(monkeypatch):
  """With the degrees of freedom of all runs together, 89 of 100 hold it."""
  monkeypatch.setattr(exchanges, "_NUM_EXCHANGES", 10)  # p is not asked for
  rng = np.random.default_rng(0)
  settings = {"by_picture": 0.0, "noise": 0.0}
  covered = 0
  for _ in range(600):
    strata = [
      Stratum(*runs(rng, seeds, 4, by_run=by_run, **settings), name)
      for name, seeds, by_run in (("a", 5, 1.0), ("b", 3, 4.0))
    ]
    found = exchanges.compared(strata)
    covered += found.low <= 0 <= found.high
  assert 0.92 <= covered / 600 <= 0.98


@pytest.mark.parametrize("of_one", [False, True])
def test_a_shift_is_found_with_its_size(of_one):
  rng = np.random.default_rng(0)
  settings = {"by_run": 0.5, "by_picture": 0.5, "noise": 1.0}
  strata = [
    Stratum(*runs(rng, 5, 200, shift=-3.0, **settings), name, of_one)
    for name in "ab"
  ]
  found = exchanges.compared(strata)
  assert found.low < -3 < found.high < 0 and found.p < 0.01
  assert found.value == pytest.approx(
    np.mean([one.ours.mean() - one.theirs.mean() for one in strata])
  )
  # It falls short by 3 of what would be allowed, not by less than 1.
  assert exchanges.compared(strata, 1.0).p < 0.05
  assert exchanges.compared(strata, 3.0).p > 0.2
  assert exchanges.compared(strata, 3.0)[:3] == pytest.approx(found[:3])


def test_sets_that_differ_by_more_and_less_are_no_chance():
  """A mean over them is as sure as the runs of each are alike."""
  rng = np.random.default_rng(0)
  settings = {"by_run": 0.5, "by_picture": 0.0, "noise": 1.0}
  strata = [
    Stratum(*runs(rng, 3, 200, shift=shift, **settings), name)
    for name, shift in zip("abcd", (8.0, -2.0, 2.0, 2.0), strict=True)
  ]
  found = exchanges.compared(strata)
  assert 0 < found.low < 2.5 < found.high and found.p < 0.001


def test_p_is_that_of_all_exchanges():
  """Of three runs on each side, whose pictures differ in nothing else."""
  of_runs = np.array([[1.0, 2.0, 4.0], [7.0, 5.0, 11.0]])
  strata = [Stratum(*(np.repeat(own[:, None], 4, 1) for own in of_runs), "a")]
  every = of_runs.ravel()
  differences = [
    abs(2 * every[list(own)].sum() - every.sum()) / 3
    for own in itertools.combinations(range(6), 3)
  ]
  exact = np.mean(np.array(differences) >= 16 / 3 - 1e-9)
  found = exchanges.compared(strata)
  assert found.p == pytest.approx(exact, abs=0.01)
  # Of 20 ways to exchange, two are as clear as can be.
  assert found.least == pytest.approx(0.1)
  clearest = [Stratum(one.ours, one.theirs + 90, "a") for one in strata]
  assert exchanges.compared(clearest).p == pytest.approx(0.1, abs=0.003)
  both = exchanges.compared([*clearest, *clearest])
  assert both.least == pytest.approx(0.005) == pytest.approx(both.p, abs=6e-4)
  # One run on each side says nothing of training.
  alone = [Stratum(one.ours[:1], one.theirs[:1], "a") for one in strata]
  assert exchanges.compared(alone)[3:] == (1.0, 1.0)


@pytest.mark.parametrize("of_one", [False, True])
def test_of_many_runs_some_exchanges_stand_for_all(of_one):
  """Fourteen runs on each side: 40 million ways, or 16,384 signs."""
  rng = np.random.default_rng(0)
  settings = {"by_run": 0.5, "by_picture": 0.0, "noise": 0.0}
  for shift, low, high in ((0.0, 0.05, 1.0), (0.5, 1e-4, 0.05)):
    strata = [Stratum(*runs(rng, 14, 9, shift=shift, **settings), "a", of_one)]
    (one,) = strata
    sides = one.ours.mean(1), one.theirs.mean(1)
    known = scipy.stats.ttest_rel if of_one else scipy.stats.ttest_ind
    found = exchanges.compared(strata)
    assert found.p == pytest.approx(known(*sides).pvalue, abs=0.02)
    assert low < found.p < high


def test_holm_corrects_for_the_number_of_tests():
  assert exchanges.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
    [0.03, 0.06, 0.06, 0.02]
  )
  assert exchanges.holm([0.6, 0.7]) == [1.0, 1.0]
