"""Reads the boxes of ImageNet: archives of VOC XML, one file a picture."""

import collections
import dataclasses
import pathlib
from xml.etree import ElementTree

from gc_jax.data.imagenet_files import damaged, opened

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
    counts: of boxes clipped or left out; added to.

  Returns:
    Stem of the picture ("ILSVRC2012_val_00000001") to its objects. Training
    boxes take about 0.3 GB.

  Raises:
    ValueError: if a file cannot be understood.
  """
  boxes: dict[str, list[Box]] = {}
  with opened(path) as tar:
    for member in tar:
      stem, _, ending = member.name.rsplit("/", 1)[-1].rpartition(".")
      if not member.isfile() or ending != "xml":
        continue
      if stem in boxes:
        counts["annotations left out: second of a picture"] += 1
        continue
      try:
        boxes[stem] = parse_boxes(tar.extractfile(member).read(), counts)
      except (ElementTree.ParseError, ValueError, TypeError) as error:
        raise damaged(path, f"{member.name}: {error}") from error
      tar.members = []  # tarfile remembers every member otherwise
  return boxes


def parse_boxes(xml: bytes, counts: collections.Counter[str]) -> list[Box]:
  """Returns the objects of one file.

  Corners are pixels counted from 1, both inclusive: pixels min - 1 up to, not
  with, max. Some were drawn counting from 0, so that a 0 is no error. They
  relate to the size that the file tells, which need not be the picture's.
  """
  root = ElementTree.fromstring(xml)
  width = float(root.findtext("size/width"))
  height = float(root.findtext("size/height"))
  if min(width, height) <= 0:
    raise ValueError(f"size must be positive, and is {width:g}x{height:g}")
  boxes = []
  for node in root.findall("object"):
    xmin, ymin, xmax, ymax = (
      float(node.findtext(f"bndbox/{corner}"))
      for corner in ("xmin", "ymin", "xmax", "ymax")
    )
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
    boxes.append(
      Box(
        wnid=node.findtext("name").strip(),
        bbox=(top / height, left / width, bottom / height, right / width),
        difficult=(node.findtext("difficult") or "0").strip() == "1",
      )
    )
  return boxes
