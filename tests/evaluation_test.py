"""What a ledger says, of all rows and by class."""

import numpy as np
import pytest

from configs import base
from gc_jax import evaluation
from gc_jax.data.pairs import Pairs
from gc_jax.evaluators.ledger import Ledger

COUNTS = ("true_positives", "false_positives", "false_negatives")
# Of 40 pictures every other is right, with two classes, one of them missed.
RIGHT, WRONG = (2, 0, 0), (1, 0, 1)


@pytest.mark.parametrize("prefix", ["", "fgsm_8/"])
def test_f1_has_its_interval_with_and_without_an_attack(prefix):
  pairs = Pairs(
    index=np.arange(40), target=np.zeros(40, int), first=np.ones(40, bool)
  )
  counts = np.array([RIGHT, WRONG] * 20, np.float32)
  ledger = Ledger(40)
  for name, column in zip(COUNTS, counts.T, strict=True):
    ledger.columns[prefix + name] = column
  found, by_class = evaluation.results(
    ledger, pairs, base.get_config(), ["only"]
  )
  ends = [found[f"val/{prefix}f1_overall_{end}"] for end in ("low", "high")]
  # 60 right of 60 and 20 missed: F1 of 120 in 140.
  assert 75 < ends[0] < 100 * 120 / 140 < ends[1] < 95
  # Counts are nothing to be read alone.
  assert not any("positives" in key for key in found)
  assert by_class == {}
