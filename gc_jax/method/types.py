"""The words every part shares: axis letters, batches, metric sums.

Axes, in jaxtyping strings everywhere:
  B images in a batch      H W pixels        h w cells of the feature grid
  D feature channels       K classes         P explained classes of an image
  M composites             C colour channels
"""

import operator
from typing import Any, NamedTuple, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

Array = jax.Array | np.ndarray

# name -> (sum over examples, number of examples). Means are taken once, when
# printed: means of means would weigh a short last batch too much. Added up on
# the host, scalars are numpy's.
Metrics = dict[str, tuple[Array | np.number, Array | np.number]]


def check_alike(**arrays: Array) -> None:
  """Checks that arrays have one shape, so that none is broadcast to another.

  Raises:
    ValueError: they have not; says the shape of each.
  """
  shapes = {name: jnp.shape(x) for name, x in arrays.items()}
  if len({*shapes.values()}) > 1:
    found = ", ".join(f"{name} has {shape}" for name, shape in shapes.items())
    raise ValueError(
      f"{' and '.join(shapes)} must have one shape; {found}. Enlarge maps with "
      "metrics.upsample, and repeat what several share."
    )


def check_at_least_one(name: str, count: Any) -> None:
  """Checks that a setting is a whole number of at least 1.

  Raises:
    ValueError: it is not.
  """
  try:
    count = operator.index(count)
  except TypeError:  # of fractions, and of arrays in a trace
    raise ValueError(f"{name} must be an int; it is {count}.") from None
  if count < 1:
    raise ValueError(f"{name} must be at least 1; it is {count}.")


def check_key(key: Any) -> None:
  """Checks that `key` is one key of random numbers.

  Raises:
    ValueError: it is something else.
  """
  dtype, shape = getattr(key, "dtype", None), np.shape(key)
  is_typed = jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
  is_raw = dtype == np.uint32 and len(shape) == 1
  if not (is_typed or is_raw):
    came = f"an array {dtype} {shape}" if dtype is not None else repr(key)
    raise ValueError(f"key must be one, as jax.random.key(0); it is {came}.")


def is_known(x: Array) -> bool:
  """Returns whether this process can look at an array's values now."""
  if isinstance(x, jax.core.Tracer):
    return False
  return isinstance(x, np.ndarray) or x.is_fully_addressable


def check_not_negative(maps: Array) -> None:
  """Checks the values of maps, where they are known.

  Raises:
    ValueError: one is below 0.
  """
  if not is_known(maps):
    return
  values = np.asarray(maps)
  if (values < 0).any():
    raise ValueError(
      f"maps must be >= 0; the least value is {values.min():g}. Take what "
      "speaks for the class: np.maximum(maps, 0)."
    )


def is_present(x: Array) -> Bool[Array, "..."]:
  """Returns flags as they are, and where others are above 0."""
  return x if x.dtype == bool else x > 0


class Batch(TypedDict):
  """What the data pipeline hands to a step.

  Keys:
    image: uint8 `[B H W 3]`, RGB.
    label: int32 `[B]`, the class. Single-label sets only.
    labels: int32 `[B K]`, how many objects of each class the image holds.
      Multi-label sets only; `labels > 0` is the usual multi-hot vector.
    mask: float32 `[B]`, 1 for a real example, 0 for padding.
    distractors: uint8 `[B 3 H W 3]`, pictures from the whole training set that
      do not show `target`. Only with `--config.compose.distractors=dataset`.
    distractor_mask: float32 `[B]`, 0 where there are no such pictures.
    object_mask: bool `[B H W]`, pixels of all objects of `target`, fitted as
      the image is; a filled box where an object has no mask. Only where a
      guidance term needs it.
    target: int32 `[B]`, the class to explain, drawn before the two were read.
    skipped: float32 `[B]`, how many broken pictures were passed over to make
      the example. Only with `--config.data.on_error=skip`.
  """

  image: Array
  mask: Array
  label: NotRequired[Array]
  labels: NotRequired[Array]
  distractors: NotRequired[Array]
  distractor_mask: NotRequired[Array]
  object_mask: NotRequired[Array]
  target: NotRequired[Array]
  skipped: NotRequired[Array]


class GridAnnotation(NamedTuple):
  """An annotation of H x W pixels, in the form that maps of h x w cells need.

  `data.geometry.on_grid` makes them, of numpy's arrays.

  Attributes:
    inside: for each cell, the sum over the mask of the cell's weights in the
      bilinear enlargement (the mask under the transposed interpolation).
    near: the same sum over the mask dilated by the tolerance.
    everywhere: the same sum over all pixels.
    rows: where the enlarged map can peak, ascending, in units of cells: the
      first and last pixel rows between two rows of cells, as the map is linear
      in between. Padded with the last one.
    columns: the same for columns.
    near_peak: whether the dilated mask holds the pixel at that row and column.
  """

  inside: Float[Array, "*P h w"]
  near: Float[Array, "*P h w"]
  everywhere: Float[Array, "*P h w"]
  rows: Float[Array, "*P r"]
  columns: Float[Array, "*P c"]
  near_peak: Bool[Array, "*P r c"]


class PairBatch(TypedDict):
  """A batch of (picture, class) pairs, for evaluation (`data.pairs`).

  Keys:
    image: uint8 `[B H W 3]`, RGB; of composites all four pictures.
    row: int32 `[B]`, number of the pair among all (-1 = padding).
    mask: float32 `[B]`, 1 where the picture was read.
    first: float32 `[B]`, 1 on the first row of each picture: what is asked of
      the picture alone is counted there.
    target: int32 `[B]`, the class to explain.
    target_mask: float32 `[B]`, 0 where the picture shows no class.
    label: int32 `[B]`, of single-label sets.
    labels: int32 `[B K]`, of multi-label sets, as in `Batch`.
    annotated: float32 `[B]`, whether any pixel of the class is known.
    difficult: float32 `[B]`, whether all its objects are marked so.
    object_mask: bool `[B H W]`, pixels of any object of the class; where asked
      for.
    annotations: name of a grid -> `GridAnnotation` `[B ...]`.
    cell: int32 `[B]`, where the picture sits in its composite.

  Those of the annotation are missing from composites, and `cell` elsewhere.
  """

  image: Array
  row: Array
  mask: Array
  first: Array
  target: Array
  target_mask: Array
  label: NotRequired[Array]
  labels: NotRequired[Array]
  annotated: NotRequired[Array]
  difficult: NotRequired[Array]
  object_mask: NotRequired[Array]
  annotations: NotRequired[dict[str, tuple]]
  cell: NotRequired[Array]
