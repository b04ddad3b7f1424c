"""Which pictures a folder holds, in which split, of which classes."""

import dataclasses
import functools
import hashlib
import logging
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from gc_jax.data.decode import SUFFIXES
from gc_jax.data.sets import folder_files, tables
from gc_jax.data.sets.folder_files import LABELS_FILE, Finder, Tree, normalized
from gc_jax.runtime.messages import clipped, listed, unknown_name_message

SPLITS = ("train", "validation", "test")

# split -> the folders that may hold it
_SPLIT_FOLDERS = {
  "train": ("train", "training"),
  "validation": ("val", "valid", "validation"),
  "test": ("test", "testing"),
}

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
    broken: files that are links to nothing.
  """

  root: Path
  files: dict[str, tuple[int, int]]
  class_names: tuple[str, ...]
  splits: dict[str, list[str]]
  labels: dict[str, list[int]]
  multi_label: bool
  broken: tuple[str, ...] = ()

  @functools.cached_property
  def finder(self) -> Finder:
    """What finds the pictures that annotations name."""
    return Finder(self.labels, self.root)

  def class_id(self, written: str) -> int:
    """Returns the id of the class that an annotation names.

    Raises:
      ValueError: there is none of this name; gives the nearest.
    """
    name = normalized(written.strip())
    if name not in self._class_ids:
      raise ValueError(self._unknown_class(name))
    return self._class_ids[name]

  @functools.cached_property
  def _class_ids(self) -> dict[str, int]:
    return {name: i for i, name in enumerate(self.class_names)}

  @functools.cached_property
  def _unknown_class(self) -> Callable[[str], str]:
    # Looked for once a name, not once a box.
    return functools.cache(
      lambda name: unknown_name_message("class", name, self.class_names)
    )


def read_layout(path: str) -> Layout:
  """Returns what a folder holds; no picture is opened.

  What is passed over, and classes of one picture, are logged, once a folder.

  Raises:
    ValueError: it is not arranged as `data.sets.folder` says; says where.
  """
  root = folder_files.check_root(path)
  tree = folder_files.list_tree(root)
  of_kind: dict[str, list[str]] = {}
  for name in tree.files:
    of_kind.setdefault(folder_files.kind_of(name), []).append(name)
  pictures = of_kind.get("picture", [])
  if not pictures:
    raise ValueError(
      f"--config.data.path={path!r} must hold pictures "
      f"({', '.join(SUFFIXES)}), as DIR/train/CLASS/*.jpg or DIR/CLASS/*.jpg; "
      f"none is among its {_counted(list(tree.files))}."
    )
  split_of = _split_folders(root, tree, pictures)
  _check_tops(root, pictures, split_of)
  _check_capitals(root, tree, of_kind)
  tables_of_labels = of_kind.get("labels", [])
  if tables_of_labels:
    table = root / tables_of_labels[0]
    class_names, labels = _labels_of_table(table, root, pictures)
  else:
    _check_class_folders(root, tree, pictures, split_of)
    class_names, labels = _labels_of_folders(root, pictures, split_of)
  if len(class_names) < 2:
    raise ValueError(
      f"{root} must show at least two classes, and shows {len(class_names)} "
      f"({', '.join(class_names)}). Put the pictures of each class into a "
      "folder of its own."
    )
  splits = _divide(pictures, labels, split_of)
  _check_classes(root, class_names, labels, splits)
  passed_over = [_counted(of_kind[""])] if "" in of_kind else []
  if tree.special:
    passed_over.append(f"{len(tree.special):,} pipes or devices")
  if passed_over:
    warn_once(f"Passed over in {root}: {', '.join(passed_over)}.")
  return Layout(
    root=root,
    files=tree.files,
    class_names=class_names,
    splits=splits,
    labels=labels,
    multi_label=bool(tables_of_labels),
    broken=tree.broken,
  )


@functools.cache
def warn_once(message: str) -> None:
  """Warns; not again when another split of the folder is loaded."""
  _logger.warning("%s", message)


def _counted(names: Sequence[str]) -> str:
  """Returns "12 files (.txt 9, .heic 3)"."""
  brackets = f" ({folder_files.endings(names)})" if names else ""
  return f"{len(names):,} file{'s'[: len(names) != 1]}{brackets}"


def _check_capitals(
  root: Path, tree: Tree, of_kind: dict[str, list[str]]
) -> None:
  """Checks that what is known in any case is there in one."""
  seen: dict[str, str] = {}
  for name in (
    *(top for top in tree.folders if top.casefold() in folder_files.NO_CLASSES),
    *(
      name
      for kind in ("labels", "boxes", "json")
      for name in of_kind.get(kind, ())
    ),
  ):
    other = seen.setdefault(name.casefold(), name)
    if other != name:
      raise ValueError(
        f"{root} must hold one {name.casefold()}, and holds {other} and "
        f"{name}. Make one of the two."
      )


def _split_folders(
  root: Path, tree: Tree, pictures: Iterable[str]
) -> dict[str, str]:
  """Returns folder -> split, of those there are; empty where none is.

  Raises:
    ValueError: if there are splits alone, and none to train on; if one is
      there twice, or holds no picture.
  """
  split_of_name = {
    folder: split
    for split, folders in _SPLIT_FOLDERS.items()
    for folder in folders
  }
  found = {
    folder: split_of_name[folder.casefold()]
    for folder in tree.folders
    if folder.casefold() in split_of_name
  }
  filled = {name.split("/")[0] for name in pictures if "/" in name}
  if all(found.get(top) != "train" for top in filled):
    if filled and filled <= found.keys():
      raise ValueError(
        "A folder of splits must hold `train`; there are pictures only in "
        f"{', '.join(sorted(filled))}. Name the folder to train on `train`, or "
        "the folder above the classes."
      )
    return {}  # a class may be called so
  for split in SPLITS:
    folders = [folder for folder in found if found[folder] == split]
    if len(folders) > 1:
      raise ValueError(
        f"{root} must hold one folder for the {split} split, and holds "
        f"{' and '.join(folders)}. Put their pictures into one."
      )
    if folders and folders[0] not in filled:
      raise ValueError(
        f"{root / folders[0]} must hold pictures ({', '.join(SUFFIXES)}), and "
        f"holds {_counted(_below(tree, folders[0]))}. Fill or remove it."
      )
  return found


def _below(tree: Tree, folder: str) -> list[str]:
  return [name for name in tree.files if name.startswith(f"{folder}/")]


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


def _check_class_folders(
  root: Path, tree: Tree, pictures: Iterable[str], split_of: dict[str, str]
) -> None:
  """Checks that no class vanishes: that every folder of one has a picture."""
  depth = 1 if split_of else 0
  filled = {"/".join(name.split("/")[: depth + 1]) for name in pictures}
  empty = [
    folder
    for folder in tree.folders
    if folder.count("/") == depth
    and folder not in filled
    and (folder.split("/")[0] in split_of or not split_of)
    and folder.casefold() not in folder_files.NO_CLASSES
  ]
  if empty:
    held = [
      f"{root / folder} holds {_counted(_below(tree, folder))}"
      for folder in empty[:5]
    ]
    raise ValueError(
      f"The folder of a class must hold pictures ({', '.join(SUFFIXES)}). "
      f"{len(empty):,} without:\n  "
      + listed([*held, *empty[5:]], between="\n  ")
      + "\nConvert what is there or put pictures in; or take the folder out of "
      "--config.data.path."
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
    try:
      class_of[name] = _class_name(parts[depth])
    except ValueError as error:
      raise ValueError(f"{root}: {error}. Rename the folder.") from error
  class_names = tuple(sorted(set(class_of.values())))
  ids = {name: i for i, name in enumerate(class_names)}
  return class_names, {k: [ids[v]] for k, v in class_of.items()}


def _class_name(written: str) -> str:
  """Returns the name of a class as it is shown: one line, in one form."""
  if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in written):
    raise ValueError(
      "the name of a class must be one line, without control characters, and "
      f"one is {clipped(written)!r}"
    )
  return normalized(written)


def _labels_of_table(
  table: Path, root: Path, pictures: list[str]
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
  """Returns class names and labels as `labels.csv` says them."""
  find = Finder(pictures, root)
  names_of: dict[str, list[str]] = {}
  problems = []
  for line, row in tables.read(table, ("image", "labels")):
    if isinstance(row, tables.Problem):
      problems.append(str(row))
      continue
    try:
      parts = [part.strip() for part in row["labels"].split(";")]
      names = [_class_name(part) for part in parts if part]
      names_of.setdefault(find(row["image"]), []).extend(names)
    except ValueError as error:
      problems.append(f"{table}, line {line}: {error}")
  if problems:
    raise ValueError(
      f"{len(problems):,} lines of {table} cannot be used:\n  "
      + listed(problems, between="\n  ")
      + "\nSeveral classes of a picture are one cell, a;b (in quotation marks, "
      '"a;b", where semicolons separate cells).'
    )
  missing = [name for name in pictures if name not in names_of]
  if missing:
    raise ValueError(
      f"{table} must have a line for every picture, and has none for "
      f"{len(missing):,} of {len(pictures):,}, {missing[0]!r} first. One that "
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
    digest = hashlib.sha256(normalized(name).encode()).digest()
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
  single = [class_names[k] for k, count in counts.items() if count == 1]
  if single:
    has = "class has" if len(single) == 1 else "classes have"
    warn_once(
      f"{len(single):,} {has} one training picture, {single[0]!r} first, of "
      f"the {len(class_names):,} classes of {root}: what is learned of such a "
      "class is that picture. Add pictures, or remove the class."
    )
