"""A loaded split: its records by index, how they are read, what they show."""

import collections
import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

_MOST_LOOKED_AT = 10_000

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_num_skipped: collections.Counter[str] = collections.Counter()


class DecodeError(ValueError):
  """A picture cannot be read; says why, and which where that is known."""


@dataclasses.dataclass(frozen=True)
class Dataset:
  """One split of one data set.

  Attributes:
    source: random access, `len(source)` and `source[i]`. A record is a dict:
      `image`, encoded bytes (PNG or JPEG); `labels`, class ids, one for each
      object the annotator counted (exactly one in single-label sets); and
      where known `objects`, a dict of equally long sequences: `label`, `bbox`
      (ymin xmin ymax xmax in 0..1), `difficult`, and optionally `mask`
      (encoded, of the size of the image, > 127 inside the object; empty: its
      filled box). Boxes and masks are in the stored frame, before EXIF's
      orientation is applied. `name` or `file_name`, where known, is the file a
      record came from, for messages. `image` may be read from disk on access.
    class_names: what the ids mean, in order; K = len(class_names).
    multi_label: whether an image may show several classes.
    name: for tables and reports, with every setting that made the data.
    labels: `labels` of every record, where known without reading them.
    num_dropped: broken records or objects left out under
      `--config.data.on_error=skip`.
  """

  source: Any
  class_names: tuple[str, ...]
  multi_label: bool
  name: str
  labels: Any = None
  num_dropped: int = 0

  def all_labels(self) -> Any:
    """Returns the labels of every record; reads them all if it must."""
    if self.labels is not None:
      return self.labels
    count = len(self.source)
    _logger.info("Reading the labels of %d examples of %s", count, self.name)
    return [self.source[index]["labels"] for index in range(count)]

  def has_objects(self) -> bool:
    """Returns whether any record says where an object of its classes is.

    Reads records, evenly spread, until one does: at most `_MOST_LOOKED_AT`.
    """
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


class Reordered:
  """Records of a source by other numbers: some of them, in another order."""

  def __init__(self, source: Any, indices: np.ndarray):
    self._source = source
    self._indices = indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Any:
    return self._source[int(self._indices[index])]


def _is_located(source: Any, index: int) -> bool:
  try:
    record = source[index]
  except OSError:
    return False  # reading it for a batch names it in an error
  objects = record.get("objects")
  labels = () if objects is None else objects["label"]
  return bool({int(k) for k in labels} & {int(k) for k in record["labels"]})


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads records of a split; broken ones it may skip. Pickled to workers.

  Attributes:
    dataset: the split.
    on_error: "raise" or "skip", as `--config.data.on_error`.
  """

  dataset: Dataset
  on_error: str = "raise"

  def read(
    self, index: int, decode: Callable[[Mapping[str, Any]], _T]
  ) -> _T | None:
    """Returns what `decode` makes of a record; None if it is skipped.

    Raises:
      DecodeError: the record cannot be read, and `on_error` is "raise".
    """
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
    self._log(message)
    return None

  def _log(self, message: str) -> None:
    """Logs the first ten, then every tenth, every hundredth, and so on."""
    with _lock:
      _num_skipped[self.dataset.name] += 1
      count = _num_skipped[self.dataset.name]
    if count % 10 ** (len(str(count)) - 1) == 0:
      _logger.warning("%s. Skipped (number %d).", message, count)


def _name(record: Mapping[str, Any]) -> str:
  name = record.get("name") or record.get("file_name", "")
  return name.decode() if isinstance(name, bytes) else str(name)
