"""What was measured comes back from disk; what is of another does not."""

import numpy as np
import pytest

from gc_jax.evaluators import ledger as ledgers
from gc_jax.evaluators.ledger import Ledger

IDENTITY = {"model": "a run", "eval.protocol": "paper"}


def filled():
  ledger = Ledger(5, IDENTITY)
  ledger.add(
    "squares",
    np.array([0, 1, -1]),
    {"a/ch": np.array([0.5, np.nan, 9.0], np.float32)},
    {"classification": {"top1": (np.float32(1), np.float32(2))}},
  )
  ledger.add(
    "squares",
    np.array([3, 2, -1]),
    {"a/ch": np.array([0.25, 1.0, 9.0], np.float32)},
    {"classification": {"top1": (np.float32(2), np.float32(2))}},
  )
  ledger.secs = 3.5
  return ledger


def test_rows_find_their_place_and_padding_none():
  ledger = filled()
  np.testing.assert_array_equal(
    ledger.columns["a/ch"], [0.5, np.nan, 1.0, 0.25, np.nan]
  )
  assert ledger.totals == {"classification": {"top1": (3.0, 4.0)}}
  assert ledger.done == {"squares": 4}


def test_sums_of_many_batches_lose_nothing():
  """In float32, one more of 2^24 would change nothing."""
  ledger = Ledger(0)
  for value in (2**24, 1, 1):
    sums = {"top1": (np.float32(value), np.float32(1))}
    ledger.add("quick", np.zeros(0, int), {}, {"classification": sums})
  assert ledger.totals["classification"]["top1"][0] == 2**24 + 2


def test_what_was_saved_comes_back(tmp_path):
  ledger = filled()
  sums = {"fgsm_8/top1": (np.array([1.0, 2.0]), np.float64(2))}
  ledger.add("attacks", np.zeros(0, int), {}, {"robustness": sums})
  ledger.save(tmp_path / "partial.npz")
  again = ledgers.load(tmp_path / "partial.npz", 5, IDENTITY)
  assert again.done == ledger.done and again.secs == 3.5
  np.testing.assert_array_equal(again.columns["a/ch"], ledger.columns["a/ch"])
  for what, sums in ledger.totals.items():
    for name, (total, weight) in sums.items():
      np.testing.assert_array_equal(again.totals[what][name][0], total)
      assert again.totals[what][name][1] == weight


def test_without_a_file_nothing_is_done_yet(tmp_path):
  ledger = ledgers.load(tmp_path / "partial.npz", 5, IDENTITY)
  assert ledger.done == {} and ledger.columns == {}


def test_another_evaluations_file_is_refused_and_kept(tmp_path):
  path = tmp_path / "partial.npz"
  filled().save(path)
  before = path.read_bytes()
  with pytest.raises(ValueError, match=r"eval\.protocol: 'paper' there, 'rel"):
    ledgers.load(path, 5, IDENTITY | {"eval.protocol": "release"})
  assert path.read_bytes() == before
