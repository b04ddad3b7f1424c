"""Pictures and objects as evaluation sees them."""

import numpy as np

from gc_jax.data import Dataset, decode, geometry, pairs
from gc_jax.data.dataset import Reader


def batch(dataset, image_size):
  """Returns the `Pairs` of a split and one batch of all, with objects."""
  rows = pairs.all_pairs(dataset.all_labels())
  count = len(rows.index)
  maker = pairs.Square(Reader(dataset), image_size, with_objects=True)
  (share,) = pairs.batches(rows, range(count), maker, count)
  return rows, share.batch


def frame(record, target, shorter_side_px):
  """Returns image, pixels of the objects, difficulty, as "release" has them."""
  dataset = Dataset([record], tuple("abcdefgh"), True, "one picture")
  width, height = decode.read_header(record["image"]).size
  size = geometry.frame_size((width, height), shorter_side_px)[::-1]
  # On a grid of the annotation's own pixels nothing is enlarged.
  grid = height, width
  maker = pairs.Frame(Reader(dataset), size, shorter_side_px, 0, 1.0, (grid,))
  entries = maker.row(0, target).entries
  inside = entries["annotations"][f"{height}x{width}"].inside
  assert np.isin(inside, (0, 1)).all()
  return entries["image"], inside > 0, bool(entries["difficult"])
