"""Does a box around the map fit the object's? MaxBoxAcc.

On the host, in numpy: connected components are no work for an accelerator.
Boxes are `ymin xmin ymax xmax` in pixels, half-open.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Real

# Fractions of the map's maximum at which a box is drawn: 0, 0.01, ..., 0.99.
THRESHOLDS = np.linspace(0, 1, 101)[:-1]
IOUS = (0.3, 0.5, 0.7)
TOTAL = "max_box_acc"  # of a ledger's sums: how often each box was right


def box_iou(
  a: Real[np.ndarray, "N 4"], b: Real[np.ndarray, "M 4"]
) -> Float[np.ndarray, "N M"]:
  """Returns intersection over union of every two boxes, float64.

  A box without area (ymax <= ymin or xmax <= xmin) overlaps nothing, itself
  included: 0.
  """
  a, b = a.astype(np.float64), b.astype(np.float64)
  low = np.maximum(a[:, None, :2], b[None, :, :2])
  high = np.minimum(a[:, None, 2:], b[None, :, 2:])
  common = np.maximum(high - low, 0).prod(-1)
  union = _area(a)[:, None] + _area(b)[None] - common
  # With no area at all, 0 / 1.
  return common / np.where(union > 0, union, 1)


def boxes_of_map(
  cam_px: Float[np.ndarray, "H W"],
  thresholds: Float[np.ndarray, "T"] = THRESHOLDS,
) -> Int[np.ndarray, "T 4"]:
  """Returns the box around the largest bright region, one a threshold.

  The region is the 8-connected component with most pixels of

    cam_px >= threshold * max(cam_px)

  and of equal ones that whose box starts highest, then furthest left.

  Args:
    cam_px: a map >= 0, enlarged to pixels (`metrics.upsample`).
    thresholds: fractions of the maximum, in any order. Not strict: at 1 the
      maxima themselves are left. Above 1 nothing is: the box is 0 0 0 0.

  Returns:
    int32 boxes. A constant map, and one that is empty (no mass, or not finite,
    `metrics.is_empty`) and so counts as constant, have the whole picture.

  Source: Choe et al. 2020, arXiv:2001.07437.
  Differs: their maps are scaled so that the minimum is 0 too; after a ReLU most
    are so, and for others give `cam_px - cam_px.min()`. Their code compares 8
    bits of the map, strictly, and ranks components by their contour's area.
  """
  # A map of float32 is compared exactly as the equation says.
  cam_px = cam_px.astype(np.float64)
  if not (np.isfinite(cam_px).all() and cam_px.sum() > 0):
    cam_px = np.ones_like(cam_px)
  row_max, column_max = cam_px.max(1), cam_px.max(0)
  boxes = np.zeros((len(thresholds), 4), np.int32)
  # Regions of falling thresholds hold one another, so that two with as many
  # pixels are one.
  known: dict[int, np.ndarray] = {}
  for i, level in enumerate(thresholds * cam_px.max()):
    rows = np.flatnonzero(row_max >= level)
    columns = np.flatnonzero(column_max >= level)
    if not rows.size:
      continue
    top, left = rows[0], columns[0]
    region = cam_px[top : rows[-1] + 1, left : columns[-1] + 1] >= level
    count = np.count_nonzero(region)
    if count not in known:
      known[count] = _largest_component(region) + np.tile((top, left), 2)
    boxes[i] = known[count]
  return boxes


def _largest_component(region: Bool[np.ndarray, "h w"]) -> np.ndarray:
  """Returns the box of the 8-connected component with most pixels.

  Args:
    region: touches all four borders.
  """
  num_labels, labels = cv2.connectedComponents(
    region.view(np.uint8), connectivity=8
  )
  if num_labels == 2:  # the background, and one component
    return np.array([0, 0, *region.shape])
  # Twice as fast as OpenCV's own statistics, which sum up centroids as well.
  areas = np.bincount(labels.ravel())[1:]
  boxes = []
  for label in 1 + np.flatnonzero(areas == areas.max()):
    component = (labels == label).view(np.uint8)
    xmin, ymin, width, height = cv2.boundingRect(component)
    boxes.append((ymin, xmin, ymin + height, xmin + width))
  return np.array(min(boxes))


def box_correct(
  cam_px: Float[np.ndarray, "H W"],
  boxes: Real[np.ndarray, "N 4"],
  thresholds: Float[np.ndarray, "T"] = THRESHOLDS,
  ious: Sequence[float] = IOUS,
) -> Bool[np.ndarray, "I T"]:
  """Returns whether the map's box fits one of the object's well enough.

  Args:
    cam_px: a map >= 0, enlarged to pixels.
    boxes: all boxes of the class in the picture, at least one.
    thresholds: as for `boxes_of_map`.
    ious: what the best intersection over union must reach; not strict.

  Raises:
    ValueError: there is no box.
  """
  if not len(boxes):
    raise ValueError(
      "boxes must hold at least one of the object; there is none. Leave the "
      "pair out."
    )
  best = box_iou(boxes_of_map(cam_px, thresholds), boxes).max(1)
  return best[None] >= np.asarray(ious)[:, None]


def max_box_acc(
  correct: Real[np.ndarray, "I T"],
  num_pairs: int | float,
  ious: Sequence[float] = IOUS,
) -> dict[str, float]:
  """Returns percent of pairs with a good box, at the best threshold of all.

  max_box_acc_50 = max over thresholds of the mean over pairs, at IoU 0.5;
  max_box_acc_v2 is the mean of such numbers, each at its own threshold.

  Args:
    correct: sum of `box_correct` over the (image, class) pairs of the split.
    num_pairs: how many they are.
    ious: as given to `box_correct`.

  Returns:
    One number each for IoU, and their mean; nothing where there is no pair.

  Source: Choe et al. 2020, arXiv:2001.07437 (MaxBoxAcc, at 0.5); the mean over
    0.3, 0.5 and 0.7 is of their MaxBoxAccV2, arXiv:2007.04178.
  Differs: MaxBoxAccV2 also tries the boxes of all components; here there is
    one, the largest's.
  """
  if not num_pairs:
    return {}
  best = 100 * np.asarray(correct, np.float64).max(-1) / num_pairs
  return {
    **{
      f"max_box_acc_{round(100 * iou)}": float(value)
      for iou, value in zip(ious, best, strict=True)
    },
    "max_box_acc_v2": float(best.mean()),
  }


def _area(boxes: np.ndarray) -> np.ndarray:
  return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(-1)
