"""Excitation backprop (MWP) and its contrastive form (cMWP).

A unit of probability starts at the class and is handed down, layer by layer,
to the inputs that excited it: p' = x * f^T(p / f(x)), where f is the layer with
its negative weights set to 0. The sum over channels at some layer is the map.

Source: Zhang et al. 2016, arXiv:1608.00507, eq. 2-5 (MWP) and section 3.4
(contrast). Where their text is silent we follow the authors' release (METHOD
B1): probability passes a BatchNorm unchanged, a sum divides it in proportion to
its terms, and the contrast is taken at the input of the last layer.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core
from jaxtyping import Array, Float, Int

from gc_jax.attribution import taps
from gc_jax.models.network import FEATURES, BatchNorm, Network

EPSILON = 1e-20  # added to denominators only

_LAYERS = (nnx.Conv, nnx.Linear)


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
  model: nnx.Module,
  images: Array,
  targets: Int[Array, "B P"],
  layer: str | None = None,
  contrasts: bool = False,
) -> tuple[Float[Array, "B P h w D"], Float[Array, "B P *D"]]:
  """Returns what arrives at the layer of the map, and at the last layer.

  Both are signed, of every channel, and sum to 1; with contrast, the second is
  the difference that the first was handed down from, and both sum to 0.
  """
  model = taps.in_float32(model)
  layer = default_layer(model) if layer is None else layer
  place = taps.input_path(model, layer)
  from_class, from_last = _handing_down(model, images, place, sign=1)
  if not contrasts:
    return jax.vmap(from_class, in_axes=1, out_axes=1)(targets)
  from_opposite, _ = _handing_down(model, images, place, sign=-1)

  def one_target(target):
    difference = from_class(target)[1] - from_opposite(target)[1]
    return from_last(difference), difference

  return jax.vmap(one_target, in_axes=1, out_axes=1)(targets)


def _handing_down(model, images, place: str, sign: int):
  """Runs the model once; returns two functions that hand probabilities down.

  class -> what arrives at a place, the input of the module with that path, and
    at the last layer, whose weights are multiplied by the sign;
  what is at the last layer -> what arrives at the place.
  """
  last = ".".join(model.last_layer)
  block = [
    type(module)
    for path, module in nnx.iter_modules(model)
    if place != FEATURES and ".".join(map(str, path)) == place
  ]

  def run(tap):
    """Returns the activations at both paths, and the logits."""
    seen = {}

    def tapped(path, x):
      if path in (place, last):
        x = seen[path] = tap(path, x)
      return x

    def call(path, module, x):
      x = tapped(path, x)
      if isinstance(module, BatchNorm):
        return _passed_through(module, x)
      if isinstance(module, _LAYERS):
        return _excited(module, x, sign if path == last else 1)
      return module(x)

    copy = taps.intercept(model, (*_LAYERS, BatchNorm, *block), call)
    features = copy.features(copy.normalize(images))
    return seen, copy.classify(tapped(FEATURES, features))

  def forward(probes):
    seen, logits = run(lambda path, x: _tap(x, probes[path]))
    return seen[last], logits

  shapes = jax.eval_shape(lambda: run(lambda path, x: x)[0])
  probes = {path: jnp.zeros(x.shape, x.dtype) for path, x in shapes.items()}
  (at_last, logits), pull = jax.vjp(_by_rules(forward, probes), probes)
  nothing = jnp.zeros_like(at_last), jnp.zeros_like(logits)

  def from_class(target):
    start = jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)
    found = pull((nothing[0], start))[0]
    return found[place], found[last]

  def from_last(probability):
    return pull((probability, nothing[1]))[0][place]

  return from_class, from_last


@jax.custom_vjp
def _tap(x, probe):
  """Returns x; the probe's gradient is what arrives here."""
  del probe
  return x


_tap.defvjp(lambda x, probe: (x, None), lambda _, p: (p, p))


def _excited(module: nnx.Module, x: Array, sign: int) -> Array:
  """Returns module(x); its gradient is the rule for weights of one sign."""

  def positive(x):
    copy = nnx.clone(module)
    copy.kernel[...] = jax.nn.relu(sign * copy.kernel[...])
    if copy.bias is not None:
      copy.bias[...] = jnp.zeros_like(copy.bias[...])
    return copy(x)

  return _with_rule(module, positive)(x)


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


def _passed_through(module: nnx.Module, x: Array) -> Array:
  """Returns module(x); its gradient is the identity."""
  function = jax.custom_vjp(lambda x: module(x))
  function.defvjp(lambda x: (module(x), None), lambda _, p: (p,))
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

# Between modules, sums of two branches, poolings and averages have rules. All
# else moves numbers, or is a ReLU: there the gradient is the rule.
_AVERAGES = {"reduce_sum", "reduce_window_sum", "reduce_window_max"}
_AVERAGES |= {"dot_general", "div", "mul"}
_INLINED = {"jit", "pjit", "closed_call"}


def _by_rules(function: Callable, argument) -> Callable:
  """Returns the function with excitation rules between modules.

  It takes trees of arrays shaped like `argument`.
  """
  traced, out = jax.make_jaxpr(function, return_shape=True)(argument)
  structure = jax.tree.structure(out)

  def run(argument):
    leaves = jax.tree.leaves(argument)
    found = _evaluate(traced.jaxpr, traced.consts, leaves, [True] * len(leaves))
    return jax.tree.unflatten(structure, [value for value, _ in found])

  return run


def _evaluate(jaxpr, consts, values, follows) -> list[tuple[Array, bool]]:
  """Returns the outputs, and whether each follows from what is followed."""
  known = dict(zip(jaxpr.constvars, [(c, False) for c in consts], strict=True))
  known |= dict(
    zip(jaxpr.invars, zip(values, follows, strict=True), strict=True)
  )
  look = lambda atom: (
    (atom.val, False) if isinstance(atom, core.Literal) else known[atom]
  )
  for equation in jaxpr.eqns:
    operands = [look(atom) for atom in equation.invars]
    found = _applied(equation, _alone(jaxpr, equation), operands)
    known |= dict(zip(equation.outvars, found, strict=True))
  return [look(atom) for atom in jaxpr.outvars]


def _applied(equation, compute, operands) -> list[tuple[Array, bool]]:
  """Returns the outputs of one operation, under its rule."""
  values, follows = map(list, zip(*operands, strict=True))
  name = equation.primitive.name
  if name in _INLINED:
    inner = equation.params["jaxpr"]
    return _evaluate(inner.jaxpr, inner.consts, values, follows)
  real = jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating)
  if real and name in ("add", "add_any") and all(follows):
    return [(_shared(*values), True)]
  if real and name in _AVERAGES and sum(follows) == 1:
    place = follows.index(True)
    one = lambda x: compute([*values[:place], x, *values[place + 1 :]])[0]
    return [(_with_rule(one, one)(values[place]), True)]
  return [(output, any(follows)) for output in compute(values)]


def _alone(jaxpr, equation) -> Callable[[list[Array]], list[Array]]:
  """Returns what one operation of a trace computes from its operands."""
  is_input = [not isinstance(atom, core.Literal) for atom in equation.invars]
  single = jaxpr.replace(
    constvars=[],
    invars=list(itertools.compress(equation.invars, is_input)),
    outvars=equation.outvars,
    eqns=[equation],
    debug_info=jaxpr.debug_info.with_unknown_names(),
  )
  function = core.jaxpr_as_fun(core.ClosedJaxpr(single, []))
  return lambda values: function(*itertools.compress(values, is_input))
