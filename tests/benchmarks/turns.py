"""Timing several programs in turns: a noisy machine is noisy for all of them.

Seconds say little on a shared machine; ratios within one round say more.
"""

import math
import statistics
import time
from collections.abc import Callable

import jax


class Steps:
  """A compiled train step with the state that it takes and gives back.

  Args:
    compiled: the step, which may give its state's buffers away.
    state: of step 0.
    batch: the same for every update.
  """

  def __init__(self, compiled, state, batch):
    self.compiled = compiled
    self._state = state
    self._batch = batch

  def __call__(self, count: int) -> None:
    """Makes so many updates, and waits for the last."""
    for _ in range(count):
      self._state, _ = self.compiled(self._state, self._batch)
    jax.block_until_ready(self._state)


def in_turns(
  runs: dict[str, Callable[[int], None]], rounds: int, min_secs: float = 0.3
) -> dict[str, list[float]]:
  """Returns seconds of one step, in each round, by name.

  Args:
    runs: name -> makes a number of steps and waits for the last of them.
    rounds: how often each has its turn, after two that warm up.
    min_secs: a turn makes as many steps as take this long: starting and
      waiting then weigh little.
  """
  counts = {}
  for name, run in runs.items():
    run(1)  # a first step may compile, choose algorithms, allocate
    counts[name] = max(1, math.ceil(min_secs / _secs(run, 1)))
  secs = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      secs[name].append(_secs(run, counts[name]) / counts[name])
  return secs


def ratio(over: list[float], under: list[float]) -> float:
  """Returns the median of the ratios within each round."""
  return statistics.median(a / b for a, b in zip(over, under, strict=True))


def _secs(run: Callable[[int], None], count: int) -> float:
  started = time.perf_counter()
  run(count)
  return time.perf_counter() - started
