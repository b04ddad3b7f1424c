"""Which files a folder holds, of which kind, and which names they go by.

Folders and endings that mean something are known in any case, and names are
compared in one Unicode form: "é" may be stored as one character or as two,
and looks the same. A file is opened by its name as it is stored.
"""

import collections
import functools
import itertools
import os
import posixpath
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gc_jax.data.decode import SUFFIXES
from gc_jax.runtime.messages import clipped, listed

LABELS_FILE = "labels.csv"
NO_CLASSES = ("masks", "annotations")  # top folders of other things

# What systems and servers leave in folders, beside names that start with a dot.
_LEFT_BY_SYSTEMS = frozenset(
  ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir")
)


class Tree(NamedTuple):
  """What lies in a folder, by paths below it; links are followed."""

  files: dict[str, tuple[int, int]]  # sorted -> (bytes, modified at, in ns)
  folders: tuple[str, ...]  # also empty ones
  broken: tuple[str, ...]  # links of `files` that lead to no file
  special: tuple[str, ...]  # neither files nor folders


def list_tree(root: Path) -> Tree:
  """Returns what lies in a folder, without what systems leave there.

  Raises:
    ValueError: a folder cannot be read; a link leads to a folder that holds
      it; a name is not UTF-8; or two names of a folder differ only in how
      accents are stored. Says which.
  """
  files, folders, broken, special = {}, [], [], []
  undecodable, loops = [], []
  # Folders to look into: the path below the root, with "/" at its end, and the
  # real paths of it and of all folders on the way to it.
  pending = collections.deque([("", (os.path.realpath(root),))])
  while pending:
    below, holders = pending.popleft()
    for entry, status in _entries(root / below):
      name = below + entry.name
      if _undecoded(entry.name):
        undecodable.append(_undecoded(entry.path))
      elif stat.S_ISDIR(status.st_mode):
        real = os.path.join(holders[-1], entry.name)
        if entry.is_symlink():
          real = os.path.realpath(entry.path)
        if any(Path(holder).is_relative_to(real) for holder in holders):
          loops.append(f"{entry.path} -> {real}")
          continue
        folders.append(name)
        pending.append((f"{name}/", (*holders, real)))
      elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
        files[name] = status.st_size, status.st_mtime_ns
        if stat.S_ISLNK(status.st_mode):
          broken.append(name)
      else:
        special.append(name)
  if undecodable:
    raise ValueError(
      "The names of files and folders must be UTF-8, and "
      f"{len(undecodable):,} are not:\n  "
      + listed(undecodable, between="\n  ")
      + "\nRename them (all at once: convmv -r --notest -f latin1 -t utf8 "
      f"{root}), or move them elsewhere."
    )
  if loops:
    raise ValueError(
      "A link must not lead to a folder that holds it, where pictures would be "
      f"found again and again. Remove {len(loops):,}:\n  "
      + listed(loops, between="\n  ")
    )
  names = sorted(files, key=lambda name: (normalized(name), name))
  for name, following in itertools.pairwise(names):
    if normalized(name) == normalized(following):
      raise ValueError(
        f"{root} holds two files whose names look the same, {name!a} and "
        f"{following!a}: the accent is stored in two ways. Remove or "
        "rename one."
      )
  return Tree(
    {name: files[name] for name in names},
    *(tuple(sorted(found)) for found in (folders, broken, special)),
  )


def _entries(folder: Path) -> Iterator[tuple[os.DirEntry, os.stat_result]]:
  """Yields what lies in a folder; a link to nothing has the link's status."""
  try:
    with os.scandir(folder) as entries:
      for entry in sorted(entries, key=lambda entry: entry.name):
        name = entry.name.casefold()
        if name.startswith(".") or name in _LEFT_BY_SYSTEMS:
          continue
        try:
          status = entry.stat()
        except OSError:
          if not entry.is_symlink():
            raise
          status = entry.stat(follow_symlinks=False)
        yield entry, status
  except OSError as error:
    raise ValueError(
      f"{error.filename} must be readable ({error.strerror}); change its "
      "permissions, or move it elsewhere."
    ) from error


def _undecoded(path: str) -> str:
  """Returns a path that is not UTF-8 with its bytes shown; "" if it is."""
  shown = os.fsencode(path).decode(errors="backslashreplace")
  return "" if shown == path else shown


def check_root(path: str) -> Path:
  """Returns the folder that the user named, if it can be one."""
  root = Path(os.path.expanduser(path))
  if shown := _undecoded(str(root)):
    raise ValueError(
      f"The name of --config.data.path={shown} must be UTF-8. Rename it."
    )
  if not root.is_dir():
    raise ValueError(
      f"--config.data.path={path!r} must be a folder, and "
      f"{'is a file' if root.exists() else 'does not exist'}."
    )
  return root


def normalized(name: str) -> str:
  """Returns a name in the Unicode form in which names are compared (NFC)."""
  return unicodedata.normalize("NFC", name)


def kind_of(name: str) -> str:
  """Returns what a file is for, by its path below the folder.

  That is "picture"; "labels" and "boxes" (the tables of these names); "mask"
  (any picture below masks/); "xml" (VOC, anywhere else); "json" (COCO,
  annotations.json and annotations/*.json); "" for files that are ignored.
  """
  top, _, below = name.casefold().partition("/")
  suffix = PurePosixPath(below or top).suffix
  if below and top == "masks":
    return "mask" if suffix in SUFFIXES else ""
  if suffix == ".xml":
    return "xml"
  if below and top == "annotations":
    return "json" if suffix == ".json" else ""
  if suffix in SUFFIXES:
    return "picture"
  kinds = {
    LABELS_FILE: "labels",
    "boxes.csv": "boxes",
    "annotations.json": "json",
  }
  return "" if below else kinds.get(top, "")


def mirrored(name: str) -> str:
  """Returns the path that a file below masks/ or annotations/ stands for."""
  top, _, below = name.partition("/")
  return below if below and top.casefold() in NO_CLASSES else name


def endings(names: Iterable[str]) -> str:
  """Returns how many files have which ending, ".txt 9, .heic 3"."""
  counts = collections.Counter(
    PurePosixPath(name).suffix.casefold() or "no ending" for name in names
  )
  most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  return listed([f"{clipped(ending)} {n:,}" for ending, n in most_first])


def _in_any_case(name: str) -> str:
  return normalized(name).casefold()


def _without_ending(name: str) -> str:
  return posixpath.splitext(_in_any_case(name))[0]


class Finder:
  """Finds a picture by its path below the folder, or a unique end of it.

  Also as programs elsewhere write it: with backslashes, `./` or `../` in front,
  as an absolute path through a folder of this one's name, in other capitals,
  without its ending.
  """

  def __init__(self, pictures: Iterable[str], root: Path):
    self._pictures = list(pictures)
    self._root_names = {root.absolute().name, root.resolve().name} - {""}
    self._ends = functools.cache(self._by_ends)  # most need only the first

  def __call__(self, written: str) -> str:
    """Returns the path as it is stored, if there is exactly one."""
    stem = ""
    for path, is_whole in self._readings(written):
      found = self._fitting(path, is_whole)
      if len(found) > 1:
        raise ValueError(
          f"{clipped(written)!r} names {len(found):,} pictures, {found[0]!r} "
          f"and {found[1]!r} among them; write the path below the folder"
        )
      if found:
        return found[0]
      stem = stem or _without_ending(path)
    near = self._ends(_without_ending).get(stem)
    hint = f"; there is {near[0]!r}" if near else ""
    raise ValueError(f"there is no picture {clipped(written)!r}{hint}")

  def of_stem(self, stem: str) -> list[str]:
    """Returns the pictures with this path below the folder and any ending.

    In any case, where none is written so.
    """
    stem = normalized(stem)
    found = _whole(self._ends(_without_ending).get(stem.casefold(), []), stem)
    exact = [n for n in found if posixpath.splitext(normalized(n))[0] == stem]
    return exact or found

  def _readings(self, written: str) -> Iterator[tuple[str, bool]]:
    """Yields paths that may be meant, and whether they are whole."""
    text = normalized(written.strip())
    for slashed in dict.fromkeys((text, text.replace("\\", "/"))):
      parts = posixpath.normpath(slashed).split("/")
      parts = list(itertools.dropwhile("..".__eq__, parts))
      yield "/".join(parts), False
    for i, part in enumerate(parts):
      if part in self._root_names:
        yield "/".join(parts[i + 1 :]), True

  def _fitting(self, path: str, is_whole: bool) -> list[str]:
    """Returns the pictures whose end this is, in the closest way there is."""
    for form, key in (
      (normalized, path),
      (_in_any_case, path.casefold()),
      (_without_ending, path.casefold()),
    ):
      found = self._ends(form).get(key, [])
      # A whole path is never short for a longer one.
      whole = _whole(found, path)
      if whole or (found and not is_whole):
        return whole or found
    return []

  def _by_ends(self, form: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in self._pictures:
      parts = form(name).split("/")
      for start in range(len(parts)):
        found.setdefault("/".join(parts[start:]), []).append(name)
    return found


def _whole(names: Iterable[str], path: str) -> list[str]:
  """Returns those that are as deep as a path that ends them."""
  return [name for name in names if name.count("/") == path.count("/")]
