"""Batches of a `Dataset`: decoding, fitting to size, augmentation, order.

Training data is a function of (seed, step) and evaluation data of the split
alone; neither depends on how many processes, workers or threads read it.
"""

import dataclasses
import logging
import math
import os
from collections.abc import Collection, Iterator

import grain
import numpy as np

from gc_jax.data import workers
from gc_jax.data.augment import Augmentation
from gc_jax.data.dataset import Dataset
from gc_jax.data.distractors import ClassIndex
from gc_jax.data.order import Order
from gc_jax.data.reading import Reader
from gc_jax.data.training_example import EXTRAS, TrainingExample, extra_shapes
from gc_jax.method.types import Batch
from gc_jax.runtime.messages import unknown_name_message

# In a process of its own, a worker makes one batch at a time: with the buffers
# of threads in each, eight of them would hold gigabytes.
_WORKER_READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
# A unit of work is a whole batch, made by one thread. More threads than cores
# only wait for each other. Two batches in reserve cover a slow one.
_NUM_THREADS = min(8, os.cpu_count() or 1)
READ_OPTIONS = grain.ReadOptions(
  num_threads=_NUM_THREADS, prefetch_buffer_size=_NUM_THREADS + 2
)
_ENDLESS = 2**40  # shares of batches

_logger = logging.getLogger(__name__)


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
  """Returns how many whole batches an epoch has.

  Raises:
    ValueError: if it has none.
  """
  if not 1 <= batch_size <= num_examples:
    raise ValueError(
      f"--config.batch_size={batch_size} must be at most the {num_examples:,} "
      "examples of the training split, and at least 1."
    )
  return num_examples // batch_size


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
    batch_size: images of all processes.
    image_size: side of the images, in pixels.
    crop: see `Augmentation`.
    crop_padding_px: see `Augmentation`.
    flip: see `Augmentation`.
    on_error: what to do about a record that cannot be read: "raise", or
      "skip", another takes its place and the batch counts it.
    bring: of `training_example.EXTRAS`, nothing of which is read otherwise:
      "distractors", three for every image from the whole split; "object_mask",
      where the explained class is in it.
    target_draw: with either, how the explained class is drawn where an image
      shows several: "category" or "instance".
    num_workers: processes that decode; 0 = threads of this one, which also do
      it where shared memory has no room for what processes hand over. They
      are spawned, so a script needs `if __name__ == "__main__"`.
    process_index: which share.
    process_count: of how many.
    processes_here: how many of them share this machine's memory.

  Raises:
    ValueError: if the batch cannot be shared evenly, or a number is negative.
    DecodeError: later, where `on_error` is "raise": names the picture.
  """
  local_batch_size = _local_batch_size(batch_size, process_index, process_count)
  if min(seed, start_step, crop_padding_px, num_workers) < 0:
    raise ValueError(
      f"--config.seed={seed}, start_step={start_step}, "
      f"--config.data.crop_padding_px={crop_padding_px} and "
      f"--config.data.num_workers={num_workers} must be at least 0."
    )
  for name in bring:
    if name not in EXTRAS:
      raise ValueError(unknown_name_message("bring", name, EXTRAS))
  num_examples = len(dataset.source)
  if not num_examples:
    raise ValueError(f"{dataset.name} must have examples to train on; it has 0")
  class_index = None
  if "distractors" in bring:
    class_index = ClassIndex(dataset.all_labels(), len(dataset.class_names))
  make_example = TrainingExample(
    dataset=dataset,
    reader=Reader(dataset, on_error),
    augment=Augmentation(image_size, crop, crop_padding_px, flip),
    seed=seed,
    class_index=class_index,
    bring=tuple(bring),
    target_draw=target_draw,
  )
  # Shares are consecutive, so that joining them gives the global batch.
  shares = grain.MapDataset.range(
    start_step * process_count + process_index, _ENDLESS, process_count
  )
  make_batch = _TrainBatches(
    make_example, Order(num_examples, seed), local_batch_size
  )
  batches = shares.map(make_batch)
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
    return workers.batches_of(
      batches.to_iter_dataset(_WORKER_READ_OPTIONS), num_workers
    )
  return iter(batches.to_iter_dataset(READ_OPTIONS))


def _local_batch_size(
  batch_size: int, process_index: int, process_count: int
) -> int:
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index={process_index} must be in 0..{process_count - 1}"
    )
  if batch_size < 1 or batch_size % process_count:
    nearest = max(1, round(batch_size / process_count)) * process_count
    raise ValueError(
      f"batch_size={batch_size} must be divisible by {process_count} "
      f"processes, and at least 1 each; use {nearest}."
    )
  return batch_size // process_count


@dataclasses.dataclass(frozen=True)
class _TrainBatches:
  """Number of a share -> the examples of it, at consecutive positions."""

  make_example: TrainingExample
  order: Order
  local_batch_size: int

  def __call__(self, share: int) -> Batch:
    count, size = self.local_batch_size, self.make_example.augment.image_size
    first = int(share) * count
    image = np.empty((count, size, size, 3), np.uint8)
    examples = [
      self.make_example(position, self.order(position), image[row])
      for row, position in enumerate(range(first, first + count))
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
    counts = len(make.dataset.class_names) * make.dataset.multi_label
    return self.local_batch_size * (3 * side**2 + extras + 4 * counts)
