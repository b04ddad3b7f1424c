"""Maps that look at nothing: what a metric says without a model.

A number next to its control row has a meaning; alone it has none. Under a
uniform map NQH is 75 and CH the mask's share of the picture.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

CELLS = 8  # a control has no feature grid; metrics enlarge this one
_SIGMA = 0.25  # of the side


def uniform(
  model: nnx.Module, images: Array, targets: Int[Array, "B P"]
) -> Float[Array, "B P h w"]:
  """Returns the same value in every cell."""
  del model, images
  return jnp.ones((*targets.shape, CELLS, CELLS))


def center(
  model: nnx.Module, images: Array, targets: Int[Array, "B P"]
) -> Float[Array, "B P h w"]:
  """Returns a Gaussian around the middle, a quarter of the side wide."""
  del model, images
  offset = (jnp.arange(CELLS, dtype=jnp.float32) + 0.5) / CELLS - 0.5
  profile = jnp.exp(-0.5 * (offset / _SIGMA) ** 2)
  cam = profile[:, None] * profile[None, :]
  return jnp.broadcast_to(cam, (*targets.shape, CELLS, CELLS))
