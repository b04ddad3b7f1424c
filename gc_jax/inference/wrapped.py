"""Models of users in use: what `wrap` returned, on arrays of pictures."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.attribution import METHODS, Method, as_ids, check_classes
from gc_jax.attribution.calls import Static, without_arrays
from gc_jax.attribution.masking import probabilities
from gc_jax.attribution.wrapping import Tapped, is_multi_label, net_of
from gc_jax.inference import classes
from gc_jax.method import compose, curves, metrics
from gc_jax.method.cam import at_least_float32
from gc_jax.method.types import (
  check_at_least_one,
  check_key,
  check_not_negative,
)
from gc_jax.runtime.messages import unknown_name_message

# Maps of P targets of a model's images, as `Method.explain` makes them.
Explain = Callable[..., Array]


def predict(net: Tapped, images: ArrayLike) -> Float[Array, "B K"]:
  """Returns the logits of images as the model takes them, float32 at least."""
  net.check_evaluates()
  images = net.batch(images)
  net.num_classes(images)
  return _compiled_logits(net, images)


def explain(
  net: Tapped,
  images: ArrayLike,
  targets: ArrayLike | Sequence,
  method: Explain,
  settings: Mapping[str, Any] | None = None,
) -> Float[Array, "B P h w"]:
  """Returns raw maps of a method; `[B]` targets are one a picture."""
  net.check_evaluates()
  images, targets = net.batch(images), ids_of(net, targets, "targets")
  num_classes = net.num_classes(images)
  check_classes("targets", targets, len(images), num_classes)
  pairs = jnp.asarray(targets, jnp.int32).reshape(len(images), -1)
  arrays, static = settings_of(method, settings or {})
  return _compiled_maps(net, images, pairs, arrays, method, static)


def ids_of(
  model: nnx.Module | Tapped, asked: ArrayLike | Sequence, what: str
) -> Array | np.ndarray:
  """Returns ids of classes; names, by the model's own list of them.

  Args:
    model: one of ours, which may name classes, or wrapped, which does not.
    asked: ids or names.
    what: who asked, for messages.

  Raises:
    ValueError: they are names that the model does not have.
  """
  if not isinstance(model, Tapped) and not isinstance(asked, jax.Array):
    asked = np.asarray(asked)
    if asked.dtype.kind == "U":
      return classes.ids_of(asked, getattr(model, "class_names", ()), what)
  return as_ids(what, asked, "a wrapped model has no names of classes")


def method_of(method: str | Explain) -> Explain:
  """Returns the entry of `METHODS`, or the function that was given.

  Raises:
    ValueError: there is no such method.
    TypeError: it is neither a name nor a function.
  """
  if callable(method):
    return method
  if not isinstance(method, str):
    raise TypeError(
      "method must be a name or a function (model, images, targets) -> maps "
      f"[B P h w]; it is a {type(method).__name__}."
    )
  if method not in METHODS:
    raise ValueError(unknown_name_message("method", method, METHODS))
  return METHODS[method]


def settings_of(
  method: Explain, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], Static]:
  """Returns settings that hold arrays, and the others as a program's constants.

  Raises:
    ValueError: the method takes no such setting, or it cannot be hashed.
  """
  function = method.explain if isinstance(method, Method) else method
  takes = inspect.signature(function).parameters.values()
  known = [one.name for one in takes if one.kind is one.KEYWORD_ONLY]
  takes_all = any(one.kind is one.VAR_KEYWORD for one in takes)
  for name in settings:
    if name not in known and not takes_all:
      title = getattr(method, "title", "") or "the method"
      raise ValueError(
        f"{title} takes no setting {name!r}; it takes "
        f"{', '.join(known) or 'none'}."
      )
  arrays, static = without_arrays(settings)
  for name, value in static.items():
    try:
      hash(value)
    except TypeError:
      raise ValueError(
        f"{name} must be a jax.Array, or a value that can be hashed, as a "
        f"number or a tuple; it is a {type(value).__name__}."
      ) from None
  return arrays, Static.of(static)


def negative_quadrants(
  net: nnx.Module | Tapped,
  images: ArrayLike,
  labels: ArrayLike | Sequence,
  key: PRNGKeyArray,
  method: str | Explain = "gradcam_elementwise",
  **settings: Any,
) -> Float[Array, "B"]:
  """Returns the share of each composite's map that lies on its distractors.

  Each image is put into a composite with three others that do not show its
  class.

  Args:
    net: from `wrap`, in evaluation mode, or a model of gc_jax.
    images: as the model takes them; it must take pictures twice as high and
      wide too.
    labels: `[B]`, the class of each image: an id, or a name that a model of
      ours has for it.
    key: of the draw of distractors and cells.
    method: as `explain` takes it, of maps that lie on a layer.
    **settings: of the method.

  Returns:
    Fractions; 3/4 is what a uniform map scores. NaN where the other images of
    the batch all show the class.

  Source: Pillai & Pirsiavash 2021, section 4 (NQH).
  Differs: distractors are drawn from the batch.
  """
  net, images, labels, num_classes = _checked(net, images, labels)
  check_key(key)
  contains = jax.nn.one_hot(labels, num_classes, dtype=bool)
  layout = compose.independent(key, contains, labels, jnp.ones(len(images)))
  composites = compose.assemble(layout, net.channels_last(images))
  composites = net.as_images(composites)
  cams = explain(net, composites, labels[:, None], method_of(method), settings)
  found = metrics.negative_quadrants_heatmap(cams, layout.cell)
  return jnp.where(layout.mask > 0, found, jnp.nan)[:, 0]


def insertion(
  net: nnx.Module | Tapped,
  images: ArrayLike,
  labels: ArrayLike | Sequence,
  maps: ArrayLike,
  *,
  num_steps: int = 16,
  multi_label: bool | None = None,
  grey: ArrayLike | Sequence[float] | None = None,
) -> Float[Array, "B"]:
  """Returns the area under a class's probability as its pixels appear.

  Pixels replace those of a blurred picture, the brightest of the map first. A
  map that finds what the model uses has a high area.

  Args:
    net: from `wrap`, in evaluation mode, or a model of gc_jax.
    images: as the model takes them.
    labels: `[B]`, the class of each image that the maps explain: an id, or a
      name that a model of ours has for it.
    maps: `[B h w]`, of any scale; enlarged to the picture. Of an empty one,
      pixels go row by row.
    num_steps: equal parts in which pixels change: so many forward passes. The
      source takes 224 for 224 by 224 pixels; evaluations take 16.
    multi_label: whether the probability is a sigmoid, not the softmax; None is
      what a model of gc_jax was trained for, and the softmax of all others. A
      model with one output must say True.
    grey: of a covered pixel, a number or one of each channel; None is the mean
      colour of ImageNet for gc_jax's own models, 0 for all others.

  Returns:
    Areas in [0, 1].

  Raises:
    ValueError: an argument is something else.

  Source: Petsiuk et al. 2018 (RISE), arXiv:1806.07421; see `curves.curves`.
  """
  settings = num_steps, multi_label
  return _area("insertion", net, images, labels, maps, grey, *settings)


def deletion(
  net: nnx.Module | Tapped,
  images: ArrayLike,
  labels: ArrayLike | Sequence,
  maps: ArrayLike,
  *,
  num_steps: int = 16,
  multi_label: bool | None = None,
  grey: ArrayLike | Sequence[float] | None = None,
) -> Float[Array, "B"]:
  """Returns the area under a class's probability as its pixels vanish.

  Grey replaces them, the brightest of the map first. A map that finds what the
  model uses has a low area. Arguments, errors and source are those of
  `insertion`.
  """
  settings = num_steps, multi_label
  return _area("deletion", net, images, labels, maps, grey, *settings)


def _area(kind, net, images, labels, maps, grey, num_steps, multi_label):
  multi_label = is_multi_label(net, multi_label)
  net, images, labels, _ = _checked(net, images, labels)
  maps = jnp.asarray(maps)
  if maps.ndim != 3 or len(maps) != len(images) or 0 in maps.shape:
    raise ValueError(
      f"maps must be [B h w], one for each of the {len(images)} images; they "
      f"have shape {maps.shape}."
    )
  if not jnp.issubdtype(maps.dtype, jnp.floating):
    raise ValueError(
      f"maps must be float; they are {maps.dtype}. Give what explain returns."
    )
  check_not_negative(maps)
  check_at_least_one("num_steps", num_steps)
  num_channels = net.channels_last(images).shape[-1]
  if grey is not None and np.size(grey) not in (1, num_channels):
    raise ValueError(
      f"grey must be a number, or one for each of {num_channels} channels; it "
      f"has {np.size(grey)}."
    )
  static = kind, num_steps, multi_label
  return _compiled_areas(net, images, labels, maps, grey, *static)


def _areas(net, images, labels, maps, grey, kind, num_steps, multi_label):
  pixels = net.pixels(images)
  covered = net.start(pixels) if grey is None else _filled(net, pixels, grey)

  def scores_of(shown):
    logits = net.logits(net.as_images(shown))
    return probabilities(logits.astype(jnp.float32), multi_label)

  fractions, scores = curves.curves(
    scores_of,
    net.channels_last(pixels),
    net.channels_last(covered),
    labels[:, None],
    maps[:, None],
    num_steps=num_steps,
    kinds=(kind,),
  )
  return curves.area_under(fractions, scores[kind])[:, 0]


def _filled(net, pixels, grey):
  """Returns pictures of one colour."""
  last = jnp.zeros_like(net.channels_last(pixels))
  grey = jnp.asarray(grey, last.dtype).reshape(1, 1, 1, -1)
  return net.as_images(last + grey)


def _checked(net, images, labels):
  """Returns a net, its images, a label of each, and the number of classes."""
  labels = jnp.asarray(ids_of(net, labels, "labels"))
  net = net_of(net)
  net.check_evaluates()
  images = net.batch(images)
  num_classes = net.num_classes(images)
  check_labels("labels", labels, len(images), num_classes)
  return net, images, labels, num_classes


def check_labels(
  name: str, labels: Array, num_images: int, num_classes: int
) -> None:
  """Checks that `name` gave a class of each image, as `check_classes` does.

  Raises:
    ValueError: they are something else.
  """
  check_classes(name, labels, num_images, num_classes)
  if labels.ndim != 1:
    raise ValueError(
      f"{name} must be [B], a class of each image; they have shape "
      f"{labels.shape}."
    )


def program(function: Callable, *static: int) -> Callable:
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


def maps_of(model, images, targets, arrays, method, settings):
  """Returns raw maps of a method.

  Raises:
    ValueError: it returned something else.
  """
  maps = method(model, images, targets, **arrays, **dict(settings.value))
  shape = getattr(maps, "shape", ())
  if len(shape) != 4 or shape[:2] != targets.shape:
    came = shape or f"a {type(maps).__name__}"
    raise ValueError(
      "method must return maps [B P h w], for targets [B P] of shape "
      f"{targets.shape}; it returned {came}."
    )
  return maps


def _logits(net, images):
  return at_least_float32(net.logits(images))


_compiled_logits = program(_logits)
_compiled_maps = program(maps_of, 4, 5)
_compiled_areas = program(_areas, 5, 6, 7)
