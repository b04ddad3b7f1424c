"""Picture files as people name them, and the sizes a model gets them in."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from gc_jax.data import decode, geometry
from gc_jax.data.sets import folder_files
from gc_jax.runtime import files

_MAX_PIXELS = 64_000_000  # of a picture as a model gets it


class Picture(NamedTuple):
  """A picture file, and the names of the folders that may tell its class.

  The nearest comes first, the last is the folder that was named; of a file that
  was named itself, it is the folder that holds it.
  """

  path: Path
  folders: tuple[str, ...]


class Found(NamedTuple):
  """Pictures, each once, and folders of masks and annotations left out."""

  pictures: list[Picture]
  left_out: list[Path]


def find(
  names: Iterable[str | os.PathLike],
  skip: Callable[[Path], bool] = lambda path: False,
) -> Found:
  """Returns the pictures that files and folders stand for.

  A folder stands for the pictures in it and in the folders below, sorted: not
  hidden, with one of `decode.SUFFIXES`. A file that is named may be called
  anything.

  Args:
    names: of files and folders.
    skip: whether a picture of a folder is not meant.

  Raises:
    ValueError: a name does not exist or is no UTF-8, or a folder has no
      picture.
  """
  found: dict[str, Picture] = {}
  left_out = []
  for path in map(Path, names):
    files.as_path(path)  # says so if it is no UTF-8
    if not path.exists():
      raise ValueError(
        f"IMAGE must be a file or folder; {path} does not exist. Check the "
        "path."
      )
    whole = Path(os.path.abspath(path))
    pictures = [Picture(path, (whole.parent.name,))]
    if path.is_dir():
      below = folder_files.list_tree(path)
      left_out += [
        path / name
        for name in below.folders
        if name.casefold() in folder_files.NO_CLASSES
      ]
      pictures = [
        Picture(path / name, _folders(f"{whole.name}/{name}"))
        for name in below.files
        if folder_files.kind_of(name) == "picture" and not skip(path / name)
      ]
      if not pictures:
        raise ValueError(
          f"A folder of images must hold {', '.join(decode.SUFFIXES)}; {path} "
          "and the folders below it have none. Name another."
        )
    for picture in pictures:
      # Results are named after it.
      found.setdefault(os.path.realpath(picture.path), picture)
  return Found(list(found.values()), left_out)


def _folders(name: str) -> tuple[str, ...]:
  return PurePosixPath(name).parts[-2::-1]


def check(path: Path) -> tuple[int, int]:
  """Returns the (height, width) of a picture that `read` can read.

  Raises:
    ValueError: as for `read`.
  """
  with _named(path):
    header = decode.read_header(path.read_bytes())
    decode.check(header)
    return header.size[::-1]


def read(
  path: Path, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
  """Decodes a picture as evaluation does, to (height, width) or its own size.

  Raises:
    ValueError: it cannot be decoded to the end; names the file.
  """
  with _named(path):
    header = decode.read_header(path.read_bytes())
    if size is None:
      return np.asarray(decode.whole(header))
    return np.asarray(decode.scaled(header, size[::-1]))


def read_twice(
  path: Path, size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "h w 3"]]:
  """Returns a picture at its own size and at (height, width), as `read` does.

  Raises:
    ValueError: as for `read`.
  """
  with _named(path):
    header = decode.read_header(path.read_bytes())
    whole, scaled = decode.whole_and_scaled(header, size[::-1])
    return np.asarray(whole), np.asarray(scaled)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
  """Says of a picture that cannot be read which it is."""
  try:
    yield
  except (OSError, decode.DecodeError) as error:
    raise ValueError(
      f"{path} must be a picture ({', '.join(decode.FORMATS)}); it cannot be "
      f"read: {error}. Mend it or leave it out."
    ) from error


def model_sizes(
  sizes: Sequence[tuple[int, int]],
  shorter_px: int,
  max_shapes: int,
  unit_px: int = 1,
) -> tuple[list[tuple[int, int]], int]:
  """Returns the size at which a model gets each picture, keeping its aspect.

  A program is compiled for each size. If there were too many, sides are rounded
  to multiples of an eighth of the shorter side, which changes the aspect by at
  most 1/16; or of 32 pixels at own sizes. A model may ask for multiples, too.

  Args:
    sizes: (height, width) of each picture.
    shorter_px: pixels of the shorter side; 0 = own sizes.
    max_shapes: round further only if there are more than this.
    unit_px: what must divide the sides, for the model.

  Returns:
    (height, width) of each, and the multiple they were rounded to; `unit_px` =
    no further.

  Raises:
    ValueError: a picture is so long that it would not fit into memory.
  """
  exact = [
    tuple(geometry.to_multiple(n, unit_px) for n in _scaled(size, shorter_px))
    for size in sizes
  ]
  for (height, width), (tall, wide) in zip(sizes, exact, strict=True):
    if tall * wide > _MAX_PIXELS:
      raise ValueError(
        f"A picture must have at most {_MAX_PIXELS:,} pixels when the model "
        f"gets it; one of {width} by {height} would be {wide} by {tall}. "
        "Crop it, or choose a smaller --size."
      )
  if len(set(exact)) <= max_shapes:
    return exact, unit_px
  coarse = max(1, shorter_px // 8) if shorter_px else 32
  coarse = geometry.to_multiple(coarse, unit_px)

  def rounded(side: int) -> int:
    return side if side == shorter_px else geometry.to_multiple(side, coarse)

  return [(rounded(h), rounded(w)) for h, w in exact], coarse


def _scaled(size: tuple[int, int], shorter_px: int) -> tuple[int, int]:
  if not shorter_px:
    return size
  shorter = min(size)
  height, width = (max(1, round(side * shorter_px / shorter)) for side in size)
  return height, width
