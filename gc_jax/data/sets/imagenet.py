"""ImageNet (ILSVRC2012) from its official files, or as TFDS prepared it.

`--config.data.path` is a folder with the archives as they are downloaded:
ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar (each only if that split is
used), ILSVRC2012_devkit_t12.tar.gz or a list of synsets, and, for the metrics
of explanations, ILSVRC2012_bbox_val_v3.tgz (and _train_v2.tar.gz). Pictures are
copied byte by byte into array_record files, which takes their size once more
on disk; afterwards the archives are not needed.

Pictures are known by their ending, in any case: .JPEG, .jpg, .png and others.
What else is in the archives is passed over and counted. A subset has archives
of its own under these names, and a list of synsets in place of the kit.

Or it is a folder with an `imagenet2012` that TFDS prepared as array_record.
"""

import functools
import io
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gc_jax.data import DATASETS, records, shards
from gc_jax.data.dataset import Dataset
from gc_jax.data.sets import imagenet_boxes
from gc_jax.data.sets import imagenet_files as files
from gc_jax.runtime.messages import unknown_name_message

SPLITS = ("train", "validation")
VERSION = "1.0.0"  # raise it when any record changes
# Written again, at most, after a kill: about 1.1 GB of training pictures. More
# files would meet the usual limit of 1,024 open ones.
_NUM_SHARDS = {"train": 128, "validation": 16}
_ORDER_SEED = 0


class Imagenet(shards.ShardedBuilder, skip_registration=True):
  """Writes one split of ImageNet as array_record files.

  Training pictures stand class by class, as in their archive: `load` mixes
  them. Validation pictures stand in the order of their numbers.
  """

  name = "imagenet"
  VERSION = tfds.core.Version(VERSION)

  def __init__(self, *, path: pathlib.Path, split: str, **kwargs: Any):
    self.path, self.split = path, split
    self.archive = files.find(
      path, files.TRAIN if split == "train" else files.VALIDATION
    )
    self.synsets = files.load_synsets(path)
    super().__init__(config=tfds.core.BuilderConfig(name=split), **kwargs)

  def _create_builder_config(self, builder_config, version):
    return builder_config

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      # Images as downloaded: JPEG, one of them PNG; RGB, grey and CMYK.
      features=records.features(
        self.synsets.names, masks=False, file_names=True
      ),
      license=DATASETS["imagenet"].license,
      disable_shuffling=True,
    )

  def sources(self) -> dict[str, int]:
    """See the base class."""
    return sources(self.path, self.split)

  def num_examples(self) -> int | None:
    """Returns what the kit counts, or the whole of a thousand classes."""
    if self.split == "train":
      known = sum(self.synsets.num_train.values())
    else:
      known = len(self.synsets.validation)
    if not known and len(self.synsets.wnids) == files.NUM_CLASSES:
      known = files.NUM_EXAMPLES[self.split]
    return known or None

  def _shard_iterators_per_split(
    self, dl_manager: Any
  ) -> dict[str, list[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
    boxes = self._read_boxes()
    if self.split == "train":
      return {"train": self._train_shards(boxes)}
    return {"validation": self._validation_shards(boxes)}

  def _read_boxes(self) -> dict[str, list[imagenet_boxes.Box]]:
    path = self.path / imagenet_boxes.ARCHIVES[self.split]
    if path.exists():
      return imagenet_boxes.read_boxes(path, self.archive_counts)
    print(
      f"No {path.name} in {self.path}: {self.split} will know no boxes, and "
      "explanations cannot be scored on it",
      file=sys.stderr,
    )
    return {}

  def _train_shards(self, boxes):
    wnids, num_train = self.synsets.wnids, self.synsets.num_train
    archives = files.class_archives(self.archive, self.archive_counts)
    unknown = sorted(archives.keys() - set(wnids))
    missing = sorted(set(wnids) - archives.keys())
    if unknown or missing:
      what = "has" if unknown else "lacks"
      names = ", ".join((unknown or missing)[:5])
      raise ValueError(
        f"{self.archive} must hold one archive for each of the {len(wnids):,} "
        f"classes of the development kit or synset list; it {what} {names}. "
        "Take both from the same release, or fetch the archive again if it is "
        "cut short."
      )

    def examples(group):
      for wnid in group:
        count = 0
        pictures = files.read_class(self.archive, archives[wnid], self.counts)
        for name, image in pictures:
          yield self._example(name, image, wnid, boxes)
          count += 1
        if num_train:
          files.check_count(self.archive, wnid, count, num_train[wnid])

    groups = np.array_split(wnids, min(_NUM_SHARDS["train"], len(wnids)))
    return [functools.partial(examples, group.tolist()) for group in groups]

  def _validation_shards(self, boxes):
    members = files.validation_members(self.archive, self.archive_counts)
    wanted = self.num_examples()
    if wanted:
      files.check_count(self.archive, "it", len(members), wanted)

    def examples(group):
      for name, image in files.read_members(self.archive, group):
        yield self._example(name, image, self._true_wnid(name, boxes), boxes)

    size = -(-len(members) // _NUM_SHARDS["validation"])
    return [
      functools.partial(examples, members[start : start + size])
      for start in range(0, len(members), size)
    ]

  def _true_wnid(
    self, name: str, boxes: Mapping[str, list[imagenet_boxes.Box]]
  ) -> str:
    """Returns the class of a validation picture.

    Without the kit it is that of the first box: every picture has one.
    """
    stem = name.rpartition(".")[0]
    if self.synsets.validation:
      number = re.fullmatch(r"ILSVRC2012_val_(\d{8})", stem)
      at = int(number[1]) if number else 0
      if not 1 <= at <= len(self.synsets.validation):
        raise ValueError(
          f"{self.archive} must hold ILSVRC2012_val_00000001.JPEG up to number "
          f"{len(self.synsets.validation)}; it holds {name}."
        )
      return self.synsets.validation[at - 1]
    first = boxes.get(stem)
    if not first or first[0].wnid not in self.synsets.wnids:
      raise ValueError(
        f"The class of {name} must be known: {files.DEVKIT} tells it, or "
        f"{imagenet_boxes.ARCHIVES['validation']}; add the first to "
        f"--config.data.path={str(self.path)!r}."
      )
    return first[0].wnid

  def _example(self, name, image, wnid, boxes) -> tuple[str, dict[str, Any]]:
    kind = picture_kind(image)
    if kind:
      self.counts[kind] += 1
    objects = boxes.get(name.rpartition(".")[0], [])
    if boxes and not objects:
      self.counts["pictures without a box"] += 1
    # Some training boxes name their class in words: the picture's own.
    wnids = [
      box.wnid if re.fullmatch(r"n\d{8}", box.wnid) else wnid for box in objects
    ]
    known = [
      (self._ids[k], box)
      for k, box in zip(wnids, objects, strict=True)
      if k in self._ids
    ]
    if len(known) < len(objects):
      self.counts["boxes left out: unknown class"] += len(objects) - len(known)
    if known:
      self.counts["boxes used"] += len(known)
    return name, {
      "image": image,
      "file_name": name,
      "labels": [self._ids[wnid]],
      "objects": [
        {
          "label": label,
          "bbox": tfds.features.BBox(*box.bbox),
          "difficult": box.difficult,
        }
        for label, box in known
      ],
    }

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {wnid: i for i, wnid in enumerate(self.synsets.wnids)}


def picture_kind(encoded: bytes) -> str:
  """Says what is unusual about a picture; "" if nothing is.

  By content, not by name: 22 training pictures are CMYK and one named .JPEG is
  a PNG, and copies of the data differ in which of them were mended.
  """
  import PIL.Image

  from gc_jax.data.decode import FORMATS

  try:
    with PIL.Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
      if image.format != "JPEG":
        return f"pictures that are {image.format}"
      return {"RGB": "", "L": "grey pictures"}.get(
        image.mode, f"{image.mode} pictures"
      )
  except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
    return "pictures that cannot be opened"


def sources(path: pathlib.Path, split: str) -> dict[str, int]:
  """Returns name and size of the archives of a split that are in a folder."""
  names = (
    files.TRAIN if split == "train" else files.VALIDATION,
    imagenet_boxes.ARCHIVES[split],
    files.DEVKIT,
    *files.SYNSET_LISTS,
  )
  return {
    name: (path / name).stat().st_size
    for name in names
    if (path / name).is_file()
  }


def load(
  split: str, *, path: str | os.PathLike, data_dir: str | os.PathLike = ""
) -> Dataset:
  """Returns a split, copied from the archives first where that was not done.

  Args:
    split: of `SPLITS`, or a part of one: "train[99%:]". Training pictures are
      numbered in a mixed order, so that a part shows every class.
    path: the folder of the archives; see the head of this file. "" is enough
      once the split is prepared.
    data_dir: TFDS directory; "" = TFDS's own default.

  Raises:
    ValueError: if the split is unknown, or an archive is missing or unsound.
  """
  base = split.split("[")[0]
  if base not in SPLITS:
    raise ValueError(unknown_name_message("split", split, SPLITS))
  given = str(path)
  path = pathlib.Path(os.path.expanduser(path))
  final = shards.folder_of(Imagenet.name, base, VERSION, data_dir)
  if not final.exists():
    from gc_jax.data.sets import imagenet_tfds

    if not (given and path.is_dir()):
      raise ValueError(
        f"--config.data.path={given!r} must be the folder of {files.TRAIN}, "
        f"{files.VALIDATION} and {files.DEVKIT}, or one with an imagenet2012 "
        "that TFDS prepared. The files come from "
        "https://image-net.org/download-images (with an account)."
      )
    if prepared := imagenet_tfds.find(path):
      return imagenet_tfds.load(split, prepared=prepared, path=path)
  shards.prepare_shards(
    lambda: Imagenet(path=path, split=base, data_dir=final.parents[2]), final
  )
  shards.read_facts(final, sources(path, base) if given else {})
  builder = tfds.builder_from_directory(final)
  parts = list(shards.positions(builder, split))
  source = builder.as_data_source(base, decoders=records.decoders(masks=False))
  order = np.arange(len(source), dtype=np.int32)
  if base == "train":
    order = np.random.default_rng(_ORDER_SEED).permutation(order)
  numbers = np.concatenate([order[part.start : part.stop] for part in parts])
  return Dataset(
    source=shards.Reordered(source, numbers),
    class_names=tuple(builder.info.features["labels"].feature.names),
    multi_label=False,
    name=Imagenet.name,
  )
