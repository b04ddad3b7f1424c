"""Files that are either complete or not there, on a disk or in a bucket."""

import contextlib
import importlib.util
import io
import os
import pathlib
from collections.abc import Iterator
from typing import IO

import fsspec
from etils import epath

AnyPath = pathlib.Path | epath.Path

_BUCKET = "gs://"


def as_path(path: str | os.PathLike) -> AnyPath:
  """Returns what opens files below `path`: a folder, or gs://BUCKET/FOLDER.

  Raises:
    ValueError: it is of another kind of storage, or what reads buckets is not
      installed.
  """
  text = os.fspath(path)
  if "://" not in text:
    return pathlib.Path(path)
  if not text.startswith(_BUCKET) or text == _BUCKET:
    raise ValueError(
      f"A path must be on a disk or in a bucket, gs://BUCKET/FOLDER; it is "
      f"{text!r}. Use one of these."
    )
  if importlib.util.find_spec("tensorflow") is None:
    try:
      fsspec.get_filesystem_class("gcs")
    except ImportError as error:
      raise ValueError(
        f"{text} is in a bucket, which gcsfs must open; it is not installed "
        f"({error}). Run pip install gcsfs, or use a folder on a disk."
      ) from error
  return epath.Path(text)


def check_reachable(path: AnyPath) -> None:
  """Checks that a bucket answers; a disk always does.

  Raises:
    ValueError: it does not.
  """
  if not is_in_bucket(path):
    return
  try:
    path.exists()
  except Exception as error:
    raise ValueError(
      f"{path} must be in a bucket that can be reached: "
      f"{type(error).__name__}: {error}. Check its name, give the service "
      "account of this machine access, or log in by gcloud auth "
      "application-default login."
    ) from error


def is_in_bucket(path: str | os.PathLike) -> bool:
  """Returns whether it is no path on a disk."""
  return os.fspath(path).startswith(_BUCKET)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
  """Opens a file that takes the name `path` only once it is complete.

  A reader, or a run killed half way, sees the old file or the new one, never
  a part of it. Missing parent folders are made.
  """
  path = as_path(path)
  if is_in_bucket(path):
    whole = io.BytesIO()
    yield whole
    # An object has its name once all of it is there.
    path.write_bytes(whole.getvalue())
    return
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


def copy_folder(source: pathlib.Path, target: AnyPath) -> None:
  """Copies every file below a folder on a disk."""
  for path in sorted(source.rglob("*")):
    if path.is_file():
      with replacing(target / path.relative_to(source).as_posix()) as file:
        file.write(path.read_bytes())
