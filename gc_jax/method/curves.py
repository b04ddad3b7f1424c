"""Does a model itself use what a map points at? Insertion and deletion.

Pixels change in the order of the map, brightest first. Deletion covers them
with grey, and the score should fall soon; insertion uncovers them over a
blurred picture, and the score should rise soon. Reported is the area under the
curve of the score.

Source: Petsiuk et al. 2018 (RISE), arXiv:1806.07421.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gc_jax.method import metrics

KINDS = ("insertion", "deletion")

# RISE's blur of pictures of 224 pixels: a kernel of 11, a sigma of 5. It grows
# with larger pictures; for smaller ones it stays, or would hide nothing.
_SIGMA_PX, _RADIUS_PX = 5.0, 5
_SIDE_PX = 224


def curves(
  probabilities: Callable[[Float[Array, "B H W C"]], Float[Array, "B K"]],
  images: Float[Array, "B H W C"],
  grey: Float[Array, "B H W C"],
  targets: Int[Array, "B P"],
  cams: Float[Array, "B P h w"],
  *,
  num_steps: int,
  kinds: Sequence[str] = KINDS,
) -> tuple[Float[Array, "S1"], dict[str, Float[Array, "B P S1"]]]:
  """Returns the target's score while pixels come, and while they go.

  The pixels are ranked by the bilinearly enlarged map; equal ones, and all of a
  constant or empty map (`metrics.is_empty`), go row by row.

  Args:
    probabilities: of the model, of pictures of any content.
    images: pictures of any range.
    grey: what covers them.
    targets: classes that were explained.
    cams: their raw maps.
    num_steps: S, equal up to rounding. There are (S - 1) * 2 P + 3 forward
      passes of B pictures, one after the other: memory is that of one, and of
      P numbers a pixel. RISE changes 224 pixels a step.
    kinds: of `KINDS`; one alone takes half the passes.

  Returns:
    The fractions of changed pixels, from 0 to 1, then the scores of each kind,
    float32. Insertion ends at the clean picture, where deletion starts.

  Source: Petsiuk et al. 2018, arXiv:1806.07421; the grey, and the kernel of 11
    and sigma of 5 at 224 pixels, are their code's.
  Differs: the blur grows with pictures larger than 224 pixels, and repeats the
    border where theirs fades to grey. Their kernel folds the Gaussian's tails
    back in, and so is flatter.
  """
  height, width = images.shape[1:3]
  # Insertion leads from the first to the second, deletion on to the third.
  stages = jnp.stack([_blurred(images), images, grey])
  counts = np.arange(num_steps + 1) * height * width // num_steps
  pictures, places = _pictures(
    cams.shape[1], counts, [KINDS.index(kind) for kind in kinds]
  )
  ranks = jax.lax.map(
    lambda cam: _ranks(cam, height, width)[..., None], cams.swapaxes(0, 1)
  )

  def of_targets(picture):
    stage, number, count = picture
    is_changed = ranks[number] < count
    pixels = jnp.where(is_changed, stages[stage + 1], stages[stage])
    scores = probabilities(pixels).astype(jnp.float32)
    return jnp.take_along_axis(scores, targets, axis=1)

  scores = jax.lax.map(of_targets, jnp.array(pictures))  # [pictures B P]
  own = np.arange(cams.shape[1])[:, None]
  found = {
    kind: jnp.moveaxis(scores[place, :, own], 2, 0)
    for kind, place in zip(kinds, places, strict=True)
  }
  return jnp.asarray(counts / (height * width), jnp.float32), found


def area_under(
  fractions: Float[Array, "S1"], scores: Float[Array, "B P S1"]
) -> Float[Array, "B P"]:
  """Returns the area under a curve, by the trapezoid rule."""
  means = (scores[..., 1:] + scores[..., :-1]) / 2
  return (means * jnp.diff(fractions)[None, None]).sum(-1)


def enlarged(
  cam: Float[Array, "B h w"], height: int, width: int
) -> Float[Array, "B H W"]:
  """Returns maps of the picture's size, bilinear; constant ones stay so."""
  cam = metrics.as_distribution(cam)
  cam_px = metrics.upsample(cam, height, width)
  # Enlarging rounds: a constant would be ranked, or peak, by the last digits.
  is_constant = cam.max((1, 2)) == cam.min((1, 2))
  return jnp.where(is_constant[:, None, None], cam[:, :1, :1], cam_px)


def _pictures(
  num_maps: int, counts: Int[np.ndarray, "S1"], stages: Sequence[int] = (0, 1)
) -> tuple[Int[np.ndarray, "N 3"], Int[np.ndarray, "stages P S1"]]:
  """Returns (stage, map, count) of each picture; then its place in each curve.

  Where no pixel has changed, and where all have, the maps show the same
  picture, and insertion ends where deletion starts: it is scored once.
  """
  stage, number, count = np.meshgrid(
    stages, np.arange(num_maps), counts, indexing="ij"
  )
  is_clean = (stage == 0) & (count == counts[-1])
  stage, count = np.where(is_clean, 1, stage), np.where(is_clean, 0, count)
  number = np.where(np.isin(count, (0, counts[-1])), 0, number)
  points = np.stack([stage, number, count], -1, dtype=np.int32)
  pictures, places = np.unique(
    points.reshape(-1, 3), axis=0, return_inverse=True
  )
  return pictures, places.reshape(stage.shape)


def _ranks(
  cam: Float[Array, "B h w"], height: int, width: int
) -> Int[Array, "B H W"]:
  """Returns each pixel's place, 0 for the brightest."""
  cam_px = enlarged(cam, height, width)
  order = jnp.argsort(-cam_px.reshape(len(cam), -1), axis=1, stable=True)
  return jnp.argsort(order, axis=1).reshape(cam_px.shape)


def _blurred(images: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
  """Returns the pictures under a Gaussian, its border repeated."""
  height, width = images.shape[1:3]
  side = min(height, width)
  scale = max(side / _SIDE_PX, 1.0)
  sigma, radius = _SIGMA_PX * scale, round(_RADIUS_PX * scale)
  rows, columns = (
    _blur_weights(size, sigma, radius).astype(images.dtype)
    for size in (height, width)
  )
  return jnp.einsum(
    "gh,bhwc,kw->bgkc", rows, images, columns, precision="highest"
  )


def _blur_weights(
  size: int, sigma: float, radius: int
) -> Float[np.ndarray, "n n"]:
  offsets = np.arange(-radius, radius + 1)
  kernel = np.exp(-(offsets**2) / (2 * sigma**2))
  weights = np.zeros((size, size), np.float32)
  for offset, weight in zip(offsets, kernel / kernel.sum(), strict=True):
    sources = np.clip(np.arange(size) + offset, 0, size - 1)
    weights[np.arange(size), sources] += weight
  return weights
