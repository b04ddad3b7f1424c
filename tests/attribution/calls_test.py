"""What a model has beside arrays tells its programs apart."""

import dataclasses
import functools
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gc_jax
from gc_jax.attribution.calls import Static


class Plain:
  """Known by identity, as what has no comparison of its own is."""

  def __init__(self, scale=1.0, **others):
    self.scale = scale
    vars(self).update(others)


def images():
  return jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


class Scaled(nnx.Module):
  def __init__(self, config):
    self.conv = nnx.Conv(3, 5, (3, 3), rngs=nnx.Rngs(0))
    self.config = config

  def __call__(self, x, mode=0):
    factor = 100 if mode is True else 1
    return factor * self.config.scale * self.conv(x).mean((1, 2))


class EqxScaled(eqx.Module):
  conv: eqx.nn.Conv2d
  config: Plain = eqx.field(static=True)

  def __call__(self, x):
    return self.config.scale * self.conv(jnp.moveaxis(x, -1, 0)).mean((1, 2))


def eqx_scaled():
  conv = eqx.nn.Conv2d(3, 5, 3, key=jax.random.key(0))
  return EqxScaled(conv, Plain())


@pytest.mark.parametrize(
  "make",
  [
    lambda: Scaled(Plain()),
    lambda: Scaled(types.SimpleNamespace(scale=1.0)),
    eqx_scaled,
  ],
)
def test_a_model_that_is_changed_and_wrapped_again_is_compiled_anew(make):
  model = make()
  logits = lambda: gc_jax.predict(gc_jax.wrap(model, at="conv"), images())
  before = logits()
  model.config.scale = 10.0
  np.testing.assert_allclose(logits(), 10 * before, rtol=1e-5)


def test_settings_that_equal_each_other_but_differ_in_type_are_told_apart():
  model = Scaled(Plain())
  logits = lambda mode: gc_jax.predict(
    gc_jax.wrap(model, at="conv", mode=mode), images()
  )
  expected = logits(1)
  np.testing.assert_allclose(logits(True), 100 * expected, rtol=1e-5)
  np.testing.assert_array_equal(logits(1.0), expected)


def ones(model, images, targets, *, mode):
  value = 100.0 if mode is True else 1.0
  return value * jnp.ones((*targets.shape, 2, 2))


def test_settings_of_a_method_are_told_apart_by_their_types():
  net = gc_jax.wrap(Scaled(Plain()), at="conv")
  for mode, expected in ((1, 1), (True, 100), (1.0, 1)):
    found = gc_jax.explain(
      net, images(), [0, 1], ones, normalize=False, mode=mode
    )
    np.testing.assert_array_equal(found, expected)


@dataclasses.dataclass
class Fields:
  held: object


def circle(scale):
  plain = Plain(scale)
  plain.itself = plain
  return plain


ARRAY = jnp.ones(3)
DIFFERENT = [
  (0, False),
  (1, 1.0),
  (0.0, -0.0),
  ((1,), (True,)),
  ({"a": 1}, {"a": True}),
  ({1}, {True}),
  (Fields(1), Fields(True)),
  (Fields([1]), Fields((1,))),
  (np.zeros(2), np.zeros(2, np.int64)),
  (functools.partial(max, 1), functools.partial(max, True)),
  (Plain(1), Plain(1)),
  (jnp.ones(3), jnp.ones(3)),
]
EQUAL = [
  lambda: float("nan"),
  lambda: {"a": [1, {2, 3}], "b": np.arange(3)},
  lambda: functools.partial(max, [1]),
  lambda: Fields(ARRAY),
  lambda: types.SimpleNamespace(scale=[1]),
  lambda: jax.tree.structure({"a": [1, (2,)]}),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_values_have_different_programs(one, other):
  assert Static(one) != Static(other)
  assert Static(one) == Static(one)


@pytest.mark.parametrize("make", EQUAL)
def test_values_made_alike_share_a_program(make):
  assert Static(make()) == Static(make())
  assert hash(Static(make())) == hash(Static(make()))


def test_what_is_inside_something_known_by_identity_is_looked_at():
  for value in (Plain(), circle(1.0), Plain(inner=Plain(), held=[1, ARRAY])):
    before = Static(value)
    assert Static(value) == before
    value.scale = 2.0
    assert Static(value) != before
