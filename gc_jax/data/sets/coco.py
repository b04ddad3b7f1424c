"""COCO 2014 with a mask for every annotated object, from its official files.

`--config.data.path` is a folder with train2014.zip, val2014.zip (each only if
that split is used) and annotations_trainval2014.zip, or with what they unpack
to.

Each annotation keeps its own mask: the record then tells how many objects a
class has, which draws the explained class by instances, and where each is. As
one-bit PNG they take 0.6 KB each (measured on VOC masks at 640x480), a fortieth
of what the pictures take, and 3 ms to draw: under an hour for all of COCO.

An annotation without a segmentation, or whose polygons cover no pixel, gets its
filled box as its mask; one without a box gets that of its mask. These are
counted in the line that ends the preparation. Any other fault in the
annotations stops it before anything is copied; the message names the entries.
"""

import collections
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from gc_jax.data import decode
from gc_jax.data.dataset import Dataset
from gc_jax.data.sets import coco_json, official, shapes
from gc_jax.runtime.messages import listed

PICTURES = {"train": "train2014", "validation": "val2014"}
JSON = {
  split: f"annotations/instances_{name}.json"
  for split, name in PICTURES.items()
}
ANNOTATIONS = "annotations_trainval2014.zip"
RELEASE = official.Release(
  entry="coco",
  name="coco2014",
  version="1.0.0",
  files={
    split: (f"{name}.zip", ANNOTATIONS, JSON[split])
    for split, name in PICTURES.items()
  },
  folder=f"train2014.zip, val2014.zip and {ANNOTATIONS}, or of what they hold",
  where="The files come from https://cocodataset.org/#download (2014 Train "
  "images, 2014 Val images, 2014 Train/Val annotations); set "
  "--config.data.path to the folder that holds them, zipped or unpacked.",
  masks=True,
)
_SHARD_IMAGES = 2_000  # about 0.3 GB: what a kill costs at most


class Annotations(NamedTuple):
  """What instances_*2014.json says of one split, in COCO's order.

  COCO's own category ids are 80 of the numbers 1..90; class ids leave no gaps.
  """

  file: str  # where it was read
  names: tuple[str, ...]  # of the classes
  images: list[coco_json.Image]
  of_image: Mapping[int, list[coco_json.Annotation]]  # by their image's id


def read_annotations(path: pathlib.Path, split: str) -> Annotations:
  """Reads and checks what a split's annotations say; takes 3 GB for a while."""
  name, archive_path = JSON[split], path / ANNOTATIONS
  if (path / name).is_file():
    file, data = str(path / name), (path / name).read_bytes()
  elif archive_path.is_file():
    file = f"{archive_path}/{name}"
    with RELEASE.opened(archive_path) as archive:
      if name not in archive.namelist():
        raise RELEASE.damaged(archive_path, f"it has no {name}")
      data = archive.read(name)
  else:
    raise RELEASE.missing(path, f"{ANNOTATIONS} or {name}")
  content = coco_json.read(data, file)
  problems = [*content.problems, *_wrong_segmentations(content)]
  if not (content.annotations or problems):
    problems = [f"{file} must have one annotation or more, and has none"]
  if problems:
    raise ValueError(
      f"The annotations must be whole and agree; {len(problems):,} entries do "
      "not:\n  "
      + listed(problems, between="\n  ")
      + f"\nCorrect them, or take the official file. {RELEASE.where}"
    )
  of_image = collections.defaultdict(list)
  for annotation in content.annotations:
    of_image[annotation.image.id].append(annotation)
  names = tuple(content.categories[i] for i in sorted(content.categories))
  return Annotations(file, names, content.images, dict(of_image))


def _wrong_segmentations(content: coco_json.Content) -> Iterator[str]:
  """Yields what is wrong with segmentations of images of known size."""
  for annotation in content.annotations:
    if annotation.image.size is not None:
      try:
        shapes.clean(annotation.segmentation, annotation.image.size)
      except ValueError as error:
        yield f"{content.file}, {annotation.where}: {error}"


class Coco2014(official.Builder, skip_registration=True):
  """COCO 2014, one split of it, in COCO's order.

  `labels` has an entry for each annotation, crowds included. Images without
  annotations are in validation, where they count for F1; not in train.

  Source: METHOD "release". Differs: the release trains on the next image in
  place of an unlabelled one.
  """

  RELEASE = RELEASE
  name = RELEASE.name
  VERSION = tfds.core.Version(RELEASE.version)

  def __init__(self, path: pathlib.Path, split: str, **kwargs: Any):
    self.annotations = read_annotations(path, split)
    names = self.annotations.names
    self._class_ids = {name: i for i, name in enumerate(names)}
    super().__init__(path, split, names, **kwargs)
    self._images = self.annotations.images
    of_image = self.annotations.of_image
    annotated = [image for image in self._images if image.id in of_image]
    if empty := len(self._images) - len(annotated):
      what = "left out" if split == "train" else "kept"
      self.archive_counts[f"images without annotations {what}"] = empty
    if split == "train":
      self._images = annotated

  def num_examples(self) -> int:
    """See the base class."""
    return len(self._images)

  def parts(self) -> list[list[coco_json.Image]]:
    """See the base class."""
    self._pictures = self._find_pictures()
    starts = range(0, len(self._images), _SHARD_IMAGES)
    return [self._images[i : i + _SHARD_IMAGES] for i in starts]

  def examples(
    self, part: list[coco_json.Image]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    """See the base class."""
    where = self._pictures
    if where.is_dir():
      for image in part:
        encoded = (where / image.file_name).read_bytes()
        yield image.file_name, self._example(image, encoded)
      return
    with RELEASE.opened(where) as archive:
      for image in part:
        encoded = archive.read(f"{where.stem}/{image.file_name}")
        yield image.file_name, self._example(image, encoded)

  def _find_pictures(self) -> pathlib.Path:
    """Returns the folder or the zip that holds every picture."""
    name = PICTURES[self.split]
    folder, zipped = self.path / name, self.path / f"{name}.zip"
    if folder.is_dir():
      where, there = folder, {entry.name for entry in folder.iterdir()}
    elif zipped.is_file():
      with RELEASE.opened(zipped) as archive:
        there = {file.removeprefix(f"{name}/") for file in archive.namelist()}
      where = zipped
    else:
      raise RELEASE.missing(self.path, f"{name}.zip or {name}/")
    wanted = {image.file_name for image in self.annotations.images}
    if absent := sorted(wanted - there):
      raise RELEASE.damaged(
        where,
        f"{len(absent):,} of {len(wanted):,} pictures that "
        f"{self.annotations.file} names are missing, such as {absent[0]}",
      )
    return where

  def _example(self, image: coco_json.Image, encoded: bytes) -> dict[str, Any]:
    annotations = self.annotations.of_image.get(image.id, [])
    return {
      "image": encoded,
      "file_name": image.file_name,
      # Also of an object whose place is unknown: it is in the picture.
      "labels": [self._class_ids[a.label] for a in annotations],
      "objects": self._objects(image, encoded, annotations),
    }

  def _objects(
    self,
    image: coco_json.Image,
    encoded: bytes,
    annotations: list[coco_json.Annotation],
  ) -> list[dict[str, Any]]:
    if not annotations:
      return []
    size = self._stored_size(image, encoded)
    if size is None:
      turned = "objects left out: their picture is stored turned"
      self.counts[turned] += len(annotations)
      return []
    objects = []
    for annotation in annotations:
      try:
        objects.append(self._object(annotation, size))
      except ValueError as error:
        raise ValueError(
          f"{self.annotations.file}, {annotation.where}: {error}."
        ) from error
    return [found for found in objects if found is not None]

  def _stored_size(
    self, image: coco_json.Image, encoded: bytes
  ) -> tuple[int, int] | None:
    """Returns (width, height) of a picture as stored, which masks must have.

    None where the annotations are of the picture as EXIF turns it.
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
    """Returns an object with box and mask; None if it has neither."""
    cleaned, num_left_out = shapes.clean(annotation.segmentation, size)
    if num_left_out:
      parts = "polygons and run lengths left out: they cover no pixel"
      self.counts[parts] += num_left_out
    mask = shapes.draw(cleaned, size)
    box = annotation.box and shapes.clipped_box(annotation.box, size)
    # The official file rounds to hundredths.
    if box and np.abs(np.subtract(annotation.box, box)).max() > 0.011:
      self.counts["boxes clipped to the picture"] += 1
    if not mask.any():
      if box is None:
        self.counts["objects left out: neither mask nor box"] += 1
        return None
      self.counts["empty masks, replaced by their box"] += 1
      xmin, ymin, xmax, ymax = box
      # Every pixel that the box touches.
      mask[int(ymin) : -int(-ymax // 1), int(xmin) : -int(-xmax // 1)] = True
    elif box is None:
      self.counts["empty boxes, replaced by that of the mask"] += 1
      box = shapes.box_of_mask(mask)
    return {
      "label": self._class_ids[annotation.label],
      "bbox": tfds.features.BBox(*shapes.scaled_box(box, size)),
      "difficult": False,
      "mask": shapes.encode(mask),
    }


def load(
  split: str, *, path: str | os.PathLike, data_dir: str | os.PathLike = ""
) -> Dataset:
  """Returns "train", "validation" or a part of one; see `official.locate`."""
  folder, final = official.locate(RELEASE, split, path, data_dir)
  return official.load(Coco2014, split, folder, final)
