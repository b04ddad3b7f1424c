"""Files that are either complete or not there."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
  """Opens a file that takes the name `path` only once it is complete.

  A reader, or a run killed half way, sees the old file or the new one, never
  a part of it. Missing parent folders are made.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("wb") as file:
      yield file
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes UTF-8 `text` to `path`, completely or not at all."""
  with replacing(path) as file:
    file.write(text.encode())
