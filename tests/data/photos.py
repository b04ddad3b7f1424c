"""Real photographs, encoded in the ways that pictures come in."""

import functools
import io
import pathlib

import numpy as np
import PIL.Image
import skimage

NAMES = (
  "astronaut.png",
  "chelsea.png",
  "coffee.png",
  "motorcycle_left.png",
  "ihc.png",
  "hubble_deep_field.jpg",
)


@functools.cache
def load(name, size=None):
  """A photograph of scikit-image, RGB; scaled to (width, height)."""
  folder = pathlib.Path(skimage.__file__).parent / "data"
  with PIL.Image.open(folder / name) as image:
    image = image.convert("RGB")
  if size is not None:
    image = image.resize(size, PIL.Image.Resampling.BICUBIC)
  return image


def encode(image, encoding="jpeg", **options):
  if isinstance(image, np.ndarray):
    image = PIL.Image.fromarray(image)
  buffer = io.BytesIO()
  if encoding == "jpeg":
    options = {"quality": 92} | options
  image.save(buffer, format=encoding, **options)
  return buffer.getvalue()


def with_orientation(image, orientation, encoding="jpeg"):
  exif = PIL.Image.Exif()
  exif[0x0112] = orientation
  return encode(image, encoding, exif=exif)
