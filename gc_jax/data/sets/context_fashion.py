"""Context fashion: small photographed products on crops of photographs.

The products are Fashion-MNIST's, 70,000 photographs of 28x28 pixels, as the
Debian package `dataset-fashion-mnist` installs them; nothing is downloaded.
`gc_jax.data.sets.context` says how products and photographs are put together.

Fashion-MNIST turned its photographs into negatives on black. Here they are
turned back, so that a black shoe is black; what was black around the product
is transparent. Grey products keep their own shading, and nothing enforces a
contrast with the background, unlike for digits.
"""

import dataclasses
import functools
import gzip
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from gc_jax.data.dataset import Dataset
from gc_jax.data.sets import compositor, context, context_builder
from gc_jax.data.sets.context import ContextConfig, Example

FOLDER = "/usr/share/datasets/fashion-mnist"  # of the Debian package
CLASS_NAMES = (
  "T-shirt",
  "trouser",
  "pullover",
  "dress",
  "coat",
  "sandal",
  "shirt",
  "sneaker",
  "bag",
  "ankle boot",
)

# The last twelfth of each class of the training file is for validation.
VALIDATION_FRAC = 1 / 12
# In the negative. Below are noise of the original JPEG and nothing.
MIN_LEVEL = 4
MIN_PART_PX = 4  # smaller connected parts are noise too
OUTLINE_GAIN = 4  # alpha / level where the product meets the background


@dataclasses.dataclass(eq=False, kw_only=True)
class ContextFashionConfig(ContextConfig):
  """By default every product is used once.

  Attributes:
    folder: where the four files of Fashion-MNIST are. It does not name the
      data: every copy holds the same.
  """

  num_examples: tuple[int, int, int] = (55_000, 5_000, 10_000)
  folder: str = FOLDER


def read_idx(path: pathlib.Path) -> UInt8[np.ndarray, "..."]:
  """Reads a gzipped IDX file of bytes, MNIST's format.

  Raises:
    ValueError: if it is none, or holds less than its header says.
  """
  with gzip.open(path) as file:
    data = file.read()
  # Two zeros, the type (8: bytes), the number of axes; then their lengths as
  # big-endian 32-bit integers.
  if len(data) < 4 or data[:3] != b"\0\0\x08":
    raise ValueError(
      f"{path} must be a gzipped IDX file of bytes; it starts with "
      f"{data[:4].hex()!r}. Install dataset-fashion-mnist anew."
    )
  start = 4 + 4 * data[3]
  shape = tuple(np.frombuffer(data[4:start], ">u4").tolist())
  if len(data) - start != np.prod(shape):
    raise ValueError(
      f"{path} must hold {'x'.join(map(str, shape))} bytes after its header; "
      f"it holds {len(data) - start}. Install dataset-fashion-mnist anew."
    )
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def cut_out(negative: UInt8[np.ndarray, "h w"]) -> compositor.Cutout:
  """Returns the product: opaque within its outline, transparent around it.

  Inside the outline are the pixels from `MIN_LEVEL` on, less parts of under
  `MIN_PART_PX` pixels, and what they enclose: the light parts of a product,
  nearly black in the negative, and bag handles' loops with them. The pixels
  of the outline itself show some of the white that was around the product,
  and are the more transparent the whiter they are.
  """
  from scipy import ndimage

  parts, count = ndimage.label(negative >= MIN_LEVEL, np.ones((3, 3)))
  areas = ndimage.sum_labels(parts > 0, parts, range(count + 1))
  # The largest part stays, however small it is.
  kept = areas >= min(MIN_PART_PX, areas.max(initial=1))
  inside = ndimage.binary_fill_holes(kept[parts] & (parts > 0))
  alpha = inside.astype(np.uint8) * 255
  outline = inside & ~ndimage.binary_erosion(inside)
  alpha[outline] = np.minimum(OUTLINE_GAIN * negative[outline].astype(int), 255)
  if alpha.max() < 128:  # a product as white as its background
    alpha[outline] = 255
  positive = np.repeat(255 - negative[..., None], 3, axis=-1)
  return compositor.Cutout(alpha, positive)


class Products:
  """Fashion-MNIST by class, in the order of its files.

  Numbers of a class count through its training file, then its test file.

  Args:
    folder: with `{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz`.
  """

  def __init__(self, folder: str):
    negatives, labels, self._usable = [], [], []
    for part in ("train", "t10k"):
      images, names = _files(folder, part)
      negatives.append(read_idx(images))
      labels.append(read_idx(names))
    joined, all_labels = np.concatenate(negatives), np.concatenate(labels)
    self._of_class = [
      joined[all_labels == label] for label in range(len(CLASS_NAMES))
    ]
    for label, of_class in enumerate(self._of_class):
      trained = int((labels[0] == label).sum())
      validated = max(1, round(trained * VALIDATION_FRAC))
      self._usable.append(
        {
          "train": range(trained - validated),
          "validation": range(trained - validated, trained),
          "test": range(trained, len(of_class)),
        }
      )

  def source(self) -> context.Source:
    """Returns what context sets draw from."""
    return context.Source(
      class_names=CLASS_NAMES,
      usable=lambda label, split: self._usable[label][split],
      cutout=lambda label, number: cut_out(self._of_class[label][number]),
    )


def _files(folder: str, part: str) -> tuple[pathlib.Path, pathlib.Path]:
  names = (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz")
  return pathlib.Path(folder, names[0]), pathlib.Path(folder, names[1])


@functools.cache
def source(folder: str) -> context.Source:
  """Returns the products of a folder; 55 MB, read once."""
  return Products(folder).source()


def draw_example(
  config: ContextFashionConfig, split: str, index: int
) -> Example:
  """Draws one image: see `context.draw_example`."""
  return context.draw_example(source(config.folder), config, split, index)


class ContextFashion(context_builder.ContextBuilder):
  """Small photographed products on photographs that may give them away."""

  name = "context_fashion"
  VERSION = tfds.core.Version("1.0.0")  # raise it when any pixel changes
  CONFIG = ContextFashionConfig
  CLASS_NAMES = CLASS_NAMES

  def check_source(self) -> None:
    """Checks that the four files are there."""
    folder = self.builder_config.folder
    for path in (*_files(folder, "train"), *_files(folder, "t10k")):
      if not path.exists():
        raise ValueError(
          "--config.data.name='context_fashion' must find Fashion-MNIST in "
          f"{folder}; {path.name} is missing. Install the Debian package: "
          "sudo apt-get install dataset-fashion-mnist."
        )

  def draw(self, split: str, index: int) -> Example:
    """Draws example `index` of a split."""
    return draw_example(self.builder_config, split, index)


def load(
  split: str, *, data_dir: str | os.PathLike = "", **config: Any
) -> Dataset:
  """Returns a split, drawn and written first where that was not yet done.

  Args:
    split: of `photographs.SPLITS`, or a part of one: "train[:100]".
    data_dir: TFDS directory; "" = TFDS's own default.
    **config: fields of `ContextFashionConfig`.

  Raises:
    ValueError: if the split is unknown, a field is out of range, or
      Fashion-MNIST is not installed and the data not yet drawn.
  """
  return context_builder.load(ContextFashion, split, data_dir, **config)
