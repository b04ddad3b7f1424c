"""Which files a folder holds, of which kind, and by which names they go.

Folders and endings that mean something are known in any case, and names are
compared in one Unicode form: "é" may be stored as one character or as two,
and looks the same. A file is opened by its name as it is stored.
"""

import collections
import dataclasses
import functools
import itertools
import os
import posixpath
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from gc_jax.data.decode import SUFFIXES
from gc_jax.runtime.messages import clipped, listed

LABELS_FILE = "labels.csv"
BOXES_FILE = "boxes.csv"
MASKS_FOLDER = "masks"
ANNOTATIONS_FOLDER = "annotations"
NO_CLASSES = (MASKS_FOLDER, ANNOTATIONS_FOLDER)

# What systems and servers leave in folders, beside names that start with a dot.
_LEFT_BY_SYSTEMS = frozenset(
  ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir")
)


@dataclasses.dataclass(frozen=True)
class Tree:
  """What lies in a folder; links are followed.

  Attributes:
    files: path below the folder -> (bytes, modified at, in ns), sorted.
    folders: those below it, also empty ones.
    broken: links of `files` that lead to no file.
    special: what is neither file nor folder.
  """

  files: dict[str, tuple[int, int]]
  folders: tuple[str, ...]
  broken: tuple[str, ...]
  special: tuple[str, ...]


def list_tree(root: Path) -> Tree:
  """Returns what lies in a folder, without what systems leave there.

  Raises:
    ValueError: a folder cannot be read; a link leads to a folder that holds
      it; a name is no UTF-8; or two names of a folder differ only in how
      accents are stored. Says which.
  """
  found = _Walk()
  found.walk(root)
  if found.undecodable:
    raise ValueError(
      "The names of files and folders must be UTF-8. Not so are "
      f"{len(found.undecodable):,}:\n  "
      + listed(found.undecodable, between="\n  ")
      + "\nRename them (all at once: convmv -r --notest -f latin1 -t utf8 "
      f"{root}), or move them out of --config.data.path."
    )
  if found.loops:
    raise ValueError(
      "A link must not lead to a folder that holds it, where pictures would be "
      f"found again and again. Remove {len(found.loops):,}:\n  "
      + listed(found.loops, between="\n  ")
    )
  names = sorted(found.files, key=lambda name: (normalized(name), name))
  for name, following in itertools.pairwise(names):
    if normalized(name) == normalized(following):
      raise ValueError(
        f"{root} holds two files whose names look the same, {name!a} and "
        f"{following!a}: the accent is stored in two ways. Remove or "
        "rename one."
      )
  return Tree(
    {name: found.files[name] for name in names},
    tuple(sorted(found.folders)),
    tuple(sorted(found.broken)),
    tuple(sorted(found.special)),
  )


@dataclasses.dataclass
class _Walk:
  """What is found below a folder, and what is wrong there."""

  files: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  folders: list[str] = dataclasses.field(default_factory=list)
  broken: list[str] = dataclasses.field(default_factory=list)
  special: list[str] = dataclasses.field(default_factory=list)
  undecodable: list[str] = dataclasses.field(default_factory=list)
  loops: list[str] = dataclasses.field(default_factory=list)

  def walk(self, root: Path) -> None:
    # Of a folder: its path below the root with "/", and where it really is,
    # before it those where the links stand that led there.
    pending = collections.deque([("", (os.path.realpath(root),))])
    while pending:
      below, really = pending.popleft()
      try:
        with os.scandir(root / below) as entries:
          for entry in sorted(entries, key=lambda entry: entry.name):
            if not _is_left_by_systems(entry.name):
              pending += self._take(entry, below, really)
      except OSError as error:
        raise ValueError(
          f"{error.filename} must be readable ({error.strerror}); change its "
          "permissions, or move it out of --config.data.path."
        ) from error

  def _take(
    self, entry: os.DirEntry, below: str, really: tuple[str, ...]
  ) -> list[tuple[str, tuple[str, ...]]]:
    """Notes an entry; returns it where it is a folder to be looked into."""
    name = below + entry.name
    if not _is_utf8(entry.name):
      self.undecodable.append(
        os.fsencode(entry.path).decode(errors="backslashreplace")
      )
      return []
    try:
      status = entry.stat()
    except OSError:
      if not entry.is_symlink():
        raise
      self.broken.append(name)
      status = entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
      if not entry.is_symlink():
        really = (*really[:-1], os.path.join(really[-1], entry.name))
      else:
        target = os.path.realpath(entry.path)
        if any(Path(holder).is_relative_to(target) for holder in really):
          self.loops.append(f"{entry.path} -> {target}")
          return []
        really = (*really, target)
      self.folders.append(name)
      return [(f"{name}/", really)]
    if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
      self.files[name] = status.st_size, status.st_mtime_ns
    else:
      self.special.append(name)
    return []


def _is_left_by_systems(name: str) -> bool:
  return name.startswith(".") or name.casefold() in _LEFT_BY_SYSTEMS


def _is_utf8(name: str) -> bool:
  try:
    name.encode()
  except UnicodeEncodeError:
    return False
  return True


def check_root(path: str) -> Path:
  """Returns the folder that the user named.

  Raises:
    ValueError: it is none, or its name is no UTF-8.
  """
  root = Path(os.path.expanduser(path))
  if not _is_utf8(str(root)):
    shown = os.fsencode(root).decode(errors="backslashreplace")
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

  Returns:
    "picture"; "labels" and "boxes" (the tables of these names); "mask" (any
    picture below masks/); "xml" (VOC, anywhere else); "json" (COCO,
    annotations.json and annotations/*.json); "" for what is passed over.
  """
  parts = name.casefold().split("/")
  suffix = PurePosixPath(parts[-1]).suffix
  top = parts[0] if len(parts) > 1 else ""
  if top == MASKS_FOLDER:
    return "mask" if suffix in SUFFIXES else ""
  if suffix == ".xml":
    return "xml"
  if top == ANNOTATIONS_FOLDER:
    return "json" if suffix == ".json" else ""
  if suffix in SUFFIXES:
    return "picture"
  kinds = {
    LABELS_FILE: "labels",
    BOXES_FILE: "boxes",
    "annotations.json": "json",
  }
  return "" if top else kinds.get(parts[0], "")


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


class Finder:
  """Finds a picture by its path below the folder, or a unique end of it.

  Also by what programs elsewhere write: backslashes, `./` and `../` in front,
  an absolute path through a folder of this one's name, other capitals, no
  ending. What fits several pictures finds none.
  """

  def __init__(self, pictures: Iterable[str], root: Path):
    self._pictures = list(pictures)
    self._root_names = {root.absolute().name, root.resolve().name} - {""}

  def __call__(self, written: str) -> str:
    """Returns the path below the folder, as it is stored.

    Raises:
      ValueError: if there is none, or there are several.
    """
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
      stem = stem or _without_ending(path.casefold())
    near = self._ends_without_ending.get(stem)
    hint = f"; there is {near[0]!r}" if near else ""
    raise ValueError(f"there is no picture {clipped(written)!r}{hint}")

  def of_stem(self, stem: str) -> list[str]:
    """Returns the pictures that have this path below the folder but an ending.

    In any case, where none is written so.
    """
    stem = normalized(stem)
    found = _whole(self._ends_without_ending.get(stem.casefold(), []), stem)
    exact = [n for n in found if _without_ending(normalized(n)) == stem]
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
    for ends, key in (
      (self._ends, path),
      (self._ends_in_any_case, path.casefold()),
      (self._ends_without_ending, path.casefold()),
    ):
      found = ends.get(key, [])
      # A whole path is never short for a longer one.
      whole = _whole(found, path)
      if whole or (found and not is_whole):
        return whole or found
    return []

  @functools.cached_property
  def _ends(self) -> dict[str, list[str]]:
    return self._by_ends(normalized)

  @functools.cached_property
  def _ends_in_any_case(self) -> dict[str, list[str]]:
    return self._by_ends(lambda name: normalized(name).casefold())

  @functools.cached_property
  def _ends_without_ending(self) -> dict[str, list[str]]:
    return self._by_ends(
      lambda name: _without_ending(normalized(name).casefold())
    )

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


def _without_ending(path: str) -> str:
  return posixpath.splitext(path)[0]
