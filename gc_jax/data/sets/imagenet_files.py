"""Reads the official files of ImageNet (ILSVRC2012) without unpacking them."""

import collections
import contextlib
import io
import pathlib
import posixpath
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from gc_jax.data.decode import SUFFIXES
from gc_jax.data.sets import folder_files, shapes, tables, voc_xml
from gc_jax.data.sets.official import Release
from gc_jax.runtime.messages import clipped

ARCHIVES = {
  "train": "ILSVRC2012_img_train.tar",
  "validation": "ILSVRC2012_img_val.tar",
}
BOXES = {
  "train": "ILSVRC2012_bbox_train_v2.tar.gz",
  "validation": "ILSVRC2012_bbox_val_v3.tgz",
}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
# What their corners call the first pixel. Of the boxes of all 50,000 validation
# pictures none has an xmax of the picture's width, and 7.6 % one less.
_FIRST_PX = {"train": 1, "validation": 0}
SYNSET_LISTS = ("LOC_synset_mapping.txt", "synset_words.txt")
CLASS_FILES = (DEVKIT, *SYNSET_LISTS)
_META = "meta.mat"  # these two of the kit, in data/
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# Of the whole data. An archive of fewer classes is somebody's subset; one of
# all classes with fewer pictures is damaged.
NUM_CLASSES = 1_000
NUM_EXAMPLES = {"train": 1_281_167, "validation": 50_000}

RELEASE = Release(
  entry="imagenet",
  name="imagenet",
  version="1.1.0",
  files={
    split: (ARCHIVES[split], BOXES[split], *CLASS_FILES) for split in ARCHIVES
  },
  folder=f"{', '.join(ARCHIVES.values())} and {DEVKIT}, or one with an "
  "imagenet2012 that TFDS prepared",
  where="The files come from https://image-net.org/download-images (with an "
  "account); set --config.data.path to the folder that holds them.",
  masks=False,
  sliced=True,
)


class Synsets(NamedTuple):
  """The classes, in the order of published weights: sorted by wnid."""

  wnids: tuple[str, ...]  # "n01440764"; the position is the class id
  names: tuple[str, ...]  # readable and unique, in the same order
  num_train: Mapping[str, int]  # images of each wnid; empty if unknown
  validation: tuple[str, ...]  # wnid of each image; empty if unknown


class Box(NamedTuple):
  """An annotated object: ymin xmin ymax xmax, in sides of the picture."""

  wnid: str
  bbox: tuple[float, float, float, float]  # within 0..1
  sliced: tuple[float, float, float, float]  # see `Dataset`
  difficult: bool


def load_synsets(folder: pathlib.Path) -> Synsets:
  """Reads the classes from the development kit, or else a synset list."""
  if (folder / DEVKIT).exists():
    return _read_devkit(folder / DEVKIT)
  for name in SYNSET_LISTS:
    if (folder / name).exists():
      return _read_list(folder / name)
  lists = " or ".join(SYNSET_LISTS)
  raise RELEASE.missing(folder, f"{DEVKIT} (or a synset list, {lists})")


def _read_devkit(path: pathlib.Path) -> Synsets:
  files = {}
  with RELEASE.opened(path) as tar:
    for name, member in _files(tar):
      if name in (_META, _TRUTH):
        files[name] = tar.extractfile(member).read()
  for name in (_META, _TRUTH):
    if name not in files:
      raise RELEASE.damaged(path, f"it has no data/{name}")
  import scipy.io

  try:
    meta = scipy.io.loadmat(io.BytesIO(files[_META]), squeeze_me=True)
    # The others are inner nodes of WordNet.
    rows = [row for row in meta["synsets"] if not row["num_children"]]
    wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    words = {str(row["WNID"]): str(row["words"]) for row in rows}
    num_train = {str(r["WNID"]): int(r["num_train_images"]) for r in rows}
  except Exception as error:  # scipy raises whatever it meets
    reason = f"{type(error).__name__}: {error}"
    what = f"its data/{_META} cannot be read ({reason})"
    raise RELEASE.damaged(path, what) from error
  validation = []
  truth = files[_TRUTH].decode("utf-8-sig", "backslashreplace")
  for line, text in enumerate(truth.splitlines(), 1):
    number = text.strip()
    if not number:
      continue
    if not re.fullmatch("[0-9]{1,9}", number):
      raise RELEASE.damaged(
        path,
        f"its data/{_TRUTH}, line {line}, must be the ILSVRC2012_ID of a "
        f"class, and is {number[:20]!r}",
      )
    if int(number) not in wnid_of:
      raise RELEASE.damaged(path, f"no class has ILSVRC2012_ID {int(number)}")
    validation.append(wnid_of[int(number)])
  return _synsets(path, words, num_train, validation)


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
  if len(words) < 2:
    raise ValueError(
      f"{path} must name at least two classes, and names {len(words)}."
    )
  wnids = tuple(sorted(words))
  names = readable_names([words[wnid] for wnid in wnids], wnids)
  return Synsets(wnids, names, num_train, tuple(validation))


def published_names() -> tuple[str, ...]:
  """Returns the names of all classes as the kit has them, without the kit.

  TFDS's package holds them: their wnids, and their words in another set that
  shares them.
  """
  from tensorflow_datasets.datasets.siscore import labels

  # TFDS tells the two cranes apart, which the kit does not.
  words = [w.split(" (")[0] for w in labels.IMAGENET_LABELS_LIST]
  return readable_names(words, published_wnids())


def published_wnids() -> tuple[str, ...]:
  """Returns the wnids of all classes, in the order of their names."""
  import tensorflow_datasets as tfds

  labels = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
  return tuple(labels.read_text().split())


def readable_names(
  words: Sequence[str], wnids: Sequence[str]
) -> tuple[str, ...]:
  """Returns the first synonym of each class, or more where that repeats.

  Two classes are a "crane", and only their wnids differ.
  """
  first = [text.split(",")[0].strip() for text in words]
  whole = [text.strip() for text in words]
  times = collections.Counter(first), collections.Counter(whole)
  return tuple(
    f if times[0][f] == 1 else w if times[1][w] == 1 else f"{w} ({wnid})"
    for f, w, wnid in zip(first, whole, wnids, strict=True)
  )


def class_archives(
  path: pathlib.Path, wnids: Sequence[str], counts: collections.Counter[str]
) -> dict[str, tarfile.TarInfo]:
  """Returns wnid -> where its archive is in the training archive.

  Adds the other files to `counts`.
  """
  wanted = "an archive for each class, such as n01440764.tar"
  members = _members(path, None, wanted, (".tar",), counts)
  found = {posixpath.splitext(name_of(member))[0]: member for member in members}
  unknown = sorted(found.keys() - set(wnids))
  if odd := unknown or sorted(set(wnids) - found.keys()):
    raise ValueError(
      f"{path} must hold one archive for each of the {len(wnids):,} classes of "
      f"the development kit or synset list; it {'has' if unknown else 'lacks'} "
      f"{', '.join(odd[:5])}. Take both from the same release, or fetch the "
      "archive again if it is cut short."
    )
  return found


def pictures(
  path: pathlib.Path,
  counts: collections.Counter[str],
  inside: tarfile.TarInfo | None = None,
) -> list[tarfile.TarInfo]:
  """Returns the pictures of an archive, or of one `inside`, in its order.

  Adds the other files to `counts`.
  """
  wanted = f"pictures ({', '.join(SUFFIXES)})"
  return _members(path, inside, wanted, SUFFIXES, counts)


def read_members(
  path: pathlib.Path,
  members: Iterable[tarfile.TarInfo],
  inside: tarfile.TarInfo | None = None,
) -> Iterator[tuple[str, bytes]]:
  """Yields (file name, bytes) of members of an archive; see `pictures`."""
  with _opened(path, inside) as tar:
    for member in members:
      yield name_of(member), tar.extractfile(member).read()


@contextlib.contextmanager
def _opened(
  path: pathlib.Path, inside: tarfile.TarInfo | None
) -> Iterator[tarfile.TarFile]:
  with RELEASE.opened(path, "r:") as tar:
    if inside is None:
      yield tar
      return
    with tarfile.open(fileobj=tar.extractfile(inside), mode="r:") as inner:
      yield inner


def _members(
  path: pathlib.Path,
  inside: tarfile.TarInfo | None,
  wanted: str,
  suffixes: Sequence[str],
  counts: collections.Counter[str],
) -> list[tarfile.TarInfo]:
  """Returns the members that have one of some suffixes; see `pictures`."""
  found, others = {}, []
  with _opened(path, inside) as tar:
    for name, member in _files(tar):
      if posixpath.splitext(name)[1].lower() not in suffixes:
        others.append(name)
      elif name in found:
        raise RELEASE.damaged(path, f"{name} occurs twice")
      else:
        found[name] = member
    # tarfile takes a damaged header for the end of the archive.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
      raise RELEASE.damaged(path, f"byte {tar.offset:,} starts no file")
  if not found:
    where = f"{name_of(inside)} in {path}" if inside else path
    held = "it is empty"
    if others:
      endings = folder_files.endings(others)
      held = f"it has {len(others):,} other files ({endings})"
    raise ValueError(
      f"{where} must hold {wanted}, and holds none: {held}. {RELEASE.where}"
    )
  for name in others:
    ending = posixpath.splitext(name)[1].lower() or "no ending"
    counts[f"files passed over ({ending})"] += 1
  return list(found.values())


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
  """Yields name and member of each file, but for those that macOS adds."""
  for member in tar:
    tar.members = []  # tarfile remembers every member otherwise
    if member.isfile() and not name_of(member).startswith("."):
      yield name_of(member), member


def name_of(member: tarfile.TarInfo) -> str:
  """Returns the file name of a member, without its folders."""
  return member.name.rsplit("/", 1)[-1]


def check_count(path: pathlib.Path, what: str, found: int, wanted: int) -> None:
  """Raises ValueError unless an archive holds as many pictures as it must."""
  if found != wanted:
    raise RELEASE.damaged(
      path, f"{what} must have {wanted:,} images and has {found:,}"
    )


def read_boxes(
  folder: pathlib.Path, split: str, counts: collections.Counter[str]
) -> dict[str, list[Box]]:
  """Reads the archive of a split: VOC XML, a file for each picture.

  Adds the boxes that are read, clipped or left out to `counts`. Without the
  archive there are none, and that is said.

  Returns:
    Stem of the picture ("ILSVRC2012_val_00000001") -> its objects. Training
    boxes take about 0.3 GB.
  """
  path = folder / BOXES[split]
  if not path.exists():
    print(
      f"No {path.name} in {folder}: {split} will know no boxes, and "
      "explanations cannot be scored on it",
      file=sys.stderr,
    )
    return {}
  found: dict[str, list[Box]] = {}
  others = []
  fractions = shapes.Fractions()
  with RELEASE.opened(path) as tar:
    for name, member in _files(tar):
      stem, ending = posixpath.splitext(name)
      if ending.lower() != ".xml":
        others.append(name)
        continue
      if stem in found:
        counts["annotations left out: second of a picture"] += 1
        continue
      try:
        content = voc_xml.read(tar.extractfile(member).read())
        found[stem] = scaled_boxes(content, counts, _FIRST_PX[split])
      except ValueError as error:
        raise RELEASE.damaged(path, f"{member.name}: {error}") from error
      counts["boxes read"] += len(content.objects)
      for item in content.objects:
        where = f"{member.name}, {item.where}"
        fractions.add(where, item.corners, item.box)
  if not found:
    held = folder_files.endings(others) or "nothing"
    raise ValueError(
      f"{path} must hold an .xml file for each picture, and holds none: it "
      f"holds {held}. Take the official archive, or go on without one."
    )
  if wrong := str(fractions):
    raise ValueError(f"{path}: {wrong}.")
  return found


def scaled_boxes(
  content: voc_xml.Content,
  counts: collections.Counter[str],
  first_px: int = 1,
) -> list[Box]:
  """Returns the objects of one file, clipped to the picture.

  Some corners that count from 1 are 0, which is no error. They relate to the
  size that the file states, which need not be the picture's. Boxes clipped or
  left out are added to `counts`.
  """
  if content.problems:
    raise ValueError(content.problems[0])
  if content.size is None:
    raise ValueError("its size must be positive, and is not known")
  width, height = content.size
  found = []
  for item in content.objects:
    xmin, ymin, xmax, ymax = (side + 1 - first_px for side in item.corners)
    clipped = shapes.clipped_box((xmin - 1, ymin - 1, xmax, ymax), content.size)
    if xmin > xmax or ymin > ymax:
      counts["boxes left out: inverted"] += 1
    elif clipped is None:
      counts["boxes left out: outside the picture"] += 1
    else:
      if min(xmin, ymin) < 0 or xmax > width or ymax > height:
        counts["boxes clipped to the picture"] += 1
      bbox, sliced = (
        shapes.scaled_box(box, content.size) for box in (clipped, item.box)
      )
      found.append(Box(item.name, bbox, sliced, item.difficult))
  return found
