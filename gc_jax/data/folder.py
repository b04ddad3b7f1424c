"""A folder of your own pictures, read in place.

  DIR/train/CLASS/*.jpg  DIR/val/CLASS/*.jpg  DIR/test/CLASS/*.jpg

or DIR/CLASS/*.jpg alone. Splits, by the names that configs use:

| | `train` | `validation` | `test` |
|---|---|---|---|
| `train/ val/ test/` | as they are | `val/` (or `validation/`) | as it is |
| `train/ val/` | as it is | `val/` | the same as `validation` |
| `train/` | nine tenths | a tenth of it | the same as `validation` |
| classes only | eight tenths | a tenth | a tenth |

Tenths are told by a hash of a picture's path: it stays in its split when
others come and go. (A class that would have nothing to train on keeps all.)

Optional, each found by its name:
  labels.csv                `image,labels`: several classes a picture, "a;b"
  masks/train/CLASS/x.png   0 outside of the object and another level inside,
                            see `gc_jax.data.masks`; x.CLASS.png where the
                            picture shows several classes
  boxes.csv                 `image,label,xmin,ymin,xmax,ymax[,difficult]`,
                            pixels from 0, the last two exclusive
  x.xml                     VOC, beside the picture or below annotations/
  annotations.json          COCO: boxes, polygons, run lengths; also
                            annotations/*.json

`image` is a path below DIR, or as much of its end as is unique. Boxes are in
the frame that is stored, before EXIF's orientation is applied. A mask is in
that frame or in the upright one, as its size says; the stored one if both fit.
"""

import dataclasses
import hashlib
import io
import json
import logging
import os
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gc_jax.data import folder_layout, folder_objects
from gc_jax.data.dataset import Dataset, unknown_name_message
from gc_jax.data.decode import read_header
from gc_jax.data.folder_layout import SPLITS, Layout

_VERSION = 3  # of the index; raise it when what is written changes
_NUM_NAMED = 5  # of many problems, how many are told

_logger = logging.getLogger(__name__)


def load(
  split: str,
  *,
  path: str,
  data_dir: str | os.PathLike = "",
  on_error: str = "raise",
) -> Dataset:
  """Returns a split of a folder.

  Args:
    split: of `SPLITS`, or a part of one: "train[:100]".
    path: the folder. Nothing is written into it.
    data_dir: TFDS directory; what annotations say is kept there, and read
      again when a file of the folder has changed. "" = TFDS's own default.
    on_error: of annotations: "raise", or "skip", they are left out, counted.

  Raises:
    ValueError: if the split is unknown, or the folder or an annotation is not
      as it must be; says what and where.
  """
  if split.split("[")[0] not in SPLITS:
    raise ValueError(unknown_name_message("split", split.split("[")[0], SPLITS))
  layout = folder_layout.read_layout(path)
  pictures = _part(split, layout)
  objects, problems = _read_objects(layout, data_dir)
  if problems:
    _report(problems, layout, on_error)
  bare = [name for name in pictures if name not in objects]
  if objects and bare:
    _logger.warning(
      "%d of %d pictures of %s, split %s, have neither mask nor box, %r first: "
      "they do not count in the metrics of maps.",
      len(bare),
      len(pictures),
      layout.root,
      split,
      bare[0],
    )
  labels = [layout.labels[name] for name in pictures]
  return Dataset(
    source=FolderSource(
      str(layout.root),
      pictures,
      labels,
      {name: objects[name] for name in pictures if name in objects},
    ),
    class_names=layout.class_names,
    multi_label=layout.multi_label,
    max_classes_per_image=max(1, *(len(set(k)) for k in layout.labels.values()))
    if layout.multi_label
    else 1,
    name=f"folder/{layout.root.resolve().name}",
    license="Pictures of the user's own folder, under their owners' terms.",
    labels=labels,
    num_dropped=len(problems),
  )


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """Records of a folder by index; files are read when they are asked for.

  Attributes:
    root: the folder.
    pictures: paths below it.
    labels: class ids of each.
    objects: picture -> its objects, where it has any.
  """

  root: str
  pictures: Sequence[str]
  labels: Sequence[Sequence[int]]
  objects: dict[str, dict[str, list]]

  def __len__(self) -> int:
    return len(self.pictures)

  def __getitem__(self, index: int) -> dict[str, Any]:
    name = self.pictures[index]
    record = {
      "image": _read_bytes(self.root, name),
      "labels": self.labels[index],
      "name": name,
    }
    if name in self.objects:
      objects = self.objects[name]
      masks = _Masks(self.root, record["image"], objects["mask"])
      record["objects"] = objects | {"mask": masks}
    return record


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
      return _read_bytes(self.root, mask)
    size = read_header(self.image).stored_size
    buffer = io.BytesIO()
    folder_objects.draw_segmentation(mask, *size).save(buffer, format="png")
    return buffer.getvalue()


def _read_bytes(root: str, name: str) -> bytes:
  with open(os.path.join(root, name), "rb") as file:
    return file.read()


def _part(split: str, layout: Layout) -> list[str]:
  """Returns the pictures of a split in the notation of TFDS."""
  import tensorflow_datasets as tfds

  sizes = {
    name: types.SimpleNamespace(num_examples=len(pictures))
    for name, pictures in layout.splits.items()
  }
  parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(sizes)
  pictures = [
    name
    for part in parts
    for name in layout.splits[part.splitname][part.from_ : part.to]
  ]
  if not pictures:
    count = sum(map(len, layout.splits.values()))
    raise ValueError(
      f"{split!r} of {layout.root} must have pictures, and has none of the "
      f"{count:,} there are. Put some into {layout.root}/train/CLASS and "
      f"{layout.root}/val/CLASS."
    )
  return pictures


def _read_objects(
  layout: Layout, data_dir: str | os.PathLike
) -> tuple[dict[str, dict], list[str]]:
  """Returns what annotations say, from the index where nothing has changed."""
  if not folder_objects.has_annotations(layout):
    return {}, []
  key = json.dumps([_VERSION, str(layout.root.resolve()), layout.files])
  digest = hashlib.sha256(key.encode()).hexdigest()[:16]
  index = Path(_index_dir(data_dir), f"{layout.root.resolve().name}-{digest}")
  index = index.with_name(index.name + ".json")
  if index.exists():
    content = json.loads(index.read_text())
    return content["objects"], content["problems"]
  objects, problems = folder_objects.read_objects(layout)
  try:
    index.parent.mkdir(parents=True, exist_ok=True)
    unfinished = index.with_name(f"{index.name}.{os.getpid()}")
    unfinished.write_text(
      json.dumps({"objects": objects, "problems": problems})
    )
    unfinished.replace(index)
  except OSError as error:
    _logger.warning("The index of %s is not kept: %s", layout.root, error)
  return objects, problems


def _index_dir(data_dir: str | os.PathLike) -> Path:
  import tensorflow_datasets as tfds

  root = os.path.expanduser(data_dir) or tfds.core.constants.DATA_DIR
  return Path(root) / "folder"


def _report(problems: list[str], layout: Layout, on_error: str) -> None:
  """Raises or logs, as the policy says."""
  shown = problems[:_NUM_NAMED]
  if len(problems) > len(shown):
    shown = [*shown, f"and {len(problems) - len(shown):,} more"]
  message = (
    f"{len(problems):,} annotations of {layout.root} cannot be used:\n  "
    + "\n  ".join(shown)
  )
  if on_error == "raise":
    raise ValueError(
      f"{message}\nMend them, or set --config.data.on_error=skip to leave them "
      "out, and have them counted."
    )
  _logger.warning("%s", message)
