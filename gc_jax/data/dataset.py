"""What a loaded split is: records by index, and what one must know of them."""

import dataclasses
import difflib
import itertools
import logging
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

# How alike names are, of 1: to be listed first, to be what was meant.
_LISTED, _ALIKE = 0.4, 0.6

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
    max_classes_per_image: P, the most classes one image shows.
    name: for tables and reports, with every setting that made the data.
    license: where the data is from and under which terms, in one sentence.
    labels: a sequence, `labels` of every record, where known without reading.
    num_dropped: records or objects left out because they were broken, under
      `--config.data.on_error=skip`.
  """

  source: Any
  class_names: tuple[str, ...]
  multi_label: bool
  max_classes_per_image: int
  name: str
  license: str
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


def listed(names: Collection[str], most: int = 5, between: str = ", ") -> str:
  """Returns the first of some names, and how many more there are."""
  first = list(itertools.islice(names, most))
  if len(names) > most:
    first.append(f"and {len(names) - most:,} more")
  return between.join(first)


def clipped(text: str, most: int = 80) -> str:
  """Returns a text, or its beginning where it is too long for a message."""
  return text if len(text) <= most else f"{text[: most - 3]}..."


def unknown_name_message(
  what: str, name: str, known: Iterable[str], most: int = 20
) -> str:
  """Says that `name` is no `what`, which there are, and the nearest.

  Args:
    what: the kind of thing, or the flag that names one.
    name: as the user wrote it.
    known: the names there are.
    most: of more than these a few are listed, the nearest first.
  """
  known = list(known)
  nearest = _nearest(name, known)
  in_order = known
  if len(known) > most:
    in_order = list(dict.fromkeys([each for _, each in nearest] + known))
  shown = listed(
    [clipped(each) for each in in_order], most if in_order is known else 10
  )
  message = f"Unknown {what}={clipped(name)!r}. Known: {shown}."
  if nearest and nearest[0][0] >= _ALIKE:
    message += f" Did you mean {clipped(nearest[0][1])!r}?"
  return message


def _nearest(name: str, known: Iterable[str]) -> list[tuple[float, str]]:
  """Returns (likeness in 0..1, name) of those like a name, in any case."""
  matcher = difflib.SequenceMatcher()
  matcher.set_seq2(name.casefold())
  found = []
  for each in known:
    matcher.set_seq1(each.casefold())
    bounds = matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio
    if all(bound() >= _LISTED for bound in bounds):
      found.append((matcher.ratio(), each))
  return sorted(found, key=lambda pair: -pair[0])


def class_differences(there: Sequence[str], here: Sequence[str]) -> str:
  """Says in a few lines how two lists of classes differ; "" if they do not.

  An id means a class by its place, so that order counts. The forms that Unicode
  has for one name, which file systems change, are one.

  Args:
    there: of a model, in the order of its outputs.
    here: of the data.
  """
  theirs, ours = (
    [unicodedata.normalize("NFC", name) for name in names]
    for names in (there, here)
  )
  if theirs == ours:
    return ""
  lines = [
    f"{len(theirs):,} there: {_names(theirs)}",
    f"{len(ours):,} now: {_names(ours)}",
  ]
  known, wanted = set(theirs), set(ours)
  if gone := [name for name in theirs if name not in wanted]:
    lines.append(f"only there: {_names(gone)}")
  if new := [name for name in ours if name not in known]:
    lines.append(f"only now: {_names(new)}")
  if not gone and not new:
    lines.append("the same names in another order")
  differing = [
    f"class {i}: {_name(theirs, i)} there, {_name(ours, i)} now"
    for i in range(max(len(theirs), len(ours)))
    if theirs[i : i + 1] != ours[i : i + 1]
  ]
  lines.append(listed(differing, between="\n  "))
  return "\n".join(f"  {line}" for line in lines)


def _names(names: Sequence[str]) -> str:
  return listed([clipped(name) for name in names])


def _name(names: Sequence[str], index: int) -> str:
  return repr(clipped(names[index])) if index < len(names) else "none"
