"""One training example: its picture, its labels, and its distractors."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import UInt8

from gc_jax.data.augment import Augmentation
from gc_jax.data.dataset import Dataset
from gc_jax.data.decode import DecodeError
from gc_jax.data.distractors import ClassIndex, draw_target
from gc_jax.data.reading import Reader

NUM_DISTRACTORS = 3
_TRIES = 20

# Streams of random numbers: what is drawn for one purpose must not depend on
# how much was drawn for another.
_PICTURE, _REPLACEMENT, _TARGET, _DISTRACTORS, _DISTRACTOR_PICTURE = range(5)


@dataclasses.dataclass(frozen=True)
class TrainingExample:
  """Position and index -> the entries of a `Batch` for one image.

  A function of both and the fields alone. Pickled to workers.

  Attributes:
    dataset: the split.
    reader: reads its records.
    augment: makes squares of its pictures.
    seed: everything random follows from it and the position.
    class_index: of the split, to draw distractors from; None: draw none.
    target_draw: see `draw_target`.
  """

  dataset: Dataset
  reader: Reader
  augment: Augmentation
  seed: int
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
    labels, skipped = self._picture(position, index, image)
    example = {
      **self.dataset.encode_labels(labels),
      "mask": np.ones((), np.float32),
    }
    if self.class_index is not None:
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

  def _read(
    self, index: int, key: tuple[int, ...], out: np.ndarray
  ) -> np.ndarray | None:
    """Writes the augmented picture; returns its labels, None if passed over."""

    def read(record):
      self.augment(record["image"], self._generator(*key), out)
      return np.asarray(record["labels"])

    return self.reader.read(index, read)

  def _picture(self, position: int, index: int, out: np.ndarray):
    """Returns (labels, how many were passed over to find a picture)."""
    for skipped in range(_TRIES):
      labels = self._read(index, (position, _PICTURE, 0, skipped), out)
      if labels is not None:
        return labels, skipped
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
    target = draw_target(
      labels, self.target_draw, self._generator(position, _TARGET)
    )
    size = self.augment.image_size
    pictures = np.zeros((NUM_DISTRACTORS, size, size, 3), np.uint8)
    skipped = count = 0
    while target is not None and skipped < _TRIES and count < NUM_DISTRACTORS:
      choice = self._generator(position, _DISTRACTORS, count, skipped)
      drawn = self.class_index.draw(target, choice)
      if drawn is None:
        break
      key = position, _DISTRACTOR_PICTURE, count, skipped
      if self._read(drawn[1], key, pictures[count]) is None:
        skipped += 1
      else:
        count += 1
    return {
      "target": np.asarray(target or 0, np.int32),
      "distractors": pictures,
      "distractor_mask": np.asarray(count == NUM_DISTRACTORS, np.float32),
    }, skipped
