"""Pictures in rows and columns, as in the paper's Figure 2."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from gc_jax.report import plots

_CELL_INCHES = (1.7, 1.62)  # width; height, of a square picture
_LETTER_INCHES = 0.065  # of a label, on average
_DPI = 160


@dataclasses.dataclass(frozen=True, eq=False)
class GridRow:
  """A row: what stands at its left, and its pictures; None leaves a gap."""

  label: str
  pictures: Sequence[UInt8[np.ndarray, "H W 3"] | None]


def draw(
  headings: Sequence[str], rows: Sequence[GridRow], *, dpi: int = _DPI
) -> bytes:
  """Returns the pictures as one PNG, on white.

  Args:
    headings: of the columns.
    rows: at least one, a picture for each heading.
    dpi: 160 gives 270 pixels a picture.
  """
  width, height = _CELL_INCHES
  aspects = [_aspect(row) for row in rows]
  labels_inches = _LETTER_INCHES * max(len(row.label) for row in rows)
  figure = Figure(
    figsize=(
      width * len(headings) + labels_inches,
      height * sum(aspects) + 0.35,
    ),
    layout="constrained",
    facecolor="white",
    dpi=dpi,
  )
  figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
  axes = figure.subplots(
    len(rows), len(headings), squeeze=False, height_ratios=aspects
  )
  grid = np.asarray(axes)
  for row, cells in zip(rows, grid, strict=True):
    for axes, picture in zip(cells, row.pictures, strict=True):
      axes.set_xticks([])
      axes.set_yticks([])
      axes.spines[:].set_visible(False)
      if picture is not None:
        axes.imshow(picture, interpolation="antialiased")
    cells[0].set_ylabel(
      row.label, fontsize=9, rotation=0, ha="right", va="center"
    )
  for axes, heading in zip(grid[0], headings, strict=True):
    axes.set_title(heading.replace(", ", "\n"), fontsize=9)
  return plots.figure_png(figure, dpi)


def _aspect(row: GridRow) -> float:
  """Returns height by width of a row's pictures, within reason."""
  picture = next((p for p in row.pictures if p is not None), None)
  if picture is None:
    return 1.0
  return min(max(picture.shape[0] / picture.shape[1], 0.4), 2.5)
