"""COCO 2014 with a mask for every annotated object, from its official files.

`--config.data.path` is a folder with train2014.zip, val2014.zip (each only if
that split is used) and annotations_trainval2014.zip, or with what they unpack
to. Pictures are copied byte by byte into array_record files; afterwards the
archives are not needed.

A mask is kept for each annotation, not for each class: the record then still
tells how many objects a class has, which draws the explained class by
instances, and where each of them is. A union is one `|` away. As one-bit PNG
they take 0.6 KB each (measured on VOC masks at 640x480), a fortieth of what
the pictures take, and 3 ms to draw and encode: under an hour for all of COCO.

An annotation without a segmentation, or whose polygons cover no pixel, has its
filled box for a mask; one without a box has that of its mask. These are counted
in the line that ends the preparation. Whatever else is wrong with annotations
stops it before anything is copied, and is told entry by entry.
"""

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool

from gc_jax.data import DATASETS, decode, records, shards
from gc_jax.data.dataset import Dataset
from gc_jax.data.sets import boxes, coco_json, segmentation
from gc_jax.data.sets import coco_files as files
from gc_jax.runtime.messages import unknown_name_message

SPLITS = ("train", "validation")
VERSION = "1.0.0"  # raise it when any record changes
_SHARD_IMAGES = 2_000  # about 0.3 GB: what a kill costs at most


class Coco2014(shards.ShardedBuilder, skip_registration=True):
  """Writes one split of COCO 2014 as array_record files, in COCO's order.

  `labels` has an entry for each annotation, crowds included. Images without
  annotations are in validation, where they count for F1; not in train, where
  there is nothing to learn from them.

  Source: METHOD "release": crowds count, validation keeps unlabelled images.
  Differs: the release trains on the next image in place of an unlabelled one.
  """

  name = "coco2014"
  VERSION = tfds.core.Version(VERSION)

  def __init__(self, *, path: pathlib.Path, split: str, **kwargs: Any):
    self.path, self.split = path, split
    counts: collections.Counter[str] = collections.Counter()
    self.annotations = files.read_annotations(path, split, counts)
    self._class_ids = {name: i for i, name in enumerate(self.annotations.names)}
    super().__init__(config=tfds.core.BuilderConfig(name=split), **kwargs)
    self.archive_counts.update(counts)

  def _create_builder_config(self, builder_config, version):
    return builder_config

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=records.features(
        self.annotations.names, masks=True, file_names=True
      ),
      license=DATASETS["coco"].license,
      disable_shuffling=True,
    )

  def sources(self) -> dict[str, int]:
    """See the base class."""
    return files.sources(self.path, self.split)

  @functools.cached_property
  def _images(self) -> list[coco_json.Image]:
    of_image = self.annotations.of_image
    images = self.annotations.images
    annotated = [image for image in images if image.id in of_image]
    empty = len(images) - len(annotated)
    if not empty:
      return images
    what = "left out" if self.split == "train" else "kept"
    self.archive_counts[f"images without annotations {what}"] = empty
    return annotated if self.split == "train" else images

  def num_examples(self) -> int:
    """See the base class."""
    return len(self._images)

  def _shard_iterators_per_split(
    self, dl_manager: Any
  ) -> dict[str, list[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
    read = files.picture_reader(self.path, self.split, self.annotations)

    def examples(images):
      for image, encoded in read(images):
        yield image.file_name, self._example(image, encoded)

    return {
      self.split: [
        functools.partial(examples, self._images[start : start + _SHARD_IMAGES])
        for start in range(0, len(self._images), _SHARD_IMAGES)
      ]
    }

  def _example(self, image: coco_json.Image, encoded: bytes) -> dict[str, Any]:
    annotations = self.annotations.of_image.get(image.id, [])
    objects = self._objects(image, encoded, annotations) if annotations else []
    return {
      "image": encoded,
      "file_name": image.file_name,
      # Also of an object whose place is unknown: it is in the picture.
      "labels": [self._class_ids[a.label] for a in annotations],
      "objects": objects,
    }

  def _objects(
    self,
    image: coco_json.Image,
    encoded: bytes,
    annotations: list[coco_json.Annotation],
  ) -> list[dict[str, Any]]:
    size = self._size(image, encoded)
    if size is None:
      self.counts["objects left out: their picture is stored turned"] += len(
        annotations
      )
      return []
    objects = []
    for annotation in annotations:
      try:
        found = self._object(annotation, size)
      except ValueError as error:
        raise ValueError(
          f"{self.annotations.file}, {annotation.where}: {error}."
        ) from error
      if found is not None:
        objects.append(found)
    return objects

  def _size(
    self, image: coco_json.Image, encoded: bytes
  ) -> tuple[int, int] | None:
    """Returns (width, height) of a picture as stored, which masks must have.

    None where the annotations are of the picture as EXIF turns it.

    Raises:
      ValueError: they are of a picture of another size, or it is not known.
    """
    try:
      header = decode.read_header(encoded)
    except decode.DecodeError as error:
      if image.size is not None:
        return image.size  # reading the record will say what is wrong
      raise ValueError(
        f"{self.annotations.file} must give {image.file_name} a width and a "
        f"height, as the picture cannot be read: {error}."
      ) from error
    stored = header.stored_size
    if image.size in (None, stored):
      return stored
    if image.size == header.size:
      return None
    raise ValueError(
      f"{self.annotations.file} must be of the pictures that are there; of "
      f"{image.file_name} it says {image.size[0]}x{image.size[1]} pixels, and "
      f"it has {stored[0]}x{stored[1]}. Take the pictures that were annotated."
    )

  def _object(
    self, annotation: coco_json.Annotation, size: tuple[int, int]
  ) -> dict[str, Any] | None:
    """Returns an object with box and mask; None if it has neither.

    The mask decides where the two disagree about whether there is anything.
    """
    width, height = size
    cleaned, num_left_out = segmentation.clean(annotation.segmentation, size)
    if num_left_out:
      self.counts[files.PARTS_LEFT_OUT] += num_left_out
    mask = segmentation.draw(cleaned, size)
    box = self._clipped(annotation.box, size)
    if not mask.any():
      if box is None:
        self.counts["objects left out: neither mask nor box"] += 1
        return None
      self.counts["empty masks, replaced by their box"] += 1
      mask = filled_box(box, height, width)
    elif box is None:
      self.counts["empty boxes, replaced by that of the mask"] += 1
      box = boxes.of_mask(mask)
    xmin, ymin, xmax, ymax = box
    return {
      "label": self._class_ids[annotation.label],
      "bbox": tfds.features.BBox(
        ymin / height, xmin / width, ymax / height, xmax / width
      ),
      "difficult": False,
      "mask": segmentation.encode(mask),
    }

  def _clipped(
    self, box: boxes.Box | None, size: tuple[int, int]
  ) -> boxes.Box | None:
    """Returns a box within the picture; None where nothing is left."""
    if box is None:
      return None
    width, height = map(float, size)
    xmin, ymin, xmax, ymax = box
    clipped = (
      max(xmin, 0.0),
      max(ymin, 0.0),
      min(xmax, width),
      min(ymax, height),
    )
    if not boxes.has_extent(clipped):
      return None
    # The official file rounds to hundredths.
    if max(abs(a - b) for a, b in zip(box, clipped, strict=True)) > 0.011:
      self.counts["boxes clipped to the picture"] += 1
    return clipped


def filled_box(
  box: boxes.Box, height: int, width: int
) -> Bool[np.ndarray, "H W"]:
  """Returns every pixel that the box touches."""
  xmin, ymin, xmax, ymax = box
  mask = np.zeros((height, width), np.bool_)
  mask[int(ymin) : -int(-ymax // 1), int(xmin) : -int(-xmax // 1)] = True
  return mask


class _Records(shards.Reordered):
  """TFDS reads no labels as an empty list, which numpy takes for floats."""

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = super().__getitem__(index)
    return {**record, "labels": np.asarray(record["labels"], np.int64)}


def load(
  split: str, *, path: str | os.PathLike, data_dir: str | os.PathLike = ""
) -> Dataset:
  """Returns a split, made from the archives first where that was not done.

  Args:
    split: of `SPLITS`, or a part of one: "train[:95%]".
    path: the folder of the archives; see the head of this file. "" is enough
      once the split is prepared.
    data_dir: TFDS directory; "" = TFDS's own default.

  Raises:
    ValueError: if the split is unknown, or a file is missing or unsound.
  """
  base = split.split("[")[0]
  if base not in SPLITS:
    raise ValueError(unknown_name_message("split", split, SPLITS))
  given = str(path)
  path = pathlib.Path(os.path.expanduser(path))
  final = shards.folder_of(Coco2014.name, base, VERSION, data_dir)
  if not final.exists() and not (given and path.is_dir()):
    raise ValueError(
      f"--config.data.path={given!r} must be the folder of train2014.zip, "
      f"val2014.zip and {files.ANNOTATIONS_ZIP}, or of what they unpack to. "
      "They come from https://cocodataset.org/#download."
    )
  shards.prepare_shards(
    lambda: Coco2014(path=path, split=base, data_dir=final.parents[2]), final
  )
  shards.read_facts(final, files.sources(path, base) if given else {})
  builder = tfds.builder_from_directory(final)
  numbers = np.concatenate(
    [
      np.arange(part.start, part.stop, dtype=np.int32)
      for part in shards.positions(builder, split)
    ]
  )
  source = builder.as_data_source(base, decoders=records.decoders(masks=True))
  return Dataset(
    source=_Records(source, numbers),
    class_names=tuple(builder.info.features["labels"].feature.names),
    multi_label=True,
    name=Coco2014.name,
  )
