"""Records of stock TFDS sets, turned into those that a `Dataset` holds."""

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image

from gc_jax.data import decode
from gc_jax.data.sets import stock_sets
from gc_jax.data.sets.stock_sets import Layout


@dataclasses.dataclass(frozen=True)
class Records(Sequence):
  """Records as `Dataset` wants them, from those of TFDS.

  Attributes:
    source: records of TFDS, images and masks encoded.
    layout: which of their features hold what.
  """

  source: Sequence[Mapping[str, Any]]
  layout: Layout

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self.source[index]
    objects = self._objects(record)
    converted = {
      "image": record["image"],
      "labels": self._labels(record, objects),
    }
    for feature in stock_sets.FILE_NAMES:
      if isinstance(record.get(feature), bytes):
        converted["name"] = record[feature].decode(errors="replace")
        break
    if objects is not None:
      converted["objects"] = objects
    return converted

  def __iter__(self) -> Iterator[dict[str, Any]]:
    return (self[index] for index in range(len(self)))

  def _labels(
    self, record: Mapping[str, Any], objects: Mapping[str, Any] | None
  ) -> list[int]:
    if self.layout.label:
      return [int(record[self.layout.label])]
    # Difficult ones as well: they are there, and a picture that holds one must
    # not be a distractor for its class. Pointing games may pass over them.
    return [int(label) for label in objects["label"]]

  def _objects(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
    layout = self.layout
    if layout.objects:
      found = record[layout.objects]
      count = len(found["bbox"])
      label = record[layout.label] if layout.label else None
      return {
        "label": found.get("label", np.full(count, label)),
        "bbox": found["bbox"],
        "difficult": found.get("is_difficult", np.zeros(count, bool)),
      }
    if not layout.has_objects:
      return None
    objects = {
      "label": np.array([record[layout.label]]),
      "difficult": np.zeros(1, bool),
    }
    if layout.mask:
      inside = functools.partial(
        _inside, record[layout.mask], layout.mask_levels
      )
      objects["mask"] = _Lazy(functools.partial(_encoded, inside))
      objects["bbox"] = _Lazy(functools.partial(_box_around, inside))
    if layout.box:
      objects["bbox"] = np.asarray(record[layout.box])[None]
    return objects


class _Lazy(Sequence):
  """One value of one object, made when it is asked for.

  Training never asks for masks, and decoding them costs as much as the image.
  """

  def __init__(self, make: Callable[[], Any]):
    self._make = make

  def __len__(self) -> int:
    return 1

  def __getitem__(self, index: int) -> Any:
    return [self._value][index]

  @functools.cached_property
  def _value(self) -> Any:
    return self._make()


def _inside(encoded: bytes, levels: frozenset[int]) -> np.ndarray:
  mask = decode.stored(decode.read_header(encoded))
  return np.isin(np.asarray(mask), list(levels))


def _encoded(inside: Callable[[], np.ndarray]) -> bytes:
  pixels = inside()
  if not pixels.any():
    return b""  # the box stands for it
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels.astype(np.uint8) * 255).save(
    buffer, format="png", compress_level=1
  )
  return buffer.getvalue()


def _box_around(inside: Callable[[], np.ndarray]) -> np.ndarray:
  """Returns ymin xmin ymax xmax in 0..1; the whole image without a pixel."""
  pixels = inside()
  rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
  if not rows.size:
    return np.array([0, 0, 1, 1], np.float32)
  height, width = pixels.shape
  corners = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
  return np.array(corners, np.float32) / np.float32(
    [height, width, height, width]
  )
