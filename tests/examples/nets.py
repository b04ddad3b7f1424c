"""A network of a user's own, for training by command: nets:make."""

import jax.numpy as jnp
from flax import nnx

import gc_jax


class Block(nnx.Module):
  """Adds a convolution of its input to it."""

  def __init__(self, channels, dtype, rngs):
    self.norm = nnx.BatchNorm(channels, dtype=dtype, rngs=rngs)
    self.conv = nnx.Conv(channels, channels, (3, 3), dtype=dtype, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)

  def __call__(self, x):
    return x + self.dropout(self.conv(nnx.relu(self.norm(x))))


class Net(nnx.Module):
  """A stem on patches of 4 x 4 pixels, blocks, and a head with dropout."""

  def __init__(self, num_classes, dtype, rngs, channels=16):
    self.stem = nnx.Conv(3, channels, (4, 4), 4, dtype=dtype, rngs=rngs)
    self.blocks = nnx.List([Block(channels, dtype, rngs) for _ in range(2)])
    self.norm = nnx.BatchNorm(channels, dtype=dtype, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)
    self.head = nnx.Linear(channels, num_classes, rngs=rngs)

  def __call__(self, images):
    x = self.stem(images)
    for block in self.blocks:
      x = block(x)
    x = nnx.relu(self.norm(x)).mean((1, 2)).astype(jnp.float32)
    return self.head(self.dropout(x))


def make(num_classes, dtype, key):
  """Returns a new network, and the place that maps are made at."""
  model = Net(num_classes, dtype, nnx.Rngs(key))
  return gc_jax.wrap(model, at="blocks.1")
