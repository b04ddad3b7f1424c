"""Maps of a model that is only asked: pictures in, scores out, no gradient."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.attribution.gradients import summed
from gc_jax.attribution.wrapping import is_multi_label, tapped
from gc_jax.method.cam import at_least_float32
from gc_jax.method.types import check_at_least_one


def rise(
  model,
  images,
  targets,
  *,
  num_masks: int = 4_000,
  cells: int = 7,
  shown_frac: float = 0.5,
  multi_label: bool | None = None,
  key: PRNGKeyArray | None = None,
):
  """Returns how much a class's probability rises where a pixel is shown.

  map[p] = relu( sum_i f(x * m_i) m_i[p] / sum_i m_i[p] - mean_i f(x * m_i) )

  The masks m_i are random grids of `cells` by `cells`, each cell shown with
  probability `shown_frac`, enlarged bilinearly and shifted. What is hidden is
  the mean colour of ImageNet, of a wrapped model 0. f is the softmax's
  probability, of `multi_label` the sigmoid's; None is what a model of gc_jax
  was trained for, and the softmax of all others.

  It costs `num_masks` forward passes of the images, one after the other: memory
  does not grow with the masks. Without a key they are the same at every call,
  and they are the same for all images.

  Raises:
    ValueError: there is no mask or no cell, the fraction is not in (0, 1), or
      the model has one output and nobody said that it is a sigmoid's.

  Source: Petsiuk et al. 2018 (RISE), arXiv:1806.07421, section 3; 4,000 masks
    of 7 by 7 cells and 0.5 are theirs for VGG16. They take 8,000 for ResNet50.
  Differs: sums are divided by those of the masks drawn, not by their
    expectation, and the mean score is taken off: a score that depends on no
    pixel has an empty map, where theirs is about the same everywhere.
  """
  check_at_least_one("num_masks", num_masks)
  check_at_least_one("cells", cells)
  if not 0 < shown_frac < 1:
    raise ValueError(
      f"shown_frac must be above 0 and below 1; it is {shown_frac}."
    )
  multi_label = is_multi_label(model, multi_label)
  net = tapped(model)
  images = net.prepared_floats(images)
  height, width = net.channels_last(images).shape[1:3]

  def one(key):
    """Returns the scores under a mask, the mask, and their products."""
    mask = _mask(key, height, width, cells, shown_frac).astype(net.dtype)
    pixels = images * net.as_images(mask[..., None])[None].astype(images.dtype)
    scores = probabilities(at_least_float32(net(pixels)[0]), multi_label)
    scores = scores.astype(net.dtype)
    scores = jnp.take_along_axis(scores, targets, axis=1)
    return scores, mask, scores[..., None, None] * mask[None, None]

  keys = jax.random.split(jax.random.key(0) if key is None else key, num_masks)
  of_scores, of_masks, of_both = summed(one, keys)
  # A pixel that few masks ever show has no mean.
  mean = of_both / jnp.where(of_masks > 0, of_masks, 1)[None, None]
  return jax.nn.relu(mean - of_scores[..., None, None] / num_masks)


def probabilities(
  logits: Float[Array, "B K"], multi_label: bool
) -> Float[Array, "B K"]:
  """Returns sigmoids of logits under `multi_label`, else their softmax.

  Raises:
    ValueError: one logit has no other to compare with.
  """
  if multi_label:
    return jax.nn.sigmoid(logits)
  if logits.shape[-1] == 1:
    raise ValueError(
      "For probabilities by softmax a model must have an output for each "
      "class, two at least; it has one. Give multi_label=True to take its "
      "sigmoid."
    )
  return jax.nn.softmax(logits)


def _mask(
  key: PRNGKeyArray, height: int, width: int, cells: int, shown_frac: float
) -> Float[Array, "H W"]:
  """Returns a mask in [0, 1]: a grid enlarged, and cut out at a random place.

  It is enlarged by one cell more than the picture needs, so that it can be
  shifted by up to a cell.
  """
  key_grid, key_shift = jax.random.split(key)
  # Types are named, as under x64 other numbers would be drawn.
  grid = jax.random.uniform(key_grid, (cells, cells), jnp.float32) < shown_frac
  cell = math.ceil(height / cells), math.ceil(width / cells)
  enlarged = jax.image.resize(
    grid.astype(jnp.float32),
    tuple((cells + 1) * side for side in cell),
    "bilinear",
  )
  shift = jax.random.randint(
    key_shift, (2,), 0, jnp.array(cell, jnp.int32), jnp.int32
  )
  return jax.lax.dynamic_slice(enlarged, shift, (height, width))
