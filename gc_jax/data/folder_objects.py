"""Objects in the pictures of a folder: from masks, CSV, VOC XML, COCO JSON.

Every reader yields what a file says; `read_objects` holds it against the
pictures. Boxes are in pixels of the stored frame, before EXIF turns it.
"""

import dataclasses
import functools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import PIL.Image

from gc_jax.data import decode, geometry
from gc_jax.data.dataset import unknown_name_message
from gc_jax.data.folder_layout import Finder, Layout, read_table

BOXES_FILE = "boxes.csv"
_SLACK_PX = 1.0  # by which a box may stick out; tools disagree on the last row


class Problem(ValueError):
  """What is wrong with one annotation, and where it stands."""


@dataclasses.dataclass(frozen=True)
class Annotation:
  """One object, as its file says it.

  Attributes:
    where: the file and place, for messages.
    picture: as written there.
    label: name of the class; "" = the only one that the picture shows.
    box: xmin ymin xmax ymax in pixels, the last two exclusive; None: of mask.
    difficult: as VOC marks objects that are hard to see.
    mask: path below the root, or COCO's `segmentation`; None: none.
    size: (width, height) that the file gives the picture; None: it does not.
  """

  where: str
  picture: str
  label: str
  box: tuple[float, ...] | None
  difficult: bool = False
  mask: str | list | dict | None = None
  size: tuple[int, int] | None = None


def read_objects(layout: Layout) -> tuple[dict[str, dict], list[str]]:
  """Returns picture -> its objects, as plain values, and what is wrong.

  A picture with masks of its own has no other objects.
  """
  find = Finder(layout.labels)
  ids = {name: i for i, name in enumerate(layout.class_names)}
  objects: dict[str, dict] = {}
  problems = []
  header_of = functools.cache(functools.partial(_header, layout.root))
  masked = set()
  for annotation in _annotations(layout):
    if isinstance(annotation, Problem):
      problems.append(str(annotation))
      continue
    try:
      picture = find(annotation.picture)
      from_mask = annotation.box is None
      if picture in masked and not from_mask:
        continue
      label = _label(annotation, layout, picture, ids)
      box = _checked_box(annotation, layout, header_of(picture))
    except (ValueError, OSError) as error:
      problems.append(f"{annotation.where}: {error}")
      continue
    if from_mask:
      masked.add(picture)
    found = objects.setdefault(
      picture, {"label": [], "bbox": [], "difficult": [], "mask": []}
    )
    found["label"].append(label)
    found["bbox"].append(box)
    found["difficult"].append(annotation.difficult)
    found["mask"].append(annotation.mask or "")
  return objects, problems


# What files meant for other programs, or broken ones, make their readers raise.
_MALFORMED = (
  OSError,
  KeyError,
  TypeError,
  AttributeError,
  ValueError,
  ElementTree.ParseError,
)


def has_annotations(layout: Layout) -> bool:
  """Returns whether a file says anything of objects."""
  return any(True for _ in _files(layout))


def _files(layout: Layout) -> Iterator[tuple[str, PurePosixPath]]:
  """Yields (kind, path below the root): masks before everything else."""
  later = []
  for name in layout.files:
    path = PurePosixPath(name)
    inside = path.parts[0]
    if inside == "masks":
      yield "mask", path
    elif name == BOXES_FILE:
      later.append(("csv", path))
    elif path.suffix == ".xml":
      later.append(("xml", path))
    elif name == "annotations.json" or (
      inside == "annotations" and path.suffix == ".json"
    ):
      later.append(("json", path))
  yield from later


def _annotations(layout: Layout) -> Iterator[Annotation | Problem]:
  masks = _Masks(layout)
  readers = {
    "mask": masks.read,
    "csv": _read_csv,
    "xml": _read_xml,
    "json": _read_json,
  }
  for kind, path in _files(layout):
    try:
      yield from readers[kind](layout.root, path)
    except _MALFORMED as error:
      reason = (
        f"{error} is missing" if isinstance(error, KeyError) else str(error)
      )
      yield Problem(f"{layout.root / path}: {reason}")


class _Masks:
  """Reads `masks/`: STEM.png, or STEM.CLASS.png where several are shown."""

  def __init__(self, layout: Layout):
    self._by_stem: dict[str, list[str]] = {}
    for name in layout.labels:
      stem = PurePosixPath(name).with_suffix("").as_posix()
      self._by_stem.setdefault(stem, []).append(name)
    self._class_names = layout.class_names

  def read(self, root: Path, path: PurePosixPath) -> Iterator[Annotation]:
    if path.suffix != ".png":
      raise ValueError("a mask must be a PNG file; others blur or lose it")
    stem = PurePosixPath(*path.parts[1:]).with_suffix("").as_posix()
    label = ""
    if stem not in self._by_stem:
      for name in self._class_names:
        shorter = stem.removesuffix(f".{name}")
        if shorter in self._by_stem:
          stem, label = shorter, name
          break
    pictures = self._by_stem.get(stem, [])
    if len(pictures) != 1:
      raise ValueError(
        f"it must belong to one picture, called {stem} and an ending; there "
        f"are {len(pictures)}: {', '.join(pictures) or 'none'}"
      )
    yield Annotation(str(root / path), pictures[0], label, None, mask=str(path))


def _read_csv(
  root: Path, path: PurePosixPath
) -> Iterator[Annotation | Problem]:
  corners = ("xmin", "ymin", "xmax", "ymax")
  for line, row in read_table(root / path, ("image", "label", *corners)):
    where = f"{root / path}, line {line}"
    try:
      box = tuple(float(row[corner]) for corner in corners)
    except ValueError as error:
      yield Problem(f"{where}: {error}")
      continue
    difficult = row.get("difficult", "").strip() not in ("", "0", "false")
    yield Annotation(where, row["image"], row["label"].strip(), box, difficult)


def _read_xml(root: Path, path: PurePosixPath) -> Iterator[Annotation]:
  """VOC: corners are pixels, counted from 1, both included."""
  tree = ElementTree.parse(root / path).getroot()
  # Beside the picture or mirroring its tree, it is known by its own name.
  below = path.parts[1:] if path.parts[0] == "annotations" else path.parts
  written = tree.findtext("filename") or path.name
  suffix = PurePosixPath(written.replace("\\", "/")).suffix or ".jpg"
  picture = PurePosixPath(*below).with_suffix(suffix).as_posix()
  size = tree.find("size")
  if size is not None:
    size = int(size.findtext("width")), int(size.findtext("height"))
  for i, item in enumerate(tree.iter("object")):
    box = item.find("bndbox")
    if box is None or item.findtext("name") is None:
      raise ValueError(f"object {i + 1} must have a name and a bndbox")
    xmin, ymin, xmax, ymax = (
      float(box.findtext(corner) or "nan")
      for corner in ("xmin", "ymin", "xmax", "ymax")
    )
    yield Annotation(
      f"{root / path}, object {i + 1}",
      picture,
      item.findtext("name").strip(),
      (xmin - 1, ymin - 1, xmax, ymax),
      (item.findtext("difficult") or "0").strip() == "1",
      size=size,
    )


def _read_json(
  root: Path, path: PurePosixPath
) -> Iterator[Annotation | Problem]:
  """COCO: boxes are xmin ymin width height, counted from 0."""
  content = json.loads((root / path).read_text())
  images = {image["id"]: image for image in content["images"]}
  names = {kind["id"]: kind["name"] for kind in content["categories"]}
  for item in content["annotations"]:
    where = f"{root / path}, annotation {item.get('id')}"
    image = images.get(item.get("image_id"))
    label = names.get(item.get("category_id"))
    box = item.get("bbox")
    if image is None or label is None or not _is_box(box):
      yield Problem(
        f"{where}: it must have a bbox of four numbers, and name an image and "
        f"a category of the file; its image is {item.get('image_id')}, its "
        f"category {item.get('category_id')}"
      )
      continue
    mask = item.get("segmentation") or None
    if not isinstance(mask, list | dict | None):
      yield Problem(
        f"{where}: its segmentation must be polygons or run lengths, and is "
        f"{str(mask)[:40]!r}"
      )
      continue
    xmin, ymin, width, height = map(float, box)
    size = None
    if "width" in image and "height" in image:
      size = image["width"], image["height"]
    yield Annotation(
      where,
      image["file_name"],
      label,
      (xmin, ymin, xmin + width, ymin + height),
      mask=mask,
      size=size,
    )


def _is_box(value: Any) -> bool:
  return (
    isinstance(value, list)
    and len(value) == 4
    and all(isinstance(number, int | float) for number in value)
  )


def _label(annotation, layout, picture, ids) -> int:
  if annotation.label:
    if annotation.label not in ids:
      raise ValueError(unknown_name_message("class", annotation.label, ids))
    return ids[annotation.label]
  shown = sorted(set(layout.labels[picture]))
  if len(shown) != 1:
    names = [layout.class_names[k] for k in shown]
    raise ValueError(
      f"the picture shows {len(shown)} classes ({', '.join(names)}), so that "
      "the mask must be called STEM.CLASS.png"
    )
  return shown[0]


def _checked_box(annotation, layout, header) -> list[float]:
  """Returns ymin xmin ymax xmax in 0..1."""
  stored_size = width, height = header.stored_size
  if annotation.size not in (None, stored_size):
    raise ValueError(
      f"it is of a picture of {annotation.size[0]}x{annotation.size[1]} pixels "
      f"and {annotation.picture} is stored with {width}x{height}"
    )
  box = annotation.box
  if box is None:
    box = _box_of_mask(layout.root / annotation.mask, header)
  xmin, ymin, xmax, ymax = box
  if not (xmin < xmax and ymin < ymax):
    raise ValueError(
      f"the box must have xmin < xmax and ymin < ymax, and is {_words(box)}"
    )
  if (
    min(xmin, ymin) < -_SLACK_PX
    or xmax > width + _SLACK_PX
    or ymax > height + _SLACK_PX
    or max(xmin / width, ymin / height) >= 1
  ):
    raise ValueError(
      f"the box must lie within the {width}x{height} pixels of "
      f"{annotation.picture}, and is {_words(box)}"
    )
  scaled = ymin / height, xmin / width, ymax / height, xmax / width
  return [float(min(max(value, 0), 1)) for value in scaled]


def _words(box) -> str:
  names = ("xmin", "ymin", "xmax", "ymax")
  return " ".join(f"{n}={v:g}" for n, v in zip(names, box, strict=True))


def _box_of_mask(path: Path, picture: decode.Header) -> tuple[float, ...]:
  inside = geometry.stored_mask(decode.read_header(path.read_bytes()), picture)
  rows, columns = (np.flatnonzero(inside.any(i)) for i in (1, 0))
  if not len(rows):
    raise ValueError(
      "a mask must have pixels inside of its object, white ones or of one "
      "level other than 0, and has none"
    )
  edges = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
  return tuple(map(float, edges))


def _header(root: Path, picture: str) -> decode.Header:
  """Returns size and orientation, without the bytes: it is kept for each."""
  try:
    header = decode.read_header((root / picture).read_bytes())
    return dataclasses.replace(header, encoded=b"")
  except (OSError, decode.DecodeError) as error:
    raise ValueError(f"{picture} cannot be read: {error}") from error


def draw_segmentation(
  segmentation: Any, width: int, height: int
) -> PIL.Image.Image:
  """Returns the mask that COCO's polygons or run lengths say.

  Raises:
    DecodeError: if they are of a picture of another size, or say nothing.
  """
  try:
    return _drawn(segmentation, width, height)
  except decode.DecodeError:
    raise
  except Exception as error:  # pycocotools raises whatever it meets
    raise decode.DecodeError(
      f"its segmentation cannot be drawn ({type(error).__name__}: {error}); "
      "polygons need three corners, run lengths their size and counts"
    ) from error


def _drawn(segmentation: Any, width: int, height: int) -> PIL.Image.Image:
  from pycocotools import mask as coco_mask

  if isinstance(segmentation, list):  # polygons
    runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
  else:
    runs, counts = segmentation, segmentation["counts"]
    lengths = counts if isinstance(counts, list) else _run_lengths(counts)
    # pycocotools leaves memory as it was, or writes beyond the mask, where
    # they do not add up.
    if (
      segmentation["size"] != [height, width]
      or min(lengths, default=-1) < 0
      or sum(lengths) != height * width
    ):
      raise decode.DecodeError(
        "the run lengths of its mask must be of as many pixels as it has, "
        f"{width}x{height}"
      )
    if isinstance(counts, list):
      runs = coco_mask.frPyObjects(segmentation, height, width)
  return PIL.Image.fromarray(coco_mask.decode(runs) * np.uint8(255))


def _run_lengths(compressed: str) -> list[int]:
  """Returns the run lengths that COCO's characters say.

  Each is a number in groups of five bits, the lowest first, in characters
  from "0"; the sixth bit says that more follow, the fifth of the last is the
  sign. From the fourth number on, they are differences to the one two before.
  """
  lengths: list[int] = []
  number = shift = 0
  for character in compressed:
    bits = ord(character) - ord("0")
    number |= (bits & 31) << shift
    shift += 5
    if bits & 32:
      continue
    if bits & 16:
      number -= 1 << shift
    lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
    number = shift = 0
  return lengths
