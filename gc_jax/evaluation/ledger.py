"""What an evaluation has measured so far, in memory and on disk.

One number for each row and name, and sums; both are small, whatever the
pictures. Saved now and then, so that an interrupted evaluation goes on.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from gc_jax.method.metrics import Key
from gc_jax.method.types import Array
from gc_jax.runtime import files

# (sum, weight) of each number.
Totals = dict[Key, tuple[Array | np.number, Array | np.number]]
_FORMAT = 3  # of the file


class Measured(NamedTuple):
  """The numbers of one batch."""

  columns: dict[Key, Float[Array, "B"]]  # NaN where a row does not count
  totals: Totals  # over the rows that count
  cams: dict[str, Float[Array, "B _ _"]]  # by method; empty unless asked for


def counted(counts: Array, values: Array) -> Array:
  """Returns the numbers of rows that count, NaN for the others."""
  return jnp.where(counts > 0, values, jnp.nan)


class Ledger:
  """Numbers of N rows, and sums over them, of what `identity` says."""

  def __init__(self, num_rows: int, identity: dict[str, Any] | None = None):
    self.num_rows = num_rows
    self.identity = identity or {}
    # NaN where nothing was measured or nothing counts.
    self.columns: dict[Key, Float32[np.ndarray, "N"]] = {}
    # In float64: a sum over 50,000 examples outgrows float32.
    self.totals: Totals = {}
    self.done: dict[str, int] = {}  # how many of a pass's rows are in here
    self.secs = 0.0  # over all sittings

  def add(
    self,
    name: str,
    rows: Int[np.ndarray, "B"],
    columns: dict[Key, np.ndarray],
    totals: Totals,
  ) -> None:
    """Adds the next batch of a pass; a row of -1 is padding."""
    real = rows >= 0
    for key, values in columns.items():
      if key not in self.columns:
        self.columns[key] = np.full(self.num_rows, np.nan, np.float32)
      self.columns[key][rows[real]] = values[real]
    for key, (total, weight) in totals.items():
      before, count = self.totals.get(key, (0.0, 0.0))
      self.totals[key] = (
        before + np.asarray(total, np.float64),
        count + np.asarray(weight, np.float64),
      )
    self.done[name] = self.done.get(name, 0) + int(real.sum())

  def save(self, path: Path) -> None:
    """Writes everything, completely or not at all."""
    arrays = {f"column/{i}": v for i, v in enumerate(self.columns.values())}
    for i, (total, weight) in enumerate(self.totals.values()):
      arrays[f"total/{i}"], arrays[f"weight/{i}"] = total, weight
    about = {
      "format": _FORMAT,
      "identity": self.identity,
      "columns": list(self.columns),
      "totals": list(self.totals),
      "done": self.done,
      "secs": self.secs,
    }
    arrays["about"] = np.array(json.dumps(about))
    with files.replacing(path) as file:
      np.savez(file, **arrays)


def load(path: Path, num_rows: int, identity: dict[str, Any]) -> Ledger:
  """Returns what was saved; an empty ledger if there is no file.

  Raises:
    ValueError: the file belongs to another evaluation (says what differs), or
      another version wrote it.
  """
  ledger = Ledger(num_rows, identity)
  if not path.is_file():
    return ledger
  with np.load(path, allow_pickle=False) as arrays:
    about = json.loads(str(arrays["about"]))
    if about.get("format") != _FORMAT:
      raise ValueError(
        f"{path} must be an unfinished evaluation by this version of gc_jax; "
        "another version wrote it. Use another --out, or remove that file to "
        "start anew."
      )
    theirs = about["identity"]
    if differing := [
      f"{key}: {theirs.get(key)!r} there, {identity.get(key)!r} now"
      for key in sorted(theirs.keys() | identity.keys())
      if theirs.get(key) != identity.get(key)
    ]:
      raise ValueError(
        f"{path.parent} holds an unfinished evaluation of something else, and "
        "nothing in it was touched. Use another --out, or give the command "
        "that began it to go on with it. What differs:\n  "
        + "\n  ".join(differing)
      )
    for i, key in enumerate(about["columns"]):
      ledger.columns[Key(*key)] = arrays[f"column/{i}"]
    for i, key in enumerate(about["totals"]):
      ledger.totals[Key(*key)] = arrays[f"total/{i}"], arrays[f"weight/{i}"]
  ledger.done, ledger.secs = about["done"], about["secs"]
  return ledger
