"""What an Equinox model does with its modules is the same where one is seen."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gc_jax

KEYS = jax.random.split(jax.random.key(0), 4)
LABELS = jnp.arange(2)


def images():
  return jax.random.normal(jax.random.key(1), (2, 3, 8, 8))


class Doubled(eqx.Module):
  conv: eqx.nn.Conv2d

  def __call__(self, x):
    return jax.nn.relu(self.conv(x))


class Asking(eqx.Module):
  """Asks its modules for their class and their attributes."""

  layers: eqx.nn.Sequential
  fc: eqx.nn.Linear

  def __init__(self):
    self.layers = eqx.nn.Sequential(
      [
        Doubled(eqx.nn.Conv2d(3, 4, 3, key=KEYS[0])),
        eqx.nn.Conv2d(4, 4, 1, key=KEYS[1]),
        eqx.nn.Lambda(jax.nn.relu),
      ]
    )
    self.fc = eqx.nn.Linear(4, 5, key=KEYS[2])

  def __call__(self, x):
    for layer in self.layers:
      x = layer(x)
      if isinstance(layer, Doubled):
        x = 2 * x
    return self.fc.weight @ x.mean((1, 2)) / self.layers[1].weight.std()


@pytest.mark.parametrize("place", ["layers.layers.0", "layers.layers.1"])
def test_a_model_may_ask_for_the_class_and_attributes_at_a_place(place):
  model = Asking()
  net = gc_jax.wrap(model, at=place)
  expected = jax.vmap(model)(images())
  np.testing.assert_allclose(gc_jax.predict(net, images()), expected, rtol=1e-5)

  def at_place(x):
    x = model.layers[0](x)
    return x if place.endswith("0") else model.layers[1](2 * x)

  def tail(x, label):
    x = model.layers[1](2 * x) if place.endswith("0") else x
    x = model.fc.weight @ jax.nn.relu(x).mean((1, 2))
    return x[label] / model.layers[1].weight.std()

  activations = jax.vmap(at_place)(images())
  gradients = jax.vmap(jax.grad(tail))(activations, LABELS)
  by_hand = jax.nn.relu((activations * gradients).sum(1))
  found = gc_jax.explain(net, images(), LABELS, normalize=False)
  np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-7)


def test_places_inside_modules_that_are_iterated_over_are_listed():
  inside = [f"layers.layers.{i}" for i in range(3)]
  found = gc_jax.places(Asking(), images())
  assert sorted(found) == sorted([*inside, "layers.layers.0.conv"])


class Normalised(eqx.Module):
  trunk: eqx.nn.Sequential
  fc: eqx.nn.Linear

  def __init__(self):
    norm = eqx.nn.BatchNorm(4, axis_name="images", mode="batch")
    conv = eqx.nn.Conv2d(3, 4, 3, key=KEYS[0])
    self.trunk = eqx.nn.Sequential([conv, norm, eqx.nn.Lambda(jax.nn.relu)])
    self.fc = eqx.nn.Linear(4, 5, key=KEYS[1])

  def __call__(self, x, state):
    x, state = self.trunk(x, state)
    return self.fc(x.mean((1, 2))), state


def test_a_normalisation_in_a_sequence_keeps_its_state():
  model, state = eqx.nn.make_with_state(Normalised)()
  model = eqx.nn.inference_mode(model)
  over = jax.vmap(
    model, axis_name="images", in_axes=(0, None), out_axes=(0, None)
  )
  expected, _ = over(images(), state)
  inside = ["trunk", *(f"trunk.layers.{i}" for i in range(3))]
  found = gc_jax.places((model, state), images())
  assert sorted(found) == sorted([*inside, "fc"])
  for place in inside:
    net = gc_jax.wrap((model, state), at=place)
    np.testing.assert_allclose(net(images())[0], expected, rtol=1e-5)


class Attending(eqx.Module):
  patches: eqx.nn.Conv2d
  attention: eqx.nn.MultiheadAttention
  fc: eqx.nn.Linear

  def __init__(self, dropout_p):
    self.patches = eqx.nn.Conv2d(3, 8, 4, 4, key=KEYS[0])
    self.attention = eqx.nn.MultiheadAttention(
      2, 8, dropout_p=dropout_p, key=KEYS[1]
    )
    self.fc = eqx.nn.Linear(8, 5, key=KEYS[2])

  def __call__(self, x):
    x = self.patches(x).reshape(8, -1).T
    return self.fc((x + self.attention(x, x, x)).mean(0))


def test_dropout_of_nothing_is_in_evaluation_mode():
  model = Attending(0.0)
  net = gc_jax.wrap(model, at="patches")
  np.testing.assert_allclose(
    gc_jax.predict(net, images()), jax.vmap(model)(images()), rtol=1e-5
  )
  dropping = Attending(0.5)
  with pytest.raises(ValueError, match=r"Call equinox\.nn\.inference_mode\("):
    gc_jax.predict(gc_jax.wrap(dropping, at="patches"), images())
  dropping = eqx.nn.inference_mode(dropping)
  gc_jax.predict(gc_jax.wrap(dropping, at="patches"), images())


class Batched(eqx.Module):
  module: eqx.Module

  def __call__(self, x):
    return jax.vmap(self.module)(x)


def test_a_pair_of_equinox_modules_is_a_pair_of_functions():
  conv = Batched(eqx.nn.Conv2d(3, 4, 3, key=KEYS[0]))
  linear = Batched(eqx.nn.Linear(4, 5, key=KEYS[1]))
  pool = eqx.nn.Lambda(lambda x: linear(x.mean((2, 3))))
  net = gc_jax.wrap((conv, pool), axes="BDhw")
  np.testing.assert_allclose(
    gc_jax.predict(net, images()), pool(conv(images())), rtol=1e-5
  )
