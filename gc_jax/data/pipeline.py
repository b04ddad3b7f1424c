"""Batches to train on: order, augmentation, and what guidance terms ask for.

Training data is a function of (seed, step): it depends neither on how many
processes, workers or threads read it, nor on the step a run resumes at.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int, UInt8

from gc_jax.data import decode, geometry, workers
from gc_jax.data.augment import Augmentation, View
from gc_jax.data.dataset import (
  ClassIndex,
  Dataset,
  DecodeError,
  Reader,
  draw_target,
)
from gc_jax.method.types import Batch

NUM_DISTRACTORS = 3

# A worker process makes one batch at a time: with the buffers of several
# threads in each, eight workers would hold gigabytes.
_WORKER_READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
# One thread makes a whole batch. More threads than cores only wait for each
# other. Two batches in reserve cover a slow one.
_NUM_THREADS = min(8, os.cpu_count() or 1)
READ_OPTIONS = grain.ReadOptions(
  num_threads=_NUM_THREADS, prefetch_buffer_size=_NUM_THREADS + 2
)
_ENDLESS = 2**40  # shares of batches
_TRIES = 20  # at pictures that may be broken

# Streams of random numbers: what is drawn for one purpose must not depend on
# how much was drawn for another.
_PICTURE, _REPLACEMENT, _TARGET, _DISTRACTORS, _DISTRACTOR_PICTURE = range(5)

_logger = logging.getLogger(__name__)

# The last picture skipped for an example, or -1: to be told, not trained on.
_BROKEN = "broken"

# What a batch brings only if it is asked for, and in which entries: side of
# the pictures -> entry -> (shape, dtype) for one example.
EXTRAS = {
  "distractors": lambda side: {
    "distractors": ((NUM_DISTRACTORS, side, side, 3), np.uint8),
    "distractor_mask": ((), np.float32),
    "target": ((), np.int32),
  },
  "object_mask": lambda side: {
    "object_mask": ((side, side), np.bool_),
    "target": ((), np.int32),
  },
}


def extra_shapes(
  bring: Collection[str], side: int
) -> dict[str, tuple[tuple[int, ...], Any]]:
  """Returns entry -> (shape, dtype) of what `bring` adds to one example."""
  return {k: v for name in bring for k, v in EXTRAS[name](side).items()}


def train_batches(
  dataset: Dataset,
  *,
  seed: int,
  start_step: int,
  batch_size: int,
  image_size: int,
  crop: str = "center",
  crop_padding_px: int = 0,
  flip: bool = False,
  on_error: str = "raise",
  bring: Collection[str] = (),
  target_draw: str = "category",
  distractor_draw: str = "category",
  num_workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  processes_here: int = 1,
) -> Iterator[Batch]:
  """Yields this process's share of the batches from `start_step` on.

  Endless; every epoch is shuffled anew, and a batch may span two epochs. The
  shares of a step, joined in the order of `process_index`, are the same batch
  for any `process_count`.

  Args:
    dataset: the split to train on.
    seed: order, augmentation and distractors follow from it.
    start_step: number of the first batch; starting there equals skipping.
    batch_size: images of all processes; divisible by their number.
    image_size: side of the images, in pixels.
    crop: see `Augmentation`.
    crop_padding_px: see `Augmentation`.
    flip: see `Augmentation`.
    on_error: at a record that cannot be read, "raise"; or "skip": another takes
      its place and the batch counts it.
    bring: names of `EXTRAS`, which are not read otherwise: "distractors", three
      for every image, from the whole split; "object_mask", the pixels of the
      explained class.
    target_draw: see `draw_target`, for either.
    distractor_draw: see `ClassIndex.draw`.
    num_workers: processes that decode. If it is 0, or shared memory is too
      small for them, threads of this process do. Processes are spawned, so a
      script needs `if __name__ == "__main__"`.
    process_index: number of this process.
    process_count: number of processes.
    processes_here: how many of them share this machine's memory.

  Raises:
    DecodeError: later, where `on_error` is "raise": names the picture.
  """
  class_index = None
  if "distractors" in bring:
    class_index = ClassIndex(dataset.all_labels(), len(dataset.class_names))
  make_example = _MakeExample(
    Reader(dataset, on_error),
    Augmentation(image_size, crop, crop_padding_px, flip),
    seed,
    tuple(bring),
    class_index,
    target_draw,
    distractor_draw,
  )
  make_batch = _MakeBatch(make_example, batch_size // process_count)
  # Shares are consecutive, so that joining them gives the global batch.
  batches = grain.MapDataset.range(
    start_step * process_count + process_index, _ENDLESS, process_count
  ).map(make_batch)
  if num_workers and (
    lack := workers.lack_of_room(
      num_workers, make_batch.num_bytes(), processes_here
    )
  ):
    _logger.warning(
      "Pictures are decoded by threads of this process, as with --config.data."
      "num_workers=0: %s. For processes, give a container more (docker run "
      "--shm-size=1g; in Kubernetes an emptyDir of medium Memory, mounted "
      "there).",
      lack,
    )
    num_workers = 0
  if num_workers:
    made = workers.batches_of(
      batches.to_iter_dataset(_WORKER_READ_OPTIONS), num_workers
    )
  else:
    made = iter(batches.to_iter_dataset(READ_OPTIONS))
  return _told(made, make_example.reader) if on_error == "skip" else made


def _told(batches: Iterator[Batch], reader: Reader) -> Iterator[Batch]:
  """Warns of each broken picture once, whichever workers meet it how often."""
  told = set(reader.dataset.broken)
  with contextlib.closing(batches):
    for batch in batches:
      for index in set(batch.pop(_BROKEN).tolist()) - told - {-1}:
        told.add(index)
        # A picture that cannot be read warns here, and says why.
        if reader.read(index, _reads):
          name = f"Example {index} of {reader.dataset.name}"
          reader.tell(index, f"{name} has an annotation that cannot be read")
      yield batch


def _reads(record: Mapping[str, Any]) -> bool:
  """Returns whether a picture can be read; raises DecodeError if not."""
  decode.check(decode.read_header(record["image"]))
  return True


def shuffled(position: int, num_examples: int, seed: int) -> int:
  """Returns the index of the example at a position of the endless sequence.

  Every epoch shows each example once, in an order of its own. (Grain's shuffle
  does the same, and takes 0.3 ms an example: a third of decoding it.)
  """
  epoch, offset = divmod(position, num_examples)
  return int(_permutation(num_examples, seed, epoch)[offset])


# A batch may span two epochs. 4 bytes an example each.
@functools.lru_cache(maxsize=2)
def _permutation(
  num_examples: int, seed: int, epoch: int
) -> Int[np.ndarray, "n"]:
  key = np.array([seed, epoch], np.uint64)
  generator = np.random.Generator(np.random.Philox(key=key))
  return generator.permutation(np.arange(num_examples, dtype=np.int32))


@dataclasses.dataclass(frozen=True)
class _MakeExample:
  """Position in the endless sequence -> the entries of a `Batch` for one image.

  A function of the position and the fields alone. Pickled to workers.
  """

  reader: Reader
  augment: Augmentation
  seed: int
  bring: tuple[str, ...]
  class_index: ClassIndex | None  # only to draw distractors from
  target_draw: str
  distractor_draw: str

  def __call__(
    self, position: int, out: UInt8[np.ndarray, "S S 3"]
  ) -> dict[str, np.ndarray]:
    """Writes the image into its place in the batch; returns other entries."""
    labels, example, skipped = self._picture(position, out)
    example |= {
      **self.reader.dataset.encode_labels(labels),
      "mask": np.ones((), np.float32),
    }
    if "distractors" in self.bring:
      more, skipped_too = self._distractors(position, labels)
      example |= more
      skipped += skipped_too
    if self.reader.on_error == "skip":
      example["skipped"] = np.asarray(len(skipped), np.float32)
      example[_BROKEN] = np.asarray(skipped[-1] if skipped else -1)
    return example

  def _generator(
    self, position: int, purpose: int, count: int = 0, attempt: int = 0
  ) -> np.random.Generator:
    # Philox is a function of key and counter; the counter's lowest word counts
    # the numbers drawn. `default_rng` takes 70 us to mix its seed first.
    key = np.array([self.seed, position], np.uint64)
    counter = np.array([0, purpose, count, attempt], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))

  def _target(self, position: int, labels: np.ndarray) -> int | None:
    """Returns the class to explain, the same for all that depends on it."""
    generator = self._generator(position, _TARGET)
    return draw_target(labels, self.target_draw, generator)

  def _picture(self, position: int, out: np.ndarray):
    """Returns labels, entries about objects, and which were skipped."""

    def read(record):
      generator = self._generator(position, _PICTURE, 0, skipped)
      view = self.augment(record["image"], generator, out)
      labels = np.asarray(record["labels"])
      if "object_mask" not in self.bring:
        return labels, {}
      target = self._target(position, labels)
      return labels, {
        "target": np.asarray(target or 0, np.int32),
        "object_mask": _object_mask(record, view, target),
      }

    dataset = self.reader.dataset
    num_examples = len(dataset.source)
    index = shuffled(position, num_examples, self.seed)
    broken: list[int] = []
    for skipped in range(_TRIES):
      found = self.reader.read(index, read)
      if found is not None:
        return *found, broken
      broken.append(index)
      replacement = self._generator(position, _REPLACEMENT, 0, skipped)
      index = int(replacement.integers(num_examples))
    raise DecodeError(
      f"{_TRIES} pictures of {dataset.name}, drawn one after the other, "
      "cannot be read; the log names them. Mend the data: there is not enough "
      "to skip on from."
    )

  def _distractors(
    self, position: int, labels: np.ndarray
  ) -> tuple[dict[str, Any], list[int]]:
    """Returns entries of the batch, and which pictures were skipped."""
    target = self._target(position, labels)
    size = self.augment.image_size
    pictures = np.zeros((NUM_DISTRACTORS, size, size, 3), np.uint8)
    count = 0
    taken: list[int] = []
    broken: list[int] = []
    while (
      target is not None and len(broken) < _TRIES and count < NUM_DISTRACTORS
    ):
      skipped = len(broken)
      choice = self._generator(position, _DISTRACTORS, count, skipped)
      drawn = self.class_index.draw(target, choice, self.distractor_draw, taken)
      if drawn is None:
        break
      taken.append(drawn)
      own = self._generator(position, _DISTRACTOR_PICTURE, count, skipped)

      def read(record, generator=own, out=pictures[count]):
        return self.augment(record["image"], generator, out)

      if self.reader.read(drawn, read) is None:
        broken.append(drawn)
      else:
        count += 1
    return {
      "target": np.asarray(target or 0, np.int32),
      "distractors": pictures,
      "distractor_mask": np.asarray(count == NUM_DISTRACTORS, np.float32),
    }, broken


def _object_mask(
  record: Mapping[str, Any], view: View, target: int | None
) -> Bool[np.ndarray, "S S"]:
  """Returns the pixels of all objects of a class, as the picture is shown."""
  inside = np.zeros((view.size, view.size), np.bool_)
  if target is not None and record.get("objects") is not None:
    header = decode.read_header(record["image"])
    for mask in geometry.object_masks(record, header, target):
      inside |= view.of_mask(mask)
  return inside


@dataclasses.dataclass(frozen=True)
class _MakeBatch:
  """Number of a share -> its examples, at consecutive positions."""

  make_example: _MakeExample
  local_batch_size: int

  def __call__(self, share: int) -> Batch:
    count, size = self.local_batch_size, self.make_example.augment.image_size
    first = int(share) * count
    image = np.empty((count, size, size, 3), np.uint8)
    examples = [
      self.make_example(first + row, image[row]) for row in range(count)
    ]
    others = {
      key: np.stack([example[key] for example in examples])
      for key in examples[0]
    }
    return {"image": image, **others}

  def num_bytes(self) -> int:
    """Returns how large a batch is, or a little less."""
    make = self.make_example
    side = make.augment.image_size
    extras = sum(
      math.prod(shape) * np.dtype(dtype).itemsize
      for shape, dtype in extra_shapes(make.bring, side).values()
    )
    dataset = make.reader.dataset
    counts = len(dataset.class_names) * dataset.multi_label
    return self.local_batch_size * (3 * side**2 + extras + 4 * counts)
