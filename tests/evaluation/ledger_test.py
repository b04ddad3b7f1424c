"""Measured numbers come back from disk; those of another evaluation do not."""

import numpy as np
import pytest

from gc_jax.evaluation import ledger as ledgers
from gc_jax.evaluation.ledger import Ledger
from gc_jax.method.metrics import Key

CH, TOP1 = Key("content_heatmap", "a"), Key("top1")
ATTACKED = Key("top1", attack="fgsm-within", epsilon=8)
IDENTITY = {"model": "a run", "eval.protocol": "paper"}


@pytest.fixture
def filled():
  ledger = Ledger(5, IDENTITY)
  for rows, column, correct in (
    ([0, 1, -1], [0.5, np.nan, 9.0], 1),
    ([3, 2, -1], [0.25, 1.0, 9.0], 2),
  ):
    columns = {CH: np.array(column, np.float32)}
    totals = {TOP1: (np.float32(correct), np.float32(2))}
    ledger.add("squares", np.array(rows), columns, totals)
  sums = {ATTACKED: (np.array([1.0, 2.0]), np.float64(2))}
  ledger.add("attacks", np.zeros(0, int), {}, sums)
  ledger.secs = 3.5
  return ledger


def test_rows_find_their_place_and_padding_none(filled):
  np.testing.assert_array_equal(
    filled.columns[CH], [0.5, np.nan, 1.0, 0.25, np.nan]
  )
  assert filled.totals[TOP1] == (3.0, 4.0)
  assert filled.done == {"squares": 4, "attacks": 0}


def test_sums_of_many_batches_lose_nothing():
  """In float32, one more than 2^24 would change nothing."""
  ledger = Ledger(0)
  for value in (2**24, 1, 1):
    sums = {TOP1: (np.float32(value), np.float32(1))}
    ledger.add("quick", np.zeros(0, int), {}, sums)
  assert ledger.totals[TOP1][0] == 2**24 + 2


def test_a_saved_ledger_comes_back(filled, tmp_path):
  path = tmp_path / "partial.npz"
  assert ledgers.load(path, 5, IDENTITY).done == {}  # nothing is done yet
  filled.save(path)
  again = ledgers.load(path, 5, IDENTITY)
  assert again.done == filled.done and again.secs == 3.5
  np.testing.assert_array_equal(again.columns[CH], filled.columns[CH])
  assert again.totals.keys() == {TOP1, ATTACKED}
  for key, (total, weight) in filled.totals.items():
    np.testing.assert_array_equal(again.totals[key][0], total)
    assert again.totals[key][1] == weight


def test_the_file_of_another_version_is_refused(tmp_path):
  path = tmp_path / "partial.npz"
  about = '{"identity": {}, "done": {"squares": 4}, "secs": 1.0}'
  np.savez(path, about=np.array(about))
  with pytest.raises(ValueError, match=r"by this version.*remove that file"):
    ledgers.load(path, 5, IDENTITY)


def test_the_file_of_another_evaluation_is_refused_and_kept(filled, tmp_path):
  path = tmp_path / "partial.npz"
  filled.save(path)
  before = path.read_bytes()
  with pytest.raises(ValueError, match=r"eval\.protocol: 'paper' there, 'rel"):
    ledgers.load(path, 5, IDENTITY | {"eval.protocol": "release"})
  assert path.read_bytes() == before
