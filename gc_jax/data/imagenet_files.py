"""Reads the official files of ImageNet (ILSVRC2012) without unpacking them."""

import collections
import contextlib
import dataclasses
import io
import itertools
import pathlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

TRAIN = "ILSVRC2012_img_train.tar"
VALIDATION = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
SYNSET_LISTS = ("LOC_synset_mapping.txt", "synset_words.txt")
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
  except (tarfile.TarError, EOFError, OSError) as error:
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
  import scipy.io

  files = {}
  with opened(path) as tar:
    for member in tar:
      name = member.name.rsplit("/", 1)[-1]
      if name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
        files[name] = tar.extractfile(member).read()
  for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
    if name not in files:
      raise damaged(path, f"it has no data/{name}")
  table = scipy.io.loadmat(io.BytesIO(files["meta.mat"]), squeeze_me=True)
  # Inner nodes of WordNet stand behind the classes; they have children.
  rows = [row for row in table["synsets"] if not row["num_children"]]
  wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
  truth = files["ILSVRC2012_validation_ground_truth.txt"].split()
  unknown = {int(number) for number in truth} - wnid_of.keys()
  if unknown:
    raise damaged(path, f"no class has ILSVRC2012_ID {min(unknown)}")
  return _synsets(
    {str(row["WNID"]): str(row["words"]) for row in rows},
    {str(row["WNID"]): int(row["num_train_images"]) for row in rows},
    tuple(wnid_of[int(number)] for number in truth),
  )


def _read_list(path: pathlib.Path) -> Synsets:
  words = {}
  for number, line in enumerate(path.read_text().splitlines(), 1):
    wnid, _, text = line.strip().partition(" ")
    if not wnid:
      continue
    if not (wnid[:1] == "n" and wnid[1:].isdigit()) or wnid in words:
      raise ValueError(
        f"{path}:{number} must be a new wnid and its words, such as "
        f"'n01440764 tench, Tinca tinca'; it is {line!r}."
      )
    words[wnid] = text.strip() or wnid
  return _synsets(words, {}, ())


def _synsets(words, num_train, validation) -> Synsets:
  wnids = tuple(sorted(words))
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


def class_archives(path: pathlib.Path) -> dict[str, tarfile.TarInfo]:
  """Returns where in the training archive each class's archive is.

  Raises:
    ValueError: if the archive is damaged, or a class occurs twice.
  """
  with opened(path, "r:") as tar:
    found = {}
    for member in tar:
      if not member.name.endswith(".tar"):
        continue
      wnid = member.name.rsplit("/", 1)[-1].removesuffix(".tar")
      if wnid in found:
        raise damaged(path, f"{wnid}.tar occurs twice")
      found[wnid] = member
  return found


def read_class(
  path: pathlib.Path, member: tarfile.TarInfo
) -> Iterator[tuple[str, bytes]]:
  """Yields (file name, bytes) of one class of the training archive."""
  with opened(path, "r:") as outer:
    file = outer.extractfile(member)
    with tarfile.open(fileobj=file, mode="r:") as tar:
      yield from _pictures(path, tar)


def _pictures(
  path: pathlib.Path, tar: tarfile.TarFile
) -> Iterator[tuple[str, bytes]]:
  seen = set()
  for member in tar:
    name = member.name.rsplit("/", 1)[-1]
    if not _is_picture(member):
      continue
    if name in seen:
      raise damaged(path, f"{name} occurs twice")
    seen.add(name)
    yield name, tar.extractfile(member).read()


def _is_picture(member: tarfile.TarInfo) -> bool:
  """Leaves out folders, and what macOS adds to archives made there."""
  name = member.name.rsplit("/", 1)[-1]
  return member.isfile() and name.endswith(".JPEG") and name[0] != "."


def validation_members(path: pathlib.Path) -> list[tarfile.TarInfo]:
  """Returns the pictures of the validation archive, by name.

  Raises:
    ValueError: if the archive is damaged, or a name occurs twice.
  """
  with opened(path, "r:") as tar:
    members = [member for member in tar if _is_picture(member)]
  members.sort(key=lambda member: member.name)
  for a, b in itertools.pairwise(members):
    if a.name == b.name:
      raise damaged(path, f"{a.name} occurs twice")
  return members


def read_members(
  path: pathlib.Path, members: Sequence[tarfile.TarInfo]
) -> Iterator[tuple[str, bytes]]:
  """Yields (file name, bytes) of members of an archive."""
  with opened(path, "r:") as tar:
    for member in members:
      file: IO[bytes] = tar.extractfile(member)
      yield member.name.rsplit("/", 1)[-1], file.read()


def check_count(path: pathlib.Path, what: str, found: int, wanted: int) -> None:
  """Checks that an archive holds as many pictures as it must.

  Raises:
    ValueError: names it and both numbers.
  """
  if found != wanted:
    raise damaged(path, f"{what} must have {wanted:,} images and has {found:,}")
