"""Layers shared by the architectures, each as PyTorch defines it."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from gc_jax.models.convolution import Conv

# Mean and standard deviation of ImageNet's RGB pixels in [0, 1], which every
# torchvision checkpoint was trained with.
RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Init:
  """How a layer starts.

  Attributes:
    kernel: initialises the kernel.
    zero_bias: whether the bias starts at 0, or uniform in +-1/sqrt(fan_in), as
      PyTorch's layers do.
  """

  kernel: nnx.initializers.Initializer
  zero_bias: bool

  def bias(self, fan_in: int) -> nnx.initializers.Initializer:
    """Returns the initialiser of the bias of a layer with so many inputs."""
    if self.zero_bias:
      return nnx.initializers.zeros_init()
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
      key, shape, dtype, -bound, bound
    )


_scaling = nnx.initializers.variance_scaling
# PyTorch's default: uniform in +-1/sqrt(fan_in), kernel and bias alike.
TORCH_INIT = Init(_scaling(1 / 3, "fan_in", "uniform"), zero_bias=False)
# He's rule on the fan-out (the release's ResNets), and uniform on the fan-in.
HE_INIT = Init(_scaling(2.0, "fan_out", "normal"), zero_bias=True)
HE_UNIFORM_INIT = Init(_scaling(2.0, "fan_in", "uniform"), zero_bias=True)


def conv(
  in_channels: int,
  out_channels: int,
  kernel_size: int,
  stride: int = 1,
  *,
  padding: int | None = None,
  use_bias: bool = True,
  init: Init = HE_INIT,
  dtype: DTypeLike,
  rngs: nnx.Rngs,
) -> Conv:
  """Returns a square convolution.

  The padding is written out: "SAME" pads asymmetrically under a stride, and
  would move every cell by half a pixel against PyTorch.

  Args:
    in_channels: of the input.
    out_channels: of the output.
    kernel_size: side of the kernel, odd.
    stride: both ways.
    padding: zeros on every side; None = (kernel_size - 1) / 2.
    use_bias: whether a bias is added.
    init: of kernel and bias.
    dtype: of the output; parameters are float32.
    rngs: initialises the parameters.
  """
  return Conv(
    in_channels,
    out_channels,
    (kernel_size, kernel_size),
    strides=stride,
    padding=(kernel_size - 1) // 2 if padding is None else padding,
    use_bias=use_bias,
    dtype=dtype,
    kernel_init=init.kernel,
    bias_init=init.bias(in_channels * kernel_size**2),
    rngs=rngs,
  )


def linear(
  in_features: int,
  out_features: int,
  *,
  init: Init = TORCH_INIT,
  rngs: nnx.Rngs,
) -> nnx.Linear:
  """Returns a float32 dense layer, by default initialised as PyTorch's."""
  return nnx.Linear(
    in_features,
    out_features,
    kernel_init=init.kernel,
    bias_init=init.bias(in_features),
    rngs=rngs,
  )


class Origin(nnx.Variable):
  """Where a BatchNorm sees activations from, while a step lasts: `[D]`."""


class BatchNorm(nnx.BatchNorm):
  """Batch normalisation as torch.nn.BatchNorm2d computes it.

  Everything inside is float32 whatever the dtype of the activations. Flax's
  own rounds the running statistics to that dtype, and keeps the biased
  variance of each batch, where PyTorch normalises by the biased one and keeps
  the unbiased, n / (n - 1) times it.

  A training batch may be normalised in groups, each by its own mean and
  variance, as PyTorch's replicas do. The running statistics then follow the
  mean over groups of the groups' means, and of their unbiased variances;
  PyTorch keeps those of the first replica and drops the others'.

  Attributes:
    bn_groups: equal, contiguous groups of a training batch; set by
      `train(bn_groups=...)`. Must divide the batch. Groups that lie whole on
      a device need no other's numbers to be normalised.
    origin: see `hold_origins`; None = the running mean as it is.

  Args:
    num_features: D.
    dtype: of the output.
    rngs: as every layer's.
  """

  bn_groups: int = 1
  origin: Origin | None = None

  def __init__(self, num_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    # Flax's momentum of 0.9 is PyTorch's 0.1.
    super().__init__(
      num_features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs
    )
    # Batches seen. PyTorch's checkpoints hold it; nothing here depends on it.
    self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.int32))

  def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
    """Returns the normalised activations; in training mode it takes count."""
    groups = 1 if self.use_running_average else self.bn_groups
    grouped = at_least_float32(x).reshape(groups, -1, *x.shape[1:])
    if self.use_running_average:
      mean, var = self.mean[...][None], self.var[...][None]
    else:
      # The variance is seen from the running mean, which is near the batch's:
      # it then takes one pass over the activations, and the difference of
      # squares loses no digits. From 0 it would lose three where a mean is 30
      # times the standard deviation, as after a ReLU it can be.
      origin = self.mean if self.origin is None else self.origin
      origin = jax.lax.stop_gradient(origin[...])[None]
      mean = grouped.mean((1, 2, 3))
      squares = jnp.square(grouped - _channels(origin)).mean((1, 2, 3))
      var = jnp.maximum(squares - jnp.square(mean - origin), 0)
      self._track(mean, var, x.size // x.shape[-1] // groups)
    scale = self.scale[...][None] * jax.lax.rsqrt(var + self.epsilon)
    shift = self.bias[...][None] - mean * scale
    grouped = grouped * _channels(scale) + _channels(shift)
    return grouped.reshape(x.shape).astype(self.dtype)

  def _track(
    self, mean: Float[Array, "G D"], var: Float[Array, "G D"], count: int
  ) -> None:
    old, new = self.momentum, 1 - self.momentum
    mean, var = jax.lax.stop_gradient((mean, var))
    unbiased = var * (count / max(count - 1, 1))
    self.mean[...] = old * self.mean[...] + new * mean.mean(0)
    self.var[...] = old * self.var[...] + new * unbiased.mean(0)
    self.num_batches_tracked[...] += 1


def hold_origins(model: nnx.Module) -> None:
  """Lets every BatchNorm see activations from its running mean of now.

  The origin changes rounding alone. The running mean, though, is an average
  over devices: seen from one that a first pass has moved, a second pass would
  wait for all devices at every BatchNorm, to no end.

  Args:
    model: gets an `Origin` in each, which is no part of a checkpoint.
  """
  for _, module in nnx.iter_modules(model):
    if isinstance(module, BatchNorm):
      module.origin = Origin(module.mean[...])


def _channels(x: Float[Array, "G D"]) -> Float[Array, "G 1 1 1 D"]:
  return x[:, None, None, None]


def at_least_float32(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
  """Returns x as float32, but for float64, which stays."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def dropout(
  x: Float[Array, "*B"], rate: float, key: PRNGKeyArray | None
) -> Float[Array, "*B"]:
  """Returns x with a share of its numbers set to 0 and the rest made larger.

  Args:
    x: activations.
    rate: chance of each to be dropped; the others are divided by 1 - rate.
    key: the mask is a function of it; None drops nothing.
  """
  if key is None or rate == 0:
    return x
  kept = jax.random.bernoulli(key, 1 - rate, x.shape)
  return jnp.where(kept, x / (1 - rate), 0)


FEATURES = ""  # in place of a path: no module is given the last layer's output


class Network(nnx.Module):
  """What all architectures have: they take pixels, and describe themselves.

  A network has `features`, from normalised pixels to the explained
  activations, and `classify`, from these to logits; beside them it says what
  explanation methods, the sanity check and PyTorch's files must know of it.

  Attributes:
    dtype: of the activations that `features` returns.
    last_layer: path of the layer whose outputs (pooled, where it is a
      convolution) are the logits.
    torch_names: first part of a path -> what PyTorch calls it, where it has
      another name there.
    remat: whether the backward pass computes the insides of each `segment`
      anew instead of keeping them; set by `train(remat=True)`.
  """

  dtype: DTypeLike
  last_layer: tuple[str, ...]
  torch_names: Mapping[str, str] = MappingProxyType({})
  remat: bool = False

  def layer_inputs(self) -> dict[str, str]:
    """Returns the layers one may look at, from the picture up.

    A layer is known by its output, after the nonlinearity, and named as
    torchvision names it.

    Returns:
      Name -> dotted path of the module that is given its output; `FEATURES`
      for the last, which are the features.
    """
    raise NotImplementedError

  @property
  def excitation_layer(self) -> str:
    """The layer whose output the last stage is given: excitation maps' own."""
    raise NotImplementedError

  def parts(self) -> dict[str, tuple[str, ...]]:
    """Returns what is randomised together, from the picture up.

    Returns:
      Torchvision's name -> dotted paths of modules: their layers, and those
      below them, belong to the part.
    """
    raise NotImplementedError

  def initializer(self, path: str, module: nnx.Module) -> Init:
    """Returns how the constructor initialised one of its layers.

    Args:
      path: of the layer, dotted.
      module: the layer itself, a convolution or a dense one.
    """
    raise NotImplementedError

  def segment(
    self, call: Callable[[nnx.Module, Array], Array], module: nnx.Module, x
  ) -> Array:
    """Returns `call(module, x)`, a part of the network worth computing twice.

    Under `remat` only `x` is kept for the backward pass: memory for a second
    forward pass. The module's variables are updated once, either way.

    Args:
      call: applies the module, or some layers of it.
      module: holds the variables that are used.
      x: activations.
    """
    return (nnx.remat(call) if self.remat else call)(module, x)

  def torch_features(self, ops: Any, x: Any) -> Any:
    """Computes `features` by PyTorch, for `gc_jax.export --verify`.

    Args:
      ops: `torch_io.card.Operations`, which hold the weights of a file.
      x: normalised pixels, a tensor `[B 3 H W]`.
    """
    raise NotImplementedError

  def torch_classify(self, ops: Any, features: Any) -> Any:
    """Computes `classify` by PyTorch; see `torch_features`."""
    raise NotImplementedError

  def normalize(self, images: Array) -> Float[Array, "B H W 3"]:
    """Returns RGB pixels (uint8, or float in [0, 1]) as `features` wants them.

    Args:
      images: `[B H W 3]`.
    """
    return normalize_pixels(images).astype(self.dtype)


def normalize_pixels(images: Array) -> Float[Array, "B H W 3"]:
  """Returns `(pixels - mean) / std`, float32.

  Args:
    images: RGB, uint8 in 0..255 or float in [0, 1], `[B H W 3]`.
  """
  if images.dtype == jnp.uint8:
    images = images.astype(jnp.float32) / 255
  mean, std = jnp.array(RGB_MEAN, ndmin=4), jnp.array(RGB_STD, ndmin=4)
  return (images.astype(jnp.float32) - mean) / std


class NumberedNetwork(Network):
  """A network whose `trunk` and `head` hold layers by torchvision's numbers.

  Attributes:
    last_number: of the layer whose output the features are.
  """

  torch_names = MappingProxyType({"trunk": "features", "head": "classifier"})
  last_number: int

  def layer_inputs(self) -> dict[str, str]:
    """Returns what each layer of the trunk is given; see the base class."""
    inputs = {f"features.{int(n) - 1}": f"trunk.{n}" for n in self.trunk}
    inputs.pop("features.-1")  # the picture
    return inputs | {f"features.{self.last_number}": FEATURES}

  def parts(self) -> dict[str, tuple[str, ...]]:
    """Returns single layers: "features.0", ..., "classifier.6"."""
    return {
      f"{name}.{number}": (f"{part}.{number}",)
      for part, name in self.torch_names.items()
      for number in getattr(self, part)
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Architecture:
  """An entry of `MODELS`: everything known of an architecture by its name.

  Called, it builds the network.

  Attributes:
    title: as papers write it, the pooling not said: "ResNet18".
    network: its class.
    fields: what its constructor is given, beside the number of classes.
    min_px: the smallest side of a picture of which a cell of features is left.
    torch_code: lines of Python that make it as `model` in PyTorch;
      `{num_classes}` stands for K.
    torch_pooling: the attribute of that `model` which pools globally; "" where
      a perceptron takes a grid of features instead.
  """

  title: str
  network: type[Network]
  fields: Mapping[str, Any]
  min_px: int
  torch_code: str
  torch_pooling: str = ""

  def __call__(
    self, num_classes: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
  ) -> Network:
    """Returns a network with freshly drawn parameters.

    Args:
      num_classes: K.
      dtype: of activations; parameters are float32.
      rngs: initialises the parameters.
    """
    return self.network(
      num_classes=num_classes, **self.fields, dtype=dtype, rngs=rngs
    )

  def changed(self, **fields: Any) -> "Architecture":
    """Returns the same with other fields for its constructor."""
    return dataclasses.replace(self, fields={**self.fields, **fields})
