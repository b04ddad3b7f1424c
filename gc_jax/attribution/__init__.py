"""Explanation methods by name: `(model, images, targets) -> maps`."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gc_jax.attribution import layers
from gc_jax.attribution.controls import CELLS, center, uniform
from gc_jax.attribution.excitation import (
  cmwp,
  default_layer,
  excitation_backprop,
)
from gc_jax.attribution.full_gradients import fullgrad
from gc_jax.attribution.gradcam import (
  gradcam,
  gradcam_elementwise,
  gradcam_plus_plus,
  layercam,
)
from gc_jax.attribution.gradients import (
  input_gradients,
  integrated_gradients,
  smoothgrad,
)


def _last_layer(model: nnx.Module) -> str:
  return layers.layer_names(model)[-1]


@dataclasses.dataclass(frozen=True)
class Method:
  """An explanation method, and what is known of it. It is called as itself.

  Attributes:
    title: in words.
    explain: `(model, images, targets) -> maps`.
    layer: name of a model's layer on whose grid the maps lie; None where they
      have the picture's pixels.
    cells: side of the maps where they are of no layer; 0 = as `layer` says.
    is_costly: whether it runs a model many times over: evaluations measure it
      on fewer pictures.
  """

  title: str
  explain: Callable[..., Any]
  layer: Callable[[nnx.Module], str] | None = None
  cells: int = 0
  is_costly: bool = False

  def __call__(self, *args: Any, **settings: Any) -> Any:
    """Returns the maps."""
    return self.explain(*args, **settings)


# In the order of tables.
METHODS = {
  "gradcam_elementwise": Method(
    "Grad-CAM, element-wise", gradcam_elementwise, _last_layer
  ),
  "gradcam": Method("Grad-CAM", gradcam, _last_layer),
  "gradcam_plus_plus": Method("Grad-CAM++", gradcam_plus_plus, _last_layer),
  "layercam": Method("LayerCAM", layercam, _last_layer),
  "cmwp": Method("cMWP", cmwp, default_layer),
  "excitation_backprop": Method(
    "Excitation backprop", excitation_backprop, default_layer
  ),
  "fullgrad": Method("FullGrad", fullgrad),
  "input_gradients": Method("Input gradients", input_gradients),
  "integrated_gradients": Method(
    "Integrated gradients", integrated_gradients, is_costly=True
  ),
  "smoothgrad": Method("SmoothGrad", smoothgrad, is_costly=True),
}

# Rows that stand beside every table of the methods.
CONTROLS = {
  "uniform": Method("Uniform map", uniform, cells=CELLS),
  "center": Method("Centred Gaussian", center, cells=CELLS),
}


def title_of(name: str) -> str:
  """Returns a method's title; the name itself where nobody knows it."""
  method = (METHODS | CONTROLS).get(name)
  return name if method is None else method.title


def grids(
  methods: Iterable[Callable[..., Any]],
  model: nnx.Module,
  height: int,
  width: int,
) -> set[tuple[int, int]]:
  """Returns every (h, w) that maps of some methods have, without making any.

  One forward pass tells it of those that name a layer. What is no `Method` is
  traced itself: of all methods, of a ResNet50, that takes seconds for each size
  of images.

  Args:
    methods: with all settings at their default.
    model: in evaluation mode.
    height: of the images.
    width: of the images.
  """
  of_layers = layers.grids(model, height, width)
  images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
  targets = jax.ShapeDtypeStruct((1, 1), jnp.int32)

  def grid(method):
    if not isinstance(method, Method):
      cams = jax.eval_shape(lambda *x: method(model, *x), images, targets)
      return cams.shape[2:]
    if method.cells:
      return method.cells, method.cells
    return of_layers[method.layer(model)] if method.layer else (height, width)

  return {grid(method) for method in methods}
