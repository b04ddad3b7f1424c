"""Excitation backprop (MWP) and its contrastive form (cMWP).

A unit of probability starts at the class and is handed down, layer by layer,
to the inputs that excited it: p' = x * f^T(p / f(x)), f the layer with its
negative weights set to 0. The sum over channels at some layer is the map.

Source: Zhang et al. 2016, arXiv:1608.00507, eq. 2-5 (MWP) and section 3.4
(contrast). What their text leaves open - batch normalisation, residual sums,
where to contrast - is as in the authors' release (METHOD B1): probability
passes a BatchNorm unchanged, and a sum divides it in proportion to its terms.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core
from jaxtyping import Array, Float, Int

from gc_jax.attribution import layers
from gc_jax.attribution.intercept import in_float32, intercept
from gc_jax.models.network import FEATURES, BatchNorm, Network

EPSILON = 1e-20  # added to denominators only
LAST_INPUT = "last_input"  # what the last layer is given: pooled features

_LAYERS = (nnx.Conv, nnx.Linear)


def excitation_backprop(
  model: nnx.Module,
  images: Array,
  targets: Int[Array, "B P"],
  *,
  layer: str | None = None,
) -> Float[Array, "B P h w"]:
  """Returns the probability that each cell excited the class.

  Args:
    model: in evaluation mode, with `normalize`, `features` and `classify`.
    images: RGB, uint8 or float in [0, 1], `[B H W 3]`.
    targets: classes to explain.
    layer: where the map is taken, of `layers.layer_names`; None = the input of
      the last stage (`default_layer`).

  Returns:
    Maps that sum to 1, but for what a residual sum hands to negative terms,
    which is clipped.

  Raises:
    ValueError: the model has no such layer.
  """
  signed, _ = propagated(model, images, targets, layer)
  return jax.nn.relu(signed.sum(-1))


def cmwp(
  model: nnx.Module,
  images: Array,
  targets: Int[Array, "B P"],
  *,
  layer: str | None = None,
  contrast: str | None = None,
) -> Float[Array, "B P h w"]:
  """Returns where a class is excited more than its opposite is.

  The opposite is the class whose weights in the last layer are the negative
  ones of the target's. Both are handed down to the contrast layer, and their
  difference from there on.

  Args:
    model: in evaluation mode, with `normalize`, `features` and `classify`.
    images: RGB, uint8 or float in [0, 1], `[B H W 3]`.
    targets: classes to explain.
    layer: where the map is taken, as in `excitation_backprop`.
    contrast: where the difference is taken, of `contrast_names`; None = the
      input of the last layer. The rules are linear in the probability, so that
      another layer gives the same map.

  Returns:
    max(0, sum over channels).

  Raises:
    ValueError: the model has no such layer.
  """
  contrast = LAST_INPUT if contrast is None else contrast
  signed, _ = propagated(model, images, targets, layer, contrast)
  return jax.nn.relu(signed.sum(-1))


def contrast_names(model: nnx.Module) -> tuple[str, ...]:
  """Returns what `contrast` may be for a model, from the picture up."""
  return (*layers.layer_names(model), LAST_INPUT)


def default_layer(model: nnx.Module) -> str:
  """Returns the layer whose output the last stage is given.

  Of a model that is none of `gc_jax.models`, its features.
  """
  if isinstance(model, Network):
    return model.excitation_layer
  return layers.layer_names(model)[-1]


def propagated(
  model: nnx.Module,
  images: Array,
  targets: Int[Array, "B P"],
  layer: str | None = None,
  contrast: str | None = None,
) -> tuple[Float[Array, "B P h w D"], Float[Array, "B P *D"]]:
  """Returns what arrives at the layer of the map, and at the contrast layer.

  Args:
    model: as for `cmwp`.
    images: likewise.
    targets: likewise.
    layer: likewise.
    contrast: likewise; None = no contrast.

  Returns:
    Of every channel and signed. Without contrast, both sum to 1; with it, the
    second is the difference from which the first was handed down, and sums
    to 0.
  """
  model = in_float32(model)
  layer = default_layer(model) if layer is None else layer
  places = _places(model, layer, contrast)
  for_class = _Pass(model, images, places, sign=1)
  if contrast is None:
    return jax.vmap(for_class.from_logits, in_axes=1, out_axes=1)(targets)
  for_opposite = _Pass(model, images, places, sign=-1)

  def one_target(target):
    above = for_class.from_logits(target)[1]
    difference = above - for_opposite.from_logits(target)[1]
    return for_class.from_contrast(difference), difference

  return jax.vmap(one_target, in_axes=1, out_axes=1)(targets)


def _places(model, layer: str, contrast: str | None) -> tuple[str, str]:
  """Returns the paths of modules whose inputs the two layers are.

  Raises:
    ValueError: the model has no such layers.
  """
  below = layers.input_path(model, layer)
  if contrast in (None, LAST_INPUT):
    return below, ".".join(model.last_layer)
  names = layers.layer_names(model)
  allowed = (*names[names.index(layer) :], LAST_INPUT)
  if contrast not in allowed:
    raise ValueError(
      f"contrast must be a layer not below that of the map, {layer!r}, as "
      f"nothing would get there: one of {', '.join(allowed)}; it is "
      f"{contrast!r}."
    )
  return below, layers.input_path(model, contrast)


class _Pass:
  """One forward pass, down which probabilities can be handed.

  Args:
    model: in float32.
    images: as for `cmwp`.
    places: paths of the modules whose inputs are the map's layer, and the
      contrast layer.
    sign: of the last layer's weights, as its rule takes them.
  """

  def __init__(self, model, images, places: tuple[str, str], sign: int):
    self._model = model
    self._images = images
    self._places = places
    self._sign = sign
    shapes = jax.eval_shape(lambda: self._seen(lambda i, x: x)[0])
    probes = [jnp.zeros(x.shape) for x in shapes]

    def forward(probes):
      seen, logits = self._seen(lambda i, x: _tap(x, probes[i]))
      return seen[1], logits

    (contrast, logits), self._pull = jax.vjp(_by_rules(forward, probes), probes)
    self._no_contrast = jnp.zeros_like(contrast)
    self._no_logits = jnp.zeros_like(logits)

  def from_logits(self, target: Int[Array, "B"]) -> tuple[Array, Array]:
    """Returns what arrives at both layers of the probability 1 at a class."""
    num_classes = self._no_logits.shape[-1]
    start = jax.nn.one_hot(target, num_classes, dtype=jnp.float32)
    return tuple(self._pull((self._no_contrast, start))[0])

  def from_contrast(self, probability: Float[Array, "B *D"]) -> Array:
    """Returns what arrives at the map's layer from the contrast layer."""
    return self._pull((probability, self._no_logits))[0][0]

  def _seen(self, tap) -> tuple[list[Array], Float[Array, "B K"]]:
    """Runs the model; returns the activations at both places, the logits.

    Args:
      tap: (number of the place, activations) -> what goes on.
    """
    seen = [None, None]

    def tapped(path, x):
      for i, place in enumerate(self._places):
        if place == path:
          x = seen[i] = tap(i, x)
      return x

    last = ".".join(self._model.last_layer)

    def call(path, module, x):
      x = tapped(path, x)
      if isinstance(module, BatchNorm):
        return _passed_through(module, x)
      if isinstance(module, _LAYERS):
        return _excited(module, x, self._sign if path == last else 1)
      return module(x)

    inner = set(self._places) - {FEATURES}
    blocks = {
      type(module)
      for path, module in nnx.iter_modules(self._model)
      if ".".join(map(str, path)) in inner
    }
    kinds = tuple({*_LAYERS, BatchNorm, *blocks})
    copy = intercept(self._model, kinds, call)
    features = copy.features(copy.normalize(self._images))
    return seen, copy.classify(tapped(FEATURES, features))


@jax.custom_vjp
def _tap(x, probe):
  """Returns x; the probe's gradient is what arrives here."""
  del probe
  return x


_tap.defvjp(lambda x, probe: (x, None), lambda _, p: (p, p))


def _excited(module: nnx.Module, x: Array, sign: int) -> Array:
  """Returns module(x), with the excitation rule for a gradient.

  Args:
    module: a convolution or a dense layer.
    x: its input.
    sign: of the weights that count as positive.
  """

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
  """Returns a function with p' = x * f^T(p / f(x)) in place of its gradient.

  Args:
    forward: what it computes.
    positive: f, linear in x (or a maximum), with weights >= 0.
  """
  function = jax.custom_vjp(lambda x: forward(x))

  def backward(x, p):
    z, transposed = jax.vjp(positive, x)
    return (x * transposed(p / (z + EPSILON))[0],)

  function.defvjp(lambda x: (forward(x), x), backward)
  return function


def _passed_through(module: nnx.Module, x: Array) -> Array:
  """Returns module(x), with the identity for a gradient."""
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

# What is no module: sums of two branches, poolings and averages. Anything else
# between modules moves numbers, or is a ReLU, and its gradient is the rule.
_AVERAGES = {
  "reduce_sum",
  "reduce_window_sum",
  "reduce_window_max",
  "dot_general",
  "div",
  "mul",
}
_INLINED = {"jit", "pjit", "closed_call"}


def _by_rules(function: Callable, argument) -> Callable:
  """Returns a function with excitation rules wherever there is no module.

  Args:
    function: of a tree of arrays, to a tree of arrays.
    argument: of the same shapes as it will be called with.
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
  """Returns what one operation of a trace computes of its operands."""
  places = {
    atom: place
    for place, atom in enumerate(equation.invars)
    if not isinstance(atom, core.Literal)
  }
  single = jaxpr.replace(
    constvars=[],
    invars=list(places),
    outvars=equation.outvars,
    eqns=[equation],
    debug_info=jaxpr.debug_info.with_unknown_names(),
  )
  function = core.jaxpr_as_fun(core.ClosedJaxpr(single, []))
  return lambda values: function(*[values[place] for place in places.values()])
