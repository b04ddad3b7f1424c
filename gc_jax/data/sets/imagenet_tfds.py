"""ImageNet as TFDS prepared it (`imagenet2012`), joined with the boxes.

TFDS knows no boxes: they are looked up by file name in the official archive
when the data is opened (20 s for the 50,000 of validation).
"""

import collections
import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gc_jax.data import shards
from gc_jax.data.dataset import Dataset
from gc_jax.data.sets import imagenet_boxes
from gc_jax.data.sets import imagenet_files as files

_INFO = "dataset_info.json"


def find(path: pathlib.Path) -> pathlib.Path | None:
  """Returns the newest version of imagenet2012 in a folder, if there is one.

  Args:
    path: the version's folder itself, or one that holds `imagenet2012/`.
  """
  if (path / _INFO).exists():
    return path
  found = [info.parent for info in path.glob(f"imagenet2012/*/{_INFO}")]
  if not found:
    return None
  return max(found, key=lambda p: tfds.core.Version(p.name))


def load(split: str, *, prepared: pathlib.Path, path: pathlib.Path) -> Dataset:
  """Returns a split. Only validation gets boxes: training needs none.

  Args:
    split: "train" or "validation", or a part of one. TFDS mixed the order.
    prepared: folder of a version of imagenet2012.
    path: folder of the box archive, and of the kit or synset list that knows
      readable names; both may be missing.

  Raises:
    ValueError: if it was not prepared as array_record, or an archive is
      damaged.
  """
  builder = tfds.builder_from_directory(prepared)
  if builder.info.file_format.value != "array_record":
    folder = shlex.quote(str(prepared))
    raise ValueError(
      f"{prepared} must hold array_record files, which can be read without "
      f"TensorFlow, and holds {builder.info.file_format.value}. Convert it, "
      "in an environment that has TensorFlow (pip install tensorflow "
      "tensorflow-datasets array_record):\n  tfds convert_format "
      f"--dataset_version_dir={folder} --out_file_format=array_record "
      f"--out_dir={folder}-array_record/imagenet2012/{prepared.name}\n"
      f"and set --config.data.path={folder}-array_record"
    )
  source = builder.as_data_source(
    split.split("[")[0], decoders={"image": tfds.decode.SkipDecoding()}
  )
  wnids = tuple(builder.info.features["label"].names)
  numbers = np.concatenate(
    [
      np.arange(part.start, part.stop, dtype=np.int32)
      for part in shards.positions(builder, split)
    ]
  )
  boxes = _boxes(path, wnids) if split.startswith("validation") else {}
  return Dataset(
    source=_WithBoxes(shards.Reordered(source, numbers), boxes, wnids),
    class_names=_readable(path, wnids),
    multi_label=False,
    name=f"tfds/imagenet2012/{builder.version}",
  )


def _boxes(
  path: pathlib.Path, wnids: tuple[str, ...]
) -> dict[str, list[imagenet_boxes.Box]]:
  """Returns the boxes of known classes, by the stem of their picture."""
  archive = path / imagenet_boxes.ARCHIVES["validation"]
  if not archive.exists():
    print(
      f"No {archive.name} in {path}: explanations cannot be scored",
      file=sys.stderr,
    )
    return {}
  counts: collections.Counter[str] = collections.Counter()
  every = imagenet_boxes.read_boxes(archive, counts)
  known = set(wnids)
  boxes = {
    stem: [box for box in found if box.wnid in known]
    for stem, found in every.items()
  }
  unknown = sum(map(len, every.values())) - sum(map(len, boxes.values()))
  if unknown:
    counts["boxes left out: unknown class"] = unknown
  odd = "".join(f"; {n:,} {what}" for what, n in sorted(counts.items()))
  print(f"Read the boxes of {len(boxes):,} pictures{odd}", file=sys.stderr)
  return boxes


def _readable(path: pathlib.Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
  names = (files.DEVKIT, *files.SYNSET_LISTS)
  if not any((path / name).exists() for name in names):
    return wnids
  synsets = files.load_synsets(path)
  known = dict(zip(synsets.wnids, synsets.names, strict=True))
  return tuple(known.get(wnid, wnid) for wnid in wnids)


class _WithBoxes:
  """Records of TFDS in the form of `Dataset`."""

  def __init__(
    self,
    source: Any,
    boxes: Mapping[str, list[imagenet_boxes.Box]],
    wnids: tuple[str, ...],
  ):
    self._source = source
    self._boxes = boxes
    self._ids = {wnid: i for i, wnid in enumerate(wnids)}

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._source[index]
    name = record["file_name"].decode()
    boxes = self._boxes.get(name.rpartition(".")[0], [])
    return {
      "image": record["image"],
      "file_name": record["file_name"],
      "labels": np.array([record["label"]]),
      "objects": {
        "label": np.array([self._ids[b.wnid] for b in boxes], np.int64),
        "bbox": np.array([b.bbox for b in boxes], np.float32).reshape(-1, 4),
        "difficult": np.array([b.difficult for b in boxes], np.bool_),
      },
    }
