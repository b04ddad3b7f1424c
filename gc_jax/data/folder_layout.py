"""Which pictures a folder holds, in which split, of which classes."""

import csv
import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from gc_jax.data.dataset import unknown_name_message

SPLITS = ("train", "validation", "test")
LABELS_FILE = "labels.csv"

# split -> the folders that may hold it
_SPLIT_FOLDERS = {
  "train": ("train", "training"),
  "validation": ("val", "valid", "validation"),
  "test": ("test", "testing"),
}
_NOT_PICTURES = ("masks", "annotations")
_SUFFIXES = frozenset(
  (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp")
)

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Layout:
  """Everything that names and places in a folder say.

  Attributes:
    root: the folder.
    files: path below the root -> (bytes, modified at, in ns), sorted.
    class_names: in the order of their ids.
    splits: split -> pictures, as paths below the root.
    labels: picture -> class ids.
    multi_label: whether the labels are from `labels.csv`.
  """

  root: Path
  files: dict[str, tuple[int, int]]
  class_names: tuple[str, ...]
  splits: dict[str, list[str]]
  labels: dict[str, list[int]]
  multi_label: bool


def read_layout(path: str) -> Layout:
  """Returns what a folder holds; no picture is opened.

  Raises:
    ValueError: it is not arranged as `gc_jax.data.folder` says; says where.
  """
  root = Path(path).expanduser()
  if not root.is_dir():
    raise ValueError(
      f"--config.data.path={path!r} must be a folder, and "
      f"{'is a file' if root.exists() else 'does not exist'}."
    )
  files = _list_files(root)
  pictures = [name for name in files if _is_picture(name)]
  if not pictures:
    raise ValueError(
      f"--config.data.path={path!r} must hold pictures "
      f"({', '.join(sorted(_SUFFIXES))}), as DIR/train/CLASS/*.jpg or "
      f"DIR/CLASS/*.jpg; none is among its {len(files)} files."
    )
  split_of = _split_folders(pictures)
  _check_tops(root, pictures, split_of)
  if LABELS_FILE in files:
    class_names, labels = _labels_of_table(root, pictures)
  else:
    class_names, labels = _labels_of_folders(root, pictures, split_of)
  if len(class_names) < 2:
    raise ValueError(
      f"{root} must show at least two classes, and shows {len(class_names)} "
      f"({', '.join(class_names)}). Put the pictures of each class into a "
      "folder of its own."
    )
  splits = _divide(pictures, labels, split_of)
  _check_classes(root, class_names, labels, splits)
  return Layout(root, files, class_names, splits, labels, LABELS_FILE in files)


def _list_files(root: Path) -> dict[str, tuple[int, int]]:
  def refuse(error: OSError):
    raise ValueError(
      f"{error.filename} must be readable ({error.strerror}); change its "
      "permissions, or move it out of --config.data.path."
    ) from error

  files = {}
  for folder, names, filenames in os.walk(
    root, onerror=refuse, followlinks=True
  ):
    names[:] = sorted(name for name in names if not name.startswith("."))
    for filename in filenames:
      if not filename.startswith("."):
        path = Path(folder, filename)
        stat = path.stat() if path.exists() else path.lstat()
        name = path.relative_to(root).as_posix()
        files[name] = stat.st_size, stat.st_mtime_ns
  return dict(sorted(files.items()))


def _is_picture(name: str) -> bool:
  path = PurePosixPath(name)
  inside = path.parts[0] not in _NOT_PICTURES
  return inside and path.suffix.lower() in _SUFFIXES


def _split_folders(pictures: Iterable[str]) -> dict[str, str]:
  """Returns folder -> split, of those there are; empty where none is.

  Raises:
    ValueError: if there are splits alone, and none to train on.
  """
  tops = {PurePosixPath(name).parts[0] for name in pictures if "/" in name}
  known = {
    folder: split
    for split, folders in _SPLIT_FOLDERS.items()
    for folder in folders
  }
  found = {top: known[top.lower()] for top in tops if top.lower() in known}
  if "train" in found.values():
    return found
  if found and len(found) == len(tops):
    raise ValueError(
      "A folder of splits must hold `train`; there are only "
      f"{', '.join(sorted(found))}. Name the folder to train on `train`, or "
      "the folder above the classes."
    )
  return {}  # a class may be called so


def _check_tops(
  root: Path, pictures: Iterable[str], split_of: dict[str, str]
) -> None:
  """Checks that every picture belongs to a split, where there are splits."""
  for name in pictures:
    top = PurePosixPath(name).parts[0]
    if split_of and top not in split_of:
      raise ValueError(
        f"{root / top} stands beside {root / 'train'} and must be called "
        "val, validation or test, masks or annotations; it holds pictures that "
        "belong to no split."
      )


def _labels_of_folders(
  root: Path, pictures: list[str], split_of: dict[str, str]
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
  """Returns class names and labels: the folder that a picture lies in."""
  depth = 1 if split_of else 0
  class_of = {}
  for name in pictures:
    parts = PurePosixPath(name).parts
    if len(parts) < depth + 2:
      raise ValueError(
        f"{root / name} must lie in the folder of its class, as "
        f"{root.joinpath(*parts[:depth], 'CLASS', parts[-1])}. Or name its "
        f"classes in {root / LABELS_FILE}."
      )
    class_of[name] = parts[depth]
  class_names = tuple(sorted(set(class_of.values())))
  ids = {name: i for i, name in enumerate(class_names)}
  return class_names, {k: [ids[v]] for k, v in class_of.items()}


def _labels_of_table(
  root: Path, pictures: list[str]
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
  """Returns class names and labels as `labels.csv` says them."""
  find = Finder(pictures)
  names_of: dict[str, list[str]] = {}
  for line, row in read_table(root / LABELS_FILE, ("image", "labels")):
    where = f"{root / LABELS_FILE}, line {line}"
    try:
      picture = find(row["image"])
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from error
    names = [part.strip() for part in row["labels"].split(";")]
    names_of.setdefault(picture, []).extend(filter(None, names))
  missing = [name for name in pictures if name not in names_of]
  if missing:
    raise ValueError(
      f"{root / LABELS_FILE} must have a line for every picture, and has none "
      f"for {len(missing)} of {len(pictures)}, {missing[0]!r} first. One that "
      "shows no class has an empty cell."
    )
  class_names = tuple(sorted({k for row in names_of.values() for k in row}))
  ids = {name: i for i, name in enumerate(class_names)}
  return class_names, {k: [ids[v] for v in row] for k, row in names_of.items()}


def _divide(
  pictures: list[str], labels: dict[str, list[int]], split_of: dict[str, str]
) -> dict[str, list[str]]:
  """Returns the pictures of each split."""
  if not split_of:
    return _hold_out(pictures, labels, ("validation", "test"))
  splits: dict[str, list[str]] = {split: [] for split in SPLITS}
  for name in pictures:
    top = PurePosixPath(name).parts[0]
    if top in split_of:
      splits[split_of[top]].append(name)
  if not splits["validation"]:
    splits |= _hold_out(splits["train"], labels, ("validation",))
  splits["test"] = splits["test"] or splits["validation"]
  return splits


def _hold_out(
  pictures: list[str],
  labels: dict[str, list[int]],
  held_out: tuple[str, ...],
) -> dict[str, list[str]]:
  """Returns a tenth of the pictures for each of these, the rest to train on.

  Where a picture goes is told by its name alone, so that it stays there when
  others come and go; but a class has at least one picture to train on.
  """
  splits: dict[str, list[str]] = {split: [] for split in ("train", *held_out)}
  for name in pictures:
    digest = hashlib.sha256(name.encode()).digest()
    tenth = int.from_bytes(digest[:8], "big") % 10
    split = held_out[tenth] if tenth < len(held_out) else "train"
    splits[split].append(name)
  trained = {k for name in splits["train"] for k in labels[name]}
  for split in held_out:
    for name in list(splits[split]):
      if not set(labels[name]) <= trained:
        splits[split].remove(name)
        splits["train"].append(name)
        trained |= set(labels[name])
  splits["train"].sort()
  return splits


def _check_classes(root, class_names, labels, splits) -> None:
  counts = dict.fromkeys(range(len(class_names)), 0)
  for name in splits["train"]:
    for k in set(labels[name]):
      counts[k] += 1
  for split in ("validation", "test"):
    for name in splits[split]:
      for k in labels[name]:
        if not counts[k]:
          known = [class_names[k] for k, count in counts.items() if count]
          message = unknown_name_message("class", class_names[k], known)
          raise ValueError(
            f"{root / name} shows a class that no training picture shows. "
            f"{message}"
          )
  for k, count in counts.items():
    if count == 1:
      _logger.warning(
        "Class %r of %s has one training picture; what it learns of the class "
        "will be that picture. Add more, or remove the class.",
        class_names[k],
        root,
      )


class Finder:
  """Finds pictures by what people write: a path below the root, or less.

  Args:
    pictures: paths below the root.
  """

  def __init__(self, pictures: Iterable[str]):
    self._found: dict[str, list[str]] = {}
    for name in pictures:
      parts = PurePosixPath(name).parts
      for start in range(len(parts)):
        self._found.setdefault("/".join(parts[start:]), []).append(name)

  def __call__(self, written: str) -> str:
    """Returns the picture.

    Raises:
      ValueError: if there is none, or there are several.
    """
    key = PurePosixPath(written.strip().replace("\\", "/")).as_posix()
    found = self._found.get(key, [])
    if key in found:  # a whole path is never short for a longer one
      return key
    if not found:
      raise ValueError(f"there is no picture {written!r}")
    if len(found) > 1:
      raise ValueError(
        f"{written!r} names {len(found)} pictures, {found[0]!r} and "
        f"{found[1]!r} among them; write the path below the folder"
      )
    return found[0]


def read_table(path: Path, columns: tuple[str, ...]):
  """Yields (line number, row) of a CSV file with a header.

  Raises:
    ValueError: a column is missing.
  """
  with path.open(newline="", encoding="utf-8-sig") as file:
    reader = csv.DictReader(file)
    header = [name.strip() for name in reader.fieldnames or ()]
    missing = [name for name in columns if name not in header]
    if missing:
      raise ValueError(
        f"{path} must start with a line that names its columns, "
        f"{','.join(columns)}; {', '.join(missing)} is missing from "
        f"{','.join(header) or 'an empty file'!r}."
      )
    reader.fieldnames = header
    for row in reader:
      yield reader.line_num, {k: v or "" for k, v in row.items() if k}
