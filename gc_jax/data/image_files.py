"""Picture files as people have them: any size, any colour mode, to RGB."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

# Named one by one: some of Pillow's other readers start programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (
  ".bmp",
  ".gif",
  ".jpeg",
  ".jpg",
  ".pgm",
  ".png",
  ".ppm",
  ".tif",
  ".tiff",
  ".webp",
)

_MAX_PIXELS = 64_000_000  # of a picture as a model gets it


def find(names: Iterable[str | os.PathLike]) -> list[Path]:
  """Returns the pictures meant by some files and folders, each once.

  Args:
    names: a file, whatever it is called; or a folder, which stands for the
      pictures directly in it (by `SUFFIXES`, hidden ones left out), sorted.

  Raises:
    ValueError: a name does not exist, or a folder has no picture.
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
        if file.suffix.lower() in SUFFIXES
        and not file.name.startswith(".")
        and file.is_file()
      )
      if not paths:
        raise ValueError(
          f"A folder of images must hold {', '.join(SUFFIXES)}; {path} has "
          "none directly in it. Name the folder of the pictures themselves."
        )
    for file in paths:
      found.setdefault(file.resolve(), file)
  return list(found.values())


def read(path: Path) -> UInt8[np.ndarray, "H W 3"]:
  """Decodes a picture upright and in RGB.

  EXIF orientation is applied; of several frames the first is taken;
  transparent pixels are put on white, as when training decodes a picture;
  16-bit grey is scaled from 0..65535, and grey in floats from 0..1.

  Raises:
    ValueError: it cannot be decoded to the end; names the file.
  """
  try:
    with PIL.Image.open(path, formats=FORMATS) as image:
      upright = PIL.ImageOps.exif_transpose(image)
      return _to_rgb(upright)
  except Exception as error:  # Pillow raises many kinds on broken files
    raise ValueError(
      f"{path} must be a picture ({', '.join(FORMATS)}); it cannot be read: "
      f"{error}. Mend it or leave it out."
    ) from error


def _to_rgb(image: PIL.Image.Image) -> UInt8[np.ndarray, "H W 3"]:
  if image.mode.startswith("I") or image.mode == "F":
    values = np.asarray(image).astype(np.float64)
    limit = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= limit):  # NaN is neither
      raise ValueError(
        f"its grey values span {values.min():g} to {values.max():g}, and must "
        f"be in 0 to {limit:g}"
      )
    grey = np.rint(values * (255 / limit)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    image = PIL.Image.alpha_composite(white, image)
  return np.asarray(image.convert("RGB"))


def resized(
  image: UInt8[np.ndarray, "H W 3"], height: int, width: int
) -> UInt8[np.ndarray, "h w 3"]:
  """Returns the picture at another size, bilinear, smoothed where it shrinks.

  As training resizes pictures.
  """
  if image.shape[:2] == (height, width):
    return image
  return np.asarray(
    PIL.Image.fromarray(image).resize(
      (width, height), PIL.Image.Resampling.BILINEAR, reducing_gap=2.0
    )
  )


def model_sizes(
  sizes: Sequence[tuple[int, int]], shorter_px: int, max_shapes: int
) -> tuple[list[tuple[int, int]], int]:
  """Returns the size at which a model gets each picture, keeping its aspect.

  For each size a program is compiled. Where exact ones would be too many,
  sides are rounded to a common multiple: of an eighth of the shorter side, by
  which the aspect changes by at most 1/16; or of 32 pixels at own sizes.

  Args:
    sizes: (height, width) of each picture.
    shorter_px: pixels of the shorter side; 0 = own sizes.
    max_shapes: round only where there would be more than this.

  Returns:
    (height, width) of each, and the multiple they were rounded to: 1 for not
    at all.

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
