"""Excitation backprop (MWP) and its contrastive form (cMWP).

A unit of probability starts at the class and is handed down, layer by layer,
to the inputs that excited it: p' = x * f^T(p / f(x)), where f is the layer with
its negative weights set to 0. The sum over channels at some layer is the map.

Source: Zhang et al. 2016, arXiv:1608.00507, eq. 2-5 (MWP) and section 3.4
(contrast). Where their text is silent we follow the authors' release (METHOD
B1): probability passes a BatchNorm unchanged, a sum divides it in proportion to
its terms, and the contrast is taken at the input of the last layer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gc_jax.attribution import programs, taps
from gc_jax.attribution.programs import Operation, Value
from gc_jax.attribution.wrapping import Tapped, tapped
from gc_jax.models.network import Network

EPSILON = 1e-20  # added to denominators only


def excitation_backprop(model, images, targets, *, layer: str | None = None):
  """Returns the probability that each cell excited the class.

  The maps sum to 1, but for what a residual sum hands to negative terms, which
  is clipped. They are taken at a layer of `taps.layers`; None is the input of
  the last stage (`default_layer`).

  Raises:
    ValueError: the model has no such layer.
  """
  signed, _ = propagated(model, images, targets, layer)
  return jax.nn.relu(signed.sum(-1))


def cmwp(model, images, targets, *, layer: str | None = None):
  """Returns where a class is excited more than its opposite is.

  The opposite is a class whose weights in the last layer are the target's,
  negated. Both are handed down through the last layer, and their difference
  from there on: the map is max(0, sum over channels). Settings and errors are
  those of `excitation_backprop`.
  """
  signed, _ = propagated(model, images, targets, layer, contrasts=True)
  return jax.nn.relu(signed.sum(-1))


def default_layer(model: nnx.Module) -> str:
  """Returns the input of the last stage; the features, if that is unknown."""
  if isinstance(model, Network):
    return model.excitation_layer
  return taps.last_layer(model)


def propagated(
  model: nnx.Module | Tapped,
  images: Array,
  targets: Int[Array, "B P"],
  layer: str | None = None,
  contrasts: bool = False,
) -> tuple[Float[Array, "B P h w D"], Float[Array, "B P *D"]]:
  """Returns what arrives at the layer of the map, and at the last layer.

  Both are signed, of every channel, and sum to 1; with contrast, the second is
  the difference that the first was handed down from, and both sum to 0.

  Raises:
    ValueError: an operation between the layer and the logits has no rule.
  """
  if layer is None and not isinstance(model, Tapped):
    layer = default_layer(model)
  net = tapped(model, layer)
  images = net.prepared(images)
  from_class, from_last = _handing_down(net, images, sign=1)
  if not contrasts:
    return jax.vmap(from_class, in_axes=1, out_axes=1)(targets)
  from_opposite, _ = _handing_down(net, images, sign=-1)

  def one_target(target):
    difference = from_class(target)[1] - from_opposite(target)[1]
    return from_last(difference), difference

  return jax.vmap(one_target, in_axes=1, out_axes=1)(targets)


def _handing_down(net: Tapped, images: Array, sign: int):
  """Runs the model once; returns two functions that hand probabilities down.

  class -> what arrives at the place of the net, and at the input of the last
    product with weights, which are multiplied by the sign;
  what is at the last product -> what arrives at the place.
  """
  tail = lambda offset: net(images, offset)[0]
  shape = jax.eval_shape(lambda: net(images)[1])
  offset = jnp.zeros(shape.shape, jnp.promote_types(shape.dtype, jnp.float32))
  inputs = []  # of every product, in the order of the program
  jax.eval_shape(
    lambda x: programs.walk(tail, (x,), _Rules(lambda n: None, inputs)).array,
    offset,
  )
  if not inputs:
    raise programs.DoesNotHold(
      f"A product with weights must follow {net.at!r} on the way to the "
      "logits; none does. Look at an earlier place."
    )
  last = len(inputs) - 1
  probe = jnp.zeros(inputs[last].shape, inputs[last].dtype)

  def forward(offset, probe):
    seen = []
    rules = _Rules(lambda n: (sign, probe) if n == last else None, seen)
    logits = programs.walk(tail, (offset,), rules).array
    return seen[last], logits

  (at_last, logits), pull = jax.vjp(forward, offset, probe)
  nothing = jnp.zeros_like(at_last), jnp.zeros_like(logits)

  def from_class(target):
    start = jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)
    return pull((nothing[0], start))

  def from_last(probability):
    return pull((probability, nothing[1]))[0]

  return from_class, from_last


class _Rules:
  """What excitation backprop makes of each operation.

  Args:
    tapped: number of a product -> (sign of its weights, probe at its input),
      or None for one that is not the last.
    seen: gets the input of every product.
  """

  def __init__(self, tapped: Callable[[int], Any], seen: list[Array]):
    self._tapped, self._seen = tapped, seen

  def __call__(self, operation: Operation) -> list[Value]:
    """Returns the outputs; their gradients are the rule."""
    name, arrays, followed = (
      operation.name,
      operation.arrays,
      operation.followed,
    )
    if len(followed) == 1 and name in programs.PRODUCTS:
      return [Value(self._product(operation, followed[0]), True)]
    if len(followed) == 1 and name in programs.SUMS | {"reduce_window_max"}:
      one = operation.of_one(followed[0])
      return [Value(_with_rule(one, one)(arrays[followed[0]]), True)]
    if followed == [1] and name in ("div", "sub"):
      # It falls as the activation rises: nothing is excited by it.
      raise programs.does_not_hold(operation, "Excitation backprop")
    if name == "clamp" and followed == [1]:
      # As a minimum of a maximum: below alone, nothing is excited.
      one, lowest = operation.of_one(1), lambda x: jnp.maximum(x, arrays[0])
      return [Value(_passed_through(one, arrays[1], lowest), True)]
    if len(followed) == 1 and name in _SCALES:
      # Of a normalisation or an average: probability passes unchanged. So it
      # does where a ReLU6 cuts off the units that excite most.
      one = operation.of_one(followed[0])
      return [Value(_passed_through(one, arrays[followed[0]]), True)]
    if len(followed) == 2 and name in ("add", "add_any"):
      return [Value(_shared(*arrays), True)]
    if programs.only_chooses(operation) or (
      len(followed) == 1 and name in _SHIFTS
    ):
      return [Value(x, True) for x in operation.compute(arrays)]
    raise programs.does_not_hold(operation, "Excitation backprop")

  def _product(self, operation: Operation, place: int) -> Array:
    x, sign = operation.arrays[place], 1
    if isinstance(found := self._tapped(len(self._seen)), tuple):
      sign, probe = found
      x = _tap(x, probe)
    self._seen.append(x)
    weights = jax.nn.relu(sign * operation.arrays[1 - place])
    positive = [x, weights] if place == 0 else [weights, x]
    excited = Operation(
      operation.name, [Value(each) for each in positive], operation.compute
    )
    return _with_rule(operation.of_one(place), excited.of_one(place))(x)


# Of an activation and a number that is none.
_SCALES = {"mul", "div", "min"}
_SHIFTS = {"add", "add_any", "sub"}


@jax.custom_vjp
def _tap(x, probe):
  """Returns x; the probe's gradient is what arrives here."""
  del probe
  return x


_tap.defvjp(lambda x, probe: (x, None), lambda _, p: (p, p))


def _with_rule(
  forward: Callable[[Array], Array], positive: Callable[[Array], Array]
) -> Callable[[Array], Array]:
  """Returns `forward` with p' = x * f^T(p / f(x)) in place of its gradient.

  Here f is `positive`: linear in x, or a maximum, with weights >= 0.
  """
  function = jax.custom_vjp(lambda x: forward(x))

  def backward(x, p):
    z, transposed = jax.vjp(positive, x)
    return (x * transposed(p / (z + EPSILON))[0],)

  function.defvjp(lambda x: (forward(x), x), backward)
  return function


def _passed_through(
  scaled: Callable[[Array], Array],
  x: Array,
  like: Callable[[Array], Array] = lambda x: x,
) -> Array:
  """Returns scaled(x); its gradient is that of like(x), repeated as that is."""
  function = jax.custom_vjp(lambda x: scaled(x))
  shape = jax.eval_shape(scaled, x).shape
  repeated = lambda x: jnp.broadcast_to(like(x), shape)
  backward = lambda x, p: jax.vjp(repeated, x)[1](p)
  function.defvjp(lambda x: (scaled(x), x), backward)
  return function(x)


@jax.custom_vjp
def _shared(a, b):
  """Returns a + b; each gets its share of what arrives."""
  return a + b


def _shares(terms, p):
  a, b = terms
  total = a + b
  ratio = jnp.where(total == 0, 0, p / jnp.where(total == 0, 1, total))
  return a * ratio, b * ratio


_shared.defvjp(lambda a, b: (a + b, (a, b)), _shares)
