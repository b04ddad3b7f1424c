"""Reading records that may be broken: naming them, or passing over them."""

import collections
import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gc_jax.data.dataset import Dataset
from gc_jax.data.decode import DecodeError

POLICIES = ("raise", "skip")  # of --config.data.on_error

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_num_skipped: collections.Counter[str] = collections.Counter()


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads records of a split, under one policy. Pickled to workers.

  Attributes:
    dataset: the split.
    on_error: a name of `POLICIES`.
  """

  dataset: Dataset
  on_error: str = "raise"

  def read(
    self, index: int, decode: Callable[[Mapping[str, Any]], _T]
  ) -> _T | None:
    """Returns what `decode` makes of a record; None where it is passed over.

    Raises:
      DecodeError: the policy is "raise", and the record cannot be read.
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
  """Returns the file a record came from, where it says so."""
  name = record.get("name") or record.get("file_name", "")
  return name.decode() if isinstance(name, bytes) else str(name)
