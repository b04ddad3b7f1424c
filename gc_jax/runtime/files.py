"""Files that are complete or absent, on a disk or in a bucket.

`as_path` reads the names that people write; `held` keeps a folder for one
process.
"""

import contextlib
import datetime
import fcntl
import importlib.util
import io
import logging
import os
import pathlib
import socket
import stat
from collections.abc import Callable, Iterator
from typing import IO

from etils import epath

AnyPath = pathlib.Path | epath.Path

LOCK = ".lock"  # in a folder that is written to

_BUCKET = "gs://"

_logger = logging.getLogger(__name__)


def as_path(path: str | os.PathLike) -> AnyPath:
  """Returns a path on a disk, or in a bucket: gs://BUCKET/FOLDER.

  ~ and ~USER at the beginning of a string are home folders, which a shell does
  not replace after --flag=. A path object is taken literally.

  Raises:
    ValueError: another kind of storage, a bucket without gcsfs, an unknown home
      folder, or a name that is no UTF-8.
  """
  text = os.fspath(path)
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f"A path must be UTF-8, to be written into files and reports; {text!r} "
      f"is not, from character {error.start} on. Rename it."
    ) from error
  if "://" not in text:
    return pathlib.Path(_with_home(text) if isinstance(path, str) else path)
  if not text.startswith(_BUCKET) or text == _BUCKET:
    raise ValueError(
      f"A path must be on a disk or in a bucket, gs://BUCKET/FOLDER; it is "
      f"{text!r}. Use one of these."
    )
  if importlib.util.find_spec("tensorflow") is None:
    import fsspec  # a tenth of a second that others save

    try:
      fsspec.get_filesystem_class("gcs")
    except ImportError as error:
      raise ValueError(
        f"{text} is in a bucket, which gcsfs must open; it is not installed "
        f"({error}). Run pip install gcsfs, or use a folder on a disk."
      ) from error
  return epath.Path(text)


def _with_home(text: str) -> str:
  """Returns a path with its home folder in place of ~."""
  home, slash, below = text.partition("/")
  if not home.startswith("~"):
    # A name like ./~ must not lose its ./ as a path object, or ~ is read anew.
    return os.path.abspath(text) if os.path.normpath(text)[:1] == "~" else text
  found = os.path.expanduser(home)
  if found == home:
    whose = home[1:]
    raise ValueError(
      f"{text!r} begins with a home folder, and there is none"
      + (f" of a user {whose!r}" if whose else ": HOME is not set")
      + ". Write the path out, or ./~... for a folder of that name."
    )
  return found + slash + below


def check_reachable(path: AnyPath) -> None:
  """Raises ValueError if a path is in a bucket that does not answer."""
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
  """Returns whether a path begins with gs://."""
  return os.fspath(path).startswith(_BUCKET)


@contextlib.contextmanager
def held(folder: AnyPath, flag: str) -> Iterator[None]:
  """Keeps a folder for this process, until the end or until it dies.

  It must exist; messages call it by the flag that named it. Buckets have no
  locks and are not guarded; a file system without locks is not either, and a
  warning says so.

  Raises:
    ValueError: another process has it; says which.
  """
  if is_in_bucket(folder):
    yield
    return

  def refuse(holder: str) -> None:
    raise ValueError(
      f"{flag}={folder} is being written to by {holder}, and was not touched. "
      f"Wait until that has ended, end it, or use another {flag}. "
      f"(If its machine is lost, and this stays: remove {folder / LOCK}.)"
    )

  with locked(folder / LOCK, refuse) as certain:
    if not certain:
      _logger.warning(
        "%s=%s is on a file system without locks: start nothing else that "
        "writes there.",
        flag,
        folder,
      )
    yield


@contextlib.contextmanager
def locked(
  path: pathlib.Path, if_held: Callable[[str], None]
) -> Iterator[bool]:
  """Holds a lock, which the kernel frees however this process ends.

  The file exists meanwhile, and says who holds the lock: `if_held` is called
  with that before this process waits, and may raise. Yields whether nobody else
  can hold it: False on file systems without locks (some cluster mounts).
  """
  with contextlib.ExitStack() as opened:
    while True:
      # To write, or NFS locks nothing; appending, or the text is lost.
      file = opened.enter_context(
        path.open("a+", encoding="utf-8", errors="replace")
      )
      certain = _lock(file, if_held)
      if not certain or _is_at(path, file):
        break
      # The holder has removed this file, and others lock a new one.
      opened.close()
    if certain:
      now = datetime.datetime.now().astimezone()
      since = now.isoformat(sep=" ", timespec="seconds")
      holder = f"process {os.getpid()} on {socket.gethostname()}, since {since}"
      # For people: a full disk must not stop the work under the lock.
      with contextlib.suppress(OSError):
        file.seek(0)
        file.truncate()
        file.write(f"{holder}\n")
        file.flush()
    try:
      yield certain
    finally:
      if certain:
        with contextlib.suppress(OSError):
          path.unlink()


def _lock(file: IO[str], if_held: Callable[[str], None]) -> bool:
  """Waits for the lock on a file; returns False where there are no locks."""
  try:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      if_held(file.read().strip() or "another process")
      fcntl.flock(file, fcntl.LOCK_EX)
  except OSError:
    return False
  return True


def _is_at(path: pathlib.Path, file: IO[str]) -> bool:
  try:
    return os.path.samestat(path.stat(), os.fstat(file.fileno()))
  except FileNotFoundError:
    return False


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
  """Opens a file that takes the name `path` once it is complete.

  Readers see the old file or the new one, never a part. Missing parent folders
  are made. It has the permissions of any new file, also if it is written by its
  name: safetensors puts one in its place that only its owner may read.
  """
  path = as_path(path)
  if is_in_bucket(path):
    whole = io.BytesIO()
    yield whole
    # An object appears once all of it is written.
    path.write_bytes(whole.getvalue())
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("wb") as file:
      permissions = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
      yield file
    temporary.chmod(permissions)
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
