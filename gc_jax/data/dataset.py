"""A loaded split: its records by index, read, and drawn by what they show."""

import dataclasses
import functools
import hashlib
import logging
import multiprocessing
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int

from gc_jax.runtime import speaking

_MOST_LOOKED_AT = 10_000
_REJECTIONS = 20  # tries at an example without the class

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
_lock = threading.Lock()
# Broken records that were told of: name and length of the split, index.
_told: set[tuple[str, int, int]] = set()


class DecodeError(ValueError):
  """A picture cannot be read; says why, and which where that is known."""


@dataclasses.dataclass(frozen=True)
class Dataset:
  """One split of one data set: records by `len(source)` and `source[i]`.

  A record is a dict: `image`, encoded bytes (PNG or JPEG), which may be read
  from disk on access; `labels`, class ids, one for each object the annotator
  counted (exactly one in single-label sets); and where known `objects`, a dict
  of equally long sequences: `label`, `bbox` (ymin xmin ymax xmax in 0..1),
  `difficult`, and optionally `mask` (encoded, of the size of the image, > 127
  inside the object; empty: its filled box) and `sliced` (the corners in an XML
  file as the release slices them: as if they counted from 1, in sides of the
  picture, not clipped; empty: none). Boxes and masks are in the stored frame,
  before EXIF's orientation is applied. `name` or `file_name`, where known, is
  the file a record came from, for messages.

  A source whose files may change under their names has `contents()`, a text
  that changes with them.
  """

  source: Any
  class_names: tuple[str, ...]  # what the ids mean, in order; K of them
  multi_label: bool  # whether an image may show several classes
  name: str  # for tables and reports, with every setting that made the data
  labels: Any = None  # of every record, where known without reading them
  names: Sequence[str] | None = None  # `name` of every record, likewise
  # Broken records or objects left out under `--config.data.on_error=skip`.
  num_dropped: int = 0
  # Records that say where an object of their classes is, where that is known.
  num_located: int | None = None
  # Records known to be broken, which were told of: `Reader` passes over them.
  broken: Collection[int] = frozenset()

  def all_labels(self) -> Any:
    """Returns the labels of every record; reads them all if it must."""
    if self.labels is not None:
      return self.labels
    count = len(self.source)
    _logger.info("Reading the labels of %d examples of %s", count, self.name)
    labels = []
    with speaking.doing("") as task:
      for index in range(count):
        labels.append(self.source[index]["labels"])
        task.text = f"reading labels, {index + 1:,} of {count:,} done"
    return labels

  def digest(self) -> str:
    """Returns what tells these records from others.

    Files that may change under their names are read, no others.
    """
    parts = [str(len(self.source)), *self.class_names, *(self.names or ())]
    if self.labels is not None:
      parts += [str(np.asarray(own).tolist()) for own in self.labels]
    if contents := getattr(self.source, "contents", None):
      with speaking.doing(f"comparing the pictures of {self.name}"):
        parts.append(contents())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

  def has_objects(self) -> bool:
    """Returns whether any record says where an object of its classes is.

    Reads records, evenly spread, until one does: at most `_MOST_LOOKED_AT`.
    """
    if self.num_located is not None:
      return self.num_located > 0
    count = len(self.source)
    step = max(1, -(-count // _MOST_LOOKED_AT))
    return any(_is_located(self.source, i) for i in range(0, count, step))

  def encode_labels(
    self, labels: Sequence[Any] | np.ndarray
  ) -> dict[str, np.ndarray]:
    """Returns the labels of one record as the entry of a `Batch`.

    Raises:
      ValueError: the set is single-label, and these are not one.
    """
    labels = np.asarray(labels, np.int64)
    if self.multi_label:
      counts = np.bincount(labels, minlength=len(self.class_names))
      return {"labels": counts.astype(np.int32)}
    if len(labels) != 1:
      raise ValueError(
        f"{self.name} is single-label: a record must have one label and one "
        f"has {len(labels)}; load it as multi-label"
      )
    return {"label": np.asarray(labels[0], np.int32)}


@dataclasses.dataclass(frozen=True)
class Records:
  """Some records of a source, in another order, each converted."""

  source: Any
  indices: np.ndarray
  convert: Callable[[dict[str, Any]], dict[str, Any]]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.convert(self.source[int(self.indices[index])])


def _is_located(source: Any, index: int) -> bool:
  try:
    record = source[index]
  except OSError:
    return False  # reading it for a batch names it in an error
  objects = record.get("objects")
  labels = () if objects is None else objects["label"]
  return bool({int(k) for k in labels} & {int(k) for k in record["labels"]})


class Pairs(NamedTuple):
  """The rows of an evaluation, in the order of the split."""

  index: Int[np.ndarray, "N"]  # position of the picture in the split
  target: Int[np.ndarray, "N"]  # class explained; -1: the picture shows none
  first: Bool[np.ndarray, "N"]  # whether it is the first row of its picture


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads records of a split; broken ones it may skip. Pickled to workers."""

  dataset: Dataset
  on_error: str = "raise"  # or "skip", as `--config.data.on_error`

  def read(
    self, index: int, decode: Callable[[Mapping[str, Any]], _T]
  ) -> _T | None:
    """Returns what `decode` makes of a record; None if it is skipped.

    Raises:
      DecodeError: the record cannot be read, and `on_error` is "raise".
    """
    if self.on_error == "skip" and index in self.dataset.broken:
      return None
    name = ""
    try:
      record = self.dataset.source[index]
      name = _name(record)
      return decode(record)
    except (DecodeError, OSError) as error:
      message = (
        f"Example {index} of {self.dataset.name}"
        f"{name and f', {name},'} cannot be read: {error}"
      )
      if self.on_error == "raise":
        raise DecodeError(
          f"{message}. Mend or remove it, or set --config.data.on_error=skip "
          "to go on without such pictures, and have them counted."
        ) from error
    self.tell(index, message)
    return None

  def tell(self, index: int, message: str) -> None:
    """Warns of a record that is skipped, once; of many, of ever fewer.

    Decoding processes do not: each would. The one that trains on their batches
    does, see `pipeline`.
    """
    if multiprocessing.parent_process() is not None:
      return
    with _lock:
      known = (self.dataset.name, len(self.dataset.source), index) in _told
      _told.add((self.dataset.name, len(self.dataset.source), index))
      count = len(_told)
    if not known and count % 10 ** (len(str(count)) - 1) == 0:
      _logger.warning("%s. Skipped (picture number %d).", message, count)


@functools.cache
def warn_once(message: str) -> None:
  """Warns; not again when another split of the same data is loaded."""
  _logger.warning(message)


def _name(record: Mapping[str, Any]) -> str:
  name = record.get("name") or record.get("file_name", "")
  return name.decode() if isinstance(name, bytes) else str(name)


class ClassIndex:
  """Which examples hold which class, to draw distractors from.

  The release has two laws. On ImageNet it draws, for every picture, three other
  categories with replacement and a picture of each; on COCO three distinct
  pictures, uniformly among all that lack the class. Here both draw distinct
  pictures where there are enough. No list of negatives is stored: an index of
  the labels (12 bytes a label) and rejection suffice.

  Args:
    labels: a sequence, the class ids of every example.
    num_classes: K.
  """

  def __init__(self, labels: Any, num_classes: int):
    lengths = np.fromiter(map(len, labels), np.int64, len(labels))
    flat = np.fromiter(
      (k for row in labels for k in row), np.int64, int(lengths.sum())
    )
    examples = np.repeat(np.arange(len(labels)), lengths)
    # A number for each pair of class and example, ascending: the examples of a
    # class are in a row.
    self._num_examples = len(labels)
    self._pairs = np.unique(flat * self._num_examples + examples)
    starts = np.arange(num_classes + 1) * self._num_examples
    self._starts = np.searchsorted(self._pairs, starts)
    self._present = np.flatnonzero(np.diff(self._starts))

  def _others(
    self, target: int, examples: Int[np.ndarray, "n"], drawn: Collection[int]
  ) -> Int[np.ndarray, "_"]:
    """Returns those of the examples without a class that were not drawn."""
    looked_up = target * self._num_examples + examples
    before, after = (
      np.searchsorted(self._pairs, looked_up, side)
      for side in ("left", "right")
    )
    good = examples[before == after]
    return good[~np.isin(good, list(drawn))] if drawn else good

  def draw(
    self,
    target: int,
    generator: np.random.Generator,
    law: str = "category",
    drawn: Collection[int] = (),
  ) -> int | None:
    """Draws an example without a class; None if there is no such example.

    Args:
      target: the class.
      generator: of the random numbers.
      law: "category" draws a category first, uniform over those that have such
        an example, then one of its examples; "picture" draws uniformly among
        all such examples, those without any label too.
      drawn: examples drawn before: another is taken while there is one.
    """
    by_law = self._by_category if law == "category" else self._by_picture
    found = by_law(target, generator, drawn)
    return by_law(target, generator, ()) if found is None and drawn else found

  def _by_picture(
    self, target: int, generator: np.random.Generator, drawn: Collection[int]
  ) -> int | None:
    among = generator.integers(0, self._num_examples, _REJECTIONS)
    good = self._others(target, among, drawn)
    if not len(good):
      among = generator.permutation(self._num_examples)
      good = self._others(target, among, drawn)
    return int(good[0]) if len(good) else None

  def _by_category(
    self, target: int, generator: np.random.Generator, drawn: Collection[int]
  ) -> int | None:
    categories = self._present[self._present != target]
    while len(categories):
      category = int(generator.choice(categories))
      begin, end = self._starts[category], self._starts[category + 1]
      # Most tries succeed; looking at all of a class takes long.
      tries = self._pairs[generator.integers(begin, end, _REJECTIONS)]
      good = self._others(target, tries % self._num_examples, drawn)
      if not len(good):
        every = self._pairs[begin:end] % self._num_examples
        good = self._others(target, every, drawn)
        generator.shuffle(good)
      if len(good):
        return int(good[0])
      categories = categories[categories != category]
    return None


def draw_target(
  labels: Sequence[Any] | np.ndarray,
  target_draw: str,
  generator: np.random.Generator,
) -> int | None:
  """Draws the class to explain in an image; None if it shows none.

  `labels` are those of its objects. `target_draw` is "category", uniform over
  the classes (paper), or "instance", over the objects (release).
  """
  choices = np.unique(labels) if target_draw == "category" else labels
  return int(generator.choice(choices)) if len(choices) else None
