"""The order of training: each epoch all examples once, each epoch anew."""

import numpy as np
from scipy import stats

from gc_jax.data.order import Order


def epoch(order, number):
  n = order.num_examples
  return [order(position) for position in range(number * n, number * n + n)]


def test_every_epoch_is_a_permutation_of_its_own():
  order = Order(50, seed=0)
  epochs = [epoch(order, number) for number in range(4)]
  assert all(sorted(shown) == list(range(50)) for shown in epochs)
  assert len({tuple(shown) for shown in epochs}) == 4
  assert epoch(Order(50, seed=1), 0) not in epochs


def test_an_order_is_a_function_of_position_and_seed():
  forwards = [Order(7, seed=3)(position) for position in range(40)]
  order = Order(7, seed=3)
  backwards = [order(position) for position in reversed(range(40))]
  assert forwards == backwards[::-1]


def test_every_example_is_equally_often_at_every_place():
  counts = np.zeros((6, 6), int)
  for seed in range(50):
    for number in range(40):
      for place, index in enumerate(epoch(Order(6, seed), number)):
        counts[place, index] += 1
  # 2,000 epochs; 1 in 1,000 such sets of seeds would fail.
  assert stats.chisquare(counts.ravel()).pvalue > 1e-3
