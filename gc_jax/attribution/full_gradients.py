"""FullGrad: a score divided over the input and every bias.

  f = sum(grad_x f * x) + sum over layers l of sum(grad_{z_l} f * b_l)

z_l is the output of a layer with a bias b_l. In evaluation mode a BatchNorm has
the bias b = beta - gamma * mean / sqrt(var + eps). The map is made of all terms
that have places; it has the size of the picture.

Source: Srinivas & Fleuret 2019, arXiv:1905.00780, eq. 5 and 9.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gc_jax.attribution.taps import in_float32, intercept
from gc_jax.models.network import BatchNorm

RESCALES = ("layer", "channel")

_EPSILON = 1e-6  # added to the largest value of a term, as in the authors' code


def fullgrad(model, images, targets, *, rescale: str = "layer"):
  """Returns the sum of all terms that have places, each rescaled and enlarged.

  map = sum_c psi(grad_x f * x) + sum_l sum_c psi(grad_{z_l} f * b_l)

  psi takes the absolute value, brings it to 0..1 and enlarges it bilinearly,
  corners aligned, to the size of the picture. `rescale` says what it brings to
  0..1: all channels of a "layer" together (the authors' code), or each
  "channel" by itself (the paper's text).

  Raises:
    ValueError: `rescale` is neither of them.
  """
  if rescale not in RESCALES:
    raise ValueError(
      f"rescale must be one of {', '.join(RESCALES)}; it is {rescale!r}."
    )
  _, of_input, of_biases = terms(model, images, targets)
  return _map(of_input, of_biases, rescale)


def _map(
  of_input: Float[Array, "B P H W C"],
  of_biases: dict[str, Array],
  rescale: str,
) -> Float[Array, "B P H W"]:
  height, width = of_input.shape[2:4]
  total = jnp.zeros(of_input.shape[:4], of_input.dtype)
  for term in (of_input, *of_biases.values()):
    if term.ndim == 5:
      # Channels are summed first: enlarging is linear.
      small = _rescaled(jnp.abs(term), rescale).sum(-1)
      total += _enlarged(small, height, width)
  return total


def terms(
  model: nnx.Module, images: Array, targets: Int[Array, "B P"]
) -> tuple[Float[Array, "B P"], Float[Array, "B P H W C"], dict[str, Array]]:
  """Returns the score of each target, and the terms that it is the sum of.

  The sum is exact for nets of ReLUs, poolings and maxima in evaluation mode.

  Returns:
    Raw logits; gradient times input; path of a layer -> gradient times bias,
    `[B P h w D]`, without h and w for a dense layer.
  """
  model = in_float32(model)
  images = model.normalize(images)
  shapes, biases = {}, {}

  def logits(images, probes):
    def call(path, module, x):
      z, bias = module(x), _bias(module)
      if bias is None:
        return z
      shapes[path], biases[path] = (z.shape, z.dtype), bias
      return z + probes.get(path, 0)

    copy = intercept(model, (nnx.Conv, nnx.Linear, BatchNorm), call)
    return copy.classify(copy.features(images))

  jax.eval_shape(logits, images, {})
  probes = {path: jnp.zeros(*shape) for path, shape in shapes.items()}
  all_scores, pull = jax.vjp(logits, images, probes)

  def one_target(target):
    start = jax.nn.one_hot(target, all_scores.shape[-1], dtype=all_scores.dtype)
    at_input, at_layers = pull(start)
    return (
      (all_scores * start).sum(-1),
      at_input * images,
      {path: _times(at_layers[path], biases[path]) for path in probes},
    )

  over_targets = jax.vmap(one_target, in_axes=1, out_axes=1)
  return over_targets(targets)


def divide(
  model: nnx.Module, images: Array, targets: Int[Array, "B P"]
) -> tuple[Float[Array, "B P H W"], Float[Array, "B P"], Float[Array, "B P"]]:
  """Returns `fullgrad`, what all `terms` sum to, and should: the score."""
  score, of_input, of_biases = terms(model, images, targets)
  every = (of_input, *of_biases.values())
  found = sum(term.sum(range(2, term.ndim)) for term in every)
  return _map(of_input, of_biases, "layer"), found, score


def _times(gradient: Float[Array, "B *hw D"], bias: Float[Array, "D"]) -> Array:
  return gradient * bias.reshape(*[1] * (gradient.ndim - 1), -1)


def _bias(module: nnx.Module) -> Float[Array, "D"] | None:
  """Returns what a layer adds to a linear function of its input."""
  if isinstance(module, BatchNorm):
    scale = module.scale[...] * jax.lax.rsqrt(module.var[...] + module.epsilon)
    return module.bias[...] - scale * module.mean[...]
  return None if module.bias is None else module.bias[...]


def _rescaled(
  term: Float[Array, "B P h w C"], rescale: str
) -> Float[Array, "B P h w C"]:
  axes = (2, 3, 4) if rescale == "layer" else (2, 3)
  term -= term.min(axes, keepdims=True)
  return term / (term.max(axes, keepdims=True) + _EPSILON)


def _enlarged(
  cam: Float[Array, "B P h w"], height: int, width: int
) -> Float[Array, "B P H W"]:
  """Returns the map enlarged bilinearly, corners aligned to corners."""
  rows, columns = (
    _weights(*n, cam.dtype)
    for n in zip(cam.shape[2:], (height, width), strict=True)
  )
  return jnp.einsum("Hh,bphw,Ww->bpHW", rows, cam, columns, precision="highest")


def _weights(cells: int, pixels: int, dtype) -> Float[Array, "N n"]:
  at = jnp.linspace(0, cells - 1, pixels, dtype=dtype)
  distance = jnp.abs(at[:, None] - jnp.arange(cells, dtype=dtype)[None])
  return jnp.maximum(1 - distance, 0)
