"""Explanation methods by name: `METHODS`, and `CONTROLS` beside them."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from gc_jax.attribution import full_gradients, gradients, laws, taps
from gc_jax.attribution.excitation import (
  cmwp,
  default_layer,
  excitation_backprop,
)
from gc_jax.attribution.full_gradients import fullgrad
from gc_jax.attribution.gradients import (
  input_gradients,
  integrated_gradients,
  smoothgrad,
)
from gc_jax.attribution.masking import rise
from gc_jax.attribution.programs import DoesNotHold
from gc_jax.attribution.rollout import attention_rollout
from gc_jax.attribution.weighted_activations import (
  gradcam,
  gradcam_elementwise,
  gradcam_plus_plus,
  layercam,
)
from gc_jax.attribution.wrapping import Tapped, tapped
from gc_jax.method.types import is_known

_CELLS = 8  # side of the control maps, which metrics enlarge like any other


@dataclasses.dataclass(frozen=True)
class Method:
  """An explanation method and its facts.

  Attributes:
    title: in words.
    explain: the function that makes the maps; see `__call__`.
    layer: model -> name of the layer on whose grid the maps lie; None for
      maps of the picture's pixels or of `cells`.
    cells: side of maps that belong to no layer; 0 for all others.
    is_costly: whether it runs the model many times over: evaluations measure
      it on fewer pictures.
    only_named: whether it runs the model thousands of times for one map:
      `gc_jax.evaluate` makes it only if it is named, or `all`.
    divide: (model, images, targets) -> the maps, what the attributions behind
      them sum to, and what they should; None if they divide no score.
    has_rules: whether it walks through the program and knows some operations
      only: of other networks it raises `programs.DoesNotHold`.
    law: what must be true of a network for the method to hold; None if nothing
      is known.
  """

  title: str
  explain: Callable[..., Array]
  layer: Callable[[nnx.Module], str] | None = None
  cells: int = 0
  is_costly: bool = False
  only_named: bool = False
  divide: Callable[..., tuple[Array, Array, Array]] | None = None
  has_rules: bool = False
  law: laws.Law | None = None

  @property
  def settings(self) -> dict[str, Any]:
    """Returns what it is computed with, "steps" for example."""
    return {
      name: one.default
      for name, one in inspect.signature(self.explain).parameters.items()
      if one.kind is one.KEYWORD_ONLY and one.default is not None
    }

  def __call__(
    self,
    model: nnx.Module | Tapped,
    images: Array,
    targets: Int[Array, "B P"],
    **settings: Any,
  ) -> Float[Array, "B P h w"]:
    """Returns raw maps >= 0, in the method's own unit.

    Args:
      model: in evaluation mode, with `normalize`, `features` and `classify`; or
        any other, from `wrap`.
      images: RGB, uint8 or float in [0, 1], `[B H W 3]`; of a wrapped model as
        it takes them.
      targets: P classes to explain in each image.
      **settings: the keyword arguments of the method's function.

    Raises:
      ValueError: the model is in training mode, the targets are no classes of
        it, or a setting is something else.
    """
    targets = jnp.asarray(targets)
    if targets.ndim != 2:
      raise ValueError(
        "targets must be [B P], P classes for each image; they have shape "
        f"{targets.shape}. For one class an image, give targets[:, None]."
      )
    net = tapped(model)
    net.check_evaluates()
    num_classes = net.num_classes(images) if is_known(targets) else 0
    check_classes("targets", targets, images.shape[0], num_classes)
    return self.explain(model, images, targets, **settings)


def _uniform(model, images, targets):
  """Returns the same value in every cell."""
  return jnp.ones((*targets.shape, _CELLS, _CELLS))


def _center(model, images, targets):
  """Returns a Gaussian around the middle, sigma a quarter of the side."""
  offset = (jnp.arange(_CELLS, dtype=jnp.float32) + 0.5) / _CELLS - 0.5
  profile = jnp.exp(-0.5 * (offset / 0.25) ** 2)
  cam = profile[:, None] * profile[None, :]
  return jnp.broadcast_to(cam, (*targets.shape, _CELLS, _CELLS))


# In the order of tables.
METHODS = {
  "gradcam_elementwise": Method(
    "Grad-CAM, element-wise",
    gradcam_elementwise,
    taps.last_layer,
    law=laws.AT_THE_PLACE,
  ),
  "gradcam": Method(
    "Grad-CAM", gradcam, taps.last_layer, law=laws.AT_THE_PLACE
  ),
  "gradcam_plus_plus": Method(
    "Grad-CAM++", gradcam_plus_plus, taps.last_layer, law=laws.AT_THE_PLACE
  ),
  "layercam": Method(
    "LayerCAM", layercam, taps.last_layer, law=laws.AT_THE_PLACE
  ),
  "cmwp": Method("cMWP", cmwp, default_layer, has_rules=True, law=laws.BALANCE),
  "excitation_backprop": Method(
    "Excitation backprop",
    excitation_backprop,
    default_layer,
    has_rules=True,
    law=laws.MASS,
  ),
  "fullgrad": Method(
    "FullGrad",
    fullgrad,
    divide=full_gradients.divide,
    has_rules=True,
    law=laws.completeness(full_gradients.divide, 0.001),
  ),
  "attention_rollout": Method(
    "Attention rollout",
    attention_rollout,
    taps.last_layer,
    has_rules=True,
    law=laws.SHARES,
  ),
  "input_gradients": Method(
    "Input gradients", input_gradients, law=laws.OF_PIXELS
  ),
  "integrated_gradients": Method(
    "Integrated gradients",
    integrated_gradients,
    is_costly=True,
    divide=gradients.divide,
    law=laws.completeness(gradients.divide, 0.05),
  ),
  "smoothgrad": Method(
    "SmoothGrad", smoothgrad, is_costly=True, law=laws.OF_NOISY_PIXELS
  ),
  "rise": Method("RISE", rise, is_costly=True, only_named=True, law=laws.ALONE),
}

# Maps that look at nothing, as rows beside every table of the methods: what a
# metric says without a model. A uniform map has an NQH of 75, and a CH of the
# mask's share of the picture.
CONTROLS = {
  "uniform": Method("Uniform map", _uniform, cells=_CELLS),
  "center": Method("Centred Gaussian", _center, cells=_CELLS),
}


def title_of(name: str) -> str:
  """Returns a method's title, or the name itself if the method is unknown."""
  method = (METHODS | CONTROLS).get(name)
  return name if method is None else method.title


def settings_of(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
  """Returns what methods are computed with, of those that take anything."""
  found = {name: METHODS[name].settings for name in methods}
  return {name: settings for name, settings in found.items() if settings}


def check_classes(
  name: str, classes: Array | np.ndarray, num_images: int, num_classes: int
) -> None:
  """Checks class ids that `name` gave; of values of a trace, the shape.

  Raises:
    ValueError: they are not `[B]` or `[B P]`, integers, in 0..K-1.
  """
  if classes.shape[:1] != (num_images,) or classes.ndim not in (1, 2):
    raise ValueError(
      f"{name} must be [B] or [B P], classes for each of the {num_images} "
      f"images; they have shape {classes.shape}. For one image and one class, "
      "give [class]."
    )
  if not jnp.issubdtype(classes.dtype, jnp.integer):
    raise ValueError(
      f"{name} must be integers, class ids; they are {classes.dtype}."
    )
  if not is_known(classes):
    return
  values = np.asarray(classes)
  outside = values[(values < 0) | (values >= num_classes)]
  if outside.size:
    raise ValueError(
      f"{name} must be in 0..{num_classes - 1}, the model's classes; "
      f"{outside.flat[0]} is not. Count from 0."
    )


def as_ids(
  name: str, classes: ArrayLike | Sequence, why: str
) -> Array | np.ndarray:
  """Returns classes as an array; `check_classes` then looks at its values.

  Args:
    name: what gave them.
    classes: ids.
    why: they cannot be names; a sentence without its period.

  Raises:
    ValueError: they are names.
  """
  if isinstance(classes, jax.Array):
    return classes
  classes = np.asarray(classes)
  if classes.dtype.kind == "U":
    raise ValueError(
      f"{name} must be class ids: {why}; {str(classes.flat[0])!r} came."
    )
  return classes


def unfit(
  methods: Iterable[str], model: nnx.Module | Tapped, images: Any
) -> dict[str, str]:
  """Returns the methods that do not hold for a network, and why not.

  Nothing is computed: the model, in evaluation mode, and the images may be
  shapes alone.
  """
  split = not isinstance(model, Tapped)
  graphdef, variables = nnx.split(model) if split else (None, model)
  targets = jax.ShapeDtypeStruct((images.shape[0], 1), jnp.int32)

  def maps(method, variables, images, targets):
    net = nnx.merge(graphdef, variables) if split else variables
    return method(net, images, targets)

  found = {}
  for name in methods:
    if not METHODS[name].has_rules:
      continue
    run = functools.partial(maps, METHODS[name])
    try:
      jax.eval_shape(run, variables, images, targets)
    except DoesNotHold as error:
      found[name] = str(error)
  return found


def grids(
  methods: Iterable[Method], model: nnx.Module, height: int, width: int
) -> set[tuple[int, int]]:
  """Returns every (h, w) of some methods' maps, without computing any.

  Args:
    methods: with all settings at their default.
    model: in evaluation mode.
    height: of the images.
    width: of the images.
  """
  of_layers = {}

  def see(name, x):
    of_layers[name] = x.shape[1:3]
    return x

  features = taps.tapped_features(
    model, {name: functools.partial(see, name) for name in taps.layers(model)}
  )
  images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
  jax.eval_shape(lambda images: features(model.normalize(images)), images)

  def grid(method):
    if method.layer:
      return of_layers[method.layer(model)]
    return (method.cells,) * 2 if method.cells else (height, width)

  return {grid(method) for method in methods}
