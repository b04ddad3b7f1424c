"""Reads the official files of ImageNet (ILSVRC2012) without unpacking them."""

import collections
import contextlib
import dataclasses
import io
import itertools
import pathlib
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import numpy as np

from gc_jax.data import decode
from gc_jax.data.sets import folder_files, tables
from gc_jax.runtime.messages import clipped

TRAIN = "ILSVRC2012_img_train.tar"
VALIDATION = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
SYNSET_LISTS = ("LOC_synset_mapping.txt", "synset_words.txt")
_META = "meta.mat"  # these two of the kit, in data/
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# Of the whole data. Fewer classes are a subset of somebody's; all classes with
# fewer images are a damaged copy.
NUM_CLASSES = 1_000
NUM_EXAMPLES = {"train": 1_281_167, "validation": 50_000}

_WHERE = (
  "The files come from https://image-net.org/download-images (with an "
  "account); set --config.data.path to the folder that holds them."
)


@dataclasses.dataclass(frozen=True)
class Synsets:
  """The classes, in the order that published weights use: of sorted wnids.

  Attributes:
    wnids: "n01440764", sorted; the position is the class id.
    names: readable and unique, in the same order.
    num_train: images of each wnid as the kit counts them; empty if unknown.
    validation: wnid of each validation image; empty if unknown.
  """

  wnids: tuple[str, ...]
  names: tuple[str, ...]
  num_train: Mapping[str, int]
  validation: tuple[str, ...]


def find(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the path of an archive.

  Raises:
    ValueError: if it is not there.
  """
  if not (folder / name).is_file():
    raise _missing(folder, name)
  return folder / name


def _missing(folder: pathlib.Path, what: str) -> ValueError:
  there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
  listed = ", ".join(there[:8]) if there else "nothing"
  return ValueError(
    f"--config.data.path={str(folder)!r} must hold {what}; it holds "
    f"{listed}. {_WHERE}"
  )


@contextlib.contextmanager
def opened(path: pathlib.Path, mode: str = "r") -> Iterator[tarfile.TarFile]:
  """Opens a tar archive, and names it in whatever goes wrong with it."""
  try:
    with tarfile.open(path, mode) as tar:
      yield tar
  except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
    if isinstance(error, OSError) and error.errno:
      raise  # the disk's trouble, not the archive's
    raise damaged(path, f"reading it ends with: {error}") from error


def damaged(path: pathlib.Path, what: str) -> ValueError:
  """Returns an error that names an archive, and what is wrong with it."""
  return ValueError(
    f"{path} must be the whole official archive and is damaged or cut short: "
    f"{what}. Fetch it again. {_WHERE}"
  )


def load_synsets(folder: pathlib.Path) -> Synsets:
  """Reads the classes from the development kit, or else a synset list.

  Raises:
    ValueError: if there is neither, or one cannot be understood.
  """
  if (folder / DEVKIT).exists():
    return _read_devkit(folder / DEVKIT)
  for name in SYNSET_LISTS:
    if (folder / name).exists():
      return _read_list(folder / name)
  lists = " or ".join(SYNSET_LISTS)
  raise _missing(folder, f"{DEVKIT} (or a synset list, {lists})")


def _read_devkit(path: pathlib.Path) -> Synsets:
  files = {}
  with opened(path) as tar:
    for member in tar:
      if member.isfile() and _name(member) in (_META, _TRUTH):
        files[_name(member)] = tar.extractfile(member).read()
  for name in (_META, _TRUTH):
    if name not in files:
      raise damaged(path, f"it has no data/{name}")
  try:
    rows = _leaves(files[_META])
    wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    words = {str(row["WNID"]): str(row["words"]) for row in rows}
    num_train = {str(r["WNID"]): int(r["num_train_images"]) for r in rows}
  except Exception as error:  # scipy raises whatever it meets
    raise damaged(
      path,
      f"its data/{_META} cannot be read ({type(error).__name__}: {error})",
    ) from error
  validation = []
  truth = files[_TRUTH].decode("utf-8-sig", "backslashreplace")
  for line, text in enumerate(truth.splitlines(), 1):
    number = text.strip()
    if number and not re.fullmatch("[0-9]{1,9}", number):
      raise damaged(
        path,
        f"its data/{_TRUTH}, line {line}, must be the ILSVRC2012_ID of a "
        f"class, and is {number[:20]!r}",
      )
    if number and int(number) not in wnid_of:
      raise damaged(path, f"no class has ILSVRC2012_ID {int(number)}")
    if number:
      validation.append(wnid_of[int(number)])
  return _synsets(path, words, num_train, tuple(validation))


def _leaves(meta: bytes) -> list[np.void]:
  """Returns the rows of the kit's table that are classes.

  Inner nodes of WordNet stand behind them; they have children.
  """
  import scipy.io

  table = scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
  return [row for row in np.atleast_1d(table) if not row["num_children"]]


def _read_list(path: pathlib.Path) -> Synsets:
  words = {}
  for number, line in enumerate(tables.read_text(path).splitlines(), 1):
    wnid, _, text = line.strip().replace("\t", " ").partition(" ")
    if not wnid:
      continue
    if not re.fullmatch(r"n[0-9]+", wnid) or wnid in words:
      raise ValueError(
        f"{path}:{number} must be a new wnid and its words, such as "
        f"'n01440764 tench, Tinca tinca'; it is {clipped(line)!r}."
      )
    words[wnid] = text.strip() or wnid
  return _synsets(path, words, {}, ())


def _synsets(path, words, num_train, validation) -> Synsets:
  wnids = tuple(sorted(words))
  if len(wnids) < 2:
    raise ValueError(
      f"{path} must name at least two classes, and names {len(wnids)}."
    )
  return Synsets(
    wnids=wnids,
    names=readable_names([words[wnid] for wnid in wnids], wnids),
    num_train=num_train,
    validation=validation,
  )


def readable_names(
  words: Sequence[str], wnids: Sequence[str]
) -> tuple[str, ...]:
  """Returns the first synonym of each class, or more where that repeats.

  Two classes are a "crane" and only their wnids differ; two are a "maillot",
  and one of them is also a "tank suit".
  """
  first = [text.split(",")[0].strip() for text in words]
  whole = [text.strip() for text in words]
  times = collections.Counter(first), collections.Counter(whole)
  return tuple(
    f if times[0][f] == 1 else w if times[1][w] == 1 else f"{w} ({wnid})"
    for f, w, wnid in zip(first, whole, wnids, strict=True)
  )


def class_archives(
  path: pathlib.Path, counts: collections.Counter[str]
) -> dict[str, tarfile.TarInfo]:
  """Returns where in the training archive each class's archive is.

  Args:
    path: of the training archive.
    counts: of other files in it; added to.

  Raises:
    ValueError: if the archive is damaged or holds none, or a class occurs
      twice.
  """
  found, others = {}, []
  with opened(path, "r:") as tar:
    for member in _files(path, tar):
      wnid, ending = posixpath.splitext(_name(member))
      if ending.lower() != ".tar":
        others.append(_name(member))
      elif wnid in found:
        raise damaged(path, f"{wnid}.tar occurs twice")
      else:
        found[wnid] = member
  if not found:
    raise ValueError(
      f"{path} must hold an archive for each class, such as n01440764.tar, and "
      f"holds none: {_held(others)}. {_WHERE}"
    )
  _count_others(others, counts)
  return found


def read_class(
  path: pathlib.Path,
  member: tarfile.TarInfo,
  counts: collections.Counter[str],
) -> Iterator[tuple[str, bytes]]:
  """Yields (file name, bytes) of one class of the training archive.

  Args:
    path: of the training archive.
    member: the class's archive in it.
    counts: of other files in that; added to.

  Raises:
    ValueError: if it is damaged or holds no picture, or a picture occurs
      twice.
  """
  seen, others = set(), []
  with opened(path, "r:") as outer:
    file = outer.extractfile(member)
    with tarfile.open(fileobj=file, mode="r:") as tar:
      for picture in _files(path, tar):
        name = _name(picture)
        if not _is_picture(name):
          others.append(name)
          continue
        if name in seen:
          raise damaged(path, f"{name} occurs twice")
        seen.add(name)
        yield name, tar.extractfile(picture).read()
  if not seen:
    raise _no_picture(f"{_name(member)} in {path}", others)
  _count_others(others, counts)


def _files(
  path: pathlib.Path, tar: tarfile.TarFile
) -> Iterator[tarfile.TarInfo]:
  """Yields the files of an archive, but what macOS adds to those made there.

  Raises:
    ValueError: if something else than a file follows one: tarfile itself
      would take it for the end.
  """
  for member in tar:
    if member.isfile() and not _name(member).startswith("."):
      yield member
  tar.fileobj.seek(tar.offset)
  if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
    raise damaged(path, f"byte {tar.offset:,} starts no file")


def _name(member: tarfile.TarInfo) -> str:
  return member.name.rsplit("/", 1)[-1]


def _is_picture(name: str) -> bool:
  return posixpath.splitext(name)[1].lower() in decode.SUFFIXES


def _no_picture(what: str, others: Sequence[str]) -> ValueError:
  return ValueError(
    f"{what} must hold pictures ({', '.join(decode.SUFFIXES)}), and holds "
    f"none: {_held(others)}. {_WHERE}"
  )


def _held(others: Sequence[str]) -> str:
  if not others:
    return "it is empty"
  return f"it has {len(others):,} other files ({folder_files.endings(others)})"


def _count_others(
  others: Sequence[str], counts: collections.Counter[str]
) -> None:
  for name in others:
    ending = posixpath.splitext(name)[1].lower() or "no ending"
    counts[f"files passed over ({ending})"] += 1


def validation_members(
  path: pathlib.Path, counts: collections.Counter[str]
) -> list[tarfile.TarInfo]:
  """Returns the pictures of the validation archive, by name.

  Args:
    path: of the archive.
    counts: of other files in it; added to.

  Raises:
    ValueError: if the archive is damaged or holds no picture, or a name occurs
      twice.
  """
  members, others = [], []
  with opened(path, "r:") as tar:
    for member in _files(path, tar):
      if _is_picture(_name(member)):
        members.append(member)
      else:
        others.append(_name(member))
  if not members:
    raise _no_picture(str(path), others)
  members.sort(key=_name)
  for a, b in itertools.pairwise(members):
    if _name(a) == _name(b):
      raise damaged(path, f"{_name(a)} occurs twice")
  _count_others(others, counts)
  return members


def read_members(
  path: pathlib.Path, members: Sequence[tarfile.TarInfo]
) -> Iterator[tuple[str, bytes]]:
  """Yields (file name, bytes) of members of an archive."""
  with opened(path, "r:") as tar:
    for member in members:
      file: IO[bytes] = tar.extractfile(member)
      yield _name(member), file.read()


def check_count(path: pathlib.Path, what: str, found: int, wanted: int) -> None:
  """Checks that an archive holds as many pictures as it must.

  Raises:
    ValueError: names it and both numbers.
  """
  if found != wanted:
    raise damaged(path, f"{what} must have {wanted:,} images and has {found:,}")
