"""What a run says before it compiles."""

import numpy as np
import pytest

from configs import base
from gc_jax.data.dataset import Dataset
from gc_jax.training.announcement import announced, counting_pairs


def dataset(labels, num_classes=2, known=True, **fields):
  return Dataset(
    source=[{"image": b"", "labels": own} for own in labels],
    class_names=tuple("abcdefghijkl"[:num_classes]),
    multi_label=any(len(own) != 1 for own in labels),
    name="mine",
    labels=labels if known else None,
    **fields,
  )


def make(mode="packed", **fields):
  config = base.get_config()
  config.batch_size, config.compose.mode = 32, mode
  config.update_from_flattened_dict(fields)
  return config


HALVES = [[i % 2] for i in range(200)]
TENTHS = [[i % 10] for i in range(200)]


@pytest.mark.parametrize(
  ("labels", "num_classes", "mode", "share"),
  [
    # Three others, drawn from the batch, must be of other classes.
    (HALVES, 2, "packed", 0.5**3),
    (TENTHS, 10, "packed", 0.9**3),
    # All but a tenth of one class: it counts among three others, they never do.
    ([[int(i % 10 == 0)] for i in range(200)], 2, "packed", 0.1 * 0.9**3),
    # Nobody is masked where distractors are chosen.
    (HALVES, 2, "independent", 1.0),
    # Two labels each: a class recurs in half of the others.
    ([[i % 2, 2 + i // 2 % 2] for i in range(200)], 4, "packed", 0.5**3),
  ],
)
@pytest.mark.parametrize("known", [True, False])
def test_the_pairs_that_count_are_computed_from_labels_and_mode(
  labels, num_classes, mode, share, known
):
  train = dataset(labels, num_classes, known)
  assert counting_pairs(make(mode), train, 1) == pytest.approx(share, abs=0.06)


def test_distractors_from_the_whole_split_are_there_for_every_picture():
  config = make("independent", **{"compose.distractors": "dataset"})
  assert counting_pairs(config, dataset(HALVES), 1) == 1.0


def test_a_run_says_what_it_found_and_what_it_will_do():
  config = make(num_epochs=3.0)
  train = dataset([[0]] * 150 + [[1]] * 50)
  val, test = dataset(HALVES[:20]), dataset(HALVES[:30], num_located=0)
  lines = list(announced(config, (train, val, test), 18, 1))
  assert lines[:3] == [
    "mine: 200 pictures to train on, 20 to validate with, 30 to test with",
    "2 classes, with pictures to train on: a 150, b 50",
    "no masks or boxes: map metrics that need objects are left out",
  ]
  (pairs,) = (line for line in lines if "pairs" in line)
  share = float(pairs.split("%")[0].removeprefix("about "))
  assert share == pytest.approx(100 * (0.75 * 0.25**3 + 0.25 * 0.75**3), abs=6)
  assert lines[-2:] == [
    "18 steps of 32 pictures: 3 epochs",
    "compiling (one to three minutes on a CPU)",
  ]
  some = dataset(HALVES[:30], num_located=7)
  assert "masks or boxes: in 7 of 30 pictures to test with" in list(
    announced(config, (train, val, some), 18, 1)
  )


def test_without_the_loss_nothing_is_said_of_pairs():
  config = make(**{"loss.consistency_weight": 0.0})
  lines = announced(config, (dataset(HALVES),) * 3, 18, 1)
  assert not any("pairs" in line for line in lines)


def test_many_classes_are_not_all_listed():
  config = make(**{"loss.consistency_weight": 0.0})
  train = dataset([[int(i)] for i in np.arange(64) % 12], 12)
  lines = list(announced(config, (train,) * 3, 18, 1))
  assert lines[1] == "12 classes: a, b, c, d, e, and 7 more"
