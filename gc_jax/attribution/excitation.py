"""Excitation backprop (MWP) and its contrastive form (cMWP).

A unit of probability starts at the class and is handed down, layer by layer,
to the inputs that excited it: p' = x * f^T(p / f(x)), where f is the layer with
its negative weights set to 0. The sum over channels at some layer is the map.

Source: Zhang et al. 2016, arXiv:1608.00507, eq. 2-5 (MWP) and section 3.4
(contrast). Where their text is silent we follow the authors' release (METHOD
B1): probability passes a BatchNorm unchanged, a sum divides it in proportion to
its terms, and the contrast is taken at the input of the last layer.

The last layer is what the logits are a linear function of: one product with
weights, or several (heads side by side, parts that are added, a matrix after a
matrix, a head of every cell and then a mean). Products with only linear
operations between them are one, whatever sign the numbers between them have.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gc_jax.attribution import programs, taps
from gc_jax.attribution.programs import Operation, Value
from gc_jax.attribution.wrapping import Tapped, tapped
from gc_jax.models.network import Network

_FLOOR = 1e-20  # what is excited less, in sum, hands nothing down


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

  Raises:
    DoesNotHold: a way to the logits passes by the last layer.
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
) -> tuple[Float[Array, "B P h w D"], list[Array]]:
  """Returns what arrives at the layer of the map, and at the last layer.

  Both are signed, of every channel, and sum to 1; with contrast, the second is
  the difference that the first was handed down from, and both sum to 0. The
  second has an array for each input of the last layer, in the layout of the
  program, P as its axis 1.

  Raises:
    ValueError: an operation between the layer and the logits has no rule.
  """
  if layer is None and not isinstance(model, Tapped):
    layer = default_layer(model)
  net = tapped(model, layer)
  program = _Program(net, net.prepared(images))
  if contrasts:
    program.check_contrast()

  def one_target(target):
    at_last = program.at_last(target)
    if contrasts:
      opposite = program.at_last(target, opposite=True)
      at_last = jax.tree.map(jnp.subtract, at_last, opposite)
    return program.at_place(target, at_last), [*at_last.values()]

  return jax.vmap(one_target, in_axes=1, out_axes=1)(targets)


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
  """An operation that was done, and how it hands probability down.

  Attributes:
    name: of the operation.
    inputs: numbers of the values that it got, and outputs of those it gave.
    back: probability of each output -> of each input.
    opposite: the same as if its weights were negated; of products alone.
    gradient: the same of a gradient; None if the operation is not linear.
  """

  name: str
  inputs: Sequence[int]
  outputs: Sequence[int]
  back: Callable[..., Sequence[Array]]
  opposite: Callable[..., Sequence[Array]] | None = None
  gradient: Callable[..., Sequence[Array]] | None = None


class _Program:
  """What a net does from its place to the logits, step by step.

  It runs once. The rules are no gradients in disguise: all that they compute is
  differentiable, by the model's weights too.
  """

  def __init__(self, net: Tapped, images: Array):
    self._steps: list[_Step] = []
    self._arrays: dict[int, Array] = {}
    self._numbers = itertools.count()
    self._place, self._at = next(self._numbers), net.at
    self._offset = net.no_offset(images)
    tail = lambda offset: net(images, offset)[0]
    self._logits = programs.walk(tail, (self._offset,), self._done, self._place)
    self._last, between, self._passes_by = self._nearest({self._logits.note})
    if not self._last:
      raise programs.DoesNotHold(
        f"A product with weights must follow {net.at!r} on the way to the "
        "logits; none does. Look at an earlier place."
      )
    self._nonlinear = [step for step in between if not step.gradient]
    self._joined = [step for step in between if len(step.inputs) > 1]
    if not self._nonlinear:
      self._merge()

  def check_contrast(self) -> None:
    """Raises DoesNotHold if the contrast cannot be taken at the last layer."""
    if self._passes_by:
      raise programs.DoesNotHold(
        f"cMWP must find that all ways from {self._at!r} to the logits pass "
        "the last layer, a product with weights; one passes by it. Use a "
        "method of gradients or a Grad-CAM, which hold for every model."
      )
    added = [step.name for step in self._joined if step.name in _SHIFTS]
    if self._nonlinear and added:
      raise programs.DoesNotHold(
        f"cMWP must find one last layer; this model has {added[0]!r} of two "
        "activations behind its last products with weights, and operations "
        "that are not linear there. Use a method of gradients or a Grad-CAM, "
        "which hold for every model."
      )

  def at_last(
    self, target: Int[Array, "B"], opposite: bool = False
  ) -> dict[int, Array]:
    """Returns what arrives at each input of the last layer, by its number.

    Each class has 1; `opposite` negates the weights of the last layer.
    """
    start = self._start(target)
    if self._nonlinear:
      return self._down({self._logits.note: start}, opposite, to_last=True)
    # The rule p' = x * f^T(p / f(x)), for all products that f is made of: here
    # f has the part of their weights, taken together, that excites.
    weights, pull = jax.vjp(self._weights, start)
    excites = {
      each: -weight > 0 if opposite else weight > 0
      for each, weight in weights.items()
    }
    (excited,) = pull(
      {
        each: jnp.where(excites[each], self._arrays[each], 0)
        for each in excites
      }
    )
    shares = self._weights(_divided(start, (excited * start).sum(-1)[:, None]))
    return {
      each: jnp.where(excites[each], self._arrays[each] * share, 0)
      for each, share in shares.items()
    }

  def at_place(self, target: Int[Array, "B"], at_last: dict[int, Array]):
    """Returns what arrives at the place from the inputs of the last layer.

    What passes by the last layer comes from the class itself.
    """
    found = self._down(at_last)
    if self._passes_by:
      found = self._down({self._logits.note: self._start(target)})
    return found.get(self._place, jnp.zeros_like(self._offset))

  def _start(self, target):
    logits = self._logits.array
    return jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)

  def _nearest(self, numbers: set[int]):
    """Returns the first products with weights above some values.

    Returns:
      The products; the steps between; whether a way to the place has none.
    """
    products, between, needed = [], [], {*numbers}
    for step in reversed(self._steps):
      if needed & {*step.outputs}:
        (products if step.opposite else between).append(step)
        needed |= set() if step.opposite else {*step.inputs}
    return products, between, self._place in needed

  def _merge(self):
    """Makes products with only linear operations between them one layer."""
    last, reached = [], [*self._last]
    for step in reached:  # it grows meanwhile
      above, between, from_place = self._nearest({*step.inputs})
      if from_place or not all(each.gradient for each in between):
        last.append(step)
      else:
        reached += [each for each in above if each not in reached]
    self._last = last

  def _weights(self, start: Float[Array, "B K"]) -> dict[int, Array]:
    """Returns the gradient of a logit by each input of the last layer."""
    return self._down({self._logits.note: start}, to_last=True, gradient=True)

  def _down(
    self,
    arrived: dict[int, Array],
    opposite: bool = False,
    to_last: bool = False,
    gradient: bool = False,
  ) -> dict[int, Array]:
    """Returns what arrives at the place, or at the inputs of the last layer."""
    arrived, found = dict(arrived), {}
    for step in reversed(self._steps):
      outputs = [arrived.pop(each, None) for each in step.outputs]
      if all(each is None for each in outputs):
        continue
      is_last = to_last and step in self._last
      rule = step.opposite if is_last and opposite else step.back
      parts = (step.gradient if gradient else rule)(*outputs)
      into = found if is_last else arrived
      for each, part in zip(step.inputs, parts, strict=True):
        into[each] = into[each] + part if each in into else part
    return found if to_last else arrived

  def _done(self, operation: Operation) -> list[Value]:
    """Does an operation, and keeps the step."""
    results = operation.compute(operation.arrays)
    outputs = [next(self._numbers) for _ in results]
    inputs = [operation.operands[i].note for i in operation.followed]
    step = _Step(operation.name, inputs, outputs, *_rules(operation, results))
    if programs.is_linear(operation):
      gradient = _moved(operation, results)
      step = dataclasses.replace(step, gradient=gradient)
    self._steps.append(step)
    self._arrays |= zip(outputs, results, strict=True)
    return [
      Value(x, True, number) for x, number in zip(results, outputs, strict=True)
    ]


def _rules(
  operation: Operation, results: Sequence[Array]
) -> tuple[Callable[..., Sequence[Array]], ...]:
  """Returns how an operation hands down; of a product with the opposite too.

  Raises:
    ValueError: there is no rule for it.
  """
  name, arrays = operation.name, operation.arrays
  followed = operation.followed
  place = followed[0]
  alone = operation.of_one(place) if len(followed) == 1 else None
  if alone and name in programs.PRODUCTS:
    return tuple(_product(operation, place, sign) for sign in (1, -1))
  if alone and name in programs.SUMS | {"reduce_window_max"}:
    return (_excited(alone, arrays[place]),)
  if followed == [1] and name in ("div", "sub"):
    # It falls as the activation rises: nothing is excited by it.
    raise programs.does_not_hold(operation, "Excitation backprop")
  if name == "clamp" and followed == [1]:
    # As a minimum of a maximum: below alone, nothing is excited.
    lowest = lambda x: jnp.maximum(x, arrays[0])
    return (_repeated(lowest, arrays[1], results[0].shape),)
  if alone and name in _SCALES:
    # Of a normalisation or an average: probability passes unchanged. So it
    # does where a ReLU6 cuts off the units that excite most.
    return (_repeated(lambda x: x, arrays[place], results[0].shape),)
  if alone and name == "select_n" and place:
    return (_chosen(operation, place, results[0]),)
  if len(followed) == 2 and name in ("add", "add_any"):
    return (functools.partial(_shares, *arrays),)
  if programs.only_chooses(operation) or (alone and name in _SHIFTS):
    return (_moved(operation, results),)
  raise programs.does_not_hold(operation, "Excitation backprop")


# Of an activation and a number that is none.
_SCALES = {"mul", "div", "min"}
_SHIFTS = {"add", "add_any", "sub"}


def _product(operation: Operation, place: int, sign: int):
  weights = jax.nn.relu(sign * operation.arrays[1 - place])
  x = operation.arrays[place]
  positive = [x, weights] if place == 0 else [weights, x]
  excited = Operation(
    operation.name, [Value(each) for each in positive], operation.compute
  )
  return _excited(excited.of_one(place), x)


def _excited(positive: Callable[[Array], Array], x: Array):
  """Returns the rule p' = x * f^T(p / f(x)).

  Here f is `positive`: linear in x, or a maximum, with weights >= 0.
  """

  def back(p):
    z, transposed = jax.vjp(positive, x)
    return (x * transposed(_divided(p, z))[0],)

  return back


def _divided(p: Array, z: Array) -> Array:
  """Returns p / z, 0 where nothing is excited."""
  floor = max(_FLOOR, float(jnp.finfo(z.dtype).tiny))
  is_excited = jnp.abs(z) > floor
  return jnp.where(is_excited, p / jnp.where(is_excited, z, 1), 0)


def _repeated(like: Callable[[Array], Array], x: Array, shape):
  """Returns the rule of like(x), repeated to a shape."""
  repeated = lambda x: jnp.broadcast_to(like(x), shape)
  return lambda p: jax.vjp(repeated, x)[1](p)


def _chosen(operation: Operation, place: int, result: Array):
  """Returns the rule of a choice between an activation and numbers.

  Where a number above 0 cuts the activation off, as in a hard tanh, probability
  passes as if it had been chosen.
  """
  which, *cases = operation.arrays
  x = operation.arrays[place]
  flags = [jnp.full_like(case, case is x) for case in cases]
  (is_x,) = operation.compute([which, *flags])
  passes = (is_x > 0) | ((result > 0) & (x >= result))
  return lambda p: (jnp.where(passes, p, 0),)


def _shares(a: Array, b: Array, p: Array):
  """Returns the share of each term of a sum in what arrives."""
  total = a + b
  ratio = jnp.where(total == 0, 0, p / jnp.where(total == 0, 1, total))
  return a * ratio, b * ratio


def _moved(operation: Operation, results: Sequence[Array]):
  """Returns the rule of what moves or chooses: that of its gradient."""
  arrays, followed = operation.arrays, operation.followed

  def compute(*values):
    now = dict(enumerate(arrays)) | dict(zip(followed, values, strict=True))
    return operation.compute([*now.values()])

  def back(*p):
    gradients = [
      jnp.zeros_like(x) if each is None else each
      for x, each in zip(results, p, strict=True)
    ]
    return jax.vjp(compute, *(arrays[i] for i in followed))[1](gradients)

  return back
