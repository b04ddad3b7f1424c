"""Does the map point at the object? PG, SPG, CH, NQH, and MaxBoxAcc.

The first four are measured on devices, of whole batches. MaxBoxAcc asks whether
a box around the map fits one of the object's; that is measured on the host, in
numpy: connected components are no work for an accelerator. Boxes are
`ymin xmin ymax xmax` in pixels, half-open.
"""

import collections
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Real

from gc_jax.attribution import CONTROLS, METHODS
from gc_jax.data import geometry
from gc_jax.evaluation import classification
from gc_jax.evaluation.ledger import Measured, counted
from gc_jax.inference.arrays import logits_of, program
from gc_jax.method.metrics import METRICS, GridAnnotation, Key
from gc_jax.method.types import PairBatch

# A view: what is added to either is in it.
ALL_METHODS = collections.ChainMap(METHODS, CONTROLS)
DIFFICULT = Key("difficult")  # a column: whether pointing games pass it over
# Fractions of the map's maximum at which a box is drawn: 0, 0.01, ..., 0.99.
THRESHOLDS = np.linspace(0, 1, 101)[:-1]
IOUS = (0.3, 0.5, 0.7)
# Of methods that divide a score: what they sum to, and what they should.
Sums = dict[str, tuple[Float[Array, "B"], Float[Array, "B"]]]
BOXES = "max_box_acc"  # of a ledger's sums: how often each box was right


@program(1, 2)
def localization(
  model: nnx.Module,
  batch: PairBatch,
  methods: tuple[str, ...],
  predicts: bool,
) -> Measured:
  """Returns every metric of maps and annotations, and predictions if asked."""
  columns = on_pictures(_maps(model, batch, methods), batch)
  if not predicts:
    return Measured(columns, {}, {})
  logits = logits_of(model, batch["image"])
  measured = classification.measured(logits, batch)
  return measured._replace(columns=measured.columns | columns)


@program(1)
def negative_quadrants(
  model: nnx.Module, batch: PairBatch, methods: tuple[str, ...]
) -> Measured:
  """Returns every metric of maps of composites."""
  return Measured(on_composites(_maps(model, batch, methods), batch), {}, {})


@program(1)
def maps(
  model: nnx.Module, batch: PairBatch, methods: tuple[str, ...]
) -> tuple[Float[Array, "B K"], dict[str, Float[Array, "B h w"]], Sums]:
  """Returns the logits, each method's raw maps, and what they divide."""
  cams, sums, targets = {}, {}, batch["target"][:, None]
  for name in methods:
    method = ALL_METHODS[name]
    if method.divide is None:
      cams |= _maps(model, batch, (name,))
    else:
      found = method.divide(model, batch["image"], targets)
      cams[name], *both = (x[:, 0] for x in found)
      sums[name] = tuple(both)
  return logits_of(model, batch["image"]), cams, sums


def _maps(model, batch, methods) -> dict[str, Array]:
  """Returns each method's raw maps of the targets, `[B h w]`.

  Each method asks for the features anew; the compiler shares them.
  """
  targets = batch["target"][:, None]
  return {
    name: ALL_METHODS[name](model, batch["image"], targets)[:, 0]
    for name in methods
  }


def on_pictures(
  cams: dict[str, Float[Array, "B h w"]], batch: PairBatch
) -> dict[Key, Float[Array, "B"]]:
  """Returns every metric of maps, alone and against annotations.

  Without `annotations` the latter are left out. With them comes `DIFFICULT`.
  """
  counts = batch["mask"] * batch["target_mask"]
  columns = {}
  for name, cam in cams.items():
    columns |= _columns("maps", name, cam, None, counts)
  if not batch["annotations"]:
    return columns
  counts = counts * batch["annotated"]
  columns[DIFFICULT] = counted(counts, batch["difficult"])
  for name, cam in cams.items():
    annotated = GridAnnotation(
      *batch["annotations"][geometry.grid_name(cam.shape[1:])]
    )
    columns |= _columns("objects", name, cam, annotated, counts)
  return columns


def on_composites(
  cams: dict[str, Float[Array, "B h w"]], batch: PairBatch
) -> dict[Key, Float[Array, "B"]]:
  """Returns every metric of maps of composites."""
  counts = batch["mask"] * batch["target_mask"]
  columns = {}
  for name, cam in cams.items():
    columns |= _columns("composite", name, cam, batch["cell"], counts)
  return columns


def _columns(needs, method, cam, at, counts) -> dict[Key, Array]:
  return {
    Key(name, method): counted(counts, metric.measure(cam, at))
    for name, metric in METRICS.items()
    if metric.needs == needs and metric.measure is not None
  }


def boxes_correct(
  size: int,
  cams: Mapping[str, Float[np.ndarray, "B _ _"]],
  boxes: Sequence[Int[np.ndarray, "_ 4"] | None],
) -> dict[Key, tuple[np.ndarray, np.float64]]:
  """Returns `BOXES` of each method: sums `[I T]`, and how many rows count.

  Args:
    size: side of the pictures.
    cams: method -> raw map of each row.
    boxes: the object's boxes of each row; a row without any does not count.
  """
  totals = {}
  for name, maps_of_method in cams.items():
    correct = [
      box_correct(cv2.resize(cam, (size, size)), own)
      for cam, own in zip(maps_of_method, boxes, strict=True)
      if own is not None and len(own)
    ]
    none = np.zeros((len(IOUS), len(THRESHOLDS)))
    found = np.sum(correct, 0) + none, np.float64(len(correct))
    totals[Key(BOXES, name)] = found
  return totals


def box_correct(
  cam_px: Float[np.ndarray, "H W"], boxes: Real[np.ndarray, "N 4"]
) -> Bool[np.ndarray, "I T"]:
  """Returns whether a map's box fits one of the object's, to each of `IOUS`."""
  best = box_iou(boxes_of_map(cam_px), boxes).max(1)
  return best[None] >= np.asarray(IOUS)[:, None]


def box_iou(
  a: Real[np.ndarray, "N 4"], b: Real[np.ndarray, "M 4"]
) -> Float[np.ndarray, "N M"]:
  """Returns intersection over union of every two boxes, float64.

  A box without area overlaps nothing, not even itself: 0.
  """
  a, b = a.astype(np.float64), b.astype(np.float64)
  low = np.maximum(a[:, None, :2], b[None, :, :2])
  high = np.minimum(a[:, None, 2:], b[None, :, 2:])
  common = np.maximum(high - low, 0).prod(-1)
  union = _area(a)[:, None] + _area(b)[None] - common
  return common / np.where(union > 0, union, 1)


def _area(boxes: np.ndarray) -> np.ndarray:
  return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(-1)


def boxes_of_map(cam_px: Float[np.ndarray, "H W"]) -> Int[np.ndarray, "T 4"]:
  """Returns the box around the largest bright region at each of `THRESHOLDS`.

  The region is the 8-connected component with most pixels of

    cam_px >= threshold * max(cam_px)

  and of equally large ones the one whose box starts highest, then furthest
  left. A constant or empty map (`metrics.is_empty`) has the whole picture.

  Args:
    cam_px: a map >= 0, enlarged to pixels (`metrics.upsample`).

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
  boxes = np.zeros((len(THRESHOLDS), 4), np.int32)
  # A region holds those of higher thresholds: two of one size are the same.
  known: dict[int, np.ndarray] = {}
  for i, level in enumerate(THRESHOLDS * cam_px.max()):
    rows = np.flatnonzero(row_max >= level)
    columns = np.flatnonzero(column_max >= level)
    top, left = rows[0], columns[0]
    region = cam_px[top : rows[-1] + 1, left : columns[-1] + 1] >= level
    count = np.count_nonzero(region)
    if count not in known:
      known[count] = _largest_component(region) + np.tile((top, left), 2)
    boxes[i] = known[count]
  return boxes


def _largest_component(region: Bool[np.ndarray, "h w"]) -> np.ndarray:
  """Returns the box of the largest component; a region touches all borders."""
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


def max_box_acc(
  correct: Real[np.ndarray, "I T"], num_pairs: int | float
) -> dict[str, float]:
  """Returns percent of pairs with a good box, at the best threshold of all.

  max_box_acc_50 = max over thresholds of the mean over pairs, at IoU 0.5;
  max_box_acc_v2 is the mean of such numbers, each at its own threshold. Without
  a pair there is none.

  Args:
    correct: sum of `box_correct` over the (image, class) pairs of the split.
    num_pairs: how many they are.

  Source: Choe et al. 2020, arXiv:2001.07437 (MaxBoxAcc, at 0.5); the mean over
    0.3, 0.5 and 0.7 is of their MaxBoxAccV2, arXiv:2007.04178.
  Differs: MaxBoxAccV2 also tries the boxes of all components; here there is
    one, the largest's.
  """
  if not num_pairs:
    return {}
  best = 100 * np.asarray(correct, np.float64).max(-1) / num_pairs
  found = {
    f"max_box_acc_{round(100 * iou)}": float(value)
    for iou, value in zip(IOUS, best, strict=True)
  }
  return found | {"max_box_acc_v2": float(best.mean())}
