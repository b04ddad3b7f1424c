"""Grad-CAM at the last convolutional layer, standard and element-wise.

Each method takes a model in evaluation mode, pixels and one or several classes
an image, and returns raw maps >= 0 on the feature grid.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gc_jax import cam as cams
from gc_jax.models import pure_head


def gradcam(
  model: nnx.Module, images: Array, targets: Int[Array, "B P"]
) -> Float[Array, "B P h w"]:
  """Returns Grad-CAM maps: channels weighted by their mean gradient.

  Args:
    model: with `normalize`, `features` and `classify`.
    images: RGB, uint8 or float in [0, 1], `[B H W 3]`.
    targets: classes to explain.

  Source: Selvaraju et al. 2017, arXiv:1610.02391.
  """
  features, gradients = _features_and_gradients(model, images, targets)
  return cams.grad_cam(features[:, None], gradients.mean((-3, -2)))


def gradcam_elementwise(
  model: nnx.Module, images: Array, targets: Int[Array, "B P"]
) -> Float[Array, "B P h w"]:
  """Returns maps in which every cell is weighted by its own gradient.

  Args:
    model: with `normalize`, `features` and `classify`.
    images: RGB, uint8 or float in [0, 1], `[B H W 3]`.
    targets: classes to explain.

  Source: Pillai & Pirsiavash 2021, eq. 3.
  """
  features, gradients = _features_and_gradients(model, images, targets)
  return cams.elementwise_grad_cam(features[:, None], gradients)


def _features_and_gradients(model, images, targets):
  features = model.features(model.normalize(images)).astype(jnp.float32)
  return features, cams.class_gradients(pure_head(model), features, targets)
