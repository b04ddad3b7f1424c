"""Batches of (picture, class) pairs: what evaluation explains.

A picture that shows three classes is three pairs, a row each, so that nothing
is computed for classes that are not there. A picture without any class is one
row without a target: its prediction counts.

Every row is a function of the split and its pair alone. Neither the size of
batches nor the number of processes changes what is measured.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jaxtyping import Bool, Int, UInt8

from gc_jax.data import decode, geometry, pipeline
from gc_jax.data.dataset import ClassIndex, Pairs, Reader
from gc_jax.data.geometry import Grid
from gc_jax.method.types import PairBatch

_TRIES = 20  # at pictures that may be broken
_HEADERS_AT_ONCE = 8


def all_pairs(labels: Sequence[Any]) -> Pairs:
  """Returns every picture with every class it shows, classes ascending.

  `labels` are those of every record, from `Dataset.all_labels`.
  """
  classes = [np.unique(own) if len(own) else [-1] for own in labels]
  counts = np.array([len(own) for own in classes], np.int64)
  index = np.repeat(np.arange(len(labels)), counts)
  target = np.concatenate([np.zeros(0, np.int64), *classes]).astype(np.int64)
  return Pairs(index, target, np.diff(index, prepend=-1) > 0)


def frame_sizes(
  reader: Reader,
  indices: Sequence[int] | np.ndarray,
  shorter_side_px: int,
  round_px: int,
) -> Int[np.ndarray, "N 2"]:
  """Returns (height, width) of pictures as `Frame` makes them; 0 if skipped."""
  own_size = lambda record: decode.read_header(record["image"]).size

  def size(index):
    found = reader.read(int(index), own_size)
    if found is None:
      return 0, 0
    return geometry.frame_size(found, shorter_side_px, round_px)[::-1]

  with ThreadPoolExecutor(_HEADERS_AT_ONCE) as threads:
    sizes = list(threads.map(size, indices))
  return np.asarray(sizes, np.int64).reshape(-1, 2)


class Row(NamedTuple):
  """A pair as a maker gives it."""

  entries: dict[str, Any]  # its part of a `PairBatch`
  # One for each object of the class, in pixels of the image: ymin xmin ymax
  # xmax, half-open. They stay on the host: their number differs by row.
  boxes: Int[np.ndarray, "N 4"] | None = None


@dataclasses.dataclass(frozen=True)
class Square:
  """Makes rows of squares, pictures and annotations alike."""

  reader: Reader
  image_size: int  # side of the square, in pixels
  resize_px: int = 0  # see `geometry.decode_image`
  squash: bool = False  # see `geometry.decode_image`
  tolerance_px: float = 1.0  # how near to the object a point still hits
  grids: tuple[Grid, ...] = ()  # of the maps measured against the annotation
  with_objects: bool = False  # whether rows have `object_mask` and boxes

  def image(self, index: int) -> UInt8[np.ndarray, "S S 3"] | None:
    """Returns a picture alone; None if it is skipped."""
    decoded = lambda record: geometry.decode_image(record["image"], *self._how)
    return self.reader.read(index, decoded)

  def row(self, index: int, target: int) -> Row | None:
    """Returns a pair; None if its picture is skipped."""

    def read(record):
      image = geometry.decode_image(record["image"], *self._how)
      masks = []
      if target >= 0 and (self.grids or self.with_objects):
        masks = geometry.decode_object_masks(record, target, *self._how)
      object_mask = np.zeros(image.shape[:2], bool)
      for mask in masks:
        object_mask |= mask
      entries = _entries(self, record["labels"], image, object_mask)
      if not self.with_objects:
        return Row(entries)
      boxes = [_box(mask) for mask in masks if mask.any()]
      entries["object_mask"] = object_mask
      return Row(entries, np.array(boxes, np.int64).reshape(-1, 4))

    return self.reader.read(index, read)

  def blank(self) -> dict[str, Any]:
    """Returns entries of the same shapes for a row that does not count."""
    shape = self.image_size, self.image_size
    blank = _blank(self, shape)
    if self.with_objects:
      blank["object_mask"] = np.zeros(shape, bool)
    return blank

  @property
  def _how(self):
    return self.image_size, self.resize_px, self.squash


@dataclasses.dataclass(frozen=True)
class Frame:
  """Makes rows of whole pictures.

  Annotations keep their own pixels. All pictures of one `Frame` have the same
  size when the model gets them. A pair is difficult if all objects of its class
  are marked so: the pointing games then leave it out, the content heatmap does
  not.
  """

  reader: Reader
  size: tuple[int, int]  # (height, width) of the images
  shorter_side_px: int  # see `geometry.frame_size`
  round_px: int  # see `geometry.frame_size`
  tolerance_px: float  # as of `Square`, in the annotation's own pixels
  grids: tuple[Grid, ...]  # of the maps measured against the annotation
  # See `geometry.object_masks`. At "release", a pair whose boxes are all empty
  # is annotated: no map can point at it.
  border: str = "clipped"

  def row(self, index: int, target: int) -> Row | None:
    """Returns a pair; None if its picture is skipped."""

    def read(record):
      header = decode.read_header(record["image"])
      how = self.shorter_side_px, self.round_px
      size = geometry.frame_size(header.size, *how)
      object_mask = np.zeros(header.size[::-1], bool)
      masks = geometry.object_masks(record, header, target, self.border)
      for mask in masks:
        object_mask |= np.asarray(mask) > 127
      image = np.asarray(decode.scaled(header, size))
      entries = _entries(self, record["labels"], image, object_mask)
      if self.border == "release":
        entries["annotated"] = np.float32(len(masks) > 0)
      difficult = np.float32(_is_difficult(record, target))
      return Row(entries | {"difficult": difficult})

    return self.reader.read(index, read)

  def blank(self) -> dict[str, Any]:
    """Returns entries of the same shapes for a row that does not count."""
    return _blank(self, self.size)


@dataclasses.dataclass(frozen=True)
class Composite:
  """Makes composites of a pair's picture and three without its class.

  Distractors and the picture's cell follow from the pair: three categories are
  drawn with replacement, and another picture of each, for every data set: the
  release has no program for NQH.
  """

  square: Square  # makes the four pictures
  class_index: ClassIndex

  def row(self, index: int, target: int) -> Row | None:
    """Returns a pair; None if it has no composite."""
    image = self.square.image(index) if target >= 0 else None
    if image is None:
      return None
    generator = np.random.default_rng([index, target])
    cell = int(generator.integers(4))
    tiles = self._distractors(target, generator)
    if len(tiles) < pipeline.NUM_DISTRACTORS:
      return None
    tiles.insert(cell, image)
    composite = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
    return Row({"image": composite, "cell": np.int32(cell)})

  def blank(self) -> dict[str, Any]:
    """Returns entries of the same shapes for a row that does not count."""
    side = 2 * self.square.image_size
    return {"image": np.zeros((side, side, 3), np.uint8), "cell": np.int32(0)}

  def _distractors(self, target: int, generator: np.random.Generator) -> list:
    tiles: list[np.ndarray] = []
    taken: list[int] = []
    for _ in range(_TRIES):
      drawn = self.class_index.draw(target, generator, drawn=taken)
      if drawn is None or len(tiles) == pipeline.NUM_DISTRACTORS:
        break
      taken.append(drawn)
      image = self.square.image(drawn)
      if image is not None:
        tiles.append(image)
    return tiles


Maker = Square | Frame | Composite  # makes the rows of a batch


def _entries(maker: Square | Frame, labels, image, object_mask):
  dilated = None
  if maker.grids:
    dilated = geometry.dilate(object_mask, maker.tolerance_px)
  return {
    "image": image,
    **maker.reader.dataset.encode_labels(labels),
    "annotated": np.float32(object_mask.any()),
    "difficult": np.float32(0),
    "annotations": {
      geometry.grid_name(grid): geometry.on_grid(object_mask, dilated, grid)
      for grid in maker.grids
    },
  }


def _blank(maker: Square | Frame, shape: tuple[int, int]) -> dict[str, Any]:
  labels = [] if maker.reader.dataset.multi_label else [0]
  image = np.zeros((*shape, 3), np.uint8)
  return _entries(maker, labels, image, np.zeros(shape, bool))


def _is_difficult(record: Mapping[str, Any], target: int) -> bool:
  objects = record.get("objects")
  if objects is None:
    return False
  own = np.asarray(objects["label"]) == target
  return bool(own.any() and np.asarray(objects["difficult"])[own].all())


def _box(mask: Bool[np.ndarray, "H W"]) -> Int[np.ndarray, "4"]:
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


class Share(NamedTuple):
  """One process's part of a batch."""

  batch: PairBatch  # for the devices
  boxes: list[Int[np.ndarray, "N 4"] | None]  # of each row, for the host


def batches(
  pairs: Pairs,
  rows: Sequence[int] | np.ndarray,
  maker: Maker,
  batch_size: int,
  *,
  start: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Share]:
  """Yields this process's share of the batches of some pairs.

  Every row comes once; the last batch is filled up. A pair whose picture is
  skipped keeps its row, with `mask` 0.

  `rows` are numbers of `pairs`, those of the whole split, in the wanted order;
  `start` leaves out this many of the first. `batch_size` is that of all
  processes, divisible by their number.
  """
  local = batch_size // process_count
  begin = process_index * local
  shares = [
    np.asarray(rows[first + begin :][:local], np.int64)
    for first in range(start, len(rows), batch_size)
  ]
  source = grain.MapDataset.source(shares).map(_MakeShare(pairs, maker, local))
  return iter(source.to_iter_dataset(pipeline.READ_OPTIONS))


@dataclasses.dataclass(frozen=True)
class _MakeShare:
  """Numbers of rows -> the share of them, filled up."""

  pairs: Pairs
  maker: Maker
  size: int

  def __call__(self, rows: Int[np.ndarray, "n"]) -> Share:
    made = [
      self.maker.row(int(self.pairs.index[row]), int(self.pairs.target[row]))
      for row in rows
    ]
    made += [None] * (self.size - len(rows))
    blank = self.maker.blank()
    entries = [blank if row is None else row.entries for row in made]
    batch = jax.tree.map(lambda *values: np.stack(values), *entries)
    padding = np.full(self.size - len(rows), -1)
    target = np.concatenate([self.pairs.target[rows], padding])
    batch |= {
      "row": np.concatenate([rows, padding]).astype(np.int32),
      "mask": np.array([row is not None for row in made], np.float32),
      "first": np.concatenate([self.pairs.first[rows], padding > 0]).astype(
        np.float32
      ),
      "target": np.maximum(target, 0).astype(np.int32),
      "target_mask": (target >= 0).astype(np.float32),
    }
    return Share(batch, [None if row is None else row.boxes for row in made])
