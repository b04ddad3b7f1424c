"""How well a map points at the object: PG, SPG, CH, NQH; facts of all metrics.

Maps are >= 0, of any scale: a metric looks at the distribution over pixels or
cells that one is (`as_distribution`). Every metric of maps is a fraction in
[0, 1], one for each example, defined for every input. Maps and masks of unlike
shapes are a ValueError: nothing is broadcast.

There are two routes to the same numbers. In pixels: `upsample` the map and
compare it with the mask. On the map's own grid: the mass of an enlarged map
inside a mask is linear in the map, so one small `GridAnnotation` for each mask
serves every map, whatever the size of the picture.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from gc_jax.method.cam import at_least_float32
from gc_jax.method.sharding import dividing_freely
from gc_jax.method.types import GridAnnotation, check_alike


def upsample(
  cam: Float[Array, "*P h w"], height: int, width: int
) -> Float[Array, "*P H W"]:
  """Returns the map bilinearly enlarged, pixel centres aligned as in OpenCV."""
  shape = (*cam.shape[:-2], height, width)
  # It matters when shrinking: OpenCV and PyTorch do not smooth first either.
  return jax.image.resize(cam, shape, "bilinear", antialias=False)


def is_empty(cam: Float[Array, "*P h w"]) -> Bool[Array, "*P"]:
  """Returns True for maps without mass, or with a value that is not finite."""
  total = at_least_float32(cam).sum((-2, -1))  # in float16 it is soon too large
  return ~((total > 0) & jnp.isfinite(total))


def as_distribution(cam: Float[Array, "*P h w"]) -> Float[Array, "*P h w"]:
  """Returns the map divided by its sum; an empty one becomes uniform.

  In the release an epsilon fills empty maps, to the same effect.
  """
  cam = at_least_float32(cam)
  empty = is_empty(cam)[..., None, None]
  total = jnp.where(empty, 1.0, cam.sum((-2, -1), keepdims=True))
  return jnp.where(empty, 1 / math.prod(cam.shape[-2:]), cam / total)


def dilate(
  object_mask: Shaped[Array, "*P H W"], tolerance_px: float
) -> Bool[Array, "*P H W"]:
  """Returns the pixels nearer to the mask than a tolerance.

  dilated[p] = min over m in mask of |m - p|^2 < tolerance_px^2

  Args:
    object_mask: True, or not 0, for pixels of the object.
    tolerance_px: Euclidean, strict: at 15, distance 14 is in and 15 is out.

  Source: the release; the paper's section 4 says "15 pixels".
  """
  limit = tolerance_px**2
  reach = math.ceil(tolerance_px) - 1
  height = object_mask.shape[-2]
  planes = object_mask.astype(bool).reshape(-1, *object_mask.shape[-2:])
  dilated = jnp.zeros_like(planes)
  # The disc, row by row: a horizontal window, shifted up or down.
  for dy in range(-reach, reach + 1):
    half_width = math.ceil(math.sqrt(limit - dy**2)) - 1
    rows = jax.lax.reduce_window(
      planes,
      False,
      jax.lax.bitwise_or,
      window_dimensions=(1, 1, 2 * half_width + 1),
      window_strides=(1, 1, 1),
      padding="SAME",
    )
    above, below = max(dy, 0), max(-dy, 0)
    rows = jnp.pad(rows, ((0, 0), (above, below), (0, 0)))
    dilated |= rows[:, below : below + height]
  return dilated.reshape(object_mask.shape)


def pointing_game(
  cam: Float[Array, "*P H W"], dilated: Shaped[Array, "*P H W"]
) -> Float[Array, "*P"]:
  """Returns 1 where the map's first maximum falls on the dilated mask.

  Source: Zhang et al. 2018, arXiv:1608.00507; Pillai & Pirsiavash 2021, 4.
  """
  check_alike(cam=cam, dilated=dilated)
  point = jnp.argmax(_flat(cam), -1)[..., None]
  hit = jnp.take_along_axis(_flat(dilated), point, -1)[..., 0]
  return hit.astype(bool).astype(jnp.float32)


@dividing_freely
def stochastic_pointing_game(
  key: PRNGKeyArray,
  cam: Float[Array, "*P H W"],
  dilated: Shaped[Array, "*P H W"],
  num_samples: int,
) -> Float[Array, "*P"]:
  """Returns the share of points drawn from the map that hit the dilated mask.

  Args:
    key: the points are a function of it.
    cam: a map; an empty one counts as uniform.
    dilated: the object's mask, dilated by the tolerance.
    num_samples: points drawn, with replacement.

  Source: Pillai & Pirsiavash 2021, section 4.
  """
  check_alike(cam=cam, dilated=dilated)
  cam = as_distribution(at_least_float32(cam))
  cumulative = jnp.cumsum(_flat(cam), -1)
  shape = (*cumulative.shape[:-1], num_samples)
  uniform = jax.random.uniform(key, shape, jnp.float32)
  # Scaled by the last sum, so that rounding draws nothing past the end.
  level = uniform.astype(cumulative.dtype) * cumulative[..., -1:]
  search = jnp.vectorize(
    lambda c, u: jnp.searchsorted(c, u, side="right"),
    signature="(n),(s)->(s)",
  )
  point = jnp.minimum(search(cumulative, level), cumulative.shape[-1] - 1)
  hits = jnp.take_along_axis(_flat(dilated), point, -1)
  return hits.astype(bool).astype(jnp.float32).mean(-1)


def content_heatmap(
  cam: Float[Array, "*P H W"], object_mask: Shaped[Array, "*P H W"]
) -> Float[Array, "*P"]:
  """Returns the mass of the map inside the mask.

  On the dilated mask it is the expectation of the stochastic pointing game
  (`stochastic_pointing_game_exact`).

  Args:
    cam: a map; an empty one counts as uniform.
    object_mask: True, or not 0, for pixels of the object.

  Source: Pillai & Pirsiavash 2021, section 4.
  """
  check_alike(cam=cam, object_mask=object_mask)
  cam = as_distribution(cam)
  return jnp.where(object_mask.astype(bool), cam, 0).sum((-2, -1))


def grid_content_heatmap(
  cam: Float[Array, "*P h w"],
  inside: Float[Array, "*P h w"],
  everywhere: Float[Array, "*P h w"],
) -> Float[Array, "*P"]:
  """Returns `content_heatmap` of the enlarged map, from the map itself.

  sum_p up(cam)[p] mask[p] / sum_p up(cam)[p]
    = sum_c cam[c] inside[c] / sum_c cam[c] everywhere[c]

  Args:
    cam: raw map >= 0; an empty one counts as uniform.
    inside: of a `GridAnnotation`; give `near` for the expectation of the
      stochastic pointing game.
    everywhere: of the same annotation.
  """
  check_alike(cam=cam, inside=inside, everywhere=everywhere)
  inside, everywhere = map(at_least_float32, (inside, everywhere))
  cam = as_distribution(cam)
  return (cam * inside).sum((-2, -1)) / (cam * everywhere).sum((-2, -1))


@dividing_freely
def grid_pointing_game(
  cam: Float[Array, "*P h w"], annotation: GridAnnotation
) -> Float[Array, "*P"]:
  """Returns `pointing_game` of the enlarged map, from the map itself.

  Args:
    cam: raw map >= 0; an empty one points at the first pixel.
    annotation: for a grid of this size.
  """
  cam = jnp.where(is_empty(cam)[..., None, None], 1.0, cam)
  between_rows = _interpolated(cam, annotation.rows)
  peaks = _interpolated(between_rows.mT, annotation.columns).mT
  return pointing_game(peaks, annotation.near_peak)


def _interpolated(
  cam: Float[Array, "*P h w"], rows: Float[Array, "*P r"]
) -> Float[Array, "*P r w"]:
  """Returns the map at coordinates of its rows."""
  below = jnp.floor(rows)
  weight = (rows - below)[..., None]
  first = below.astype(jnp.int32)[..., None]
  second = jnp.minimum(first + 1, cam.shape[-2] - 1)
  low = jnp.take_along_axis(cam, first, axis=-2)
  high = jnp.take_along_axis(cam, second, axis=-2)
  # Exact where both are equal, unlike their weighted sum: a flat map then peaks
  # at its first pixel.
  return low + weight * (high - low)


@dividing_freely
def negative_quadrants_heatmap(
  cam: Float[Array, "*P h2 w2"], cell: Int[Array, "*P"]
) -> Float[Array, "*P"]:
  """Returns the mass of a composite's map outside the explained cell.

  A uniform map scores 3/4.

  Args:
    cam: a map over the cells of the composite's feature grid: an enlarged one
      would bleed across the border of the quadrants. An empty one counts as
      uniform.
    cell: quadrant of the explained image, 0..3, row-major.

  Source: Pillai & Pirsiavash 2021, section 4.
  """
  *batch, height, width = cam.shape
  if jnp.shape(cell) != tuple(batch):
    raise ValueError(
      f"cell must be one for each map, {tuple(batch)}; it has shape "
      f"{jnp.shape(cell)}. Repeat what several share."
    )
  cam = as_distribution(cam)
  # Of an odd number of cells (AlexNet's 13) both sides share the middle one.
  halves = 1 + height % 2, 1 + width % 2
  cam = cam.repeat(halves[0], -2).repeat(halves[1], -1)
  quadrants = cam.reshape(
    *batch, 2, halves[0] * height // 2, 2, halves[1] * width // 2
  ).sum((-3, -1))
  own = jnp.take_along_axis(_flat(quadrants), cell[..., None], -1)[..., 0]
  return 1 - own / math.prod(halves)


def _flat(planes: Array) -> Array:
  *batch, height, width = planes.shape
  return planes.reshape(*batch, height * width)


@dataclasses.dataclass(frozen=True)
class Metric:
  """The facts of a metric."""

  title: str  # heading of its column
  meaning: str  # a few words
  # What it is measured on. For pictures: "label", one class, or "labels",
  # several. For maps: "objects", the annotation; "composite", four pictures in
  # one; "maps", nothing else; "pixels", the model's answers as pixels come and
  # go; "boxes"; "sums".
  needs: str
  # `(raw maps, GridAnnotation)` for "objects", `(raw maps, cells)` for
  # "composite" and "maps"; None if another program measures it.
  measure: Callable[..., Array] | None = None
  higher_is_better: bool | None = True  # None if neither direction is
  unit: str = "percent"  # or "fraction", which tables turn to percent

  @property
  def is_of_maps(self) -> bool:
    """Returns whether a method's maps are measured."""
    return self.needs not in ("label", "labels")

  @property
  def needs_objects(self) -> bool:
    """Returns whether it says nothing of pictures without mask or box."""
    return self.needs in ("objects", "boxes")

  @property
  def is_costly(self) -> bool:
    """Returns whether few pairs are measured, as for costly methods."""
    return self.needs in ("pixels", "boxes", "sums")


POINTING_GAMES = ("pointing_game", "stochastic_pointing_game_exact")
# In the order of tables.
METRICS = {
  "top1": Metric("Top-1", "images classified correctly", "label"),
  "top5": Metric(
    "Top-5", "images with the class among the five highest", "label"
  ),
  "f1_per_class": Metric("F1-PerClass", "F1, averaged over classes", "labels"),
  "f1_overall": Metric("F1-Overall", "F1 over all decisions", "labels"),
  "pointing_game": Metric(
    "PG",
    "pointing game: maps that peak on the object",
    "objects",
    grid_pointing_game,
  ),
  # Drawn from its expectation once all pairs are known.
  "stochastic_pointing_game": Metric(
    "SPG",
    "stochastic pointing game: points drawn from the map that hit",
    "objects",
  ),
  "stochastic_pointing_game_exact": Metric(
    "SPG exact",
    "the expectation of SPG, without drawing",
    "objects",
    lambda cam, at: grid_content_heatmap(cam, at.near, at.everywhere),
  ),
  "content_heatmap": Metric(
    "CH",
    "content heatmap: map within the object",
    "objects",
    lambda cam, at: grid_content_heatmap(cam, at.inside, at.everywhere),
  ),
  "negative_quadrants_heatmap": Metric(
    "NQH",
    "negative quadrants heatmap: map of a composite on its distractors",
    "composite",
    negative_quadrants_heatmap,
    higher_is_better=False,
  ),
  "insertion_auc": Metric(
    "Insertion",
    "probability of the class while pixels appear, highest of the map first",
    "pixels",
  ),
  "deletion_auc": Metric(
    "Deletion",
    "probability of the class while pixels vanish, highest of the map first",
    "pixels",
    higher_is_better=False,
  ),
  "max_box_acc_50": Metric(
    "MaxBoxAcc 0.5",
    "boxes around the map that overlap the object's by half",
    "boxes",
  ),
  "max_box_acc_v2": Metric(
    "MaxBoxAccV2",
    "the same, averaged over overlaps of 0.3, 0.5 and 0.7",
    "boxes",
  ),
  "completeness_error": Metric(
    "Completeness error",
    "how far attributions are from summing to the score they divide",
    "sums",
    higher_is_better=None,  # it says how exactly a method was computed
  ),
  "zero_map_frac": Metric(
    "Empty",
    "maps that are zero everywhere",
    "maps",
    lambda cam, _: is_empty(cam).astype(jnp.float32),
    higher_is_better=None,
    unit="fraction",
  ),
  "zero_composite_frac": Metric(
    "Empty, composites",
    "maps of composites that are zero everywhere",
    "composite",
    lambda cam, _: is_empty(cam).astype(jnp.float32),
    higher_is_better=None,
    unit="fraction",
  ),
}


class Attack(NamedTuple):
  """The facts of an attack; `on_few` if only few pictures are attacked."""

  title: str
  on_few: bool = False


# The paper's Table 6 gives no unit; here it is 1/255.
EPSILONS = (1, 2, 8, 16, 32, 64)
# In the order of tables.
ATTACKS = {
  "fgsm": Attack("FGSM"),
  "fgsm-within": Attack("FGSM, any step up to ε"),
  "fgsm-few": Attack("FGSM, on PGD's pictures", on_few=True),
  "pgd": Attack("PGD", on_few=True),
}


def accuracy(multi_label: bool) -> str:
  """Returns the metric of accuracy for pictures of one class, or of several."""
  return "f1_overall" if multi_label else "top1"


class Key(NamedTuple):
  """The address of a number in an evaluation; "" for what it is not of."""

  metric: str  # of `METRICS`, or what one is made of
  method: str = ""  # whose maps are measured
  attack: str = ""  # on the pictures, of `ATTACKS`
  epsilon: float | int = 0  # of the attack, in 1/255

  @property
  def name(self) -> str:
    """Returns "gradcam/pointing_game", "fgsm_8/top1" or "top1"."""
    attack = f"{self.attack}_{self.epsilon:g}" if self.attack else ""
    parts = self.method, attack, self.metric
    return "/".join(part for part in parts if part)
