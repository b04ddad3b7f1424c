"""Batches of a `Dataset`: decoding, fitting to size, augmentation, order.

Training data is a function of (seed, step) and evaluation data of the split
alone; neither depends on how many processes, workers or threads read it.
"""

import dataclasses
import functools
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
import PIL.Image
from absl import flags
from jaxtyping import Bool, UInt8

from gc_jax.data.dataset import Dataset
from gc_jax.types import Batch, EvalBatch

# A unit of work is a whole batch, made by one thread. More threads than cores
# only wait for each other. Two batches in reserve cover a slow one.
_NUM_THREADS = min(8, os.cpu_count() or 1)
_READ_OPTIONS = grain.ReadOptions(
  num_threads=_NUM_THREADS, prefetch_buffer_size=_NUM_THREADS + 2
)


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
  crop_padding_px: int = 0,
  flip: bool = False,
  num_workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Yields this process's share of the batches from `start_step` on.

  Endless; every epoch is shuffled anew, and a batch may span two epochs. The
  shares of a step, joined in the order of `process_index`, are the same batch
  for any `process_count`.

  Args:
    dataset: the split to train on.
    seed: order and augmentation follow from it.
    start_step: number of the first batch; starting there equals skipping.
    batch_size: images of all processes.
    image_size: side of the images, in pixels.
    crop_padding_px: random shift by up to this many pixels either way; the
      border is repeated outwards.
    flip: mirror every second image, at random.
    num_workers: processes that decode; 0 = threads of this one. They are
      spawned, so a script needs `if __name__ == "__main__"`.
    process_index: which share.
    process_count: of how many.

  Raises:
    ValueError: if the batch cannot be shared evenly, or a number is negative.
  """
  local_batch_size = _local_batch_size(batch_size, process_index, process_count)
  if min(start_step, crop_padding_px, num_workers) < 0:
    raise ValueError(
      f"start_step={start_step}, --config.data.crop_padding_px="
      f"{crop_padding_px} and --config.data.num_workers={num_workers} must "
      "be at least 0."
    )
  if not len(dataset.source):
    raise ValueError(f"{dataset.name} must have examples to train on; it has 0")
  examples = (
    grain.MapDataset.source(dataset.source)
    .seed(seed)
    .shuffle()
    .repeat(None)
    .map(_TrainExample(dataset, image_size))
  )
  if crop_padding_px or flip:
    # Keyed by the position in the endless sequence, before it is shared.
    examples = examples.random_map(_Augment(crop_padding_px, flip))
  # Shares are consecutive, so that joining them gives the global batch.
  batches = examples.batch(local_batch_size, drop_remainder=True)
  batches = batches[start_step * process_count + process_index :: process_count]
  batches = batches.to_iter_dataset(_READ_OPTIONS)
  if num_workers:
    # Grain hands absl flags to its workers. A notebook never parses them.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    batches = batches.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=num_workers)
    )
  return iter(batches)


def eval_batches(
  dataset: Dataset,
  *,
  batch_size: int,
  image_size: int,
  indices: Sequence[int] | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[EvalBatch]:
  """Yields this process's share of one pass over the split, in its order.

  Every example comes once. The last batch is filled with padding: zeros,
  `mask` 0, `index` -1. All processes get equally many batches.

  Args:
    dataset: the split to evaluate on.
    batch_size: images of all processes.
    image_size: side of the images and object masks, in pixels.
    indices: only these examples, in this order.
    process_index: which share.
    process_count: of how many.

  Raises:
    ValueError: if the batch cannot be shared evenly.
  """
  local_batch_size = _local_batch_size(batch_size, process_index, process_count)
  if indices is None:
    indices = range(len(dataset.source))
  num_batches = -(-len(indices) // batch_size)
  starts = range(
    process_index * local_batch_size, num_batches * batch_size, batch_size
  )
  shares = [indices[start : start + local_batch_size] for start in starts]
  batches = grain.MapDataset.source(shares).map(
    functools.partial(_eval_batch, dataset, local_batch_size, image_size)
  )
  return iter(batches.to_iter_dataset(_READ_OPTIONS))


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


def fit(image: PIL.Image.Image, image_size: int) -> PIL.Image.Image:
  """Scales the shorter side to `image_size` and keeps the centre square."""
  width, height = image.size
  if width == height == image_size:
    return image
  side = min(width, height)
  left, top = (width - side) / 2, (height - side) / 2
  return image.resize(
    (image_size, image_size),
    PIL.Image.Resampling.BILINEAR,
    box=(left, top, left + side, top + side),
    reducing_gap=2.0,
  )


def decode_image(encoded: bytes, image_size: int) -> UInt8[np.ndarray, "H W 3"]:
  """Decodes PNG or JPEG of any colour mode to a square RGB image."""
  with PIL.Image.open(io.BytesIO(encoded)) as image:
    return np.asarray(fit(image.convert("RGB"), image_size))


def decode_object_masks(
  record: Mapping[str, Any], image_size: int
) -> list[tuple[int, Bool[np.ndarray, "H W"]]]:
  """Returns (class, pixels) of each object, fitted just as the image is.

  An object without a mask is its filled box.
  """
  objects = record.get("objects")
  if objects is None:
    return []
  masks = objects.get("mask")
  found = []
  for i, label in enumerate(objects["label"]):
    if masks is not None and len(masks[i]):
      with PIL.Image.open(io.BytesIO(masks[i])) as image:
        mask = image.convert("L")
    else:
      with PIL.Image.open(io.BytesIO(record["image"])) as image:
        width, height = image.size
      mask = _filled_box(objects["bbox"][i], width, height)
    found.append((int(label), np.asarray(fit(mask, image_size)) >= 128))
  return found


def _filled_box(box: Any, width: int, height: int) -> PIL.Image.Image:
  scale = np.array([height, width, height, width])
  ymin, xmin, ymax, xmax = np.round(np.asarray(box) * scale).astype(int)
  pixels = np.zeros((height, width), np.uint8)
  # A box thinner than a pixel still covers one.
  pixels[ymin : max(ymax, ymin + 1), xmin : max(xmax, xmin + 1)] = 255
  return PIL.Image.fromarray(pixels)


def _encode_labels(
  dataset: Dataset, labels: np.ndarray
) -> dict[str, np.ndarray]:
  if dataset.multi_label:
    counts = np.bincount(labels, minlength=len(dataset.class_names))
    return {"labels": counts.astype(np.int32)}
  if len(labels) != 1:
    raise ValueError(
      f"{dataset.name} is single-label: a record must have one label and one "
      f"has {len(labels)}; load it as multi-label"
    )
  return {"label": np.asarray(labels[0], np.int32)}


@dataclasses.dataclass(frozen=True)
class _TrainExample:
  """Record -> the entries of a `Batch` for one image. Pickled to workers."""

  dataset: Dataset
  image_size: int

  def __call__(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {
      "image": decode_image(record["image"], self.image_size),
      **_encode_labels(self.dataset, np.asarray(record["labels"])),
      "mask": np.ones((), np.float32),
    }


@dataclasses.dataclass(frozen=True)
class _Augment:
  """Shifts and mirrors."""

  crop_padding_px: int
  flip: bool

  def __call__(
    self, example: dict[str, np.ndarray], generator: np.random.Generator
  ) -> dict[str, np.ndarray]:
    image, pad = example["image"], self.crop_padding_px
    if pad:
      height, width = image.shape[:2]
      y, x = generator.integers(2 * pad + 1, size=2)
      padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
      image = padded[y : y + height, x : x + width]
    if self.flip and generator.random() < 0.5:
      image = image[:, ::-1]
    return {**example, "image": np.ascontiguousarray(image)}


def _eval_batch(
  dataset: Dataset,
  local_batch_size: int,
  image_size: int,
  indices: Sequence[int],
) -> EvalBatch:
  """Makes the batch of these examples, padded at the end."""
  count, slots = local_batch_size, dataset.max_classes_per_image
  batch = {
    "image": np.zeros((count, image_size, image_size, 3), np.uint8),
    "mask": np.zeros(count, np.float32),
    "target": np.zeros((count, slots), np.int32),
    "target_mask": np.zeros((count, slots), np.float32),
    "object_mask": np.zeros((count, slots, image_size, image_size), np.bool_),
    "index": np.full(count, -1, np.int32),
  }
  if dataset.multi_label:
    batch["labels"] = np.zeros((count, len(dataset.class_names)), np.int32)
  else:
    batch["label"] = np.zeros(count, np.int32)

  for row, index in enumerate(indices):
    record = dataset.source[index]
    labels = np.asarray(record["labels"])
    targets = np.unique(labels)
    if len(targets) > slots:
      raise ValueError(
        f"{dataset.name} says that an image shows at most {slots} classes and "
        f"example {index} shows {len(targets)}; raise max_classes_per_image"
      )
    batch["image"][row] = decode_image(record["image"], image_size)
    batch["mask"][row] = 1
    batch["index"][row] = index
    batch["target"][row, : len(targets)] = targets
    batch["target_mask"][row, : len(targets)] = 1
    for key, value in _encode_labels(dataset, labels).items():
      batch[key][row] = value
    for label, mask in decode_object_masks(record, image_size):
      batch["object_mask"][row, np.flatnonzero(targets == label)] |= mask
  return batch
