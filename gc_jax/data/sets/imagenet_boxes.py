"""Reads the boxes of ImageNet: archives of VOC XML, one file a picture."""

import collections
import dataclasses
import pathlib
import posixpath

from gc_jax.data.sets import boxes, folder_files, voc_xml
from gc_jax.data.sets.imagenet_files import damaged, opened

ARCHIVES = {
  "train": "ILSVRC2012_bbox_train_v2.tar.gz",
  "validation": "ILSVRC2012_bbox_val_v3.tgz",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
  """An annotated object: ymin xmin ymax xmax in 0..1 of the picture."""

  wnid: str
  bbox: tuple[float, float, float, float]
  difficult: bool


def read_boxes(
  path: pathlib.Path, counts: collections.Counter[str]
) -> dict[str, list[Box]]:
  """Reads an archive of VOC XML, one file for each picture.

  Args:
    path: the archive; how its folders are called does not matter.
    counts: of boxes read, clipped or left out; added to.

  Returns:
    Stem of the picture ("ILSVRC2012_val_00000001") to its objects. Training
    boxes take about 0.3 GB.

  Raises:
    ValueError: if a file cannot be understood, there is none, or all boxes
      are fractions.
  """
  found: dict[str, list[Box]] = {}
  others = []
  fractions = boxes.Fractions()
  with opened(path) as tar:
    for member in tar:
      name = member.name.rsplit("/", 1)[-1]
      stem, ending = posixpath.splitext(name)
      tar.members = []  # tarfile remembers every member otherwise
      if not member.isfile() or name.startswith("."):
        continue
      if ending.lower() != ".xml":
        others.append(name)
        continue
      if stem in found:
        counts["annotations left out: second of a picture"] += 1
        continue
      try:
        content = voc_xml.read(tar.extractfile(member).read())
        found[stem] = _boxes(content, counts)
      except ValueError as error:
        raise damaged(path, f"{member.name}: {error}") from error
      counts["boxes read"] += len(content.objects)
      for item in content.objects:
        xmin, ymin, xmax, ymax = item.corners
        fractions.add(
          f"{member.name}, {item.where}",
          item.corners,
          (xmin - 1, ymin - 1, xmax, ymax),
        )
  if not found:
    held = folder_files.endings(others) or "nothing"
    raise ValueError(
      f"{path} must hold an .xml file for each picture, and holds none: it "
      f"holds {held}. Take the official archive, or go on without one."
    )
  if wrong := str(fractions):
    raise ValueError(f"{path}: {wrong}.")
  return found


def parse_boxes(xml: bytes, counts: collections.Counter[str]) -> list[Box]:
  """Returns the objects of one file.

  Corners are pixels counted from 1, both inclusive: pixels min - 1 up to, not
  with, max. Some were drawn counting from 0, so that a 0 is no error. They
  relate to the size that the file tells, which need not be the picture's.

  Raises:
    ValueError: if it cannot be understood.
  """
  return _boxes(voc_xml.read(xml), counts)


def _boxes(
  content: voc_xml.Content, counts: collections.Counter[str]
) -> list[Box]:
  if content.problems:
    raise ValueError(content.problems[0])
  if content.size is None:
    raise ValueError("its size must be positive, and is not known")
  width, height = content.size
  found = []
  for item in content.objects:
    xmin, ymin, xmax, ymax = item.corners
    if xmin > xmax or ymin > ymax:
      counts["boxes left out: inverted"] += 1
      continue
    left, right = max(xmin - 1, 0), min(xmax, width)
    top, bottom = max(ymin - 1, 0), min(ymax, height)
    if left >= right or top >= bottom:
      counts["boxes left out: outside the picture"] += 1
      continue
    if min(xmin, ymin) < 0 or xmax > width or ymax > height:
      counts["boxes clipped to the picture"] += 1
    found.append(
      Box(
        wnid=item.name,
        bbox=(top / height, left / width, bottom / height, right / width),
        difficult=item.difficult,
      )
    )
  return found
