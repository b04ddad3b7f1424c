"""Grad-CAM and its relatives: activations weighted by gradients.

All take what `Method` does, and the setting `layer`: the layer to look at, of
`taps.layers`; None for the features. A `ValueError` names the layers of a model
that does not have it. A wrapped model is looked at where it was wrapped.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gc_jax.attribution import taps
from gc_jax.attribution.wrapping import Tapped, tapped
from gc_jax.method import cam as cams
from gc_jax.models import pure_head
from gc_jax.models.network import FEATURES, context_of


def gradcam(model, images, targets, *, layer: str | None = None):
  """Returns Grad-CAM maps: channels weighted by their mean gradient.

  Source: Selvaraju et al. 2017, arXiv:1610.02391.
  """
  features, gradients = features_and_gradients(model, images, targets, layer)
  return cams.grad_cam(features[:, None], gradients.mean((-3, -2)))


def gradcam_elementwise(model, images, targets, *, layer: str | None = None):
  """Returns maps in which every cell is weighted by its own gradient.

  Source: Pillai & Pirsiavash 2021, eq. 3.
  """
  features, gradients = features_and_gradients(model, images, targets, layer)
  return cams.elementwise_grad_cam(features[:, None], gradients)


def layercam(model, images, targets, *, layer: str | None = None):
  """Returns maps in which every cell is weighted by its positive gradient.

  cam[i,j] = relu( sum_d relu(gradient[i,j,d]) * features[i,j,d] )

  Source: Jiang et al. 2021, LayerCAM, IEEE TIP 30, eq. 7-8.
  """
  features, gradients = features_and_gradients(model, images, targets, layer)
  return cams.elementwise_grad_cam(features[:, None], jax.nn.relu(gradients))


def gradcam_plus_plus(model, images, targets, *, layer: str | None = None):
  """Returns maps whose channels are weighted by each cell's share.

  For the score exp(logit), with g the gradient of the logit,

    alpha[i,j,d] = g^2 / (2 g^2 + g^3 sum_ab features[a,b,d])   (0 where g = 0)
    weights[d] = sum_ij alpha[i,j,d] * relu(g[i,j,d])
    cam = relu( sum_d weights[d] * features[d] )

  The factor exp(logit), the same for all cells, is left out.

  Source: Chattopadhay et al. 2018, arXiv:1710.11063, eq. 11 and 19.
  """
  features, g = features_and_gradients(model, images, targets, layer)
  total = features.sum((1, 2))[:, None, None, None]
  # g^2 divided out, so that small gradients do not vanish in their squares.
  below = 2 + g * total
  alpha = jnp.where((g != 0) & (below != 0), 1 / jnp.where(below, below, 1), 0)
  weights = (alpha * jax.nn.relu(g)).sum((2, 3))
  return cams.grad_cam(features[:, None], weights)


def features_and_gradients(
  model, images, targets, layer
) -> tuple[Float[Array, "B h w D"], Float[Array, "B P h w D"]]:
  """Returns what the maps are made of: activations, d logit / d activation."""
  if not isinstance(model, Tapped) and (
    layer is None or taps.input_path(model, layer) == FEATURES
  ):
    features = cams.at_least_float32(model.features(model.normalize(images)))
    gradients = cams.class_gradients(pure_head(model), features, targets)
    explained = features.shape[-1] - context_of(model)
    return features[..., :explained], gradients[..., :explained]
  net = tapped(model, layer)
  _, activations, gradients, _ = net.looked(net.prepared(images), targets)
  return activations, gradients
