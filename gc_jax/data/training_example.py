"""One training example: its picture and labels, and what else is asked for."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from gc_jax.data import decode, geometry
from gc_jax.data.augment import Augmentation, View
from gc_jax.data.dataset import Dataset
from gc_jax.data.decode import DecodeError
from gc_jax.data.distractors import ClassIndex, draw_target
from gc_jax.data.reading import Reader

NUM_DISTRACTORS = 3
_TRIES = 20

# Streams of random numbers: what is drawn for one purpose must not depend on
# how much was drawn for another.
_PICTURE, _REPLACEMENT, _TARGET, _DISTRACTORS, _DISTRACTOR_PICTURE = range(5)

Shapes = dict[str, tuple[tuple[int, ...], Any]]


# What a batch brings where it is asked to, and in which entries: side of the
# pictures -> entry -> (shape, dtype) for one example.
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


def extra_shapes(bring: Collection[str], side: int) -> Shapes:
  """Returns entry -> (shape, dtype) of what an example brings when asked to.

  Args:
    bring: names of `EXTRAS`.
    side: of the pictures, in pixels.
  """
  return {k: v for name in bring for k, v in EXTRAS[name](side).items()}


@dataclasses.dataclass(frozen=True)
class TrainingExample:
  """Position and index -> the entries of a `Batch` for one image.

  A function of both and the fields alone. Pickled to workers.

  Attributes:
    dataset: the split.
    reader: reads its records.
    augment: makes squares of its pictures.
    seed: everything random follows from it and the position.
    bring: names of `EXTRAS`.
    class_index: of the split, to draw distractors from; None where none are.
    target_draw: see `draw_target`.
  """

  dataset: Dataset
  reader: Reader
  augment: Augmentation
  seed: int
  bring: tuple[str, ...]
  class_index: ClassIndex | None
  target_draw: str

  def __call__(
    self, position: int, index: int, image: UInt8[np.ndarray, "S S 3"]
  ) -> dict[str, np.ndarray]:
    """Writes the image, and returns the other entries.

    Args:
      position: in the endless sequence.
      index: of the record that has its turn there.
      image: its place in the batch.

    Returns:
      Entries of the same shapes for every example.
    """
    labels, example, skipped = self._picture(position, index, image)
    example |= {
      **self.dataset.encode_labels(labels),
      "mask": np.ones((), np.float32),
    }
    if "distractors" in self.bring:
      more, passed_over = self._distractors(position, labels)
      example |= more
      skipped += passed_over
    if self.reader.on_error == "skip":
      example["skipped"] = np.asarray(skipped, np.float32)
    return example

  def _generator(
    self, position: int, purpose: int, count: int = 0, attempt: int = 0
  ) -> np.random.Generator:
    """Returns the random numbers for one purpose; from 0 as many as wanted."""
    # Philox is a function of key and counter, whose lowest word counts what is
    # drawn; nothing is mixed first, which for `default_rng` takes 70 us.
    key = np.array([self.seed, position], np.uint64)
    counter = np.array([0, purpose, count, attempt], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))

  def _target(self, position: int, labels: np.ndarray) -> int | None:
    """Returns the class to explain, the same for all that depends on it."""
    generator = self._generator(position, _TARGET)
    return draw_target(labels, self.target_draw, generator)

  def _picture(self, position: int, index: int, out: np.ndarray):
    """Returns labels, entries about objects, and how many were passed over."""

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

    for skipped in range(_TRIES):
      found = self.reader.read(index, read)
      if found is not None:
        return *found, skipped
      replacement = self._generator(position, _REPLACEMENT, 0, skipped)
      index = int(replacement.integers(len(self.dataset.source)))
    raise DecodeError(
      f"{_TRIES} pictures of {self.dataset.name}, drawn one after the other, "
      "cannot be read; the log names them. Mend the data: there is not enough "
      "to skip on from."
    )

  def _distractors(
    self, position: int, labels: np.ndarray
  ) -> tuple[dict[str, Any], int]:
    """Returns entries of the batch, and how many pictures were passed over."""
    target = self._target(position, labels)
    size = self.augment.image_size
    pictures = np.zeros((NUM_DISTRACTORS, size, size, 3), np.uint8)
    skipped = count = 0
    while target is not None and skipped < _TRIES and count < NUM_DISTRACTORS:
      choice = self._generator(position, _DISTRACTORS, count, skipped)
      drawn = self.class_index.draw(target, choice)
      if drawn is None:
        break
      of_picture = self._generator(
        position, _DISTRACTOR_PICTURE, count, skipped
      )

      def read(record, generator=of_picture, out=pictures[count]):
        return self.augment(record["image"], generator, out)

      if self.reader.read(drawn[1], read) is None:
        skipped += 1
      else:
        count += 1
    return {
      "target": np.asarray(target or 0, np.int32),
      "distractors": pictures,
      "distractor_mask": np.asarray(count == NUM_DISTRACTORS, np.float32),
    }, skipped


def _object_mask(
  record: Mapping[str, Any], view: View, target: int | None
) -> Bool[np.ndarray, "S S"]:
  """Returns the pixels of all objects of a class, as the picture is shown.

  Raises:
    DecodeError: if a mask cannot be read.
  """
  inside = np.zeros((view.size, view.size), np.bool_)
  if target is not None and record.get("objects") is not None:
    header = decode.read_header(record["image"])
    for _, mask in geometry.object_masks(record, header, only=target):
      inside |= view.of_mask(mask)
  return inside
