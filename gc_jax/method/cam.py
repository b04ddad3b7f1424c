"""Grad-CAM, its element-wise variant, and the distribution made of a map.

The gradient of the class score goes through the head alone, down to the last
convolutional activations, so the trunk runs once. Everything here is
differentiable: a loss on a map trains the model (by a gradient of a gradient).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

# Added to the sum, and again after the division, as in the release: an all-zero
# map becomes 1e-8 everywhere, never NaN.
EPSILON = 1e-8


def at_least_float32(x: Shaped[Array, "*B"]) -> Float[Array, "*B"]:
  """Returns x as float32; float64 stays."""
  return x.astype(wider(x.dtype, jnp.float32))


def wider(*types: DTypeLike) -> jnp.dtype:
  """Returns the type that all fit in, under strict type promotion too."""
  with jax.numpy_dtype_promotion("standard"):
    return jnp.result_type(*types)


def class_gradients(
  classify: Callable[[Float[Array, "B h w D"]], Float[Array, "B K"]],
  features: Float[Array, "B h w D"],
  target: Int[Array, "B P"],
) -> Float[Array, "B P h w D"]:
  """Returns d logit[target] / d features, for every target.

  Args:
    classify: the head, as a pure function that treats each example alone.
    features: activations of the explained layer.
    target: P classes to explain in each example.

  Returns:
    Gradients in logits per unit of activation, float32 or float64.

  Raises:
    ValueError: the targets are not `[B P]`.
  """
  if target.ndim != 2:
    raise ValueError(
      "target must be [B P], P classes for each example; it has shape "
      f"{target.shape}. For one class each, give target[:, None]."
    )
  features = at_least_float32(features)

  def scores(features, target):
    logits = classify(features)
    # Examples are independent, so the gradient of the sum holds each one's.
    return jnp.take_along_axis(logits, target[:, None], axis=1).sum()

  over_targets = jax.vmap(jax.grad(scores), in_axes=(None, 1), out_axes=1)
  return over_targets(features, target)


def grad_cam(
  features: Float[Array, "*#B h w D"], weights: Float[Array, "*#B D"]
) -> Float[Array, "*#B h w"]:
  """Returns the class-discriminative map of each example.

  cam[b,i,j] = relu( sum_d weights[b,d] * features[b,i,j,d] )

  Args:
    features: activations of the explained layer, after its nonlinearity.
    weights: d logit / d features, averaged over h w.

  Returns:
    Maps >= 0 in logit units, not normalised.

  Source: Selvaraju et al. 2017, arXiv:1610.02391, eq. 2; the paper's eq. 1-2.
  Differs: none.
  """
  return elementwise_grad_cam(features, weights[..., None, None, :])


def elementwise_grad_cam(
  features: Float[Array, "*#B h w D"], gradients: Float[Array, "*#B i j D"]
) -> Float[Array, "*#B h w"]:
  """Returns the map that weighs every cell by its own gradient.

  cam[b,i,j] = relu( sum_d gradients[b,i,j,d] * features[b,i,j,d] )

  Args:
    features: activations of the explained layer, after its nonlinearity.
    gradients: d logit / d features, cell by cell. Axes i, j of size 1 give
      every cell the same weight, as in `grad_cam`.

  Returns:
    Maps >= 0 in logit units, not normalised. Under average pooling and a
    linear head they equal `grad_cam`'s; under maximum pooling they do not.

  Source: Pillai & Pirsiavash 2021, eq. 3.
  Differs: none.
  """
  gradients, features = map(at_least_float32, (gradients, features))
  return jax.nn.relu((gradients * features).sum(-1))


def normalize_cam(
  cam: Float[Array, "*B h w"], of_tiles: bool = False
) -> Float[Array, "*B h w"]:
  """Returns the map as a distribution over cells.

  g / (sum(g) + 1e-8) + 1e-8

  Args:
    cam: maps >= 0.
    of_tiles: whether the axis before h w counts parts of one map.

  Source: Pillai & Pirsiavash 2021, section 3.
  Differs: the epsilons are the release's; the paper has none.
  """
  total = cam.sum((-2, -1), keepdims=True)
  if of_tiles:  # after the sum of each: zeros beside a part leave its bits
    total = total.sum(-3, keepdims=True)
  return cam / (total + EPSILON) + EPSILON
