"""A Keras model on JAX, in a process of its own: the backend is chosen once."""

import importlib.util
import os
import subprocess
import sys

import pytest

PROGRAM = """
import keras
import jax
import jax.numpy as jnp
import numpy as np

import gc_jax
from gc_jax.attribution import METHODS, full_gradients

layers = keras.layers
given = keras.Input((None, None, 3))
x = layers.Conv2D(6, 3, strides=2, padding="same", name="stem")(given)
x = layers.BatchNormalization(name="norm")(x)
x = layers.ReLU(name="relu")(x)
y = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv")(x)
x = layers.Add(name="add")([x, y])
x = layers.GlobalAveragePooling2D(name="pool")(layers.MaxPooling2D(2)(x))
model = keras.Model(given, layers.Dense(5, name="fc")(x))
rng = np.random.default_rng(0)
model.set_weights([
  rng.random(x.shape) + 0.5
  if "variance" in v.path
  else rng.normal(size=x.shape)
  for v, x in zip(model.weights, model.get_weights(), strict=True)
])
images = jnp.asarray(rng.normal(size=(4, 16, 16, 3)), jnp.float32)
targets = jnp.array([[0, 1], [2, 3], [1, 4], [0, 2]])

found = gc_jax.places(model, images)
assert found["add"].shape == (4, 8, 8, 6) and found["fc"].shape == (4, 5)
net = gc_jax.wrap(model, at="add")
close = np.testing.assert_allclose
close(gc_jax.predict(net, images), model(images), rtol=1e-4, atol=1e-4)

# By hand: the tail is a pooling of maxima, a mean and a dense layer.
kernel, bias = model.get_layer("fc").get_weights()
at_add = keras.Model(given, model.get_layer("add").output)(images)
tail = lambda x: x.reshape(4, 4, 2, 4, 2, 6).max((2, 4)).mean((1, 2)) @ kernel
pull = jax.vjp(tail, at_add)[1]
gradient = pull(jax.nn.one_hot(targets[:, 0], 5))[0]
by_hand = jax.nn.relu((gradient * at_add).sum(-1))
maps = gc_jax.explain(net, images, targets[:, 0], normalize=False)
close(maps, by_hand, atol=1e-5)

sums = METHODS["excitation_backprop"](net, images, targets).sum((-2, -1))
close(sums, 1, rtol=1e-4)
contrast = gc_jax.explain(net, images, targets, "cmwp", normalize=False)
assert (contrast.sum((-2, -1)) > 0).all()
_, total, score = full_gradients.divide(net, images, targets)
close(total, score, rtol=1e-4, atol=1e-4)

labels, key = targets[:, 0], jax.random.key(0)
net = gc_jax.wrap(model, at="add", training=True)
seen = gc_jax.consistency(net, images, labels, key)
assert len(seen.state) == len(model.non_trainable_variables) == 2
assert any((a != b.value).any()
           for a, b in zip(seen.state, model.non_trainable_variables))


def loss(trainable):
  import dataclasses

  moved = dataclasses.replace(net, variables=(trainable, net.variables[1]))
  return gc_jax.consistency(moved, images, labels, key).loss


gradients = jax.grad(loss)(net.variables[0])
assert any((abs(g) > 0).any() for g in gradients)

# Integers are the same pictures as floats: Keras converts them itself.
given = keras.Input((8, 8, 3))
x = layers.Rescaling(1 / 255)(given)
x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
x = layers.GlobalAveragePooling2D()(x)
scaling = keras.Model(given, layers.Dense(5)(x))
integers = rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
net = gc_jax.wrap(scaling, at="conv")
close(gc_jax.predict(net, integers), scaling(integers), rtol=1e-5, atol=1e-6)
for name in ("gradcam", "input_gradients", "fullgrad"):
  close(*(gc_jax.explain(net, x, labels, name, normalize=False)
          for x in (integers, integers.astype(np.float32))), rtol=1e-5)


# Layers of chance leave pictures alone, whether a call says so or not.
class Chance(keras.Model):
  def __init__(self):
    super().__init__()
    self.noise = layers.GaussianNoise(0.5)
    self.conv = layers.Conv2D(5, 3, name="conv")

  def call(self, images):
    return keras.ops.mean(self.conv(self.noise(images)), (1, 2))


flipping = keras.Sequential([
  keras.Input((8, 8, 3)), layers.RandomFlip(), layers.GaussianNoise(0.5),
  layers.Conv2D(4, 3, name="conv"), layers.Flatten(), layers.Dense(5)])
images = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)
own = Chance()
own(images)
for chance in (flipping, own):
  expected = chance(images, training=False)
  for settings in ({}, {"training": False}):
    net = gc_jax.wrap(chance, at="conv", **settings)
    close(gc_jax.predict(net, images), expected, rtol=1e-5, atol=1e-6)
  trained = gc_jax.wrap(chance, at="conv", training=True)
  assert abs(trained(images)[0] - expected).max() > 1e-3

# A layer that is changed is traced anew, and one that is not is not.
conv = flipping.get_layer("conv")
call = lambda: gc_jax.wrap(flipping, at="conv").call
before = call()
flipping.predict(images, verbose=0)
assert call() == before and hash(call()) == hash(before)
conv.activation = keras.activations.relu
assert call() != before
net = gc_jax.wrap(flipping, at="conv")
close(gc_jax.predict(net, images), flipping(images, training=False),
      rtol=1e-5, atol=1e-6)
print("HOLDS")
"""


def test_a_keras_model_is_wrapped_explained_and_guided():
  if importlib.util.find_spec("keras") is None:
    pytest.skip("Keras is not installed: pip install keras")
  found = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    env=os.environ | {"KERAS_BACKEND": "jax"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.stdout.endswith("HOLDS\n"), found.stderr
