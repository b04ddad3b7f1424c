"""Context objects: small photographed things on crops of photographs.

The things are stamps of the drawing program Tux Paint, cut out with an alpha
channel, as the Debian package `tuxpaint-stamps-default` installs them; nothing
is downloaded, and nothing of them is shipped. How things and photographs are
put together, `gc_jax.data.sets.context` says.

About 200 things in ten classes: few, so that a split shows the same thing
often, on other backgrounds and at other sizes.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gc_jax.data.dataset import Dataset
from gc_jax.data.sets import compositor, context, context_builder
from gc_jax.data.sets.context import ContextConfig, Example

FOLDER = "/usr/share/tuxpaint/stamps"  # of the Debian package

# class -> folders of the package, taken with all that is below them.
CLASSES = {
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
CLASS_NAMES = tuple(CLASSES)

# Drawings and toys stand in folders of these names, or are few-coloured.
NOT_PHOTOGRAPHED = ("cartoon", "toys", "plastic")
MIN_COLORS = 200
MIN_SIDE_PX = 45  # longer side; smaller ones would be mere smears

# Of five consecutive things by name, three are for training.
_PART = ("train", "train", "train", "validation", "test")


@dataclasses.dataclass(eq=False, kw_only=True)
class ContextObjectsConfig(ContextConfig):
  """The things of a split take turns, some twenty to thirty times each.

  Attributes:
    folder: where the stamps are. It does not name the data.
  """

  folder: str = FOLDER


def read_stamp(path: pathlib.Path) -> compositor.Cutout:
  """Returns a stamp with its own colours, whatever mode its file has."""
  import PIL.Image

  with PIL.Image.open(path, formats=("PNG",)) as image:
    pixels = np.asarray(image.convert("RGBA"))
  return compositor.Cutout(pixels[..., 3], pixels[..., :3])


def is_photographed(path: pathlib.Path) -> bool:
  """Whether a stamp is a photograph of a thing, not a drawing or a copy."""
  if path.with_suffix(".svg").exists() or path.stem.endswith("_mirror"):
    return False
  stamp = read_stamp(path)
  colors = stamp.colors[stamp.alpha >= 128].astype(np.int32)
  return (
    max(stamp.alpha.shape) >= MIN_SIDE_PX
    and len(np.unique(colors @ (1 << 16, 1 << 8, 1))) >= MIN_COLORS
  )


def find_stamps(folder: str) -> list[list[pathlib.Path]]:
  """Returns the photographed stamps of each class, in order of their names.

  Raises:
    ValueError: if a class has none for one of the splits.
  """
  found = []
  for name, below in CLASSES.items():
    paths = [
      path
      for part in below
      for path in pathlib.Path(folder, part).rglob("*.png")
      if not set(NOT_PHOTOGRAPHED) & set(path.parts) and is_photographed(path)
    ]
    if len(paths) < len(_PART):
      raise ValueError(
        f"{folder} must hold at least {len(_PART)} photographed stamps of "
        f"class {name!r} in {', '.join(below)}; it holds {len(paths)}. Install "
        "the Debian package: sudo apt-get install tuxpaint-stamps-default."
      )
    found.append(sorted(paths, key=lambda path: (path.name, str(path))))
  return found


@functools.cache
def source(folder: str) -> context.Source:
  """Returns the stamps of a folder; each is read once."""
  paths = find_stamps(folder)

  @functools.cache
  def usable(label: int, split: str) -> list[int]:
    return [
      number
      for number in range(len(paths[label]))
      if _PART[number % len(_PART)] == split
    ]

  return context.Source(
    class_names=CLASS_NAMES,
    usable=usable,
    cutout=functools.cache(
      lambda label, number: compositor.trim(read_stamp(paths[label][number]))
    ),
  )


def draw_example(
  config: ContextObjectsConfig, split: str, index: int
) -> Example:
  """Draws one image: see `context.draw_example`."""
  return context.draw_example(source(config.folder), config, split, index)


class ContextObjects(context_builder.ContextBuilder):
  """Small photographed things on photographs that may give them away."""

  name = "context_objects"
  VERSION = tfds.core.Version("1.0.0")  # raise it when any pixel changes
  CONFIG = ContextObjectsConfig
  CLASS_NAMES = CLASS_NAMES

  def check_source(self) -> None:
    """Checks that there are stamps."""
    folder = pathlib.Path(self.builder_config.folder)
    if not folder.is_dir():
      raise ValueError(
        f"--config.data.name='context_objects' must find Tux Paint's stamps in "
        f"{folder}, which does not exist. Install the Debian package: "
        "sudo apt-get install tuxpaint-stamps-default."
      )
    find_stamps(str(folder))

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
    **config: fields of `ContextObjectsConfig`.

  Raises:
    ValueError: if the split is unknown, a field is out of range, or the stamps
      are not installed and the data not yet drawn.
  """
  return context_builder.load(ContextObjects, split, data_dir, **config)
