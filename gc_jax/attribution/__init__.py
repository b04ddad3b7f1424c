"""Explanation methods by name.

Every method is called with

  model: in evaluation mode, with `normalize`, `features` and `classify`;
  images: RGB, uint8 or float in [0, 1], `[B H W 3]`;
  targets: classes to explain, `[B P]`;

and some with settings of their own. It returns raw maps >= 0, `[B P h w]`, on
the grid of a layer, or `[B P H W]`, on the pixels.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gc_jax.attribution import taps
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

_CELLS = 8  # side of the control maps, which metrics enlarge like any other


@dataclasses.dataclass(frozen=True)
class Method:
  """An explanation method and its facts. Call it like its function.

  Attributes:
    title: in words.
    explain: `(model, images, targets) -> maps`.
    layer: model -> name of the layer on whose grid the maps lie; None for
      maps of the picture's pixels or of `cells`.
    cells: side of maps that belong to no layer; 0 for all others.
    is_costly: whether it runs the model many times over: evaluations measure
      it on fewer pictures.
  """

  title: str
  explain: Callable[..., Any]
  layer: Callable[[nnx.Module], str] | None = None
  cells: int = 0
  is_costly: bool = False

  def __call__(self, *args: Any, **settings: Any) -> Any:
    """Returns the maps."""
    return self.explain(*args, **settings)


def uniform(
  model: nnx.Module, images: Array, targets: Int[Array, "B P"]
) -> Float[Array, "B P h w"]:
  """Returns the same value in every cell."""
  del model, images
  return jnp.ones((*targets.shape, _CELLS, _CELLS))


def center(
  model: nnx.Module, images: Array, targets: Int[Array, "B P"]
) -> Float[Array, "B P h w"]:
  """Returns a Gaussian around the middle, sigma a quarter of the side."""
  del model, images
  offset = (jnp.arange(_CELLS, dtype=jnp.float32) + 0.5) / _CELLS - 0.5
  profile = jnp.exp(-0.5 * (offset / 0.25) ** 2)
  cam = profile[:, None] * profile[None, :]
  return jnp.broadcast_to(cam, (*targets.shape, _CELLS, _CELLS))


# In the order of tables.
METHODS = {
  "gradcam_elementwise": Method(
    "Grad-CAM, element-wise", gradcam_elementwise, taps.last_layer
  ),
  "gradcam": Method("Grad-CAM", gradcam, taps.last_layer),
  "gradcam_plus_plus": Method("Grad-CAM++", gradcam_plus_plus, taps.last_layer),
  "layercam": Method("LayerCAM", layercam, taps.last_layer),
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

# Maps that look at nothing, as rows beside every table of the methods: what a
# metric says without a model. A uniform map has an NQH of 75, and a CH of the
# mask's share of the picture.
CONTROLS = {
  "uniform": Method("Uniform map", uniform, cells=_CELLS),
  "center": Method("Centred Gaussian", center, cells=_CELLS),
}


def title_of(name: str) -> str:
  """Returns a method's title, or the name itself if the method is unknown."""
  method = (METHODS | CONTROLS).get(name)
  return name if method is None else method.title


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
  of_layers = taps.grids(model, height, width)

  def grid(method):
    if method.layer:
      return of_layers[method.layer(model)]
    return (method.cells,) * 2 if method.cells else (height, width)

  return {grid(method) for method in methods}
