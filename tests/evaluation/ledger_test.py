"""What was measured comes back from disk; what is of another does not."""

import numpy as np
import pytest

from gc_jax.evaluation import ledger as ledgers
from gc_jax.evaluation.ledger import Ledger
from gc_jax.method.metrics import Key

CH, TOP1 = Key("content_heatmap", "a"), Key("top1")
IDENTITY = {"model": "a run", "eval.protocol": "paper"}


def filled():
  ledger = Ledger(5, IDENTITY)
  ledger.add(
    "squares",
    np.array([0, 1, -1]),
    {CH: np.array([0.5, np.nan, 9.0], np.float32)},
    {TOP1: (np.float32(1), np.float32(2))},
  )
  ledger.add(
    "squares",
    np.array([3, 2, -1]),
    {CH: np.array([0.25, 1.0, 9.0], np.float32)},
    {TOP1: (np.float32(2), np.float32(2))},
  )
  ledger.secs = 3.5
  return ledger


def test_rows_find_their_place_and_padding_none():
  ledger = filled()
  np.testing.assert_array_equal(
    ledger.columns[CH], [0.5, np.nan, 1.0, 0.25, np.nan]
  )
  assert ledger.totals == {TOP1: (3.0, 4.0)}
  assert ledger.done == {"squares": 4}


def test_sums_of_many_batches_lose_nothing():
  """In float32, one more of 2^24 would change nothing."""
  ledger = Ledger(0)
  for value in (2**24, 1, 1):
    sums = {TOP1: (np.float32(value), np.float32(1))}
    ledger.add("quick", np.zeros(0, int), {}, sums)
  assert ledger.totals[TOP1][0] == 2**24 + 2


def test_what_was_saved_comes_back(tmp_path):
  ledger = filled()
  attacked = Key("top1", attack="fgsm-within", epsilon=8)
  sums = {attacked: (np.array([1.0, 2.0]), np.float64(2))}
  ledger.add("attacks", np.zeros(0, int), {}, sums)
  ledger.save(tmp_path / "partial.npz")
  again = ledgers.load(tmp_path / "partial.npz", 5, IDENTITY)
  assert again.done == ledger.done and again.secs == 3.5
  np.testing.assert_array_equal(again.columns[CH], ledger.columns[CH])
  assert again.totals.keys() == ledger.totals.keys() == {TOP1, attacked}
  for key, (total, weight) in ledger.totals.items():
    np.testing.assert_array_equal(again.totals[key][0], total)
    assert again.totals[key][1] == weight


def test_a_file_of_another_version_is_refused_in_a_sentence(tmp_path):
  path = tmp_path / "partial.npz"
  about = '{"identity": {}, "done": {"squares": 4}, "secs": 1.0}'
  np.savez(path, about=np.array(about))
  with pytest.raises(ValueError, match=r"by this version.*remove that file"):
    ledgers.load(path, 5, IDENTITY)


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
