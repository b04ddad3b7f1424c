"""A folder of your own pictures, read in place.

  DIR/train/CLASS/*.jpg  DIR/val/CLASS/*.jpg  DIR/test/CLASS/*.jpg

or DIR/CLASS/*.jpg alone. Splits, by the names that configs use:

| | `train` | `validation` | `test` |
|---|---|---|---|
| `train/ val/ test/` | as they are | `val/` (or `validation/`) | as it is |
| `train/ val/` | as it is | `val/` | the same as `validation` |
| `train/` | nine tenths | a tenth of it | the same as `validation` |
| classes only | eight tenths | a tenth | a tenth |

A hash of a picture's path chooses its tenth: it stays in its split when others
come and go. (A class that would have nothing to train on gets one back.)

Optional, each found by its name, in any case:
  labels.csv                `image,labels`: several classes a picture, "a;b",
                            or one a line
  masks/train/CLASS/x.png   0 outside of the object and another level inside,
                            see `gc_jax.data.pixels`; x.CLASS.png where the
                            picture shows several classes
  boxes.csv                 `image,label,xmin,ymin,xmax,ymax[,difficult]`,
                            pixels from 0, the last two exclusive
  x.xml                     VOC, beside the picture or below annotations/
  annotations.json          COCO: boxes, polygons, run lengths; also
                            annotations/*.json

`image` is a path below DIR, or as much of its end as is unique. Tables are
UTF-8, or UTF-16 with a byte order mark; commas, semicolons or tabs separate
their cells. Every line of labels.csv must be right; wrong boxes and masks may
be left out (`on_error`).

Every picture is decoded once before a run begins, a JPEG at an eighth of its
size: one message names all that are broken. What was found is kept until a file
changes. The pictures of official archives are not decoded when these are
prepared, for that would take hours: a broken one there stops a run when it is
read, or is skipped then.

The folder of each class and each split must hold a picture. A warning counts
all other files by ending. Links are followed; a link to a folder that holds it
stops the run, and so does a name that is not UTF-8. Names are compared after
NFC.

Boxes are in the frame that is stored, before EXIF's orientation is applied, and
so are masks whose size fits it; others are upright. Every annotation is used,
or reported with its file and place. Boxes that look like fractions of the
picture are refused. COCO's polygons that cover no pixel are left out, and a
warning counts them: where nothing is left, the box stands; where there is no
box, it is that of the mask.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from gc_jax.data import decode
from gc_jax.data.dataset import Dataset, warn_once
from gc_jax.data.sets import folder_layout, folder_objects, shapes
from gc_jax.data.sets.folder_layout import SPLITS, Layout
from gc_jax.data.storage import parts_of
from gc_jax.runtime import files, speaking
from gc_jax.runtime.messages import listed, number_of, unknown_name_message

_VERSION = 5  # of what is kept of annotations; raise it when that changes
_PICTURES_VERSION = 1  # of pictures; raise it when decoders find out more
_THREADS = min(8, os.cpu_count() or 1)
_OR_SKIP = (
  "\nFix them, or set --config.data.on_error=skip to leave them out, and have "
  "them counted."
)

_logger = logging.getLogger(__name__)

# Picture -> bytes, modified at, in ns, and why it cannot be read; "" if it can.
_Known = dict[str, tuple[int, int, str]]


def load(
  split: str,
  *,
  path: str,
  data_dir: str | os.PathLike = "",
  on_error: str = "raise",
) -> Dataset:
  """Returns a split of a folder; nothing is written into it.

  What annotations say, and which pictures are broken, is kept in `data_dir`
  until a file of the folder changes. `on_error="skip"` leaves out wrong
  annotations, and counts them; broken pictures stay, and readers skip them.

  Raises:
    ValueError: if the split is unknown, or the folder or an annotation is not
      as it must be; says what and where.
  """
  if split.split("[")[0] not in SPLITS:
    raise ValueError(unknown_name_message("split", split.split("[")[0], SPLITS))
  layout = folder_layout.read_layout(path)
  pictures = _part(split, layout)
  if on_error == "raise":
    _check_links(pictures, layout)
  broken = _broken(layout, data_dir)
  _report_broken(broken, pictures, layout, on_error)
  annotations = _read_objects(layout, data_dir)
  _report(annotations, layout, on_error)
  found = annotations.of_picture
  objects = {name: found[name] for name in pictures if name in found}
  labels = [layout.labels[name] for name in pictures]
  located = _located(found, pictures, labels, f"{layout.root}, split {split}")
  return Dataset(
    source=FolderSource(str(layout.root), pictures, labels, objects),
    class_names=layout.class_names,
    multi_label=layout.multi_label,
    name=f"folder/{layout.root.resolve().name}",
    labels=labels,
    names=pictures,
    num_dropped=annotations.num_left_out,
    num_located=located,
    broken=frozenset(
      index for index, name in enumerate(pictures) if name in broken
    ),
  )


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """Records of a folder by index; files are read when they are asked for."""

  root: str
  pictures: Sequence[str]  # paths below the root
  labels: Sequence[Sequence[int]]  # class ids of each
  objects: dict[str, dict[str, list]]  # of the pictures that have any

  def __len__(self) -> int:
    return len(self.pictures)

  def __getitem__(self, index: int) -> dict[str, Any]:
    name = self.pictures[index]
    record = {
      "image": Path(self.root, name).read_bytes(),
      "labels": self.labels[index],
      "name": name,
    }
    if name in self.objects:
      objects = self.objects[name]
      masks = _Masks(self.root, record["image"], objects["mask"])
      record["objects"] = objects | {"mask": masks}
    return record

  def contents(self) -> str:
    """Returns digests of pictures and masks, and what annotations say.

    Not when files were written: a copy of the folder holds the same.
    """
    masks = {
      mask
      for of_one in self.objects.values()
      for mask in of_one["mask"]
      if mask and isinstance(mask, str)
    }
    digests = {}
    for name in (*self.pictures, *sorted(masks)):
      path = Path(self.root, name)
      if path.exists():  # a broken link may be skipped
        with path.open("rb") as file:
          digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return json.dumps([digests, self.objects], sort_keys=True)


@dataclasses.dataclass(frozen=True)
class _Masks(Sequence):
  """Encoded masks of one picture, read or drawn when they are asked for."""

  root: str
  image: bytes
  masks: Sequence[Any]

  def __len__(self) -> int:
    return len(self.masks)

  def __getitem__(self, index: int) -> bytes:
    mask = self.masks[index]
    if not mask:
      return b""
    if isinstance(mask, str):
      return Path(self.root, mask).read_bytes()
    size = decode.read_header(self.image).stored_size
    try:
      return shapes.encode(shapes.draw(mask, size))
    except ValueError as error:  # the picture is another than it was
      raise decode.DecodeError(str(error)) from error


def _part(split: str, layout: Layout) -> list[str]:
  """Returns the pictures of a split in the notation of TFDS."""
  lengths = {name: [len(own)] for name, own in layout.splits.items()}
  pictures = [
    layout.splits[name][index]
    for name, examples in parts_of(split, lengths)
    for index in examples
  ]
  if not pictures:
    count = sum(map(len, layout.splits.values()))
    raise ValueError(
      f"{split!r} of {layout.root} must have pictures, and has none of the "
      f"{count:,} there are. Put some into {layout.root}/train/CLASS and "
      f"{layout.root}/val/CLASS."
    )
  return pictures


def _broken(layout: Layout, data_dir: str | os.PathLike) -> dict[str, str]:
  """Returns picture -> why it cannot be read, of all that cannot.

  Pictures that have not changed since are not read again.
  """
  key = f"{_PICTURES_VERSION} {layout.root.resolve()}"
  index = _index(layout, data_dir, key, "-pictures.json")
  known: _Known = {}
  if index.exists():
    known = {k: tuple(v) for k, v in json.loads(index.read_text()).items()}
  new = [
    name
    for name in layout.labels
    if name not in known or known[name][:2] != tuple(layout.files[name])
  ]
  if new:
    known |= _checked(layout, new)
    _keep(layout, index, known)
  return {name: known[name][2] for name in layout.labels if known[name][2]}


def _checked(layout: Layout, names: list[str]) -> _Known:
  """Decodes pictures, and says how far that is."""
  of_all = number_of(len(names), "picture")
  speaking.say(f"checking {of_all} of {layout.root}")

  def why(name: str) -> str:
    try:
      decode.check(decode.read_header((layout.root / name).read_bytes()))
    except (OSError, decode.DecodeError) as error:
      return str(error) or type(error).__name__
    return ""

  known: _Known = {}
  with (
    speaking.doing("") as task,
    ThreadPoolExecutor(_THREADS, "check") as threads,
  ):
    for name, error in zip(names, threads.map(why, names), strict=True):
      known[name] = (*layout.files[name], error)
      task.text = f"checking pictures, {len(known):,} of {len(names):,} done"
  return known


def _read_objects(
  layout: Layout, data_dir: str | os.PathLike
) -> folder_objects.Objects:
  """Returns what annotations say, from the index where nothing has changed."""
  if not folder_objects.has_annotations(layout):
    return folder_objects.Objects()
  key = json.dumps([_VERSION, str(layout.root.resolve()), layout.files])
  index = _index(layout, data_dir, key, ".json")
  if index.exists():
    return folder_objects.Objects(**json.loads(index.read_text()))
  objects = folder_objects.read_objects(layout)
  _keep(layout, index, vars(objects))
  return objects


def _index(
  layout: Layout, data_dir: str | os.PathLike, key: str, ending: str
) -> Path:
  """Returns the file that keeps what is known of a folder."""
  data_dir = os.path.expanduser(data_dir) or tfds.core.constants.DATA_DIR
  digest = hashlib.sha256(key.encode()).hexdigest()[:16]
  name = f"{layout.root.resolve().name}-{digest}{ending}"
  return Path(data_dir, "folder", name)


def _keep(layout: Layout, index: Path, known: dict[str, Any]) -> None:
  try:
    files.write_text(index, json.dumps(known))
  except OSError as error:
    _logger.warning("The index of %s is not kept: %s", layout.root, error)


def _report_broken(
  broken: dict[str, str],
  pictures: Sequence[str],
  layout: Layout,
  on_error: str,
) -> None:
  """Raises or logs which pictures cannot be read, all of the folder at once."""
  if not broken:
    return
  message = (
    f"{number_of(len(broken), 'picture')} of {len(layout.labels):,} in "
    f"{layout.root} cannot be read:\n  "
    + listed([f"{k}: {v}" for k, v in broken.items()], 20, between="\n  ")
  )
  if on_error == "skip":
    warn_once(f"{message}\nThey are skipped, and counted.")
  elif not broken.keys().isdisjoint(pictures):
    raise ValueError(
      f"{message}\nMend or remove them, or set --config.data.on_error=skip to "
      "go on without them, and have them counted; a run may go on with either."
    )


def _check_links(pictures: Sequence[str], layout: Layout) -> None:
  """Checks that pictures which are links lead to a file."""
  lost = sorted(set(layout.broken).intersection(pictures))
  if lost:
    links = [
      f"{layout.root / k} -> {os.readlink(layout.root / k)}" for k in lost
    ]
    raise ValueError(
      f"A link must lead to a picture, and {len(lost):,} of "
      f"{len(pictures):,} pictures are links that lead nowhere:\n  "
      + listed(links, between="\n  ")
      + _OR_SKIP
    )


def _located(
  found: Mapping[str, Mapping[str, list]],
  pictures: Sequence[str],
  labels: Sequence[Sequence[int]],
  place: str,
) -> int:
  """Returns how many pictures have an object of a class of theirs.

  Says which have none, and which have objects that nothing asks for.
  """
  if not found:
    return 0
  shown = [set(found.get(name, {"label": ()})["label"]) for name in pictures]
  pairs = list(zip(pictures, shown, map(set, labels), strict=True))
  others = [name for name, classes, own in pairs if classes - own]
  if others:
    _logger.warning(
      f"{len(others)} of {len(pictures)} pictures of {place}, have a mask or "
      f"box of a class that is not theirs, {others[0]!r} first: these are not "
      "used."
    )
  bare = [name for name, classes, own in pairs if not classes & own]
  if bare:
    _logger.warning(
      f"{len(bare)} of {len(pictures)} pictures of {place}, have neither mask "
      f"nor box of their class, {bare[0]!r} first: they do not count in the "
      "metrics of maps."
    )
  return len(pictures) - len(bare)


def _report(
  objects: folder_objects.Objects, layout: Layout, on_error: str
) -> None:
  """Raises or logs what is wrong with annotations, as the policy says."""
  for note in objects.notes:
    warn_once(f"In the annotations of {layout.root}, {note}.")
  if not objects.problems:
    return
  count = objects.num_left_out or len(objects.problems)
  message = (
    f"{number_of(count, 'annotation')} of {layout.root} cannot be used:\n  "
    + listed(objects.problems, between="\n  ")
  )
  if on_error == "raise":
    raise ValueError(message + _OR_SKIP)
  _logger.warning(message)
