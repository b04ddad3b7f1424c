"""Models of users in use: what `wrap` returned, on arrays of pictures."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.attribution import METHODS, Method
from gc_jax.attribution.wrapping import Tapped
from gc_jax.method import compose, metrics


def predict(net: Tapped, images: ArrayLike) -> Float[Array, "B K"]:
  """Returns the logits of every class, of images as the model takes them."""
  net.check_evaluates()
  return _compiled_logits(net, _images(images))


def explain(
  net: Tapped,
  images: ArrayLike,
  targets: ArrayLike | Sequence,
  method: Method,
  settings: tuple[tuple[str, Any], ...] = (),
) -> Float[Array, "B P h w"]:
  """Returns raw maps of a method; `[B]` targets are one a picture."""
  net.check_evaluates()
  images, targets = _images(images), jnp.asarray(targets)
  num_classes = jax.eval_shape(_logits, net, images).shape[-1]
  check_targets(targets, len(images), num_classes)
  pairs = targets.astype(jnp.int32).reshape(len(images), -1)
  return _compiled_maps(net, images, pairs, method, settings)


def negative_quadrants(
  net: Tapped,
  images: ArrayLike,
  labels: ArrayLike | Sequence,
  key: PRNGKeyArray,
  method: str = "gradcam_elementwise",
) -> Float[Array, "B"]:
  """Returns the share of each composite's map that lies on its distractors.

  Each image is put into a composite with three others that do not show its
  class.

  Args:
    net: from `wrap`, in evaluation mode.
    images: as the model takes them; it must take pictures twice as high and
      wide too.
    labels: `[B]`, the class of each image.
    key: of the draw of distractors and cells.
    method: a key of `METHODS`, of maps that lie on a layer.

  Returns:
    Fractions; 3/4 is what a uniform map scores. NaN where the other images of
    the batch all show the class.

  Source: Pillai & Pirsiavash 2021, section 4 (NQH).
  Differs: distractors are drawn from the batch.
  """
  net.check_evaluates()
  images, labels = _images(images), jnp.asarray(labels)
  num_classes = jax.eval_shape(_logits, net, images).shape[-1]
  check_targets(labels, len(images), num_classes)
  contains = jax.nn.one_hot(labels, num_classes, dtype=bool)
  layout = compose.independent(key, contains, labels, jnp.ones(len(images)))
  composites = compose.assemble(layout, net.channels_last(images))
  composites = net.as_images(composites)
  cams = explain(net, composites, labels[layout.explained], METHODS[method])
  cams = metrics.as_distribution(cams)
  found = metrics.negative_quadrants_heatmap(cams, layout.cell)
  return jnp.where(layout.mask > 0, found, jnp.nan)[:, 0]


def check_targets(
  targets: Array | np.ndarray, num_images: int, num_classes: int
) -> None:
  """Checks class ids; of values known in a trace only, the shape.

  Raises:
    ValueError: they are not `[B]` or `[B P]`, integers, in 0..K-1.
  """
  if targets.shape[:1] != (num_images,) or targets.ndim not in (1, 2):
    raise ValueError(
      f"targets must be [B] or [B P], classes for each of the {num_images} "
      f"images; they have shape {targets.shape}. For one image and one class, "
      "give [class]."
    )
  if not jnp.issubdtype(targets.dtype, jnp.integer):
    raise ValueError(
      f"targets must be integers, class ids; they are {targets.dtype}."
    )
  if isinstance(targets, jax.core.Tracer):
    return
  values = np.asarray(targets)
  outside = values[(values < 0) | (values >= num_classes)]
  if outside.size:
    raise ValueError(
      f"targets must be in 0..{num_classes - 1}, the model's classes; "
      f"{outside.flat[0]} is not. Count from 0."
    )


def _images(images: ArrayLike) -> Array:
  images = jnp.asarray(images)
  if images.ndim != 4 or 0 in images.shape:
    raise ValueError(
      "images must be a batch of at least one, with four axes; they have shape "
      f"{images.shape}. For one picture, give images[None]."
    )
  return images


def _program(function: Callable, *static: int) -> Callable:
  """Returns a function of a net and arrays that is compiled where it may be.

  It is not in a trace, whose arrays must not outlive it in a cache, and not for
  a net that may hold arrays which change.
  """
  compiled = jax.jit(function, static_argnums=static)

  @functools.wraps(function)
  def run(net, images, *args):
    leaves = jax.tree.leaves((net, images))
    in_trace = any(isinstance(x, jax.core.Tracer) for x in leaves)
    as_it_is = in_trace or net.call.holds_arrays
    return (function if as_it_is else compiled)(net, images, *args)

  return run


def _logits(net, images):
  return net(net.prepared(images))[0]


def _maps(net, images, targets, method, settings):
  return method(net, images, targets, **dict(settings))


_compiled_logits = _program(_logits)
_compiled_maps = _program(_maps, 3, 4)
