"""Trained models in use: what they see in arrays of pictures, and where.

The public `predict`, `explain`, `overlay` and `class_names`; `run` serves the
command beside them.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, UInt8

from gc_jax.attribution import METHODS, Method, check_classes
from gc_jax.attribution.calls import Static, check_rgb
from gc_jax.attribution.wrapping import Tapped, net_of
from gc_jax.inference import wrapped
from gc_jax.method import metrics
from gc_jax.method.types import check_not_negative
from gc_jax.models.pixels import check_divisible

PREDICTED = -1  # as a target of `run`: the class with the highest logit

_LARGEST_SIDE = 512  # pixels; every architecture takes this


def predict(
  model: nnx.Module | Tapped, images: ArrayLike
) -> Float[Array, "B K"]:
  """Returns the logits of every class, float32; float64 of a model of doubles.

  Args:
    model: from `load`, or any of `MODELS`. It runs in evaluation mode, and is
      left as it was. Or any other, from `wrap`.
    images: RGB, uint8 or float in [0, 1], `[B H W 3]`. The model does its own
      normalisation. One compilation for each shape. Of a wrapped model: as it
      takes them.

  Raises:
    ValueError: the images are something else, or too small for the model.
  """
  if isinstance(model, Tapped):
    return wrapped.predict(model, images)
  _check_ours(model)
  images = checked_images(images)
  check_fits(model, *images.shape[1:3])
  return run(model, images, np.zeros((len(images), 0), np.int32), ())[0]


def class_names(model: nnx.Module) -> tuple[str, ...]:
  """Returns the names of a model's classes, in the order of its outputs.

  Empty if it names none, as a new model or a file of PyTorch's; `load` can be
  given them.
  """
  return tuple(getattr(model, "class_names", ()))


def explain(
  model: nnx.Module | Tapped,
  images: ArrayLike,
  targets: ArrayLike | Sequence,
  method: str | wrapped.Explain = "gradcam_elementwise",
  normalize: bool = True,
  **settings: Any,
) -> Float[Array, "B *P h w"]:
  """Returns where the model sees a class, as a map over the picture.

  Compiles once for each architecture, method and shape. Runs in a `jax.jit` of
  yours too, and inside `jax.set_mesh`.

  Args:
    model: from `load`, or any of `MODELS`. It runs in evaluation mode, and is
      left as it was. Or any other, from `wrap`.
    images: RGB, uint8 or float in [0, 1], `[B H W 3]`. Of a wrapped model: as
      it takes them.
    targets: classes: `[B]`, one for each image, or `[B P]`, several; ids in
      0..K-1, or names where the model has them (`class_names`).
    method: a key of `METHODS`; or a function (model, images, targets `[B P]`)
      -> raw maps `[B P h w]`, which must be the same object at every call to be
      compiled once.
    normalize: False for raw maps, in the method's own unit (logits, for
      Grad-CAM).
    **settings: of the method, as `layer="layer3"` or `steps=16`.

  Returns:
    Maps `[B h w]` (or `[B P h w]`, as the targets are), float32, each >= 0 and
    summing to 1. An empty map (no mass, or not finite) becomes uniform, as in
    `metrics.as_distribution`; ask for raw maps to tell the two apart.

  Raises:
    ValueError: the images, the targets or the method are something else.
  """
  entry = wrapped.method_of(method)
  if isinstance(model, Tapped):
    cam = wrapped.explain(model, images, targets, entry, settings)
  else:
    _check_ours(model)
    arrays, static = wrapped.settings_of(entry, settings)
    images = checked_images(images)
    targets = wrapped.ids_of(model, targets, "targets")
    num_classes = check_fits(model, *images.shape[1:3])
    check_classes("targets", targets, len(images), num_classes)
    pairs = targets.astype(np.int32).reshape(len(images), -1)
    cam = _maps(*split(model), images, pairs, arrays, entry, static)
  cam = _as_distribution(cam) if normalize else cam
  return cam.reshape(*np.shape(targets), *cam.shape[2:])


def _check_ours(model: nnx.Module) -> None:
  if not hasattr(model, "classify"):
    net_of(model)  # says that it must be wrapped


def overlay(
  images: ArrayLike, maps: ArrayLike
) -> UInt8[np.ndarray, "*B H W 3"]:
  """Returns pictures with maps over them, drawn as on the pages.

  Colour and opacity follow the map, each scaled to its own maximum (a map as
  large as the picture: to its 99th percentile). An empty map is no heat: the
  picture says so. One that is the same everywhere, as `explain` makes of an
  empty one, points nowhere: the picture stays bare.

  Args:
    images: RGB, uint8 or float in [0, 1]: one, `[H W 3]`, or several,
      `[B H W 3]`.
    maps: a map >= 0 of any unit and size for each: `[h w]` or `[B h w]`.

  Raises:
    ValueError: the images or maps are something else.
  """
  # Here, as it takes a second that others need not wait for.
  from gc_jax.report import pictures

  images, maps = np.asarray(images), np.asarray(maps)
  is_one = images.ndim == 3
  images = np.asarray(checked_images(images[None] if is_one else images))
  if images.dtype != np.uint8:
    images = np.rint(255 * images).astype(np.uint8)
  wanted = () if is_one else (len(images),)
  if maps.ndim != len(wanted) + 2 or maps.shape[:-2] != wanted or not maps.size:
    shape = "[h w]" if is_one else f"[B h w] with B = {len(images)}"
    raise ValueError(
      f"maps must be {shape}, one for each image; they have shape {maps.shape}."
      " Of several maps of an image, give one at a time."
    )
  if not jnp.issubdtype(maps.dtype, jnp.floating):
    raise ValueError(
      f"maps must be float; they are {maps.dtype}. Give what explain returns."
    )
  check_not_negative(maps)
  drawn = []
  maps = maps.reshape(-1, *maps.shape[-2:])
  for image, cam in zip(images, maps, strict=True):
    is_same = 0 < cam.min() == cam.max() < np.inf
    drawn.append(image if is_same else pictures.heat_overlay(image, cam))
  return drawn[0] if is_one else np.stack(drawn)


def program(*static: int) -> Callable[[Callable], Callable]:
  """Compiles a function of a model, arrays and settings.

  The program takes the model in two parts, from `split`, and runs a copy in
  evaluation mode. `static` numbers the settings, from 0 after the model.
  """

  def compiled(function):
    def of_parts(graphdef, state, *args):
      return function(evaluated(graphdef, state), *args)

    of_parts.__name__ = function.__name__
    return jax.jit(of_parts, static_argnums=(0, *(2 + i for i in static)))

  return compiled


def split(model: nnx.Module) -> tuple[Static, nnx.State]:
  """Returns the parts of a model, whatever its attributes are.

  Those of `nnx.split` cannot be constants of a program if an attribute, such as
  a list of settings, cannot be hashed.
  """
  graphdef, state = nnx.split(model)
  return Static(graphdef), state


def evaluated(graphdef: Static, state: nnx.State) -> nnx.Module:
  """Returns a copy of a model in two parts, in evaluation mode."""
  model = nnx.merge(graphdef.value, state, copy=True)
  model.eval()
  return model


def logits_of(model: nnx.Module, images: Array) -> Float[Array, "B K"]:
  """Returns the scores of every class."""
  return model.classify(model.features(model.normalize(images)))


def run(
  model: nnx.Module,
  images: Array | np.ndarray,
  targets: Int[np.ndarray, "B P"],
  methods: tuple[str, ...],
) -> tuple[Float[Array, "B K"], dict[str, Float[Array, "B P h w"]]]:
  """Returns the logits, and each method's raw maps, in one program.

  Nothing is checked; a target of `PREDICTED` is what the model says.
  """
  entries = tuple((name, METHODS[name]) for name in methods)
  return _run(*split(model), images, targets, entries)


def logits_and_maps(
  model: nnx.Module,
  images: Array,
  targets: Int[Array, "B P"],
  methods: Sequence[tuple[str, Method]],
) -> tuple[Float[Array, "B K"], dict[str, Float[Array, "B P h w"]]]:
  """Returns what `run` does, of a model in evaluation mode; not compiled."""
  logits = logits_of(model, images)
  predicted = logits.argmax(-1, keepdims=True).astype(targets.dtype)
  targets = jnp.where(targets == PREDICTED, predicted, targets)
  # The trunk is written once more in each method; XLA computes it once.
  return logits, {
    name: method(model, images, targets) for name, method in methods
  }


_run = program(2)(logits_and_maps)
_maps = program(3, 4)(wrapped.maps_of)

_as_distribution = jax.jit(metrics.as_distribution)


def checked_images(images: ArrayLike) -> Array | np.ndarray:
  """Returns uint8 images as they came, and others as float32.

  Raises:
    ValueError: they are not RGB, uint8 or float in [0, 1], `[B H W 3]`.
  """
  if not isinstance(images, jax.Array):
    images = np.asarray(images)
  check_rgb(images)
  return images if images.dtype == np.uint8 else images.astype(np.float32)


def check_fits(model: nnx.Module, height: int, width: int) -> int:
  """Returns K of a model that takes a size of image. Nothing is compiled.

  Raises:
    ValueError: no cell of the feature grid is left, or pixels are left over
      beside the last patch; says what is needed.
  """
  graph = split(model)
  check_divisible(height, width, getattr(model, "unit_px", 1))

  def num_classes(height, width):
    """Returns K, or 0 if no features are left."""
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
    # Through jit for its cache of traces: the second call costs nothing.
    features, logits = _features_and_logits.eval_shape(*graph, image)
    return 0 if 0 in features.shape else logits.shape[-1]

  def is_enough(side):
    try:
      return num_classes(side, side) > 0
    except Exception:
      return False

  try:
    if found := num_classes(height, width):
      return found
  except Exception:
    # If the size is not to blame, the model's own error says more.
    if not is_enough(_LARGEST_SIDE):
      raise
  enough = 1 + bisect.bisect_left(range(1, _LARGEST_SIDE), True, key=is_enough)
  raise ValueError(
    f"images must be at least {enough} pixels high and wide for this model; "
    f"they are {height} by {width}. Enlarge them."
  )


@program()
def _features_and_logits(model, images):
  features = model.features(model.normalize(images))
  return features, model.classify(features)
