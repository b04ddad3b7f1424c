"""Times programs in turns, and weighs this process.

Seconds say little on a shared machine; ratios within one round say more: a
noisy machine is noisy for all.
"""

import math
import pathlib
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


class Steps:
  """A compiled train step, its current state, and the batch of every update."""

  def __init__(self, compiled, state, batch):
    self.compiled = compiled
    self._state = state
    self._batch = batch

  def __call__(self, count: int) -> None:
    """Makes `count` updates, and waits for the last."""
    for _ in range(count):
      self._state, _ = self.compiled(self._state, self._batch)
    jax.block_until_ready(self._state)


def in_turns(
  runs: dict[str, Callable[[int], None]], rounds: int, min_secs: float = 0.3
) -> dict[str, list[float]]:
  """Returns the seconds of one step, in each round, by name.

  Args:
    runs: name -> makes a number of steps and waits for the last of them.
    rounds: turns of each, after two that warm up.
    min_secs: a turn makes as many steps as take this long, so that starting
      and waiting weigh little.
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


def repeated(run: Callable[[], Any]) -> Callable[[int], None]:
  """Returns what runs a number of times and waits for the last result."""

  def repeat(count: int) -> None:
    for _ in range(count):
      result = run()
    jax.block_until_ready(result)

  return repeat


def ratio(over: list[float], under: list[float]) -> float:
  """Returns the median of the ratios within each round."""
  return statistics.median(a / b for a, b in zip(over, under, strict=True))


def _secs(run: Callable[[int], None], count: int) -> float:
  started = time.perf_counter()
  run(count)
  return time.perf_counter() - started


def resident_bytes() -> int:
  """Returns the memory that this process holds now (Linux)."""
  pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
  return int(pages) * resource.getpagesize()


def peak_bytes() -> int:
  """Returns the most memory that this process ever held (Linux)."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
