"""A file of weights, run by PyTorch, beside the model it was written from.

The forward passes here read the structure off the model and the weights off
the file, by PyTorch's own operations: neither torchvision nor a class of
modules is needed.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from gc_jax.attribution import METHODS
from gc_jax.method.types import Array
from gc_jax.models.chain import POOL, Chain
from gc_jax.models.resnet import ResNet
from gc_jax.models.squeezenet import FIRST_NUMBER, SqueezeNet
from gc_jax.torch_io import files, pickles

# Both Grad-CAM variants, which differ by what averages the gradient.
CAMS = ("gradcam", "gradcam_elementwise")


def largest_differences(
  path: pathlib.Path,
  model: nnx.Module,
  images: UInt8[np.ndarray, "B H W 3"],
) -> dict[str, float]:
  """Returns how far PyTorch's results are from ours, at most.

  Args:
    path: written by `save_model`.
    model: what was written, in evaluation mode.
    images: RGB; each is explained for the class that is predicted.

  Returns:
    `logits`, `gradcam` and `gradcam_elementwise`: the largest absolute
    difference over all images, divided by the largest absolute value.

  Raises:
    ValueError: PyTorch is not installed, or the file cannot be read.
  """
  torch = pickles.import_torch(f"To verify {path}")
  weights = {
    key: torch.from_numpy(array.copy())  # what is read cannot be written to
    for key, array in files.read(path)[0].items()
  }
  ours = _ours(model, images)
  theirs = _theirs(torch, model, weights, images, ours["logits"].argmax(-1))
  return {
    name: float(np.abs(ours[name] - theirs[name]).max() / _scale(theirs[name]))
    for name in ("logits", *CAMS)
  }


def _scale(values: np.ndarray) -> float:
  return float(np.abs(values).max()) or 1.0


def _ours(model: nnx.Module, images: Array) -> dict[str, np.ndarray]:
  graphdef, state = nnx.split(model)

  @jax.jit
  def run(state, images):
    model = nnx.merge(graphdef, state, copy=True)
    model.eval()
    logits = model.classify(model.features(model.normalize(images)))
    target = jnp.argmax(logits, -1, keepdims=True)
    cams = {name: METHODS[name](model, images, target)[:, 0] for name in CAMS}
    return {"logits": logits, **cams}

  # PyTorch multiplies in float32; accelerators would not, unless told to.
  with jax.default_matmul_precision("highest"):
    return jax.tree.map(np.asarray, run(state, images))


def _theirs(
  torch: Any, model: nnx.Module, weights: dict, images: Array, target: Array
) -> dict[str, np.ndarray]:
  # Copies: what jax lends cannot be written to, and PyTorch warns of it.
  normalized = np.array(model.normalize(jnp.asarray(images)), np.float32)
  inputs = torch.from_numpy(normalized).permute(0, 3, 1, 2)
  network = _NETWORKS[type(model)](torch.nn.functional, torch, model, weights)
  with torch.no_grad():
    features = network.features(inputs)
  features = features.detach().requires_grad_()
  logits = network.classify(features)
  rows = torch.arange(len(target))
  (gradient,) = torch.autograd.grad(
    logits[rows, torch.from_numpy(np.array(target))].sum(), features
  )
  channel = gradient.mean((2, 3), keepdim=True)
  tensors = {
    "logits": logits,
    "gradcam": (channel * features).sum(1).relu(),
    "gradcam_elementwise": (gradient * features).sum(1).relu(),
  }
  return {name: x.detach().numpy() for name, x in tensors.items()}


def check_known(model: nnx.Module) -> None:
  """Checks that there is a forward pass to compare the model's with.

  Raises:
    ValueError: there is none for its class.
  """
  if type(model) not in _NETWORKS:
    known = ", ".join(kind.__name__ for kind in _NETWORKS)
    raise ValueError(
      "--verify must know the network's forward pass in PyTorch, and knows "
      f"those of {known}; this one is a {type(model).__name__}. Leave it out, "
      "and compare the logits in PyTorch yourself."
    )


class _Network:
  """Forward passes over a state dict, in evaluation mode."""

  def __init__(self, functional: Any, torch: Any, model: Any, weights: dict):
    self.f = functional
    self.torch = torch
    self.model = model
    self.weights = weights

  def conv(self, x, name: str, stride: int = 1, padding: int | None = None):
    """Convolves by the weights of a layer."""
    kernel = self.weights[f"{name}.weight"]
    bias = self.weights.get(f"{name}.bias")
    if padding is None:
      padding = (kernel.shape[-1] - 1) // 2
    return self.f.conv2d(x, kernel, bias, stride, padding)

  def norm(self, x, name: str):
    """Normalises by the running statistics of a layer."""
    part = lambda key: self.weights[f"{name}.{key}"]
    return self.f.batch_norm(
      x,
      part("running_mean"),
      part("running_var"),
      part("weight"),
      part("bias"),
    )

  def linear(self, x, name: str):
    """Applies a dense layer."""
    return self.f.linear(
      x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
    )

  def pool_globally(self, x):
    """Returns one value a channel, as the model pools."""
    if self.model.pooling == "max":
      pooled = self.f.adaptive_max_pool2d(x, (1, 1))
    else:
      pooled = self.f.adaptive_avg_pool2d(x, (1, 1))
    return self.torch.flatten(pooled, 1)


class _ResNet(_Network):
  def features(self, x):
    x = self.norm(self.conv(x, "conv1", 2), "bn1").relu()
    x = self.f.max_pool2d(x, 3, 2, 1)
    for stage in range(1, self.model.num_stages + 1):
      for i in range(len(getattr(self.model, f"layer{stage}"))):
        stride = 2 if stage > 1 and i == 0 else 1
        x = self.block(x, f"layer{stage}.{i}", stride)
    return x

  def block(self, x, name: str, stride: int):
    """Applies a block of two or three convolutions."""
    deep = f"{name}.conv3.weight" in self.weights
    strides = (1, stride, 1) if deep else (stride, 1)
    out = x
    for i, conv_stride in enumerate(strides, 1):
      out = self.conv(out, f"{name}.conv{i}", conv_stride)
      out = self.norm(out, f"{name}.bn{i}")
      out = out.relu() if i < len(strides) else out
    if f"{name}.downsample.0.weight" in self.weights:
      x = self.conv(x, f"{name}.downsample.0", stride)
      x = self.norm(x, f"{name}.downsample.1")
    return (out + x).relu()

  def classify(self, features):
    return self.linear(self.pool_globally(features), "fc")


class _Chain(_Network):
  def features(self, x):
    for number, layer in self.model.numbered():
      if layer == POOL:
        x = self.f.max_pool2d(x, self.model.pool_window, 2)
      else:
        _, _, stride, padding = layer
        x = self.conv(x, f"features.{number}", stride, padding).relu()
    return x

  def classify(self, features):
    side = self.model.grid
    x = self.torch.flatten(
      self.f.adaptive_avg_pool2d(features, (side, side)), 1
    )
    first, second, last = sorted(self.model.head)
    x = self.linear(x, f"classifier.{first}").relu()
    x = self.linear(x, f"classifier.{second}").relu()
    return self.linear(x, f"classifier.{last}")


class _SqueezeNet(_Network):
  def features(self, x):
    x = self.conv(x, "features.0", 2, padding=0).relu()
    for number, layer in enumerate(self.model.chain, FIRST_NUMBER):
      if layer == POOL:
        x = self.f.max_pool2d(x, 3, 2, ceil_mode=True)
      else:
        x = self.fire(x, f"features.{number}")
    return x

  def fire(self, x, name: str):
    """Applies a fire module."""
    x = self.conv(x, f"{name}.squeeze").relu()
    wide = [self.conv(x, f"{name}.expand{k}").relu() for k in ("1x1", "3x3")]
    return self.torch.cat(wide, 1)

  def classify(self, features):
    return self.pool_globally(self.conv(features, "classifier.1").relu())


_NETWORKS = {ResNet: _ResNet, Chain: _Chain, SqueezeNet: _SqueezeNet}
