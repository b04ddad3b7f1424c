"""Gradients of a score with respect to pixels: plain, integrated, smoothed.

Maps have the size of the picture. Pixels are RGB in [0, 1]; the model's own
normalisation is part of what is differentiated.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gc_jax.attribution.intercept import in_float32
from gc_jax.models.network import RGB_MEAN


def input_gradients(
  model: nnx.Module, images: Array, targets: Int[Array, "B P"]
) -> Float[Array, "B P H W"]:
  """Returns the magnitude of the score's gradient, summed over channels.

  Args:
    model: in evaluation mode, with `normalize`, `features` and `classify`.
    images: RGB, uint8 or float in [0, 1], `[B H W 3]`.
    targets: classes to explain.

  Source: Simonyan et al. 2014, arXiv:1312.6034.
  Differs: they take the largest channel, not the sum.
  """
  gradient = _gradient_of(model, targets)(_in_unit_range(images))
  return jnp.abs(gradient).sum(-1)


def integrated_gradients(
  model: nnx.Module,
  images: Array,
  targets: Int[Array, "B P"],
  *,
  steps: int = 16,
) -> Float[Array, "B P H W"]:
  """Returns what each pixel adds to the score on the way from mean grey.

  Args:
    model: as for `input_gradients`.
    images: likewise.
    targets: likewise.
    steps: of the path, one after the other: memory is that of one.

  Returns:
    Magnitudes of `attributions`, summed over channels.

  Raises:
    ValueError: there are no steps.
  """
  signed = attributions(model, images, targets, steps=steps)
  return jnp.abs(signed.sum(-1))


def attributions(
  model: nnx.Module,
  images: Array,
  targets: Int[Array, "B P"],
  *,
  steps: int = 16,
) -> Float[Array, "B P H W 3"]:
  """Returns integrated gradients with their signs, channel by channel.

  (x - x_0) * mean over n of grad f(x_0 + (n - 1/2) / steps * (x - x_0))

  x_0 is the mean colour of ImageNet, 0 after normalisation: of black, dark
  objects would get nothing. With enough steps they sum to f(x) - f(x_0).

  Args:
    model: as for `input_gradients`.
    images: likewise.
    targets: likewise.
    steps: midpoints of as many equal parts of the path.

  Raises:
    ValueError: there are no steps.

  Source: Sundararajan et al. 2017, arXiv:1703.01365, eq. 3.
  Differs: midpoints, not right ends, which are nearer to the integral.
  """
  _check_at_least_one("steps", steps)
  images = _in_unit_range(images)
  start = jnp.broadcast_to(jnp.array(RGB_MEAN), images.shape)
  gradient = _gradient_of(model, targets)
  middles = (jnp.arange(steps) + 0.5) / steps
  way = images - start
  mean = _mean_over(lambda middle: gradient(start + middle * way), middles)
  return way[:, None] * mean


def smoothgrad(
  model: nnx.Module,
  images: Array,
  targets: Int[Array, "B P"],
  *,
  num_samples: int = 16,
  sigma_frac: float = 0.15,
  key: PRNGKeyArray | None = None,
) -> Float[Array, "B P H W"]:
  """Returns the magnitude of the gradient's mean over noisy pictures.

  Args:
    model: as for `input_gradients`.
    images: likewise.
    targets: likewise.
    num_samples: noisy pictures, one after the other: memory is that of one.
    sigma_frac: of the noise, in parts of the picture's range.
    key: of the noise; None = always the same.

  Raises:
    ValueError: there are no samples.

  Source: Smilkov et al. 2017, arXiv:1706.03825.
  Differs: none.
  """
  _check_at_least_one("num_samples", num_samples)
  images = _in_unit_range(images)
  gradient = _gradient_of(model, targets)
  spread = images.max((1, 2, 3)) - images.min((1, 2, 3))
  sigma = sigma_frac * spread[:, None, None, None]
  keys = jax.random.split(
    jax.random.key(0) if key is None else key, num_samples
  )

  def noisy(key):
    # The same for every picture: its map does not depend on its neighbours.
    noise = jax.random.normal(key, images.shape[1:])
    return gradient(images + sigma * noise[None])

  return jnp.abs(_mean_over(noisy, keys)).sum(-1)


def _check_at_least_one(name: str, count: int) -> None:
  if count < 1:
    raise ValueError(f"{name} must be at least 1; it is {count}.")


def _in_unit_range(images: Array) -> Float[Array, "B H W 3"]:
  if images.dtype == jnp.uint8:
    return images.astype(jnp.float32) / 255
  return images.astype(jnp.float32)


def _gradient_of(
  model: nnx.Module, targets: Int[Array, "B P"]
) -> Callable[[Float[Array, "B H W 3"]], Float[Array, "B P H W 3"]]:
  """Returns a function from pixels to the gradient of each target's score."""
  model = in_float32(model)

  def gradient(pixels):
    logits, pull = jax.vjp(
      lambda x: model.classify(model.features(model.normalize(x))), pixels
    )
    start = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    return jax.vmap(lambda s: pull(s)[0], in_axes=1, out_axes=1)(start)

  return gradient


def _mean_over(function: Callable[[Array], Array], inputs: Array) -> Array:
  """Returns the mean of the results, each computed after the last."""
  shape = jax.eval_shape(function, inputs[0])

  def add(total, value):
    return total + function(value), None

  zeros = jnp.zeros(shape.shape, shape.dtype)
  total, _ = jax.lax.scan(add, zeros, inputs)
  return total / len(inputs)
