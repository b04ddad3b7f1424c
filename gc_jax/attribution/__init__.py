"""Explanation methods by name: `(model, images, targets) -> maps`."""

from gc_jax.attribution.controls import center, uniform
from gc_jax.attribution.gradcam import gradcam, gradcam_elementwise

METHODS = {
  "gradcam": gradcam,
  "gradcam_elementwise": gradcam_elementwise,
}

# Rows that stand beside every table of the methods.
CONTROLS = {
  "uniform": uniform,
  "center": center,
}
