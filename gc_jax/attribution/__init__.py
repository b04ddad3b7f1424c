"""Explanation methods by name: `(model, images, targets) -> maps`."""

from gc_jax.attribution.controls import center, uniform
from gc_jax.attribution.excitation import cmwp, excitation_backprop
from gc_jax.attribution.gradcam import gradcam, gradcam_elementwise

METHODS = {
  "gradcam": gradcam,
  "gradcam_elementwise": gradcam_elementwise,
  "cmwp": cmwp,
  "excitation_backprop": excitation_backprop,
}

# Methods that run a model many times over: evaluations measure them on fewer
# pictures.
COSTLY = ("integrated_gradients", "smoothgrad")

# Rows that stand beside every table of the methods.
CONTROLS = {
  "uniform": uniform,
  "center": center,
}
