"""Where maps of yours point: the map metrics as functions of arrays."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gc_jax.method import curves, metrics
from gc_jax.method.cam import at_least_float32
from gc_jax.method.protocols import PROTOCOLS
from gc_jax.method.types import check_not_negative, is_present


class Located(NamedTuple):
  """How well each map points at its object, as fractions in [0, 1].

  A picture without an object, no pixel of a mask or of a box, has NaN.
  """

  pointing_game: Float[Array, "B"]
  stochastic_pointing_game_exact: Float[Array, "B"]
  content_heatmap: Float[Array, "B"]


def localize(
  maps: ArrayLike,
  *,
  masks: ArrayLike | None = None,
  boxes: ArrayLike | None = None,
  size: tuple[int, int] | None = None,
  protocol: str = "corrected",
  tolerance_px: float = 15.0,
) -> Located:
  """Returns how well maps point at objects, a number a picture.

  Works under `jit` and `vmap`; what depends on the values of boxes is checked
  outside of them.

  Args:
    maps: `[B h w]`, >= 0, of any scale; enlarged to the picture. An empty one
      counts as uniform.
    masks: `[B H W]`, above 0 (or True) on the object.
    boxes: in place of masks, `[B N 4]`: (ymin, xmin, ymax, xmax) in pixels of
      the picture, up to and without the last; N of each picture, of which those
      without area do not count. The object is their union.
    size: (H, W) of the pictures that the boxes are of.
    protocol: of `PROTOCOLS`; what it says of a number a picture is what becomes
      of boxes that begin above or left of the picture: clipped, or as sliced by
      the authors' programs ("release"), empty unless it reaches the far end.
    tolerance_px: a point hits if it is nearer than this to the object; at 1
      only on the object itself.

  Raises:
    ValueError: shapes do not fit, a map is below 0 somewhere, boxes are
      fractions of the picture, or nothing is as near as the tolerance.

  Source: Pillai & Pirsiavash 2021, section 4.
  Differs: the stochastic pointing game by its expectation, without drawing.
  """
  if protocol not in PROTOCOLS:
    raise ValueError(
      f"protocol must be one of {', '.join(PROTOCOLS)}; it is {protocol!r}."
    )
  if not 0 < tolerance_px < math.inf:
    raise ValueError(
      f"tolerance_px must be above 0 and finite; it is {tolerance_px:g}. With "
      "1, only points on the object itself hit."
    )
  maps = at_least_float32(jnp.asarray(maps))
  if maps.ndim != 3 or 0 in maps.shape[1:]:
    raise ValueError(f"maps must be [B h w]; they have shape {maps.shape}.")
  check_not_negative(maps)
  if (masks is None) == (boxes is None):
    raise ValueError("Give either masks= or boxes=.")
  if masks is not None and size is not None:
    raise ValueError(
      "size= goes with boxes=; masks say their size. Leave it out."
    )
  if boxes is not None:
    masks = _filled(jnp.asarray(boxes), size, PROTOCOLS[protocol].border)
  masks = is_present(jnp.asarray(masks))
  if masks.ndim != 3 or len(masks) != len(maps):
    raise ValueError(
      f"Each of the {len(maps)} maps must have a mask [H W] or boxes [N 4]; "
      f"masks have shape {masks.shape}."
    )
  large = curves.enlarged(maps, *masks.shape[1:])
  near = metrics.dilate(masks, float(tolerance_px))
  known = masks.any((1, 2))
  found = (
    metrics.pointing_game(large, near),
    metrics.content_heatmap(large, near),
    metrics.content_heatmap(large, masks),
  )
  return Located(*(jnp.where(known, each, jnp.nan) for each in found))


def _filled(boxes: Array, size: tuple[int, int] | None, border: str) -> Array:
  """Returns the union of each picture's boxes, `[B H W]`."""
  if np.shape(size) != (2,):
    raise ValueError(
      f"size=(H, W) of the pictures must be given with boxes=; it is {size}."
    )
  if boxes.ndim != 3 or boxes.shape[-1] != 4:
    raise ValueError(
      f"boxes must be [B N 4]; they have shape {boxes.shape}. For one box a "
      "picture give boxes[:, None]."
    )
  if not isinstance(boxes, jax.core.Tracer):
    values = np.asarray(boxes)
    is_whole = np.issubdtype(values.dtype, np.integer)
    if not is_whole and values.any() and values.max() <= 1:
      raise ValueError(
        "boxes must be in pixels; none is above 1, so they look like "
        "fractions. Multiply them by H and W; boxes of one pixel give as "
        "integers."
      )
  boxes = at_least_float32(boxes)
  start, stop = boxes[..., :2], boxes[..., 2:]
  if border == "release":
    # A slice counts from the other end: of most such boxes nothing is left.
    start = jnp.where(
      start < 0, start + jnp.array(size, start.dtype)[None, None], start
    )

  def between(axis):
    at = jnp.arange(size[axis], dtype=start.dtype)[None, None]
    return (at >= start[..., axis, None]) & (at < stop[..., axis, None])

  return (between(0)[..., :, None] & between(1)[..., None, :]).any(1)
