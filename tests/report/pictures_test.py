"""Pictures in rows and columns: size, gaps, shapes."""

import numpy as np
import pytest

from gc_jax.report import overlay, pictures


def _picture(height, width, color):
  return np.full((height, width, 3), color, np.uint8)


def _draw(*rows):
  named = [pictures.GridRow(str(n), cells) for n, cells in enumerate(rows)]
  headings = [f"column {n}" for n in range(len(rows[0]))]
  return overlay.read_png(pictures.draw_grid(headings, named, dpi=50))


def _box(image, color):
  """Returns height and width of what has a colour."""
  rows, columns = np.nonzero((image == color).all(-1))
  return np.ptp(rows) + 1, np.ptp(columns) + 1


def test_pictures_fill_their_cells_whatever_their_shapes():
  red, blue = (200, 0, 0), (0, 0, 200)
  image = _draw([_picture(40, 40, red)], [_picture(20, 40, blue)])
  tall, wide = _box(image, red), _box(image, blue)
  assert tall[0] == pytest.approx(tall[1], abs=2)
  assert wide[0] == pytest.approx(wide[1] / 2, abs=2)
  assert wide[1] == pytest.approx(1.7 * 50, rel=0.15)


def test_what_is_missing_leaves_a_gap():
  red = (200, 0, 0)
  image = _draw([_picture(40, 40, red), None], [None, _picture(40, 40, red)])
  is_red = (image == red).all(-1)
  height, width = is_red.shape
  quarters = [
    is_red[top : top + height // 2, left : left + width // 2].mean()
    for top in (0, height // 2)
    for left in (0, width // 2)
  ]
  assert [quarter > 0.4 for quarter in quarters] == [True, False, False, True]
