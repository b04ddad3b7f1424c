"""FullGrad: a score divided over the input and every bias.

  f = sum(grad_x f * x) + sum over layers l of sum(grad_{z_l} f * b_l)

z_l is the output of a layer with a bias b_l. In evaluation mode a BatchNorm has
the bias b = beta - gamma * mean / sqrt(var + eps). The map is made of all terms
that have places; it has the size of the picture.

Source: Srinivas & Fleuret 2019, arXiv:1905.00780, eq. 5 and 9.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from gc_jax.attribution import layouts, programs
from gc_jax.attribution.programs import Operation, Value
from gc_jax.attribution.wrapping import Tapped, tapped

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
  of_biases: list[Array],
  rescale: str,
) -> Float[Array, "B P H W"]:
  height, width = of_input.shape[2:4]
  total = jnp.zeros(of_input.shape[:4], of_input.dtype)
  for term in (of_input, *of_biases):
    if term.ndim == 5:
      # Channels are summed first: enlarging is linear.
      small = _rescaled(jnp.abs(term), rescale).sum(-1)
      total += _enlarged(small, height, width)
  return total


def terms(
  model: nnx.Module | Tapped, images: Array, targets: Int[Array, "B P"]
) -> tuple[Float[Array, "B P"], Float[Array, "B P H W C"], list[Array]]:
  """Returns the score of each target, and the terms that it is the sum of.

  The sum is exact for nets of ReLUs, poolings and maxima in evaluation mode.

  Returns:
    Raw logits; gradient times input; gradient times bias of each layer that has
    one, from the picture up, `[B P h w D]` where it is a map.

  Raises:
    DoesNotHold: the model has an operation that is not linear between kinks, or
      it is not known what the axes of a bias are.
  """
  net = tapped(model)
  images = net.prepared_floats(images)
  axes = "BDHW" if net.channels_first else "BHWD"
  of_images = _Note(layouts.of(axes, images.shape))
  layouts_of = []

  def forward(images, probes):
    found = []
    rule = _Biases(probes, found)
    walked = programs.walk(lambda x: net(x)[0], (images,), rule, of_images)
    scores = rule.added(walked)  # the logits have a bias too
    layouts_of[:] = [note.layout for _, note in found]
    return scores, ([note.bias for _, note in found], [z for z, _ in found])

  _, (_, shapes) = jax.eval_shape(lambda x: forward(x, None), images)
  probes = [jnp.zeros_like(z) for z in shapes]
  all_scores, pull, (biases, _) = jax.vjp(forward, images, probes, has_aux=True)

  def one_target(target):
    start = jax.nn.one_hot(target, all_scores.shape[-1], dtype=all_scores.dtype)
    at_input, at_layers = pull(start)
    of_biases = [
      layouts.as_map(gradient * bias, layout)
      for gradient, bias, layout in zip(
        at_layers, biases, layouts_of, strict=True
      )
    ]
    score = (all_scores * start).sum(-1)
    return score, net.channels_last(at_input * images), of_biases

  return jax.vmap(one_target, in_axes=1, out_axes=1)(targets)


class _Note(NamedTuple):
  """What is known of a value: its layout, and its bias if it has one."""

  layout: layouts.Layout
  bias: Array | None = None


class _Biases:
  """Finds what each layer adds to a linear function of its input.

  What is added to a convolution, and what a normalisation multiplies and then
  adds, makes one bias. It follows a value, as its `note`, up to the operation
  that is more than a multiplication and an addition.

  Args:
    probes: added to the outputs of layers with a bias, in order; None: none.
    found: gets (output, note) of each of these layers.
  """

  def __init__(
    self, probes: list[Array] | None, found: list[tuple[Array, _Note]]
  ):
    self._probes, self._found = probes, found
    self._known: dict[int, tuple[Value, Array]] = {}

  def __call__(self, operation: Operation) -> list[Value]:
    """Returns the outputs, with their layouts and biases."""
    outputs, biases = self._done(operation)
    before = [operation.operands[i].note.layout for i in operation.followed]
    return [
      Value(x, True, _Note(layouts.after(operation, before, x), bias))
      for x, bias in zip(outputs, biases, strict=True)
    ]

  def _done(self, operation: Operation):
    """Returns the outputs and their biases, None for none."""
    followed = operation.followed
    # Of layers put side by side each keeps a bias of its own.
    moves = operation.name in programs.MOVES and (
      operation.name != "concatenate" or len(followed) == 1
    )
    affine = operation.name in _AFFINE and len(followed) == 1
    if affine and operation.name == "div":
      affine = followed == [0]  # a number over an activation is not linear
    if moves or affine:
      return self._carried(operation)
    product = operation.name in programs.PRODUCTS | programs.SUMS
    added = operation.name in ("add", "add_any", "sub")
    chooses = programs.only_chooses(operation)
    if not (chooses or added or (product and len(followed) == 1)):
      raise programs.does_not_hold(operation, "FullGrad")
    arrays = [self.added(operand) for operand in operation.operands]
    outputs = operation.compute(arrays)
    if not (chooses and _has_numbers(operation)):
      return outputs, [None] * len(outputs)
    # The number that a clip puts in the place of an activation is a bias.
    xs = tuple(arrays[i] for i in followed)
    of_followed = lambda *xs: operation.compute(
      [
        xs[followed.index(i)] if i in followed else x
        for i, x in enumerate(arrays)
      ]
    )
    _, linear = jax.jvp(of_followed, xs, tuple(map(_finite, xs)))
    return outputs, [
      jnp.where(jnp.isfinite(x), x - z, 0)
      for x, z in zip(outputs, linear, strict=True)
    ]

  def _carried(self, operation: Operation):
    """Returns the outputs; their biases are those of 0 in place of input."""
    outputs = operation.compute(operation.arrays)
    known = [operation.operands[i].note.bias for i in operation.followed]
    adds = operation.name in _ADDS or (
      operation.name in programs.MOVES and _has_numbers(operation)
    )
    if not adds and all(bias is None for bias in known):
      return outputs, known[:1] * len(outputs)
    biases = operation.compute(
      [
        operand.array
        if not operand.follows
        else jnp.zeros_like(operand.array)
        if operand.note.bias is None
        else operand.note.bias
        for operand in operation.operands
      ]
    )
    return outputs, [_finite(bias) for bias in biases]

  def added(self, value: Value) -> ArrayLike:
    """Returns a value with the probe of its bias, if it has one."""
    if value.note is None or value.note.bias is None:
      return value.array
    known = self._known.get(id(value.array))
    if known is None:
      probed = value.array
      if self._probes is not None:
        probed += self._probes[len(self._found)]
      self._found.append((value.array, value.note))
      # The value is kept: its id is not given away while it is known by it.
      known = self._known[id(value.array)] = (value, probed)
    return known[1]


# Of an activation and a number that is none.
_ADDS = {"add", "add_any", "sub"}
_AFFINE = _ADDS | {"mul", "div", "neg"}


def _has_numbers(operation: Operation) -> bool:
  """Returns whether an operand is neither followed nor surely 0.

  Such are the bound of a clip, the value of a padding, a class token.
  """
  return any(
    not operand.follows
    and jnp.issubdtype(jnp.result_type(operand.array), jnp.floating)
    # An array may be of a trace: only a number in the program itself is known.
    and (isinstance(operand.array, jax.Array) or np.any(operand.array))
    for operand in operation.operands
  )


def _finite(x: Array) -> Array:
  """Returns x with 0 for the infinity that maxima are padded with."""
  return jnp.where(jnp.isfinite(x), x, 0)


def divide(
  model: nnx.Module | Tapped, images: Array, targets: Int[Array, "B P"]
) -> tuple[Float[Array, "B P H W"], Float[Array, "B P"], Float[Array, "B P"]]:
  """Returns `fullgrad`, what all `terms` sum to, and should: the score."""
  score, of_input, of_biases = terms(model, images, targets)
  every = (of_input, *of_biases)
  found = sum(term.sum(range(2, term.ndim)) for term in every)
  return _map(of_input, of_biases, "layer"), found, score


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
