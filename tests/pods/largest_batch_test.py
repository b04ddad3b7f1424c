"""The search for a batch, on limits that are known."""

import numpy as np
import pytest

from configs import quickstart
from gc_jax.pods import largest_batch
from gc_jax.training import config as configs


def recipe(**fields):
  config = quickstart.get_config("gc,smoke")
  for name, value in fields.items():
    config.update_from_flattened_dict({name.replace("__", "."): value})
  return config


@pytest.mark.parametrize("guess", [1, 3, 8, 100, 5_000])
@pytest.mark.parametrize("unit", [1, 4, 12])
@pytest.mark.parametrize("limit", [0, 3, 4, 13, 24, 100, 1_003])
def test_the_largest_multiple_below_a_limit_is_found(guess, unit, limit):
  asked = []
  found = largest_batch.largest_that_fits(
    lambda size: asked.append(size) or size <= limit, lambda: guess, unit
  )
  step = np.lcm(8, unit)
  candidates = [unit * 2**k for k in range(20)] + [*range(step, 2_000, step)]
  assert found == max([c for c in candidates if c <= limit], default=0)
  assert all(size % unit == 0 for size in asked)
  assert len(asked) == len(set(asked)) <= 22


def test_a_search_without_end_is_given_up():
  found = largest_batch.largest_that_fits(lambda size: True, lambda: 8, 4)
  assert found == 2**16


@pytest.mark.parametrize(
  ("fields", "unit"),
  [
    ({"compose__mode": "packed"}, 4),
    ({"compose__mode": "independent"}, 4),
    ({"compose__mode": "independent", "compose__distractors": "dataset"}, 1),
    ({"loss__consistency_weight": 0.0}, 1),
    ({"compose__mode": "packed", "compose__groups": 8}, 8),
    ({"compose__mode": "packed", "accumulate_steps": 2}, 8),
    ({"compose__mode": "independent", "model__bn_group": 6}, 12),
    ({"model__bn_group": 8, "accumulate_steps": 3}, 24),
  ],
)
def test_images_come_in_whole_composites_groups_and_parts(fields, unit):
  assert largest_batch.images_unit(recipe(**fields), 4) == unit
  for times in (1, 3):
    configs.validate(recipe(**fields, batch_size=times * unit * 4), 4)


def test_a_good_guess_saves_compilations():
  """Right at once, it takes two powers of two and both sides of the limit."""
  asked = []
  found = largest_batch.largest_that_fits(
    lambda size: asked.append(size) or size <= 163, lambda: 163, 4
  )
  assert found == 160
  assert asked == [128, 256, 160, 168]
