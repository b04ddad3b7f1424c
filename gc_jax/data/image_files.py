"""Picture files as people name them, and the sizes a model gets them in."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from gc_jax.data import decode
from gc_jax.runtime import files

_MAX_PIXELS = 64_000_000  # of a picture as a model gets it


def find(names: Iterable[str | os.PathLike]) -> list[Path]:
  """Returns the pictures that files and folders stand for, each once.

  A folder stands for the pictures directly in it, sorted: not hidden, with one
  of `decode.SUFFIXES`. A file that is named may be called anything.

  Raises:
    ValueError: a name does not exist or is no UTF-8, or a folder has no
      picture.
  """
  found: dict[Path, Path] = {}
  for path in map(Path, names):
    if not path.exists():
      raise ValueError(
        f"IMAGE must be a file or folder; {path} does not exist. Check the "
        "path."
      )
    paths = [path]
    if path.is_dir():
      paths = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in decode.SUFFIXES
        and not file.name.startswith(".")
        and file.is_file()
      )
      if not paths:
        raise ValueError(
          f"A folder of images must hold {', '.join(decode.SUFFIXES)}; {path} "
          "has none directly in it. Name the folder of the pictures themselves."
        )
    for file in paths:
      # Results are named after it.
      found.setdefault(file.resolve(), files.as_path(file))
  return list(found.values())


def read(
  path: Path, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
  """Decodes a picture as evaluation does, to (height, width) or its own size.

  Raises:
    ValueError: it cannot be decoded to the end; names the file.
  """
  try:
    header = decode.read_header(path.read_bytes())
    if size is None:
      return np.asarray(decode.whole(header))
    return np.asarray(decode.scaled(header, size[::-1]))
  except (OSError, decode.DecodeError) as error:
    raise ValueError(
      f"{path} must be a picture ({', '.join(decode.FORMATS)}); it cannot be "
      f"read: {error}. Mend it or leave it out."
    ) from error


def model_sizes(
  sizes: Sequence[tuple[int, int]], shorter_px: int, max_shapes: int
) -> tuple[list[tuple[int, int]], int]:
  """Returns the size at which a model gets each picture, keeping its aspect.

  A program is compiled for each size. If there were too many, sides are rounded
  to multiples of an eighth of the shorter side, which changes the aspect by at
  most 1/16; or of 32 pixels at own sizes.

  Args:
    sizes: (height, width) of each picture.
    shorter_px: pixels of the shorter side; 0 = own sizes.
    max_shapes: round only if there are more than this.

  Returns:
    (height, width) of each, and the multiple they were rounded to; 1 = none.

  Raises:
    ValueError: a picture is so long that it would not fit into memory.
  """
  exact = [_scaled(size, shorter_px) for size in sizes]
  for (height, width), (tall, wide) in zip(sizes, exact, strict=True):
    if tall * wide > _MAX_PIXELS:
      raise ValueError(
        f"A picture must have at most {_MAX_PIXELS:,} pixels when the model "
        f"gets it; one of {width} by {height} would be {wide} by {tall}. "
        "Crop it, or choose a smaller --size."
      )
  if len(set(exact)) <= max_shapes:
    return exact, 1
  multiple = max(1, shorter_px // 8) if shorter_px else 32

  def rounded(side: int) -> int:
    if side == shorter_px:
      return side
    return max(1, round(side / multiple)) * multiple

  return [(rounded(h), rounded(w)) for h, w in exact], multiple


def _scaled(size: tuple[int, int], shorter_px: int) -> tuple[int, int]:
  if not shorter_px:
    return size
  shorter = min(size)
  height, width = (max(1, round(side * shorter_px / shorter)) for side in size)
  return height, width
