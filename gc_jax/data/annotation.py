"""Annotations as maps of any size meet them: `metrics.GridAnnotation`.

Everything here is numpy, made while pictures are decoded: an annotation keeps
its own pixels, of which no two pictures need have equally many, and only what
has the size of a map goes to the device.
"""

import dataclasses
import functools

import cv2
import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float32, Int

from gc_jax.method.metrics import GridAnnotation

Grid = tuple[int, int]  # h, w


def name(grid: Grid) -> str:
  """Returns what a grid is called in a batch."""
  return f"{grid[0]}x{grid[1]}"


def on_grid(
  object_mask: Bool[np.ndarray, "H W"],
  dilated: Bool[np.ndarray, "H W"],
  grid: Grid,
) -> GridAnnotation:
  """Returns an annotation as maps of h x w cells meet it.

  Maps are enlarged bilinearly, pixel centres aligned, as `metrics.upsample`
  does; one finer than the annotation is sampled, without smoothing.

  Args:
    object_mask: pixels of the object.
    dilated: the same, dilated by the tolerance: from `dilate`.
    grid: (h, w) of the maps.
  """
  height, width = object_mask.shape
  rows, columns = _Axis.of(grid[0], height), _Axis.of(grid[1], width)

  def pulled_back(mask):
    return rows.weights @ (columns.weights @ mask.T.astype(np.float32)).T

  return GridAnnotation(
    inside=pulled_back(object_mask),
    near=pulled_back(dilated),
    everywhere=np.outer(rows.weights.sum(1), columns.weights.sum(1)),
    rows=rows.peaks,
    columns=columns.peaks,
    near_peak=dilated[np.ix_(rows.peak_pixels, columns.peak_pixels)],
  )


def dilate(
  object_mask: Bool[np.ndarray, "H W"], tolerance_px: float
) -> Bool[np.ndarray, "H W"]:
  """Returns the pixels nearer to the mask than a tolerance (Euclidean, strict).

  As `metrics.dilate`, in time that does not depend on the tolerance.
  """
  if not object_mask.any():
    return np.zeros_like(object_mask)
  outside = (~object_mask).astype(np.uint8)
  distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
  # Squares of distances between pixels are whole numbers.
  return np.rint(distance.astype(np.float64) ** 2) < tolerance_px**2


@dataclasses.dataclass(frozen=True, eq=False)
class _Axis:
  """One axis of the enlargement of n cells to N pixels.

  Attributes:
    weights: `[n N]`, of each cell in each pixel, sparse.
    peaks: `[2n]`, coordinates between which an enlarged map is linear.
    peak_pixels: the pixels there.
  """

  weights: scipy.sparse.csr_array
  peaks: Float32[np.ndarray, "r"]
  peak_pixels: Int[np.ndarray, "r"]

  @classmethod
  @functools.lru_cache(maxsize=1024)
  def of(cls, cells: int, pixels: int) -> "_Axis":
    pixel = np.arange(pixels)
    at = np.clip((pixel + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, cells - 1)
    share = at - low
    weights = scipy.sparse.coo_array(
      (
        np.concatenate([1 - share, share]).astype(np.float32),
        (np.concatenate([low, high]), np.concatenate([pixel, pixel])),
      ),
      shape=(cells, pixels),
    )
    # Of the pixels between two cells, the first and the last.
    first = np.flatnonzero(np.diff(low, prepend=-1))
    last = np.append(first[1:], pixels) - 1
    peaks = np.unique(np.concatenate([first, last]))
    peaks = np.pad(peaks, (0, 2 * cells - len(peaks)), mode="edge")
    return cls(weights.tocsr(), at[peaks].astype(np.float32), peaks)
