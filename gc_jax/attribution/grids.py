"""How many cells the maps of a method have, without making any."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from gc_jax.attribution import layers
from gc_jax.attribution.excitation import default_layer

# By a method's name in `METHODS`: the layer on whose grid its maps lie.
_LAYERS = {
  **dict.fromkeys(
    ("gradcam", "gradcam_elementwise", "gradcam_plus_plus", "layercam"),
    lambda model: layers.layer_names(model)[-1],
  ),
  **dict.fromkeys(("cmwp", "excitation_backprop"), default_layer),
}
_OF_PIXELS = (
  "fullgrad",
  "input_gradients",
  "integrated_gradients",
  "smoothgrad",
)


def grids(
  methods: Mapping[str, Callable], model: nnx.Module, height: int, width: int
) -> set[tuple[int, int]]:
  """Returns every (h, w) that maps of some methods have.

  One forward pass tells it of those known here. Any other is traced itself:
  of all methods, of a ResNet50, that takes seconds for each size of images.

  Args:
    methods: name -> `(model, images, targets) -> maps`, with all else at its
      default.
    model: in evaluation mode.
    height: of the images.
    width: of the images.
  """
  of_layers = layers.grids(model, height, width)
  images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
  targets = jax.ShapeDtypeStruct((1, 1), jnp.int32)

  def grid(name, method):
    if name in _LAYERS:
      return of_layers[_LAYERS[name](model)]
    if name in _OF_PIXELS:
      return height, width
    cams = jax.eval_shape(lambda *x: method(model, *x), images, targets)
    return cams.shape[2:]

  return {grid(name, method) for name, method in methods.items()}
