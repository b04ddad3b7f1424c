"""The quickstart's ResNet8, and a ViT, as users of other libraries write them.

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

from gc_jax.models import vit

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


def keras_net(weights, dtype="float32"):
  """Returns a Keras model, where the backend is JAX."""
  import keras

  before_that = keras.config.dtype_policy()
  keras.config.set_dtype_policy(dtype)
  layers, given = keras.layers, {}

  def conv(x, name, stride=1):
    kernel = given[name] = [weights[f"{name}.kernel"]]
    side, _, _, channels = kernel[0].shape
    x = layers.ZeroPadding2D(side // 2)(x)
    layer = layers.Conv2D(channels, side, stride, use_bias=False, name=name)
    return layer(x)

  def norm(x, name):
    parts = ("scale", "bias", "mean", "var")
    given[name] = [weights[f"{name}.{part}"] for part in parts]
    layer = layers.BatchNormalization(epsilon=1e-5, name=name)
    return layer(x)

  relu = lambda x, **kwargs: layers.ReLU(**kwargs)(x)
  images = keras.Input((None, None, 3))
  x = relu(norm(conv(images, "conv1", 2), "bn1"))
  x = layers.ZeroPadding2D(1)(x)  # nothing is below 0
  x = layers.MaxPooling2D(3, 2)(x)
  for name, before, channels, stride in BLOCKS:
    out = relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
    out = norm(conv(out, f"{name}.conv2"), f"{name}.bn2")
    if before != channels:
      x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
    x = relu(layers.Add()([out, x]), name=f"{name}.out")
  x = layers.GlobalAveragePooling2D()(x)
  given["fc"] = [weights["fc.kernel"], weights["fc.bias"]]
  logits = layers.Dense(given["fc"][1].size, name="fc")(x)
  model = keras.Model(images, logits)
  for name, values in given.items():
    model.get_layer(name).set_weights(values)
  keras.config.set_dtype_policy(before_that)
  return model


def own_vit():
  """Returns a ViT of ours: two blocks, patches of 4 pixels."""
  model = vit.VisionTransformer(
    *(5,),
    num_layers=2,
    num_heads=2,
    channels=8,
    patch=4,
    grid=3,
    rngs=nnx.Rngs(0),
  )
  model.eval()
  return model


class LinenVit(nn.Module):
  """The same in Linen."""

  num_classes: int

  @nn.compact
  def __call__(self, images):
    zeros = nn.initializers.zeros
    norm = functools.partial(nn.LayerNorm, 1e-6)
    x = nn.Conv(8, (4, 4), 4, padding="VALID", name="conv_proj")(images)
    grid = x.shape[1:3]
    token = self.param("class_token", zeros, (1, 1, 8))
    token = jnp.broadcast_to(token, (len(x), 1, 8))
    x = jnp.concatenate([token, x.reshape(len(x), -1, 8)], 1)
    positions = self.param("pos_embedding", zeros, (1, 10, 8))
    x = x + vit.enlarged(positions, grid)
    for i in range(2):
      normed = norm(name=f"ln_1_{i}")(x)
      attend = nn.MultiHeadDotProductAttention(2, name=f"attention_{i}")
      x = x + attend(normed)
      hidden = nn.Dense(32, name=f"up_{i}")(norm(name=f"ln_2_{i}")(x))
      hidden = nn.gelu(hidden, approximate=False)
      x = x + nn.Dense(8, name=f"down_{i}")(hidden)
    return nn.Dense(self.num_classes, name="head")(norm(name="ln")(x)[:, 0])


def linen_vit(weights):
  params = {
    "class_token": weights["class_token"],
    "pos_embedding": weights["encoder.pos_embedding"],
  }

  def copied(name, path):
    params[name] = {
      leaf: weights[f"{path}.{leaf}"]
      for leaf in ("kernel", "scale", "bias")
      if f"{path}.{leaf}" in weights
    }

  copied("conv_proj", "conv_proj")
  copied("ln", "encoder.ln")
  copied("head", "heads.head")
  for i in range(2):
    block = f"encoder.layers.encoder_layer_{i}"
    copied(f"ln_1_{i}", f"{block}.ln_1")
    copied(f"ln_2_{i}", f"{block}.ln_2")
    copied(f"up_{i}", f"{block}.mlp.0")
    copied(f"down_{i}", f"{block}.mlp.3")
    of = lambda leaf, block=block: weights[f"{block}.self_attention.{leaf}"]
    kernels = jnp.split(of("in_proj_weight"), 3, 1)
    biases = jnp.split(of("in_proj_bias"), 3)
    attention = {
      name: {"kernel": kernel.reshape(8, 2, 4), "bias": bias.reshape(2, 4)}
      for name, kernel, bias in zip(
        ("query", "key", "value"), kernels, biases, strict=True
      )
    }
    kernel, bias = of("out_proj.kernel"), of("out_proj.bias")
    attention["out"] = {"kernel": kernel.reshape(2, 4, 8), "bias": bias}
    params[f"attention_{i}"] = attention
  return LinenVit(weights["heads.head.bias"].size), {"params": params}
