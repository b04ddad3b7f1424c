"""Which pictures a folder holds, in which split, of which classes."""

import collections
import dataclasses
import functools
import hashlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from gc_jax.data.dataset import warn_once
from gc_jax.data.decode import SUFFIXES
from gc_jax.data.sets import folder_files, tables
from gc_jax.data.sets.folder_files import LABELS_FILE, Finder, Tree, normalized
from gc_jax.runtime.messages import (
  clipped,
  listed,
  number_of,
  unknown_name_message,
)

SPLITS = ("train", "validation", "test")

# The folders that may hold a split -> the split.
_SPLIT_FOLDERS = {
  **dict.fromkeys(("train", "training"), "train"),
  **dict.fromkeys(("val", "valid", "validation"), "validation"),
  **dict.fromkeys(("test", "testing"), "test"),
}
_ENDINGS = ", ".join(SUFFIXES)


@dataclasses.dataclass(frozen=True)
class Layout:
  """Everything that names and places in a folder say; paths are below it."""

  root: Path
  files: dict[str, tuple[int, int]]  # sorted -> (bytes, modified at, in ns)
  class_names: tuple[str, ...]  # in the order of their ids
  splits: dict[str, list[str]]
  labels: dict[str, list[int]]  # picture -> class ids
  multi_label: bool  # whether the labels are from `labels.csv`
  broken: tuple[str, ...]  # files that are links to nothing

  @functools.cached_property
  def finder(self) -> Finder:
    """Finds the pictures that annotations name."""
    return Finder(self.labels, self.root)

  def class_id(self, written: str) -> int:
    """Returns the id of a class, or raises ValueError with the nearest."""
    name = normalized(written.strip())
    if name not in self._class_ids:
      raise ValueError(_unknown_class(name, self.class_names))
    return self._class_ids[name]

  @functools.cached_property
  def _class_ids(self) -> dict[str, int]:
    return {name: i for i, name in enumerate(self.class_names)}


@functools.cache  # looks through all classes: once a name, not once a box
def _unknown_class(name: str, known: tuple[str, ...]) -> str:
  return unknown_name_message("class", name, known)


def read_layout(path: str) -> Layout:
  """Returns what a folder holds; no picture is opened.

  Files that are ignored, and classes of one picture, are logged, once a folder.

  Raises:
    ValueError: it is not arranged as `data.sets.folder` says; says where.
  """
  root = folder_files.check_root(path)
  tree = folder_files.list_tree(root)
  of_kind: dict[str, list[str]] = collections.defaultdict(list)
  for name in tree.files:
    of_kind[folder_files.kind_of(name)].append(name)
  pictures = of_kind["picture"]
  if not pictures:
    raise ValueError(
      f"--config.data.path={path!r} must hold pictures "
      f"({_ENDINGS}), as DIR/train/CLASS/*.jpg or DIR/CLASS/*.jpg; "
      f"none is among its {_counted(list(tree.files))}."
    )
  split_of = _split_folders(root, tree, pictures)
  # What is known in any case must be there in one only.
  folders = [k for k in tree.folders if k.casefold() in folder_files.NO_CLASSES]
  files = of_kind["labels"] + of_kind["boxes"] + of_kind["json"]
  seen: dict[str, str] = {}
  for name in folders + files:
    other = seen.setdefault(name.casefold(), name)
    if other != name:
      raise ValueError(
        f"{root} must hold one {name.casefold()}, and holds {other} and "
        f"{name}. Make one of the two."
      )
  if of_kind["labels"]:
    named = _classes_of_table(root / of_kind["labels"][0], root, pictures)
  else:
    _check_class_folders(root, tree, pictures, split_of)
    named = _classes_of_folders(root, pictures, split_of)
  class_names = tuple(sorted({k for names in named.values() for k in names}))
  if len(class_names) < 2:
    raise ValueError(
      f"{root} must show at least two classes, and shows {len(class_names)} "
      f"({', '.join(class_names)}). Put the pictures of each class into a "
      "folder of its own."
    )
  ids = {name: i for i, name in enumerate(class_names)}
  labels = {k: [ids[name] for name in names] for k, names in named.items()}
  layout = Layout(
    root=root,
    files=tree.files,
    class_names=class_names,
    splits=_divide(pictures, labels, split_of),
    labels=labels,
    multi_label=bool(of_kind["labels"]),
    broken=tree.broken,
  )
  _check_training(layout)
  ignored = [_counted(of_kind[""])] if of_kind[""] else []
  if tree.special:
    ignored.append(f"{len(tree.special):,} pipes or devices")
  if ignored:
    warn_once(f"Ignored in {root}: {', '.join(ignored)}.")
  return layout


def _counted(names: list[str]) -> str:
  """Returns "12 files (.txt 9, .heic 3)"."""
  brackets = f" ({folder_files.endings(names)})" if names else ""
  return number_of(len(names), "file") + brackets


def _held(tree: Tree, folder: str) -> str:
  return _counted([k for k in tree.files if k.startswith(f"{folder}/")])


def _split_folders(
  root: Path, tree: Tree, pictures: Iterable[str]
) -> dict[str, str]:
  """Returns the folders of splits -> their split; empty: there are none."""
  found = {
    folder: _SPLIT_FOLDERS[folder.casefold()]
    for folder in tree.folders
    if folder.casefold() in _SPLIT_FOLDERS
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
        f"{root / folders[0]} must hold pictures ({_ENDINGS}), and "
        f"holds {_held(tree, folders[0])}. Fill or remove it."
      )
  for top in (name.split("/")[0] for name in pictures):
    if top not in found:
      raise ValueError(
        f"{root / top} stands beside {root / 'train'} and must be called "
        "val, validation or test, masks or annotations; it holds pictures that "
        "belong to no split."
      )
  return found


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
    held = [f"{root / k} holds {_held(tree, k)}" for k in empty[:5]]
    raise ValueError(
      f"The folder of a class must hold pictures ({_ENDINGS}). "
      f"{number_of(len(empty), 'folder')} without:\n  "
      + listed([*held, *empty[5:]], between="\n  ")
      + "\nConvert the files, add pictures, or move the folder out of "
      "--config.data.path."
    )


def _classes_of_folders(
  root: Path, pictures: list[str], split_of: dict[str, str]
) -> dict[str, list[str]]:
  """Returns the class of each picture: the folder that it lies in."""
  depth = 1 if split_of else 0
  named = {}
  for name in pictures:
    parts = name.split("/")
    if len(parts) < depth + 2:
      wanted = root.joinpath(*parts[:depth], "CLASS", parts[-1])
      raise ValueError(
        f"{root / name} must lie in the folder of its class, as {wanted}. Or "
        f"name its classes in {root / LABELS_FILE}."
      )
    try:
      named[name] = [_class_name(parts[depth])]
    except ValueError as error:
      raise ValueError(f"{root}: {error}. Rename the folder.") from error
  return named


def _class_name(written: str) -> str:
  """Returns the name of a class as it is shown: one line, in one form."""
  if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in written):
    raise ValueError(
      "the name of a class must be one line, without control characters, and "
      f"one is {clipped(written)!r}"
    )
  return normalized(written)


def _classes_of_table(
  table: Path, root: Path, pictures: list[str]
) -> dict[str, list[str]]:
  """Returns the classes of each picture as `labels.csv` says them."""
  find = Finder(pictures, root)
  named: dict[str, list[str]] = {}
  problems = []
  for line, row in tables.read(table, ("image", "labels")):
    if isinstance(row, tables.Problem):
      problems.append(str(row))
      continue
    try:
      parts = [part.strip() for part in row["labels"].split(";")]
      names = [_class_name(part) for part in parts if part]
      named.setdefault(find(row["image"]), []).extend(names)
    except ValueError as error:
      problems.append(f"{table}, line {line}: {error}")
  if problems:
    raise ValueError(
      f"{len(problems):,} lines of {table} cannot be used:\n  "
      + listed(problems, between="\n  ")
      + "\nSeveral classes of a picture are one cell, a;b (in quotation marks, "
      '"a;b", where semicolons separate cells).'
    )
  missing = [name for name in pictures if name not in named]
  if missing:
    raise ValueError(
      f"{table} must have a line for every picture, and has none for "
      f"{len(missing):,} of {len(pictures):,}, {missing[0]!r} first. For a "
      "picture that shows no class, leave the cell empty."
    )
  return named


def _divide(
  pictures: list[str], labels: dict[str, list[int]], split_of: dict[str, str]
) -> dict[str, list[str]]:
  """Returns the pictures of each split."""
  if not split_of:
    return _hold_out(pictures, labels, ("validation", "test"))
  splits: dict[str, list[str]] = {split: [] for split in SPLITS}
  for name in pictures:
    splits[split_of[name.split("/")[0]]].append(name)
  if not splits["validation"]:
    splits |= _hold_out(splits["train"], labels, ("validation",))
  splits["test"] = splits["test"] or splits["validation"]
  return splits


def _hold_out(
  pictures: list[str], labels: dict[str, list[int]], held_out: tuple[str, ...]
) -> dict[str, list[str]]:
  """Returns a tenth of the pictures for each of these, the rest to train on.

  A hash of its name alone says where a picture goes, so that it stays there
  when others come and go; but a class has at least one picture to train on.
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


def _check_training(layout: Layout) -> None:
  """Checks that every class of the other splits has pictures to train on."""
  names, root = layout.class_names, layout.root
  counts = collections.Counter(
    k for name in layout.splits["train"] for k in set(layout.labels[name])
  )
  for name in layout.splits["validation"] + layout.splits["test"]:
    for k in layout.labels[name]:
      if not counts[k]:
        known = [names[k] for k in sorted(counts) if counts[k]]
        raise ValueError(
          f"{root / name} shows a class that no training picture shows. "
          + unknown_name_message("class", names[k], known)
        )
  single = [names[k] for k in sorted(counts) if counts[k] == 1]
  if single:
    has = "class has" if len(single) == 1 else "classes have"
    warn_once(
      f"{len(single):,} {has} one training picture, {single[0]!r} first, of "
      f"the {len(names):,} classes of {root}: what is learned of such a "
      "class is that picture. Add pictures, or remove the class."
    )
