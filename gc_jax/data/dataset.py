"""What a loaded split is: records by index, and what one must know of them."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

_logger = logging.getLogger(__name__)
_MOST_LOOKED_AT = 10_000


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
      filled box). Boxes and masks are in the frame that is stored, before
      EXIF's orientation is applied. `name`, where known, is the file a record
      came from, for messages. `image` may be read when it is asked for.
    class_names: what the ids mean, in order; K = len(class_names).
    multi_label: whether an image may show several classes.
    name: for tables and reports, with every setting that made the data.
    labels: a sequence, `labels` of every record, where known without reading.
    num_dropped: records or objects left out because they were broken, under
      `--config.data.on_error=skip`.
  """

  source: Any
  class_names: tuple[str, ...]
  multi_label: bool
  name: str
  labels: Any = None
  num_dropped: int = 0

  def all_labels(self) -> Any:
    """Returns the labels of every record, by reading all where need be."""
    if self.labels is not None:
      return self.labels
    count = len(self.source)
    _logger.info("Reading the labels of %d examples of %s", count, self.name)
    return [self.source[index]["labels"] for index in range(count)]

  def has_objects(self) -> bool:
    """Returns whether it is known of any picture where what it shows is.

    Records are read, evenly spread, until one tells: at most
    `_MOST_LOOKED_AT`. One that cannot be read tells nothing.
    """
    count = len(self.source)
    step = max(1, -(-count // _MOST_LOOKED_AT))
    return any(_is_located(self.source, i) for i in range(0, count, step))

  def encode_labels(
    self, labels: Sequence[Any] | np.ndarray
  ) -> dict[str, np.ndarray]:
    """Returns the entry of a batch that says what one image shows.

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


def _is_located(source: Any, index: int) -> bool:
  """Returns whether an object of a class of the picture has a place."""
  try:
    record = source[index]
  except OSError:
    return False  # whoever needs it says so, by name
  objects = record.get("objects")
  labels = () if objects is None else objects["label"]
  return bool({int(k) for k in labels} & {int(k) for k in record["labels"]})
