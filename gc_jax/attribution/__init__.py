"""Explanation methods by name: `(model, images, targets) -> maps`."""

from gc_jax.attribution.controls import center, uniform
from gc_jax.attribution.excitation import cmwp, excitation_backprop
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

METHODS = {
  "gradcam_elementwise": gradcam_elementwise,
  "gradcam": gradcam,
  "gradcam_plus_plus": gradcam_plus_plus,
  "layercam": layercam,
  "cmwp": cmwp,
  "excitation_backprop": excitation_backprop,
  "fullgrad": fullgrad,
  "input_gradients": input_gradients,
  "integrated_gradients": integrated_gradients,
  "smoothgrad": smoothgrad,
}

# Methods that run a model many times over: evaluations measure them on fewer
# pictures.
COSTLY = ("integrated_gradients", "smoothgrad")

# Rows that stand beside every table of the methods.
CONTROLS = {
  "uniform": uniform,
  "center": center,
}
