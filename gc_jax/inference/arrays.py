"""Trained models in use: what they see in arrays of pictures, and where.

The public `predict` and `explain`; `run` serves the command beside them.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from gc_jax.attribution import METHODS
from gc_jax.method import metrics
from gc_jax.runtime.messages import unknown_name_message

PREDICTED = -1  # as a target of `run`: the class with the highest logit

_LARGEST_SIDE = 512  # pixels; every architecture takes this


def predict(model: nnx.Module, images: ArrayLike) -> Float[Array, "B K"]:
  """Returns the logits of every class, float32.

  Args:
    model: from `load`, or any of `MODELS`. It runs in evaluation mode, and is
      left as it was.
    images: RGB, uint8 or float in [0, 1], `[B H W 3]`. The model does its own
      normalisation. One compilation for each shape.

  Raises:
    ValueError: the images are something else, or too small for the model.
  """
  images = checked_images(images)
  graphdef, state = nnx.split(model)
  _checked_num_classes(graphdef, state, *images.shape[1:3])
  no_targets = np.zeros((len(images), 0), np.int32)
  return _run(graphdef, state, images, no_targets, ())[0]


def explain(
  model: nnx.Module,
  images: ArrayLike,
  targets: ArrayLike | Sequence,
  method: str = "gradcam_elementwise",
  normalize: bool = True,
) -> Float[Array, "B *P h w"]:
  """Returns where the model sees a class, as a map over the picture.

  Compiles once for each architecture, method and shape.

  Args:
    model: from `load`, or any of `MODELS`. It runs in evaluation mode, and is
      left as it was.
    images: RGB, uint8 or float in [0, 1], `[B H W 3]`.
    targets: class ids in 0..K-1: `[B]`, one for each image, or `[B P]`,
      several.
    method: a key of `METHODS`.
    normalize: False for raw maps, in the method's own unit (logits, for
      Grad-CAM).

  Returns:
    Maps `[B h w]` (or `[B P h w]`, as the targets are), float32, each >= 0 and
    summing to 1. An empty map (no mass, or not finite) becomes uniform, as in
    `metrics.as_distribution`; ask for raw ones to tell it from a uniform one.

  Raises:
    ValueError: the images, the targets or the method are something else.
  """
  if method not in METHODS:
    raise ValueError(unknown_name_message("method", method, METHODS))
  images = checked_images(images)
  targets = np.asarray(targets)
  if targets.shape[:1] != images.shape[:1] or targets.ndim not in (1, 2):
    raise ValueError(
      f"targets must be [B] or [B P], classes for each of the {len(images)} "
      f"images; they have shape {targets.shape}. For one image and one class, "
      "give [class]."
    )
  if not np.issubdtype(targets.dtype, np.integer):
    raise ValueError(
      f"targets must be integers, class ids; they are {targets.dtype}. For "
      "names, look their position up in the class names."
    )
  graphdef, state = nnx.split(model)
  num_classes = _checked_num_classes(graphdef, state, *images.shape[1:3])
  outside = targets[(targets < 0) | (targets >= num_classes)]
  if outside.size:
    raise ValueError(
      f"targets must be in 0..{num_classes - 1}, the model's classes; "
      f"{outside.flat[0]} is not. Count from 0."
    )
  pairs = targets.astype(np.int32).reshape(len(images), -1)
  _, cams = _run(graphdef, state, images, pairs, (method,))
  cam = _as_distribution(cams[method]) if normalize else cams[method]
  return cam.reshape(*targets.shape, *cam.shape[2:])


def run(
  model: nnx.Module,
  images: Array | np.ndarray,
  targets: Int[np.ndarray, "B P"],
  methods: tuple[str, ...],
) -> tuple[Float[Array, "B K"], dict[str, Float[Array, "B P h w"]]]:
  """Returns the logits, and each method's raw maps, in one program.

  Args:
    model: any mode; left as it was.
    images: as from `checked_images`, of a size as from `check_fits`.
    targets: class ids, not checked; `PREDICTED` for what the model says.
    methods: keys of `METHODS`.
  """
  return _run(*nnx.split(model), images, targets, methods)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _run(graphdef, state, images, targets, methods):
  model = nnx.merge(graphdef, state, copy=True)
  model.eval()
  logits = model.classify(model.features(model.normalize(images)))
  predicted = logits.argmax(-1, keepdims=True).astype(targets.dtype)
  targets = jnp.where(targets == PREDICTED, predicted, targets)
  # The trunk is written once more in each method; XLA computes it once.
  return logits, {
    name: METHODS[name](model, images, targets) for name in methods
  }


_as_distribution = jax.jit(metrics.as_distribution)


def checked_images(images: ArrayLike) -> Array | np.ndarray:
  """Returns the images as uint8 or float32, as they came otherwise.

  Raises:
    ValueError: they are not RGB, uint8 or float in [0, 1], `[B H W 3]`.
  """
  if not isinstance(images, jax.Array):
    images = np.asarray(images)
  if images.ndim != 4 or images.shape[-1] != 3:
    hint = "Stack RGB pictures of one size."
    if images.ndim == 3 and images.shape[-1] == 3:
      hint = "For one picture, give images[None]."
    elif images.ndim == 4 and images.shape[1] == 3:
      hint = "The channels come last: transpose(0, 2, 3, 1)."
    elif images.ndim == 4 and images.shape[-1] in (1, 4):
      hint = "Convert grey or RGBA pictures to RGB."
    raise ValueError(
      f"images must be RGB [B H W 3]; they have shape {images.shape}. {hint}"
    )
  if 0 in images.shape:
    raise ValueError(
      f"images must hold a pixel at least; they have shape {images.shape}. "
      "Leave empty batches out."
    )
  if images.dtype == np.uint8:
    return images
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(
      f"images must be uint8 or float; they are {images.dtype}. Convert them: "
      "astype('uint8') where they are in 0..255."
    )
  low, high = float(images.min()), float(images.max())
  if not (low >= 0 and high <= 1):  # NaN is neither
    raise ValueError(
      f"images must be in [0, 1] where they are float; they are in [{low:g}, "
      f"{high:g}]. Divide 0..255 by 255, and do not normalise: the model does."
    )
  return images.astype(np.float32)


def check_fits(model: nnx.Module, height: int, width: int) -> int:
  """Returns K of a model that takes a size of image. Nothing is compiled.

  Raises:
    ValueError: no cell of the feature grid is left; says what is needed.
  """
  return _checked_num_classes(*nnx.split(model), height, width)


def _checked_num_classes(graphdef, state, height: int, width: int) -> int:
  num_classes = _num_classes(graphdef, state, height, width)
  if num_classes:
    return num_classes
  if not _num_classes(graphdef, state, _LARGEST_SIDE, _LARGEST_SIDE):
    # Not the size, then: the model's own error says more.
    return _shape(graphdef, state, height, width)[1].shape[-1]
  too_small, enough = 0, _LARGEST_SIDE
  while enough - too_small > 1:
    side = (too_small + enough) // 2
    if _num_classes(graphdef, state, side, side):
      enough = side
    else:
      too_small = side
  raise ValueError(
    f"images must be at least {enough} pixels high and wide for this model; "
    f"they are {height} by {width}. Enlarge them."
  )


def _num_classes(graphdef, state, height, width) -> int:
  """Returns K, or 0 where no features are left or the model raises."""
  try:
    features, logits = _shape(graphdef, state, height, width)
  except Exception:
    return 0
  return 0 if 0 in features.shape else logits.shape[-1]


def _shape(graphdef, state, height, width):
  image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
  # Through jit for its cache of traces: the second call costs nothing.
  return _features_and_logits.eval_shape(graphdef, state, image)


@functools.partial(jax.jit, static_argnums=0)
def _features_and_logits(graphdef, state, images):
  model = nnx.merge(graphdef, state, copy=True)
  model.eval()
  features = model.features(model.normalize(images))
  return features, model.classify(features)
