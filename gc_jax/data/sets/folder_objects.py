"""Objects in the pictures of a folder: what annotations say, held against them.

Boxes are in pixels of the stored frame, before EXIF turns it.
"""

import collections
import dataclasses
import functools
from typing import Any

from gc_jax.data import decode, geometry
from gc_jax.data.sets import boxes, folder_annotations, segmentation
from gc_jax.data.sets.folder_annotations import Annotation
from gc_jax.data.sets.folder_layout import Layout

_SLACK_PX = 1.0  # by which a box may stick out; tools disagree on the last row


@dataclasses.dataclass(frozen=True)
class Objects:
  """What the annotations of a folder say. Every annotation is counted once.

  Attributes:
    of_picture: picture -> its objects, as plain values.
    problems: what is wrong, each with its place. A run stops at them, unless
      it is told to go on without.
    num_left_out: annotations that are not used because of problems. A file
      that cannot be read is one.
    num_masked: boxes that are not used, as their picture has masks.
    notes: what is used otherwise than written, and how often.
  """

  of_picture: dict[str, dict[str, list]] = dataclasses.field(
    default_factory=dict
  )
  problems: list[str] = dataclasses.field(default_factory=list)
  num_left_out: int = 0
  num_masked: int = 0
  notes: list[str] = dataclasses.field(default_factory=list)


def read_objects(layout: Layout) -> Objects:
  """Returns the objects of every picture, and what is wrong with others.

  A picture with masks of its own has no other objects.
  """
  found = _Found(layout)
  for item in folder_annotations.read(layout):
    if isinstance(item, folder_annotations.Problem):
      found.add_problem(*item)
      continue
    try:
      found.add(item)
    except (ValueError, OSError) as error:
      found.add_problem(f"{item.where}: {error}")
  return found.objects()


class _Found:
  """What has been found so far; see `Objects`."""

  def __init__(self, layout: Layout):
    self._layout = layout
    self._objects: dict[str, dict[str, list]] = {}
    self._problems: list[str] = []
    self._num_left_out = self._num_masked = 0
    self._masked: set[str] = set()
    self._notes: collections.Counter[str] = collections.Counter()
    self._first: dict[str, str] = {}
    self._header = functools.cache(self._read_header)

  def objects(self) -> Objects:
    notes = [
      f"{count:,} {what} (the first: {self._first[what]})"
      for what, count in self._notes.items()
    ]
    return Objects(
      self._objects,
      self._problems,
      self._num_left_out,
      self._num_masked,
      notes,
    )

  def add_problem(self, message: str, num_left_out: int = 1) -> None:
    self._problems.append(message)
    self._num_left_out += num_left_out

  def add(self, annotation: Annotation) -> None:
    """Adds an object to its picture.

    Raises:
      ValueError, OSError: it cannot be used; does not name its place.
    """
    picture = self._layout.finder(annotation.picture)
    if picture in self._masked and not annotation.mask:
      self._num_masked += 1
      self._note("boxes are not used, as their pictures have masks", annotation)
      return
    label = self._label(annotation, picture)
    header = self._header(picture)
    _check_size(annotation, header)
    mask: Any = annotation.mask
    if mask:
      box = self._box_of_mask(mask, header)
    else:
      mask = self._segmentation(annotation, header.stored_size)
      box = self._box(annotation, mask, header.stored_size)
    scaled = _scaled(box, annotation.picture, header.stored_size)
    if annotation.mask:
      self._masked.add(picture)
    found = self._objects.setdefault(
      picture, {"label": [], "bbox": [], "difficult": [], "mask": []}
    )
    found["label"].append(label)
    found["bbox"].append(scaled)
    found["difficult"].append(annotation.difficult)
    found["mask"].append(mask or "")

  def _note(self, what: str, annotation: Annotation, count: int = 1) -> None:
    self._notes[what] += count
    self._first.setdefault(what, annotation.where)

  def _label(self, annotation: Annotation, picture: str) -> int:
    if annotation.label:
      return self._layout.class_id(annotation.label)
    shown = sorted(set(self._layout.labels[picture]))
    if len(shown) == 1:
      return shown[0]
    names = [self._layout.class_names[k] for k in shown[:5]]
    mended = (
      "the mask must be called STEM.CLASS.png"
      if annotation.mask
      else "its label must name one"
    )
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
    return dataclasses.replace(header, encoded=b"")  # many are kept

  def _box_of_mask(self, mask: str, header: decode.Header) -> boxes.Box:
    encoded = (self._layout.root / mask).read_bytes()
    inside = geometry.stored_mask(decode.read_header(encoded), header)
    box = boxes.of_mask(inside)
    if box is None:
      raise ValueError(
        "a mask must have pixels inside of its object, white ones or of one "
        "level other than 0, and has none"
      )
    return box

  def _segmentation(
    self, annotation: Annotation, size: tuple[int, int]
  ) -> list | dict | None:
    """Returns what of a segmentation covers pixels of the picture.

    Raises:
      ValueError: it cannot be used, and there is no box that could stand.
    """
    try:
      cleaned, num_left_out = segmentation.clean(annotation.segmentation, size)
    except segmentation.OtherSizeError:
      raise
    except ValueError as error:
      if annotation.box is None or not boxes.has_extent(annotation.box):
        raise
      self.add_problem(f"{annotation.where}: {error}; its box can stand", 0)
      return None
    if num_left_out and cleaned is None:
      self._note("segmentations cover no pixel; their boxes stand", annotation)
    elif num_left_out:
      self._note(
        "polygons that cover no pixel are left out of their masks",
        annotation,
        num_left_out,
      )
    return cleaned

  def _box(
    self,
    annotation: Annotation,
    mask: list | dict | None,
    size: tuple[int, int],
  ) -> boxes.Box:
    box = annotation.box
    if box is not None and (mask is None or boxes.has_extent(box)):
      return box
    if mask is None:
      raise ValueError(
        "it must have a bbox, or a segmentation that covers pixels of its "
        "picture, and has neither"
      )
    self._note("boxes without extent are taken from their masks", annotation)
    return boxes.of_mask(segmentation.draw(mask, size))


def _check_size(annotation: Annotation, header: decode.Header) -> None:
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


def _scaled(box: boxes.Box, picture: str, size: tuple[int, int]) -> list[float]:
  """Returns ymin xmin ymax xmax in 0..1."""
  width, height = size
  xmin, ymin, xmax, ymax = box
  if not boxes.has_extent(box):
    raise ValueError(
      "the box must have xmin < xmax and ymin < ymax, and is "
      f"{boxes.words(box)}"
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
      f"is {boxes.words(box)}"
    )
  scaled = ymin / height, xmin / width, ymax / height, xmax / width
  return [float(min(max(value, 0), 1)) for value in scaled]
