"""Which pictures of a folder cannot be read: all are decoded before a run."""

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gc_jax.data import decode
from gc_jax.data.sets.folder_layout import Layout
from gc_jax.runtime import files, speaking
from gc_jax.runtime.messages import number_of

_VERSION = 1  # of what is kept; raise it when decoders find out more
_THREADS = min(8, os.cpu_count() or 1)

_logger = logging.getLogger(__name__)

# Picture -> bytes, modified at, in ns, and why it cannot be read; "" if it can.
_Known = dict[str, tuple[int, int, str]]


def broken(layout: Layout, index_folder: Path) -> dict[str, str]:
  """Returns picture -> why it cannot be read, of all that cannot.

  Pictures that have not changed since are not read again: what is known of a
  folder is kept in `index_folder`.
  """
  root = layout.root.resolve()
  digest = hashlib.sha256(f"{_VERSION} {root}".encode()).hexdigest()[:16]
  index = index_folder / f"{root.name}-{digest}-pictures.json"
  known: _Known = {}
  if index.exists():
    known = {k: tuple(v) for k, v in json.loads(index.read_text()).items()}
  new = [
    name
    for name in layout.labels
    if name not in known or known[name][:2] != tuple(layout.files[name])
  ]
  if new:
    known |= _checked(layout, new)
    try:
      files.write_text(index, json.dumps(known))
    except OSError as error:
      _logger.warning("The index of %s is not kept: %s", layout.root, error)
  return {name: known[name][2] for name in layout.labels if known[name][2]}


def _checked(layout: Layout, names: list[str]) -> _Known:
  """Decodes pictures, and says how far that is."""
  of_all = number_of(len(names), "picture")
  speaking.say(f"checking {of_all} of {layout.root}")

  def why(name: str) -> str:
    try:
      decode.check(decode.read_header((layout.root / name).read_bytes()))
    except (OSError, decode.DecodeError) as error:
      return str(error) or type(error).__name__
    return ""

  known: _Known = {}
  with (
    speaking.doing("") as task,
    ThreadPoolExecutor(_THREADS, "check") as threads,
  ):
    for name, error in zip(names, threads.map(why, names), strict=True):
      known[name] = (*layout.files[name], error)
      task.text = f"checking pictures, {len(known):,} of {len(names):,} done"
  return known
