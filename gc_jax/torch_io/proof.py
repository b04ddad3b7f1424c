"""The proof that exported weights compute in PyTorch what ours do.

`largest_differences` runs them by the operations that the network states
itself: torchvision need not be installed. `difference_by_card` runs a card's
own code where its library is.
"""

import pathlib
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from gc_jax.attribution import METHODS
from gc_jax.method.types import Array
from gc_jax.models.network import Network, context_of
from gc_jax.torch_io import files, loading, pickles

# Both Grad-CAM variants, which differ by what averages the gradient.
_CAMS = ("gradcam", "gradcam_elementwise")
_AFFINE = ("weight", "bias")
_NOT_HERE = 77  # exit status of a script whose libraries are not there


def check_verifiable(model: Network) -> None:
  """Raises ValueError if a network states no forward pass in PyTorch."""
  if not hasattr(model, "torch_features"):
    raise ValueError(
      "--verify must know the network's forward pass in PyTorch; "
      f"{type(model).__name__} has no torch_features and torch_classify. Leave "
      "it out, and compare the logits in PyTorch yourself; or verify "
      "--format=stablehlo, which every network has."
    )


def largest_differences(
  path: pathlib.Path,
  model: Network,
  images: UInt8[np.ndarray, "B H W 3"],
) -> dict[str, float]:
  """Returns how far PyTorch's results are from ours, at most.

  Of `logits`, `gradcam` and `gradcam_elementwise`, maps of the predicted class:
  the largest absolute difference over all images, divided by the largest
  absolute value. `path` is what `save_model` wrote of the model.
  """
  torch = pickles.import_torch(f"To verify {path}")
  content, _ = files.read(path)
  ours = _ours(model, images)
  target = ours["logits"].argmax(-1)
  theirs = _theirs(Operations(torch, content.arrays), model, images, target)
  return {name: difference(ours[name], their) for name, their in theirs.items()}


def difference_by_card(
  code: str,
  folder: pathlib.Path,
  model: Network,
  images: UInt8[np.ndarray, "B H W 3"],
) -> float | str:
  """Returns how far the logits are that a card's own code gives.

  It runs in a fresh process in the folder, as a reader of the card would.
  Returns why not, where what it imports is not there.

  Raises:
    RuntimeError: the code fails.
  """
  lines = [n for n in code.splitlines() if n.startswith(("import", "from"))]
  imports = "\n".join(lines)
  script = f"""\
import sys
import numpy as np
import torch
try:
{textwrap.indent(imports, "  ")}
except Exception as error:  # not installed, or built for another PyTorch
  print(f"{{type(error).__name__}}: {{error}}")
  sys.exit({_NOT_HERE})
given, result = sys.argv[1:]
pictures = torch.from_numpy(np.load(given)["pictures"])
{code}
with torch.no_grad():
{textwrap.indent(loading.USE_CODE, "  ")}
np.savez(result, logits=logits.numpy())
"""
  pictures = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
  found = run_alone(script, folder, {"pictures": pictures / 255})
  if isinstance(found, str):
    return found
  ours = _ours(model, images)["logits"]
  return difference(ours, found["logits"])


def run_alone(
  script: str, folder: pathlib.Path, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | str:
  """Runs a script in a fresh process, which gets arrays and leaves arrays.

  Its arguments are two .npz files: what it gets, and what it is to write. It
  may exit with `_NOT_HERE`: then what it printed is returned.

  Raises:
    RuntimeError: it failed.
  """
  with tempfile.TemporaryDirectory() as scratch:
    given, result = (f"{scratch}/{name}.npz" for name in ("given", "result"))
    np.savez(given, **arrays)
    # -P: nothing is imported from the folder.
    command = [sys.executable, "-P", "-c", script, given, result]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode == _NOT_HERE:
      return done.stdout.strip()
    if done.returncode:
      raise RuntimeError(done.stderr.strip())
    with np.load(result) as found:
      return dict(found)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
  """Returns the largest absolute difference over the largest value."""
  largest = float(np.abs(theirs).max()) or 1.0
  return float(np.abs(ours - theirs).max()) / largest


def _ours(model: Network, images: Array) -> dict[str, np.ndarray]:
  graphdef, state = nnx.split(model)

  @jax.jit
  def run(state, images):
    model = nnx.merge(graphdef, state, copy=True)
    model.eval()
    logits = model.classify(model.features(model.normalize(images)))
    target = jnp.argmax(logits, -1, keepdims=True)
    cams = {name: METHODS[name](model, images, target)[:, 0] for name in _CAMS}
    return {"logits": logits, **cams}

  # PyTorch multiplies in float32; accelerators would not, unless told to.
  with jax.default_matmul_precision("highest"):
    return jax.tree.map(np.asarray, run(state, images))


def _theirs(
  ops: "Operations", model: Network, images: Array, target: np.ndarray
) -> dict[str, np.ndarray]:
  torch = ops.torch
  # Copies: jax lends arrays that cannot be written to, and PyTorch warns.
  normalized = np.array(model.normalize(jnp.asarray(images)), np.float32)
  inputs = torch.from_numpy(normalized).permute(0, 3, 1, 2)
  with torch.no_grad():
    features = model.torch_features(ops, inputs)
  features = features.detach().requires_grad_()
  logits = model.torch_classify(ops, features)
  chosen = logits[torch.arange(len(target)), torch.from_numpy(target)]
  (gradient,) = torch.autograd.grad(chosen.sum(), features)
  explained = features.shape[1] - context_of(model)
  features, gradient = features[:, :explained], gradient[:, :explained]
  channel = gradient.mean((2, 3), keepdim=True)
  tensors = {
    "logits": logits,
    "gradcam": (channel * features).sum(1).relu(),
    "gradcam_elementwise": (gradient * features).sum(1).relu(),
  }
  return {name: x.detach().numpy() for name, x in tensors.items()}


class Operations:
  """PyTorch's layers, named by keys of a state dict, in evaluation mode."""

  def __init__(self, torch: Any, arrays: Mapping[str, np.ndarray]):
    self.torch = torch
    self._f = torch.nn.functional
    self._weights = {
      key: torch.from_numpy(array.copy()) for key, array in arrays.items()
    }

  def weight(self, key: str):
    """Returns a tensor of the state dict."""
    return self._weights[key]

  def conv(
    self,
    x,
    name: str,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
  ):
    """Convolves; padding None = (kernel_size - 1) / 2."""
    kernel = self._weights[f"{name}.weight"]
    bias = self._weights.get(f"{name}.bias")
    if padding is None:
      padding = (kernel.shape[-1] - 1) // 2
    return self._f.conv2d(x, kernel, bias, stride, padding, groups=groups)

  def norm(self, x, name: str):
    """Normalises by running statistics."""
    parts = ("running_mean", "running_var", "weight", "bias")
    return self._f.batch_norm(x, *(self._weights[f"{name}.{p}"] for p in parts))

  def layer_norm(self, x, name: str):
    """Normalises over the last axis."""
    weight, bias = self._affine(name)
    return self._f.layer_norm(x, weight.shape, weight, bias, eps=1e-6)

  def linear(self, x, name: str):
    """Applies a dense layer."""
    return self._f.linear(x, *self._affine(name))

  def gelu(self, x):
    """Applies the exact GELU."""
    return self._f.gelu(x)

  def attention(self, x, name: str, num_heads: int):
    """Applies the self-attention of nn.MultiheadAttention to `[B n D]`."""
    weight, bias = (self._weights[f"{name}.in_proj_{p}"] for p in _AFFINE)
    projected = self._f.linear(x, weight, bias).chunk(3, -1)
    in_heads = [each.unflatten(-1, (num_heads, -1)) for each in projected]
    found = self._f.scaled_dot_product_attention(
      *(each.transpose(1, 2) for each in in_heads)
    )
    return self.linear(found.transpose(1, 2).flatten(2), f"{name}.out_proj")

  def tokens(self, first, cells):
    """Returns `[B n D]` tokens and those of a grid `[B D h w]`."""
    return self.torch.cat([first, cells.flatten(2).mT], 1)

  def positions(self, key: str, side: int, grid):
    """Returns embeddings of a class token and of a grid's cells, `[1 n D]`.

    They are saved for a grid of `side` times `side` cells.
    """
    token, cells = self._weights[key].split([1, side**2], 1)
    square = cells.mT.unflatten(-1, (side, side))
    square = self._f.interpolate(
      square, tuple(grid), mode="bicubic", align_corners=True
    )
    return self.tokens(token, square)

  def _affine(self, name: str):
    return [self._weights[f"{name}.{part}"] for part in _AFFINE]

  def max_pool(self, x, window, stride, padding=0, partial_windows=False):
    """Pools by the maximum; `partial_windows` pools those at the edge, too."""
    return self._f.max_pool2d(
      x, window, stride, padding, ceil_mode=partial_windows
    )

  def pool_globally(self, x, pooling: str):
    """Returns the "max" or the "average" of each channel, `[B D]`."""
    if pooling == "max":
      return self._f.adaptive_max_pool2d(x, 1).flatten(1)
    return x.mean((2, 3))

  def average_to_grid(self, x, side: int):
    """Returns averages of side x side cells, flattened with channels first."""
    return self._f.adaptive_avg_pool2d(x, (side, side)).flatten(1)

  def concatenate(self, parts):
    """Joins channels."""
    return self.torch.cat(parts, 1)
