"""ImageNet (ILSVRC2012) from its official files, or as TFDS prepared it.

`--config.data.path` is a folder with the archives as they are downloaded:
ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar (each only if that split is
used), ILSVRC2012_devkit_t12.tar.gz or a list of synsets, and, for the metrics
of explanations, ILSVRC2012_bbox_val_v3.tgz (and _train_v2.tar.gz). Preparing a
split takes the size of its archive once more on disk.

Pictures are known by their ending, in any case; other files in the archives are
passed over and counted. A subset has archives of its own under these names, and
a list of synsets in place of the kit.

Or it is a folder with an `imagenet2012` that TFDS prepared as array_record.
TFDS knows no boxes: they are looked up by file name in the official archive
when the data is opened (20 s for the 50,000 of validation).
"""

import collections
import functools
import io
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from gc_jax.data import storage
from gc_jax.data.dataset import Dataset, Records
from gc_jax.data.decode import FORMATS
from gc_jax.data.sets import imagenet_files as files
from gc_jax.data.sets import official
from gc_jax.data.sets.imagenet_files import RELEASE, Box

# A killed run loses at most one shard: about 1.1 GB of training pictures. More
# shards would exceed the usual limit of 1,024 open files.
_NUM_SHARDS = {"train": 128, "validation": 16}
_TFDS_INFO = "dataset_info.json"

_Boxes = Mapping[str, list[Box]]  # by the stem of their picture


class Imagenet(official.Builder, skip_registration=True):
  """ImageNet (ILSVRC2012), one split of it.

  Training pictures stand class by class, as in their archive: `load` mixes
  them. Validation pictures stand in the order of their numbers.
  """

  RELEASE = RELEASE
  name = RELEASE.name
  VERSION = tfds.core.Version(RELEASE.version)

  def __init__(self, path: pathlib.Path, split: str, **kwargs: Any):
    self.archive = path / files.ARCHIVES[split]
    if not self.archive.is_file():
      raise RELEASE.missing(path, self.archive.name)
    self.synsets = files.load_synsets(path)
    self._ids = {wnid: i for i, wnid in enumerate(self.synsets.wnids)}
    super().__init__(path, split, self.synsets.names, **kwargs)
    self._boxes = files.read_boxes(path, split, self.archive_counts)

  def num_examples(self) -> int | None:
    """Returns what the kit counts, or the whole of a thousand classes."""
    known = len(self.synsets.validation)
    if self.split == "train":
      known = sum(self.synsets.num_train.values())
    if not known and len(self._ids) == files.NUM_CLASSES:
      known = files.NUM_EXAMPLES[self.split]
    return known or None

  def parts(self) -> list[list[Any]]:
    """Returns the wnids of training, the pictures of validation."""
    if self.split == "train":
      wnids = self.synsets.wnids
      self._class_archives = files.class_archives(
        self.archive, wnids, self.archive_counts
      )
      groups = np.array_split(wnids, min(_NUM_SHARDS["train"], len(wnids)))
      return [group.tolist() for group in groups]
    members = files.pictures(self.archive, self.archive_counts)
    members.sort(key=files.name_of)
    if wanted := self.num_examples():
      files.check_count(self.archive, "it", len(members), wanted)
    size = -(-len(members) // _NUM_SHARDS["validation"])
    return [members[i : i + size] for i in range(0, len(members), size)]

  def examples(self, part: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """See the base class."""
    if self.split == "validation":
      for name, image in files.read_members(self.archive, part):
        yield self._example(name, image, self._true_wnid(name))
      return
    for wnid in part:
      inside = self._class_archives[wnid]
      members = files.pictures(self.archive, self.counts, inside)
      wanted = self.synsets.num_train.get(wnid, len(members))
      files.check_count(self.archive, wnid, len(members), wanted)
      for name, image in files.read_members(self.archive, members, inside):
        yield self._example(name, image, wnid)

  def _true_wnid(self, name: str) -> str:
    """Returns the class of a validation picture.

    Without the kit it is that of the first box: every picture has one.
    """
    stem = name.rpartition(".")[0]
    if truth := self.synsets.validation:
      number = re.fullmatch(r"ILSVRC2012_val_(\d{8})", stem)
      at = int(number[1]) if number else 0
      if not 1 <= at <= len(truth):
        raise ValueError(
          f"{self.archive} must hold ILSVRC2012_val_00000001.JPEG up to number "
          f"{len(truth)}; it holds {name}."
        )
      return truth[at - 1]
    first = self._boxes.get(stem)
    if not first or first[0].wnid not in self._ids:
      raise ValueError(
        f"The class of {name} must be known: {files.DEVKIT} tells it, or "
        f"{files.BOXES['validation']}; add the first to "
        f"--config.data.path={str(self.path)!r}."
      )
    return first[0].wnid

  def _example(
    self, name: str, image: bytes, wnid: str
  ) -> tuple[str, dict[str, Any]]:
    if kind := picture_kind(image):
      self.counts[kind] += 1
    objects = self._boxes.get(name.rpartition(".")[0], [])
    if self._boxes and not objects:
      self.counts["pictures without a box"] += 1
    known = []
    for box in objects:
      # Some training boxes name their class in words: the picture's own.
      named = box.wnid if re.fullmatch(r"n\d{8}", box.wnid) else wnid
      if named in self._ids:
        known.append(
          {
            "label": self._ids[named],
            "bbox": tfds.features.BBox(*box.bbox),
            "sliced": np.array(box.sliced, np.float32),
            "difficult": box.difficult,
          }
        )
    if len(known) < len(objects):
      self.counts["boxes left out: unknown class"] += len(objects) - len(known)
    if known:
      self.counts["boxes used"] += len(known)
    return name, {
      "image": image,
      "file_name": name,
      "labels": [self._ids[wnid]],
      "objects": known,
    }


def picture_kind(encoded: bytes) -> str:
  """Returns what is unusual about a picture; "" if nothing is.

  By content, not by name: 22 training pictures are CMYK and one named .JPEG is
  a PNG, and copies of the data differ in which of them were mended.
  """
  try:
    with PIL.Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
      if image.format != "JPEG":
        return f"pictures that are {image.format}"
      kinds = {"RGB": "", "L": "grey pictures"}
      return kinds.get(image.mode, f"{image.mode} pictures")
  except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
    return "pictures that cannot be opened"


def load(
  split: str, *, path: str | os.PathLike, data_dir: str | os.PathLike = ""
) -> Dataset:
  """Returns "train", "validation" or a part of one; see `official.locate`.

  Training pictures are numbered in a mixed order, so that a part shows every
  class.
  """
  folder, final = official.locate(RELEASE, split, path, data_dir)
  if not final.exists() and (prepared := find_tfds(folder)):
    return _load_tfds(split, prepared, folder)
  is_mixed = split.startswith("train")
  return official.load(Imagenet, split, folder, final, is_mixed=is_mixed)


def find_tfds(path: pathlib.Path) -> pathlib.Path | None:
  """Returns the newest version of imagenet2012 in a folder, or the folder."""
  if (path / _TFDS_INFO).exists():
    return path
  found = [info.parent for info in path.glob(f"imagenet2012/*/{_TFDS_INFO}")]
  return max(found, key=lambda p: tfds.core.Version(p.name), default=None)


def _load_tfds(
  split: str, prepared: pathlib.Path, path: pathlib.Path
) -> Dataset:
  """Returns a split that TFDS prepared, in the mixed order it gave it.

  Only validation gets boxes: training needs none. Their archive in `path`, and
  the kit or list that knows readable names, may be missing.
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
  boxes = _known_boxes(path, wnids) if split.startswith("validation") else {}
  ids = {wnid: i for i, wnid in enumerate(wnids)}
  convert = functools.partial(_with_boxes, boxes, ids)
  names = {wnid: wnid for wnid in wnids}
  if any((path / name).exists() for name in files.CLASS_FILES):
    synsets = files.load_synsets(path)
    names |= zip(synsets.wnids, synsets.names, strict=True)
  return Dataset(
    source=Records(source, storage.positions(builder, split), convert),
    class_names=tuple(names[wnid] for wnid in wnids),
    multi_label=False,
    name=f"tfds/imagenet2012/{builder.version}",
  )


def _known_boxes(path: pathlib.Path, wnids: tuple[str, ...]) -> _Boxes:
  """Returns the boxes of known classes in validation."""
  counts: collections.Counter[str] = collections.Counter()
  every = files.read_boxes(path, "validation", counts)
  known = set(wnids)
  boxes = {k: [b for b in bs if b.wnid in known] for k, bs in every.items()}
  if unknown := sum(len(every[stem]) - len(boxes[stem]) for stem in every):
    counts["boxes left out: unknown class"] = unknown
  odd = "".join(f"; {n:,} {what}" for what, n in sorted(counts.items()))
  if boxes:
    print(f"Read the boxes of {len(boxes):,} pictures{odd}", file=sys.stderr)
  return boxes


def _with_boxes(
  boxes_of: _Boxes, ids: Mapping[str, int], record: dict[str, Any]
) -> dict[str, Any]:
  """Returns a record of TFDS in the form of `Dataset`."""
  name = record["file_name"].decode()
  boxes = boxes_of.get(name.rpartition(".")[0], [])
  return {
    "image": record["image"],
    "file_name": record["file_name"],
    "labels": np.array([record["label"]]),
    "objects": {
      "label": np.array([ids[b.wnid] for b in boxes], np.int64),
      "bbox": np.array([b.bbox for b in boxes], np.float32).reshape(-1, 4),
      "sliced": [b.sliced for b in boxes],
      "difficult": np.array([b.difficult for b in boxes], np.bool_),
    },
  }
