"""Searches the largest batch for which something holds, in few trials."""

import itertools
import math
from collections.abc import Callable

from ml_collections import ConfigDict

from gc_jax.training import guidance

_MOST = 2**16  # images a device: beyond it the search gives up


def images_unit(config: ConfigDict, num_devices: int) -> int:
  """Returns of what a search takes the images of one device as multiples.

  They are what every guidance term divides evenly, and fill whole groups of
  BatchNorm, in every part of the batch.
  """
  terms = guidance.chosen(config).values()
  units = [term.images_unit(config, num_devices) for term in terms]
  unit = math.lcm(num_devices, *units) // num_devices
  return math.lcm(unit, config.model.bn_group or 1) * config.accumulate_steps


def largest_that_fits(
  fits: Callable[[int], bool], guess: Callable[[], int], unit: int
) -> int:
  """Returns the largest size that fits; 0 where not even the least does.

  By doubling or halving, and then by bisection over multiples of eight, begun
  where it is guessed to end: near the limit a compilation may take minutes. It
  is taken for granted that what is less than one that fits, fits.

  Args:
    fits: whether a size does.
    guess: what the answer seems to be by what is known when it is called.
    unit: sizes are its multiples.
  """
  doubled = lambda size: unit * 2 ** math.floor(math.log2(max(1, size / unit)))
  size = doubled(guess())
  fitting, failing = 0, None
  while not fitting or failing is None:
    if fits(size):
      fitting = size
      if failing is None and 2 * size > _MOST:
        return fitting
      size = (
        2 * size if failing else max(2 * size, min(doubled(guess()), _MOST))
      )
    else:
      failing = size
      if size == unit:
        return 0
      size //= 2
  step = math.lcm(8, unit)
  for trial in itertools.count():
    between = range((fitting // step + 1) * step, failing, step)
    if not between:
      return fitting
    middle = guess() // step * step if trial < 2 else between[len(between) // 2]
    middle = min(max(middle, between[0]), between[-1])
    if fits(middle):
      fitting = middle
    else:
      failing = middle
