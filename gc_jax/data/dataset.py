"""What a loaded split is: records by index, and what one must know of them."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Dataset:
  """One split of one data set.

  Attributes:
    source: random access, `len(source)` and `source[i]`. A record is a dict:
      `image`, encoded bytes (PNG or JPEG); `labels`, class ids, one for each
      object the annotator counted (exactly one in single-label sets); and
      where known `objects`, a dict of equally long sequences: `label`, `bbox`
      (ymin xmin ymax xmax in 0..1), `difficult`, and optionally `mask`
      (encoded, of the size of the image, > 127 inside the object).
    class_names: what the ids mean, in order; K = len(class_names).
    multi_label: whether an image may show several classes.
    max_classes_per_image: P, the most classes one image shows.
    name: for tables and reports, with every setting that made the data.
    license: where the data is from and under which terms, in one sentence.
  """

  source: Any
  class_names: tuple[str, ...]
  multi_label: bool
  max_classes_per_image: int
  name: str
  license: str


def unknown_name_message(what: str, name: str, known: Iterable[str]) -> str:
  """Says that `name` is no `what`, which there are, and the nearest."""
  known = list(known)
  message = f"Unknown {what}={name!r}. Known: {', '.join(known)}."
  nearest = difflib.get_close_matches(name, known, n=1)
  return message + (f" Did you mean {nearest[0]!r}?" if nearest else "")
