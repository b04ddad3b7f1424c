"""The quickstart's ResNet8 as users of other libraries would write it.

Each is a plain network of its library, given the weights of ours by name, so
that whatever is wrapped can be held against our own model.
"""

import functools
import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

# (name, input channels, channels, stride) of the two stages' blocks.
BLOCKS = (
  ("layer1.0", 32, 32, 1),
  ("layer2.0", 32, 64, 2),
  ("layer2.1", 64, 64, 1),
)
SAME = ((1, 1), (1, 1))
STEM = {"window_strides": (2, 2), "padding": SAME}


def weights_of(model):
  """Returns name -> array of every parameter and statistic of ours."""
  return {
    ".".join(map(str, path)): jnp.asarray(leaf[...])
    for path, leaf in nnx.to_flat_state(nnx.state(model))
    if path[-1] != "num_batches_tracked"
  }


class NnxBlock(nnx.Module):
  def __init__(self, before, channels, stride, rngs):
    conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
    norm = functools.partial(
      nnx.BatchNorm, epsilon=1e-5, momentum=0.9, rngs=rngs
    )
    self.conv1 = conv(before, channels, (3, 3), stride, padding=SAME)
    self.bn1 = norm(channels)
    self.conv2 = conv(channels, channels, (3, 3), padding=SAME)
    self.bn2 = norm(channels)
    self.downsample = nnx.List([])
    if before != channels:
      self.downsample.append(conv(before, channels, (1, 1), stride))
      self.downsample.append(norm(channels))

  def __call__(self, x):
    out = nnx.relu(self.bn1(self.conv1(x)))
    out = self.bn2(self.conv2(out))
    for layer in self.downsample:
      x = layer(x)
    return nnx.relu(out + x)


class NnxNet(nnx.Module):
  def __init__(self, num_classes, rngs):
    self.conv1 = nnx.Conv(
      3, 32, (3, 3), 2, padding=SAME, use_bias=False, rngs=rngs
    )
    self.bn1 = nnx.BatchNorm(32, epsilon=1e-5, momentum=0.9, rngs=rngs)
    blocks = [NnxBlock(*block[1:], rngs) for block in BLOCKS]
    self.layer1, self.layer2 = nnx.List(blocks[:1]), nnx.List(blocks[1:])
    self.fc = nnx.Linear(64, num_classes, rngs=rngs)

  def __call__(self, images):
    x = nnx.relu(self.bn1(self.conv1(images)))
    x = nnx.max_pool(x, (3, 3), (2, 2), SAME)
    for block in [*self.layer1, *self.layer2]:
      x = block(x)
    return self.fc(x.mean((1, 2)))


def nnx_net(weights):
  model = NnxNet(weights["fc.bias"].size, nnx.Rngs(0))
  given = [
    (path, leaf.replace(weights[".".join(map(str, path))]))
    for path, leaf in nnx.to_flat_state(nnx.state(model))
  ]
  nnx.update(model, nnx.from_flat_state(given))
  model.eval()
  return model


class LinenBlock(nn.Module):
  channels: int
  stride: int

  @nn.compact
  def __call__(self, x, train=False):
    conv = functools.partial(nn.Conv, self.channels, use_bias=False)
    norm = functools.partial(
      nn.BatchNorm, not train, epsilon=1e-5, momentum=0.9
    )
    out = conv((3, 3), self.stride, padding=SAME, name="conv1")(x)
    out = nn.relu(norm(name="bn1")(out))
    out = conv((3, 3), padding=SAME, name="conv2")(out)
    out = norm(name="bn2")(out)
    if x.shape[-1] != self.channels:
      x = conv((1, 1), self.stride, name="downsample_0")(x)
      x = norm(name="downsample_1")(x)
    return nn.relu(out + x)


class LinenNet(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.Conv(32, (3, 3), 2, padding=SAME, use_bias=False, name="conv1")(
      images
    )
    x = nn.BatchNorm(not train, epsilon=1e-5, momentum=0.9, name="bn1")(x)
    x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), SAME)
    for name, _, channels, stride in BLOCKS:
      x = LinenBlock(channels, stride, name=name.replace(".", "_"))(x, train)
    return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


def linen_net(weights):
  model = LinenNet(weights["fc.bias"].size)
  variables = {"params": {}, "batch_stats": {}}
  for name, value in weights.items():
    *path, leaf = re.sub(r"\.(\d)", r"_\1", name).split(".")
    kind = "batch_stats" if leaf in ("mean", "var") else "params"
    node = variables[kind]
    for step in path:
      node = node.setdefault(step, {})
    node[leaf] = value
  return model, variables


class Norm(eqx.Module):
  """A normalisation by running statistics, as a user of Equinox freezes it."""

  scale: jax.Array
  bias: jax.Array
  mean: jax.Array
  var: jax.Array

  def __call__(self, x):
    column = lambda value: value[:, None, None]
    x = (x - column(self.mean)) / jnp.sqrt(column(self.var) + 1e-5)
    return x * column(self.scale) + column(self.bias)


class EqxBlock(eqx.Module):
  conv1: eqx.nn.Conv2d
  bn1: Norm
  conv2: eqx.nn.Conv2d
  bn2: Norm
  downsample: list

  def __call__(self, x):
    out = jax.nn.relu(self.bn1(self.conv1(x)))
    out = self.bn2(self.conv2(out))
    for layer in self.downsample:
      x = layer(x)
    return jax.nn.relu(out + x)


class EqxNet(eqx.Module):
  conv1: eqx.nn.Conv2d
  bn1: Norm
  pool: eqx.nn.MaxPool2d
  layer1: list
  layer2: list
  fc: eqx.nn.Linear

  def __call__(self, image):
    x = self.pool(jax.nn.relu(self.bn1(self.conv1(image))))
    for block in [*self.layer1, *self.layer2]:
      x = block(x)
    return self.fc(x.mean((1, 2)))


def eqx_net(weights):
  def conv(name, before, channels, size, stride):
    layer = eqx.nn.Conv2d(
      *(before, channels, size, stride, size // 2),
      use_bias=False,
      key=jax.random.key(0),
    )
    kernel = jnp.transpose(weights[f"{name}.kernel"], (3, 2, 0, 1))
    return eqx.tree_at(lambda m: m.weight, layer, kernel)

  def norm(name):
    return Norm(
      *(weights[f"{name}.{x}"] for x in ("scale", "bias", "mean", "var"))
    )

  def block(name, before, channels, stride):
    down = f"{name}.downsample"
    return EqxBlock(
      conv(f"{name}.conv1", before, channels, 3, stride),
      norm(f"{name}.bn1"),
      conv(f"{name}.conv2", channels, channels, 3, 1),
      norm(f"{name}.bn2"),
      []
      if before == channels
      else [conv(f"{down}.0", before, channels, 1, stride), norm(f"{down}.1")],
    )

  blocks = [block(*each) for each in BLOCKS]
  fc = eqx.nn.Linear(64, weights["fc.bias"].size, key=jax.random.key(0))
  fc = eqx.tree_at(
    lambda m: (m.weight, m.bias),
    fc,
    (weights["fc.kernel"].T, weights["fc.bias"]),
  )
  return EqxNet(
    conv("conv1", 3, 32, 3, 2),
    norm("bn1"),
    eqx.nn.MaxPool2d(3, 2, 1),
    blocks[:1],
    blocks[1:],
    fc,
  )


def function_net(weights):
  """Returns f(images, tap) in plain JAX."""

  def conv(x, name, stride=1):
    kernel = weights[f"{name}.kernel"]
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      ((pad, pad), (pad, pad)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

  def norm(x, name):
    of = lambda leaf: weights[f"{name}.{leaf}"][None, None, None]
    return (x - of("mean")) * jax.lax.rsqrt(of("var") + 1e-5) * of(
      "scale"
    ) + of("bias")

  def run(images, tap):
    x = jax.nn.relu(norm(conv(images, "conv1", 2), "bn1"))
    x = jax.lax.reduce_window(
      *(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1)),
      ((0, 0), *SAME, (0, 0)),
    )
    for name, before, channels, stride in BLOCKS:
      out = jax.nn.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
      out = norm(conv(out, f"{name}.conv2"), f"{name}.bn2")
      if before != channels:
        x = norm(
          conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1"
        )
      x = jax.nn.relu(out + x)
    return tap(x).mean((1, 2)) @ weights["fc.kernel"] + weights["fc.bias"][None]

  return run
