"""What a run says before it compiles: its pictures, composites and steps."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gc_jax.data.dataset import Dataset
from gc_jax.data.pipeline import NUM_DISTRACTORS, shuffled
from gc_jax.runtime.messages import clipped, listed, number_of
from gc_jax.training import composites, guidance

_SHOWN_CLASSES = 8
_BATCHES = 16  # that composites are drawn for, to count pairs
# Reading a record may mean to read its picture.
_MOST_READ = 2_000


def announced(
  config: ConfigDict,
  splits: tuple[Dataset, Dataset, Dataset],
  total_steps: int,
  num_devices: int,
) -> Iterator[str]:
  """Yields lines on a run that is about to begin.

  `splits` are those to train on, to validate with and to test with.
  """
  train, val, test = splits
  yield (
    f"{train.name}: {number_of(len(train.source), 'picture')} to train on, "
    f"{len(val.source):,} to validate with, {len(test.source):,} to test with"
  )
  yield _classes(train)
  yield _annotations(test)
  if "consistency" in guidance.chosen(config):
    share = counting_pairs(config, train, num_devices)
    yield (
      f"about {share:.0%} of pairs of picture and class are expected to count "
      f"in the consistency loss (--config.compose.mode={config.compose.mode})"
    )
  yield (
    f"{number_of(total_steps, 'step')} of {config.batch_size:,} pictures: "
    f"{config.num_epochs:g} epochs"
  )
  on_cpu = jax.default_backend() == "cpu"
  yield "compiling" + " (one to three minutes on a CPU)" * on_cpu


def counting_pairs(
  config: ConfigDict, train: Dataset, num_devices: int
) -> float:
  """Returns the expected share of pairs that count in the consistency loss.

  The composites of `_BATCHES` batches are drawn as training draws them, from
  the labels alone.
  """
  labels = _some_labels(train)
  num_classes, count = len(train.class_names), len(labels)
  size = config.batch_size // config.accumulate_steps
  settings = guidance.settings(config, num_devices)
  settings = {"consistency": settings["consistency"]}

  def counted(batch, key):
    drawn = guidance.draw(
      settings, num_classes, config.loss.target_draw, batch, key
    )
    return drawn.terms["consistency"].mask.mean()

  counted = jax.jit(counted)
  found = []
  for number, key in enumerate(jax.random.split(jax.random.key(0), _BATCHES)):
    rows = [
      shuffled(position, count, config.seed)
      for position in range(number * size, (number + 1) * size)
    ]
    batch = _batch([labels[row] for row in rows], train)
    if composites.needs(config):
      batch |= {
        # Any picture has distractors unless all pictures hold its class.
        "distractor_mask": np.ones(size, np.float32),
        "distractors": np.zeros((size, NUM_DISTRACTORS, 1, 1, 3), np.uint8),
      }
    found.append(counted(batch, key))
  return float(jnp.stack(found).mean())


def _batch(labels: Sequence, train: Dataset) -> dict[str, np.ndarray]:
  """Returns the entries of a `Batch` that composites are drawn by."""
  rows = [train.encode_labels(own) for own in labels]
  batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
  return batch | {"mask": np.ones(len(rows), np.float32)}


def _some_labels(dataset: Dataset) -> Sequence[Any]:
  """Returns the labels of all records, or of some where they must be read."""
  if dataset.labels is not None:
    return dataset.labels
  count = len(dataset.source)
  places = np.linspace(0, count - 1, min(count, _MOST_READ)).astype(int)
  return [dataset.source[int(place)]["labels"] for place in places]


def _classes(train: Dataset) -> str:
  names = train.class_names
  said = f"{len(names):,} classes"
  if train.labels is None or len(names) > _SHOWN_CLASSES:
    return f"{said}: {listed([clipped(name) for name in names])}"
  counts = np.bincount(
    [k for own in train.labels for k in set(own)], minlength=len(names)
  )
  each = [f"{clipped(n)} {c:,}" for n, c in zip(names, counts, strict=True)]
  return f"{said}, with pictures to train on: {', '.join(each)}"


def _annotations(test: Dataset) -> str:
  if not test.has_objects():
    return "no masks or boxes: map metrics that need objects are left out"
  if test.num_located is None:
    return "masks or boxes: found in the pictures to test with"
  return (
    f"masks or boxes: in {test.num_located:,} of {len(test.source):,} pictures "
    "to test with"
  )
