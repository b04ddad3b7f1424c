"""What a call of a model in NNX or Linen is given, and what it gives back."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gc_jax

LABELS, KEY = jnp.arange(4), jax.random.key(0)


def images():
  return jax.random.normal(jax.random.key(1), (4, 8, 8, 3))


class Dropping(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
    self.drop = nnx.Dropout(0.5)
    self.fc = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, x, rngs=None, scale=1.0):
    x = nnx.relu(self.conv(x)).mean((1, 2))
    return scale * self.fc(self.drop(x, rngs=rngs))


def test_a_wrapped_model_is_that_of_the_time_when_it_was_wrapped(make_tiny):
  own, x = make_tiny("average"), jax.random.uniform(KEY, (2, 16, 16, 3))
  for model, at in ((Dropping(), "conv"), (own, "")):
    model.eval()
    net = gc_jax.wrap(model, at=at)
    before = gc_jax.predict(net, x)
    weights = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda weight: 2 * weight, weights))
    np.testing.assert_array_equal(gc_jax.predict(net, x), before)


def test_random_numbers_of_a_setting_are_drawn_and_counted_on():
  model, rngs = Dropping(), nnx.Rngs(dropout=1)
  net = gc_jax.wrap(model, at="conv", rngs=rngs)
  expected = model(images(), rngs=nnx.Rngs(dropout=1))
  logits, _, after = net(images())
  np.testing.assert_allclose(logits, expected, rtol=1e-5)
  assert rngs.dropout.count[...] == 0
  seen = jax.jit(gc_jax.consistency)(net, images(), LABELS, KEY)
  np.testing.assert_allclose(seen.logits, expected, rtol=1e-5)
  nnx.update(model, seen.state)
  again, _, _ = net.call(after, images(), "conv", None)
  assert abs(again - expected).max() > 1e-3


def test_arrays_in_settings_may_change_without_a_new_program():
  model = Dropping()
  model.eval()
  one, two = (
    gc_jax.wrap(model, at="conv", scale=jnp.float32(x)) for x in (1, 2)
  )
  assert one.call == two.call
  expected = gc_jax.predict(one, images())
  np.testing.assert_allclose(
    gc_jax.predict(two, images()), 2 * expected, rtol=1e-5
  )


class LinenNorm(nn.Module):
  @nn.compact
  def __call__(self, x, train=True):
    x = nn.Conv(4, (3, 3), name="conv")(x)
    x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
    return nn.Dense(5)(nn.relu(x).mean((1, 2)))


@pytest.mark.parametrize(
  ("mutable", "train"),
  [
    (True, True),
    ("batch_stats", True),
    (["batch_stats"], True),
    (nn.DenyList("params"), True),
    (False, False),
    ((), False),
  ],
)
def test_what_a_call_may_change_is_said_as_linen_has_it(mutable, train):
  model = LinenNorm()
  variables = model.init(KEY, images())
  net = gc_jax.wrap((model, variables), at="conv", train=train, mutable=mutable)
  seen = gc_jax.consistency(net, images(), LABELS, KEY)
  assert seen.state.keys() == variables.keys()
  means = (x["batch_stats"]["norm"]["mean"] for x in (seen.state, variables))
  assert np.array_equal(*means) != train
