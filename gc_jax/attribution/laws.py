"""What must be true of a network for a method's maps to mean what they say.

Each law compares what a method computes in a network with the same number by
another way: completeness (a score and the parts it is divided into), mass (a
unit of probability and what arrives), a finite difference (of a gradient).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gc_jax.attribution import excitation, programs
from gc_jax.attribution.gradients import signed_gradients
from gc_jax.attribution.rollout import attentions
from gc_jax.attribution.weighted_activations import features_and_gradients
from gc_jax.attribution.wrapping import tapped
from gc_jax.method.cam import at_least_float32

# A way from a picture or its activations, in parts of their spread, and the
# points on it at which derivatives are taken. At one point alone ReLUs' kinks
# would spoil a difference: 20% of SqueezeNet's by a thousandth of the spread.
_LENGTH, _POINTS = 0.1, 32
# How often a number is rounded on its way, for what rounding may make.
_ROUNDINGS = 8


class Missed(NamedTuple):
  """By how much a law is missed, as shares of the whole.

  Attributes:
    error: the difference.
    rounding: so much the network's float type may make by itself; 0 if it is
      float32 or finer.
  """

  error: Float[Array, ""]
  rounding: Float[Array, ""] | float


class Law(NamedTuple):
  """What can be measured of a method on any network.

  Attributes:
    title: what is compared, in words.
    error: (model, images, targets) -> `Missed`.
    most: the error up to which the method holds.
    settings: the method's while it is checked, where its own take long; in
      pairs, so that it can be hashed.
  """

  title: str
  error: Callable[..., Missed]
  most: float
  settings: tuple[tuple[str, Any], ...] = ()


def completeness(divide: Callable, most: float) -> Law:
  """Returns the law that parts sum to the score; `divide` as of a `Method`."""

  def error(model, images, targets):
    _, found, score = divide(model, images, targets)
    return _rounded(_relative(found, score), model, images)

  return Law("sum of the parts and the score", error, most)


def _mass(model, images, targets):
  found = excitation.propagated(model, images, targets)
  place, last = _masses(*found)
  ones = jnp.ones(targets.shape)
  error = jnp.maximum(_relative(place, ones), _relative(last, ones.sum(0)))
  return _rounded(error, model, images)


def _balance(model, images, targets):
  found = excitation.propagated(model, images, targets, contrasts=True)
  above = _masses(*jax.tree.map(jax.nn.relu, found))
  below = _masses(*jax.tree.map(lambda x: jax.nn.relu(-x), found))
  error = jnp.stack([*map(_relative, above, below)]).max()
  return _rounded(error, model, images)


def _masses(at_place, at_last):
  """Returns the mass at the place, of each picture, and at the last layer.

  There it is that of all pictures: each input may have its own layout.
  """
  of_input = lambda x: x.sum([axis for axis in range(x.ndim) if axis != 1])
  return at_place.sum((2, 3, 4)), sum(map(of_input, at_last))


def _shares(model, images, targets):
  del targets
  net = tapped(model)
  sums = [shares.sum(2) for shares in attentions(net, net.prepared(images))]
  ones = [jnp.ones_like(each) for each in sums]
  error = jnp.stack([*map(_relative, sums, ones)]).max()
  return _rounded(error, model, images)


def _at_the_place(model, images, targets):
  activations, gradients = features_and_gradients(model, images, targets, None)
  net = tapped(model)
  images = net.prepared(images)
  way = _way(activations)

  def scores(distance):
    logits = net(images, distance[:, None, None, None] * way)[0]
    return jnp.take_along_axis(at_least_float32(logits), targets, 1)

  def rates(distance):
    found, pull = jax.vjp(scores, distance)
    starts = jnp.eye(found.shape[1], dtype=found.dtype)
    every = jnp.broadcast_to(starts[:, None], (len(starts), *found.shape))
    return jax.vmap(lambda start: pull(start)[0], out_axes=1)(every)

  of_method = (gradients * way[:, None]).sum((2, 3, 4))
  at_start = rates(jnp.zeros(len(images), way.dtype))
  error, size = _error_of_rates(rates, scores, way)
  error = jnp.maximum(error, _relative(of_method, at_start))
  return _rounded(error, model, images, size)


def _of_pixels(model, images, targets):
  net = tapped(model)
  pixels = net.pixels(images)
  way = _way(pixels)
  moved = lambda distance: pixels + distance[:, None, None, None] * way

  def scores(distance):
    logits = net.logits(moved(distance))
    return jnp.take_along_axis(at_least_float32(logits), targets, 1)

  def rates(distance):
    found = signed_gradients(model, moved(distance), targets)
    return (found * net.channels_last(way)[:, None]).sum((2, 3, 4))

  error, size = _error_of_rates(rates, scores, way)
  return _rounded(error, model, images, size)


def _error_of_rates(rates, scores, way):
  """Returns the error of rates of change, summed up, against the change.

  And the size of what the change is a difference of, in parts of it. Both
  arguments are functions of each example's distance on its way.
  """
  ones = jnp.ones(way.shape[0], way.dtype)
  middles = (jnp.arange(_POINTS, dtype=way.dtype) + 0.5) / _POINTS * _LENGTH
  of_points = jax.lax.map(lambda middle: rates(middle * ones), middles)
  start = scores(0 * ones)
  change = scores(_LENGTH * ones) - start
  error = _relative(_LENGTH * of_points.mean(0), change)
  return error, jnp.abs(start).sum() / jnp.abs(change).sum()


def _alone(model, images, targets):
  del targets
  net = tapped(model)
  first = net.pixels(images[:1])
  beside = jnp.concatenate([first, net.start(first)])
  error = _relative(net.logits(beside)[:1], net.logits(first))
  return _rounded(error, model, images)


def _rounded(error, model, images, size=1):
  """Returns an error beside what rounding may make of it.

  Args:
    error: as a share of the whole.
    model: that was run.
    images: that it was run on.
    size: of the numbers that were rounded, in parts of the whole.
  """
  net = tapped(model)
  coarsest = programs.coarsest(lambda x: net(x)[0], net.prepared(images))
  epsilon = float(jnp.finfo(coarsest).eps)
  if epsilon <= jnp.finfo(jnp.float32).eps:
    return Missed(error, 0.0)
  return Missed(error, size * _ROUNDINGS * epsilon)


def _way(x: Float[Array, "B *D"]) -> Float[Array, "B *D"]:
  """Returns a random change as large as x spreads in each example."""
  axes = tuple(range(1, x.ndim))
  return jax.random.normal(jax.random.key(0), x.shape, x.dtype) * x.std(
    axes, keepdims=True
  )


def _relative(found: Array, expected: Array) -> Float[Array, ""]:
  """Returns sum |found - expected| / sum |expected|: 0 if both are 0."""
  missed, whole = jnp.abs(found - expected).sum(), jnp.abs(expected).sum()
  return missed / jnp.where(missed == 0, 1, whole)


MASS = Law("mass that arrives and 1", _mass, 0.01)
BALANCE = Law("mass for the class and mass against it", _balance, 0.01)
SHARES = Law("shares of each attention and 1", _shares, 0.01)
AT_THE_PLACE = Law("gradient at the place and differences", _at_the_place, 0.05)
OF_PIXELS = Law("gradient of pixels and differences", _of_pixels, 0.05)
OF_NOISY_PIXELS = OF_PIXELS._replace(settings=(("num_samples", 2),))
ALONE = Law(
  "logits of a picture alone and beside another",
  _alone,
  0.01,
  (("num_masks", 32),),
)
