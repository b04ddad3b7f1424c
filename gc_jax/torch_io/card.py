"""What goes with exported weights: the model card, and the proof.

The card tells people how to load the file in PyTorch. The proof runs the file
there, by the operations that the network states itself: torchvision need not be
installed.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from gc_jax.attribution import METHODS
from gc_jax.method.metrics import METRICS, Key
from gc_jax.method.types import Array
from gc_jax.models import MODELS, is_gmp
from gc_jax.models.network import RGB_MEAN, RGB_STD, Network
from gc_jax.torch_io import files, pickles
from gc_jax.torch_io.reading import SAFETENSORS

# Both Grad-CAM variants, which differ by what averages the gradient.
_CAMS = ("gradcam", "gradcam_elementwise")


def loading_code(filename: str, architecture: str, num_classes: int) -> str:
  """Returns PyTorch code that makes the model and loads the weights."""
  known = MODELS[architecture]
  lines = ["import torch"]
  if filename.endswith(SAFETENSORS):
    lines.append("from safetensors.torch import load_file")
    load = f'load_file("{filename}")'
  else:
    load = f'torch.load("{filename}", weights_only=True)'
  lines += known.torch_code.format(num_classes=num_classes).splitlines()
  if is_gmp(architecture):
    lines.append(
      f"model.{known.torch_pooling} = torch.nn.AdaptiveMaxPool2d((1, 1))"
      "  # pools by the global maximum"
    )
  lines += [f"model.load_state_dict({load})", "model.eval()"]
  return "\n".join(lines) + "\n"


def model_card(
  path: pathlib.Path,
  metadata: files.Metadata,
  num_classes: int,
  run: str,
  results: Mapping[str, Any],
) -> str:
  """Returns the card of the weights at `path`, as Markdown.

  `run` says in a sentence what was trained; the results of its final evaluation
  may be empty.
  """
  names = metadata.class_names
  classes = "\n".join(f"{i}. {name}" for i, name in enumerate(names))
  lines = []
  for name, metric in METRICS.items():
    method = "gradcam_elementwise" if metric.is_of_maps else ""
    value = results.get(f"val/{Key(name, method).name}")
    if value is not None and metric.unit == "percent":
      worse = "" if metric.higher_is_better else "; lower is better"
      line = f"- {metric.title}: {value:.1f} ({metric.meaning}{worse})"
      lines.append(line)
  measured = "\n".join(lines)
  mean, std = (json.dumps(values) for values in (RGB_MEAN, RGB_STD))
  return f"""\
# {path.name}

{run}

Trained by gc_jax. Configuration (SHA-256): `{metadata.config_digest}`.

## In PyTorch

```python
{loading_code(path.name, metadata.architecture, num_classes)}```

Pictures are RGB in [0, 1], channels first, normalised by ImageNet's statistics:

```python
mean, std = torch.tensor({mean}), torch.tensor({std})
logits = model((pictures - mean[:, None, None]) / std[:, None, None])
```

## Results

Of the run's final evaluation, in percent; maps by element-wise Grad-CAM.

{measured or "None yet."}

## Classes

{classes or f"{num_classes}, without names."}
"""


def check_verifiable(model: Network) -> None:
  """Raises ValueError if a network states no forward pass in PyTorch."""
  if not hasattr(model, "torch_features"):
    raise ValueError(
      "--verify must know the network's forward pass in PyTorch; "
      f"{type(model).__name__} has no torch_features and torch_classify. Leave "
      "it out, and compare the logits in PyTorch yourself."
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
  return {
    name: float(np.abs(ours[name] - their).max() / (np.abs(their).max() or 1.0))
    for name, their in theirs.items()
  }


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

  def conv(self, x, name: str, stride: int = 1, padding: int | None = None):
    """Convolves; padding None = (kernel_size - 1) / 2."""
    kernel = self._weights[f"{name}.weight"]
    bias = self._weights.get(f"{name}.bias")
    if padding is None:
      padding = (kernel.shape[-1] - 1) // 2
    return self._f.conv2d(x, kernel, bias, stride, padding)

  def norm(self, x, name: str):
    """Normalises by running statistics."""
    parts = ("running_mean", "running_var", "weight", "bias")
    return self._f.batch_norm(x, *(self._weights[f"{name}.{p}"] for p in parts))

  def linear(self, x, name: str):
    """Applies a dense layer."""
    weight, bias = (self._weights[f"{name}.{p}"] for p in ("weight", "bias"))
    return self._f.linear(x, weight, bias)

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
