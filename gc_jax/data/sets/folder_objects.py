"""Objects in the pictures of a folder: annotations, checked against them.

Annotations are masks, CSV, VOC XML and COCO JSON. Boxes are in pixels of the
stored frame, before EXIF turns it.
"""

import collections
import dataclasses
import functools
import posixpath
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from gc_jax.data import decode, geometry
from gc_jax.data.sets import (
  coco_json,
  folder_files,
  shapes,
  tables,
  voc_xml,
)
from gc_jax.data.sets.folder_layout import Layout

_SLACK_PX = 1.0  # by which a box may stick out; tools disagree on the last row


@dataclasses.dataclass
class Objects:
  """What the annotations of a folder say. Every annotation is counted once."""

  of_picture: dict[str, dict[str, list]] = dataclasses.field(
    default_factory=dict
  )
  problems: list[str] = dataclasses.field(default_factory=list)  # with places
  num_left_out: int = 0  # for problems; a file that cannot be read is one
  num_masked: int = 0  # boxes that are not used, as their picture has masks
  notes: list[str] = dataclasses.field(default_factory=list)  # on used ones


class _Annotation(NamedTuple):
  """One object, as its file says it."""

  where: str  # file and place, for messages
  picture: str  # as written, with or without its ending
  label: str  # of the class; "" = the only one that the picture shows
  box: shapes.Box | None  # None: that of the mask
  difficult: bool = False
  mask: str = ""  # path below the root
  segmentation: Any = None  # COCO's
  size: tuple[float | int, float | int] | None = None  # of the picture
  sliced: shapes.Box | None = None  # the box of an XML file, see `Dataset`


class _Problem(NamedTuple):
  message: str
  num_left_out: int = 1  # how many annotations it costs


_Found = Iterator[_Annotation | _Problem]


def has_annotations(layout: Layout) -> bool:
  """Returns whether a file says anything of objects."""
  return any(folder_files.kind_of(name) in _READERS for name in layout.files)


def read_objects(layout: Layout) -> Objects:
  """Returns the objects of every picture, and what is wrong with others.

  A picture with masks of its own has no other objects.
  """
  reader = _Reader(layout)
  for kind, read in _READERS.items():  # masks before everything else
    for name in layout.files:
      if folder_files.kind_of(name) == kind:
        try:
          for item in read(layout, PurePosixPath(name)):
            reader.take(item)
        except (ValueError, OSError) as error:
          path, message = str(layout.root / name), str(error)
          named = message if path in message else f"{path}: {message}"
          reader.take(_Problem(named))
  return reader.finish()


# What the files say. Errors of a whole file need not name it.


def _read_mask(layout: Layout, path: PurePosixPath) -> _Found:
  """Reads STEM.png, or STEM.CLASS.png where several are shown."""
  if path.suffix.lower() != ".png":
    raise ValueError("a mask must be a PNG file; others blur or lose it")
  stem, _ = posixpath.splitext(folder_files.mirrored(str(path)))
  label = ""
  pictures = layout.finder.of_stem(stem)
  if not pictures:
    for name in layout.class_names:
      shorter = folder_files.normalized(stem).removesuffix(f".{name}")
      pictures = layout.finder.of_stem(shorter)
      if shorter != stem and pictures:
        label = name
        break
  if len(pictures) != 1:
    raise ValueError(
      f"it must belong to one picture, called {stem} and an ending; there "
      f"are {len(pictures)}: {', '.join(pictures[:5]) or 'none'}"
    )
  where = str(layout.root / path)
  yield _Annotation(where, pictures[0], label, None, mask=str(path))


def _read_csv(layout: Layout, path: PurePosixPath) -> _Found:
  file = layout.root / path
  columns = ("image", "label", *shapes.CORNERS)
  fractions = shapes.Fractions()
  found: list[_Annotation | _Problem] = []
  for line, row in tables.read(file, columns, ("difficult",)):
    where = f"{file}, line {line}"
    if isinstance(row, tables.Problem):
      found.append(_Problem(str(row)))
      continue
    try:
      box = tuple(tables.number(row[corner]) for corner in shapes.CORNERS)
      difficult = tables.boolean(row["difficult"])
    except ValueError as error:
      found.append(_Problem(f"{where}: {error}"))
      continue
    fractions.add(f"line {line}", box, box)
    found.append(_Annotation(where, row["image"], row["label"], box, difficult))
  return _in_pixels(found, fractions, str(file))


def _in_pixels(
  found: list[_Annotation | _Problem], fractions: shapes.Fractions, file: str
) -> _Found:
  """Returns what was found, but no boxes of a file that has fractions."""
  if wrong := str(fractions):
    others = [item for item in found if isinstance(item, _Problem)]
    num_boxes = len(found) - len(others)
    found = [_Problem(f"{file}: {wrong}", num_boxes), *others]
  return iter(found)


def _read_xml(layout: Layout, path: PurePosixPath) -> _Found:
  """Reads VOC's XML of the picture beside it, or whose path it mirrors.

  The <filename> inside chooses between pictures that differ in their ending.
  """
  file = layout.root / path
  content = voc_xml.read(file.read_bytes())
  picture, _ = posixpath.splitext(folder_files.mirrored(str(path)))
  written = PurePosixPath(content.filename.replace("\\", "/"))
  fitting = [
    name
    for name in layout.finder.of_stem(picture)
    if PurePosixPath(name).suffix.casefold() == written.suffix.casefold()
  ]
  if len(fitting) == 1:
    picture = fitting[0]
  fractions = shapes.Fractions()
  found: list[_Annotation | _Problem] = [
    _Problem(f"{file}, {problem}") for problem in content.problems
  ]
  for item in content.objects:
    fractions.add(item.where, item.corners, item.box)
    what = picture, item.name, item.box, item.difficult
    places = {"size": content.size, "sliced": item.box}
    found.append(_Annotation(f"{file}, {item.where}", *what, **places))
  return _in_pixels(found, fractions, str(file))


def _read_json(layout: Layout, path: PurePosixPath) -> _Found:
  file = layout.root / path
  content = coco_json.read(file.read_bytes(), str(file))
  # They cost annotations one by one, or together.
  for i, problem in enumerate(content.problems):
    yield _Problem(problem, 0 if i else content.num_left_out)
  for item in content.annotations:
    yield _Annotation(
      f"{file}, {item.where}",
      item.image.file_name,
      item.label,
      item.box,
      segmentation=item.segmentation,
      size=item.image.size,
    )


_READERS = {
  "mask": _read_mask,
  "boxes": _read_csv,
  "xml": _read_xml,
  "json": _read_json,
}


class _Reader:
  """Checks annotations against their pictures, one by one."""

  def __init__(self, layout: Layout):
    self._layout = layout
    self._objects = Objects()
    self._masked: set[str] = set()
    # What is used otherwise than written -> how often, and where first.
    self._notes: collections.Counter[str] = collections.Counter()
    self._first: dict[str, str] = {}
    self._header = functools.cache(self._read_header)

  def take(self, item: _Annotation | _Problem) -> None:
    """Adds an object to its picture, or counts it as a problem."""
    if isinstance(item, _Annotation):
      try:
        self._add(item)
        return
      except (ValueError, OSError) as error:
        item = _Problem(f"{item.where}: {error}")
    self._objects.problems.append(item.message)
    self._objects.num_left_out += item.num_left_out

  def finish(self) -> Objects:
    self._objects.notes = [
      f"{count:,} {what} (the first: {self._first[what]})"
      for what, count in self._notes.items()
    ]
    return self._objects

  def _note(self, what: str, annotation: _Annotation, count: int = 1) -> None:
    self._notes[what] += count
    self._first.setdefault(what, annotation.where)

  def _add(self, annotation: _Annotation) -> None:
    picture = self._layout.finder(annotation.picture)
    if picture in self._masked and not annotation.mask:
      self._objects.num_masked += 1
      self._note("boxes are not used, as their pictures have masks", annotation)
      return
    label = self._label(annotation, picture)
    header = self._header(picture)
    size = header.stored_size
    _check_size(annotation, header)
    if annotation.mask:
      mask, box = annotation.mask, self._box_of_mask(annotation.mask, header)
    else:
      mask, box = self._segmentation(annotation, size)
    _check_box(box, annotation.picture, size)
    if annotation.mask:
      self._masked.add(picture)
    found = self._objects.of_picture.setdefault(
      picture,
      {"label": [], "bbox": [], "sliced": [], "difficult": [], "mask": []},
    )
    found["label"].append(label)
    found["bbox"].append(
      [float(min(max(side, 0), 1)) for side in shapes.scaled_box(box, size)]
    )
    sliced = annotation.sliced
    found["sliced"].append(shapes.scaled_box(sliced, size) if sliced else ())
    found["difficult"].append(annotation.difficult)
    found["mask"].append(mask or "")

  def _label(self, annotation: _Annotation, picture: str) -> int:
    if annotation.label:
      return self._layout.class_id(annotation.label)
    shown = sorted(set(self._layout.labels[picture]))
    if len(shown) == 1:
      return shown[0]
    names = [self._layout.class_names[k] for k in shown[:5]]
    mended = "its label must name one"
    if annotation.mask:
      mended = "the mask must be called STEM.CLASS.png"
    raise ValueError(
      f"the picture shows {len(shown)} classes ({', '.join(names) or 'none'}), "
      f"so that {mended}"
    )

  def _read_header(self, picture: str) -> decode.Header:
    try:
      encoded = (self._layout.root / picture).read_bytes()
      header = decode.read_header(encoded)
    except (OSError, decode.DecodeError) as error:
      raise ValueError(f"{picture} cannot be read: {error}") from error
    return header._replace(encoded=b"")  # many are kept

  def _box_of_mask(self, mask: str, header: decode.Header) -> shapes.Box:
    encoded = (self._layout.root / mask).read_bytes()
    inside = geometry.stored_mask(decode.read_header(encoded), header)
    box = shapes.box_of_mask(inside)
    if box is None:
      raise ValueError(
        "a mask must have pixels inside of its object, white ones or of one "
        "level other than 0, and has none"
      )
    return box

  def _segmentation(
    self, annotation: _Annotation, size: tuple[int, int]
  ) -> tuple[list | dict | None, shapes.Box]:
    """Returns the parts that cover pixels of the picture, and the box."""
    box = annotation.box
    has_extent = box is not None and shapes.has_extent(box)
    try:
      cleaned, num_left_out = shapes.clean(annotation.segmentation, size)
    except ValueError as error:
      if not has_extent or isinstance(error, shapes.OtherSizeError):
        raise
      message = f"{annotation.where}: {error}; its box can be used"
      self.take(_Problem(message, num_left_out=0))
      return None, box
    if num_left_out and cleaned is None:
      odd = "segmentations cover no pixel; their boxes are used"
      self._note(odd, annotation)
    elif num_left_out:
      odd = "polygons that cover no pixel are left out of their masks"
      self._note(odd, annotation, num_left_out)
    if box is None and cleaned is None:
      raise ValueError(
        "it must have a bbox, or a segmentation that covers pixels of its "
        "picture, and has neither"
      )
    if cleaned is not None and not has_extent:
      self._note("boxes without extent are taken from their masks", annotation)
      box = shapes.box_of_mask(shapes.draw(cleaned, size))
    return cleaned, box


def _check_size(annotation: _Annotation, header: decode.Header) -> None:
  size, stored = annotation.size, header.stored_size
  if size is None or size == stored:
    return
  turned = ""
  if size == header.size:
    turned = " and turned by its EXIF; boxes must be those of the stored frame"
  raise ValueError(
    f"it is of a picture of {size[0]:g}x{size[1]:g} pixels and "
    f"{annotation.picture} is stored with {stored[0]}x{stored[1]}{turned}"
  )


def _check_box(box: shapes.Box, picture: str, size: tuple[int, int]) -> None:
  width, height = size
  xmin, ymin, xmax, ymax = box
  words = " ".join(
    f"{name}={side:g}" for name, side in zip(shapes.CORNERS, box, strict=True)
  )
  if not shapes.has_extent(box):
    raise ValueError(
      f"the box must have xmin < xmax and ymin < ymax, and is {words}"
    )
  if (
    min(xmin, ymin) < -_SLACK_PX
    or xmax > width + _SLACK_PX
    or ymax > height + _SLACK_PX
    or max(xmin / width, ymin / height) >= 1
    or min(xmax, ymax) <= 0
  ):
    raise ValueError(
      f"the box must lie within the {width}x{height} pixels of {picture}, and "
      f"is {words}"
    )
