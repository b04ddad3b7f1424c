"""Attention rollout with gradients: which patches reach a logit by attention.

Attention is found in the traced program, whatever wrote it: numbers over their
sum, of what an exponential gave (a softmax, or the exponential of a
log-softmax), in a product with activations. Other attention is named, and that
in loops too, since a map without it would look right: a product of activations
whose result goes into a product with activations.

Source: Chefer et al. 2021, arXiv:2103.15679, eq. 5 and 6.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gc_jax.attribution import programs
from gc_jax.attribution.programs import DoesNotHold, Operation, Value
from gc_jax.attribution.wrapping import Tapped, tapped


def attention_rollout(
  model: nnx.Module | Tapped, images: Array, targets: Int[Array, "B P"]
) -> Float[Array, "B P h w"]:
  """Returns how far each patch reaches the logit through all attentions.

  R = (I + M_L) ... (I + M_1) - I,  M_l = mean over heads of relu(dA_l * A_l)

  A_l are the shares of the l-th attention, dA_l the logit's gradient by them.
  The map is the class token's row of R. Where no token comes before the grid
  there is none, and it is the mean of all rows.

  Raises:
    DoesNotHold: there is no attention of all tokens on all, or some that cannot
      be seen, or the place of a wrapped model does not say which are patches.

  Source: Chefer et al. 2021, arXiv:2103.15679.
  Differs: without a class token, theirs says nothing.
  """
  net = tapped(model)
  images = net.prepared(images)
  grid = jax.eval_shape(lambda net, x: net(x)[1], net, images).shape[1:3]

  found = functools.partial(_found, net)
  shapes, axes = _shapes_and_axes(found, images)
  prefix = _prefix(shapes, axes, grid, net)
  probes = [jnp.zeros(shape, net.dtype) for shape in shapes]

  def forward(probes):
    logits, attentions = found(images, probes)
    return logits, [each.shares for each in attentions]

  logits, pull, shares = jax.vjp(forward, probes, has_aux=True)

  def one_target(target):
    start = jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)
    (gradients,) = pull(start)
    num_tokens = prefix + grid[0] * grid[1]
    row = jnp.zeros((logits.shape[0], num_tokens), logits.dtype)
    row = row.at[:, 0].set(1) if prefix else row + 1 / num_tokens
    first = row
    for gradient, share, at in reversed(
      [*zip(gradients, shares, axes, strict=True)]
    ):
      mixed = at.ordered(jax.nn.relu(gradient * share)).mean(-1)
      row += jnp.einsum("bq,bqk->bk", row, mixed, precision="highest")
    return (row - first)[:, prefix:].reshape(-1, *grid)

  return jax.vmap(one_target, in_axes=1, out_axes=1)(targets)


def attentions(net: Tapped, images: Array) -> list[Float[Array, "B q k heads"]]:
  """Returns the shares of each attention, from the picture up.

  Raises:
    DoesNotHold: there is none.
  """
  found = functools.partial(_found, net)
  _, axes = _shapes_and_axes(found, images)
  return [
    at.ordered(each.shares)
    for each, at in zip(found(images, None)[1], axes, strict=True)
  ]


def _found(net: Tapped, images: Array, probes: Sequence[Array] | None):
  rule = _Attentions(probes)
  walked = programs.walk(lambda x: net(x)[0], (images,), rule)
  return walked.array, rule.found


class _Axes(NamedTuple):
  """Where an attention has images, queries and keys; the others are heads."""

  images: int
  queries: int
  keys: int

  def ordered(self, x: Array) -> Float[Array, "B q k heads"]:
    """Returns shares or gradients, all heads in the last axis."""
    x = jnp.moveaxis(x, self, (0, 1, 2))
    return x.reshape(*x.shape[:3], -1)


class _Attention(NamedTuple):
  shares: Array
  batched: Sequence[int]  # axes of images and heads
  queries: Sequence[int]
  keys: Sequence[int]


def _shapes_and_axes(found, images: Array):
  """Returns of each attention the shape, and what its axes are.

  The axis of images is the one that grows if an image more comes.
  """

  def shapes_of(count):
    seen = []

    def look(images):
      seen.extend(found(images, None)[1])
      return images

    more = jax.ShapeDtypeStruct((count, *images.shape[1:]), images.dtype)
    jax.eval_shape(look, more)
    return seen

  count = images.shape[0]  # may have no number yet, in an export
  few, more = shapes_of(count), shapes_of(count + 1)
  if not few:
    raise DoesNotHold(
      "Attention rollout must find attention, a softmax in a product with "
      "activations; this model has none outside of loops. Use a Grad-CAM."
    )
  axes = []
  for one, other in zip(few, more, strict=True):
    shape = one.shares.shape
    of_images = [
      axis
      for axis in one.batched
      if (shape[axis], other.shares.shape[axis]) == (count, count + 1)
    ]
    if not len(of_images) == len(one.queries) == len(one.keys) == 1:
      raise _not_of_all(shape)
    axes.append(_Axes(*of_images, *one.queries, *one.keys))
  return [one.shares.shape for one in few], axes


def _prefix(shapes, axes, grid, net: Tapped) -> int:
  """Returns how many tokens come before those of the grid."""
  for shape, at in zip(shapes, axes, strict=True):
    num_tokens = shape[at.keys]
    if shape[at.queries] != num_tokens or num_tokens != shapes[0][axes[0].keys]:
      raise _not_of_all(shape)
  prefix = num_tokens - grid[0] * grid[1]
  if prefix < 0 or (net.cells.grid and prefix != net.cells.prefix):
    raise DoesNotHold(
      f"Attention rollout must know which of {num_tokens} tokens are patches; "
      f"at {net.at!r} are {grid[0]} x {grid[1]} cells. Wrap the model where "
      "its patches are, with grid=(h, w) and prefix=n."
    )
  return prefix


def _not_of_all(shape) -> DoesNotHold:
  return DoesNotHold(
    "Attention rollout must find attention of all tokens on all, as in a ViT; "
    f"this model has one whose shares have shape {shape}. Use a Grad-CAM."
  )


class _Part(NamedTuple):
  """What a value is on the way from scores to shares, as far as is known.

  Attributes:
    kind: "exp" of scores, the "sum" of that, the "log" of the sum; the "max" of
      scores; "log shares" or "shares"; "" of anything else.
    of: the scores, the same for all parts of one softmax.
    mixes: whether it is made of a product of two activations.
  """

  kind: str
  of: Any = None
  mixes: bool = False


_NONE = _Part("")
# They change no part: of a mask, of a shift, of the absolute value of a sum.
_PASS = programs.MOVES | {"select_n", "stop_gradient", "max", "abs"}
_LOOPS = {"scan", "while", "cond"}


class _Attentions:
  """Computes each operation as it is, and finds attention among them.

  Args:
    probes: added to the shares of each attention, in order; None: none.

  Attributes:
    found: every attention, its shares without the probe.
  """

  def __init__(self, probes: Sequence[Array] | None):
    self._probes = probes
    self.found: list[_Attention] = []

  def __call__(self, operation: Operation) -> list[Value]:
    """Returns the outputs, with what they are of a softmax.

    Raises:
      DoesNotHold: there is attention here that cannot be seen.
    """
    arrays = list(operation.arrays)
    parts = [operation.operands[i].note or _NONE for i in operation.followed]
    if operation.name in _LOOPS and _attends(operation.params):
      raise _not_seen(f"some in a {operation.name!r}. Unroll it")
    if operation.name != "dot_general" or len(parts) == 1:
      part = _part(operation, parts)
      return [Value(x, True, part) for x in operation.compute(arrays)]
    places = [i for i in (0, 1) if parts[i].kind == "shares"]
    if len(places) == 1:
      arrays[places[0]] = self._probed(operation, places[0])
      return [Value(x, True) for x in operation.compute(arrays)]
    if any(part.mixes for part in parts):
      raise _not_seen(
        "some that changes them after the softmax, or has none. Multiply the "
        "values instead"
      )
    (contracted, batched), ndims = (
      operation.params["dimension_numbers"],
      [jnp.ndim(x) for x in arrays],
    )
    mixes = all(
      ndim > len(summed) + len(shared)
      for ndim, summed, shared in zip(ndims, contracted, batched, strict=True)
    )
    part = _Part("", mixes=mixes)  # a norm mixes no token with another
    return [Value(x, True, part) for x in operation.compute(arrays)]

  def _probed(self, operation: Operation, place: int) -> Array:
    shares = operation.arrays[place]
    contracted, batched = operation.params["dimension_numbers"]
    keys, batched = contracted[place], batched[place]
    # A group of heads that share their keys may have an axis of its own.
    queries = [
      axis
      for axis in range(shares.ndim)
      if axis not in (*keys, *batched)
      and shares.shape[axis] == _size(shares, keys)
    ]
    self.found.append(_Attention(shares, batched, queries, keys))
    if self._probes is None:
      return shares
    return shares + self._probes[len(self.found) - 1].astype(shares.dtype)


def _size(x: Array, axes: Sequence[int]) -> int:
  return math.prod(x.shape[axis] for axis in axes)


def _part(operation: Operation, parts: Sequence[_Part]) -> _Part:
  """Returns what an operation makes of parts of a softmax."""
  name, kinds = operation.name, [part.kind for part in parts]
  first, *others = parts
  mixes = any(part.mixes for part in parts)
  # Scores are known by their array; those less a maximum are the same ones.
  scores = operation.arrays[operation.followed[0]]
  if first.of is not None and not first.kind:
    scores = first.of
  match name, kinds:
    case "exp", ["log shares"]:
      return first._replace(kind="shares")
    case "exp", _:
      return _Part("exp", scores, mixes)
    case "reduce_max", _:
      return _Part("max", None, mixes)
    case "reduce_sum", ["exp"]:
      return first._replace(kind="sum")
    case "log", ["sum"]:
      return first._replace(kind="log")
    case (("add" | "add_any"), ["log", "max"]):
      return first
    case (("add" | "add_any"), ["max", "log"]):
      return others[0]
    case "sub", ["", "max"]:
      return _Part("", scores, mixes)
    case "sub", ["", "log"] if others[0].of is scores:
      return _Part("log shares", scores, mixes)
    case "div", ["exp", "sum"] if others[0].of is first.of:
      return _Part("shares", first.of, True)
  if len(parts) == 1 and first.kind and name in _PASS:
    return first
  return _Part("", mixes=mixes)


def _attends(params: Mapping[str, Any]) -> bool:
  """Returns whether programs among parameters hold a softmax and a product."""
  inner = programs.operations_within([*params.values()])
  return {"exp", "dot_general"} <= {each.primitive.name for each in inner}


def _not_seen(what: str) -> DoesNotHold:
  return DoesNotHold(
    "Attention rollout must find the shares of every attention, a softmax in a "
    f"product with activations; this model has {what}, or use a Grad-CAM."
  )
