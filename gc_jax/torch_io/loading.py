"""How exported weights are loaded: a card's code, and timm's config.json."""

import math
from typing import Any

from gc_jax import models
from gc_jax.models.pixels import RGB_MEAN, RGB_STD
from gc_jax.torch_io.card import Exported
from gc_jax.torch_io.reading import SAFETENSORS

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # names in a folder

# In config.json, as the Hub shows them.
_TIMM, _TORCHVISION, _PYTORCH = "timm", "torchvision", "pytorch"
_FLAX = "flax"

_STATISTICS = ", ".join(f"torch.tensor({[*v]})" for v in (RGB_MEAN, RGB_STD))
USE_CODE = f"""\
mean, std = {_STATISTICS}
logits = model((pictures - mean[:, None, None]) / std[:, None, None])
"""
TIMM_CODE = """\
import timm

# Once it is on the Hub: "hf-hub:YOU/NAME".
model = timm.create_model("local-dir:.", pretrained=True).eval()
"""
_TIMM_PICTURES = """\
import PIL.Image

how = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**how, is_training=False)
picture = PIL.Image.open("photo.jpg").convert("RGB")
logits = model(transform(picture)[None])
"""


def code_by_names(
  filename: str, architecture: str, num_classes: int, image_size: int
) -> str:
  """Returns PyTorch code that makes the model and loads the weights.

  Of an architecture that states no code, it ends with the state dict.
  """
  known = models.find(architecture)
  lines = ["import torch"]
  if filename.endswith(SAFETENSORS):
    lines.append("from safetensors.torch import load_file")
    load = f'load_file("{filename}")'
  else:
    load = f'torch.load("{filename}", weights_only=True)'
  if not known.torch_code:
    return "\n".join([*lines, f"state_dict = {load}"]) + "\n"
  lines += known.torch_code.format(
    num_classes=num_classes, image_size=image_size
  ).splitlines()
  if known.pools_by_maximum:
    lines.append(
      f"model.{known.torch_pooling} = torch.nn.AdaptiveMaxPool2d((1, 1))"
      "  # pools by the global maximum"
    )
  weights = known.torch_weights.format(weights=load, image_size=image_size)
  lines += [f"model.load_state_dict({weights})", "model.eval()"]
  return "\n".join(lines) + "\n"


def codes(exported: Exported, filename: str) -> dict[str, str]:
  """Returns every way to load weights that a card shows: library -> code.

  None where the architecture states no code.
  """
  known = models.find(exported.metadata.architecture)
  found = {}
  if known.timm and filename == WEIGHTS:
    found[_TIMM] = TIMM_CODE
  if known.torch_code:
    found[_of_code(known.torch_code)] = _code(exported, filename)
  return found


def _code(exported: Exported, filename: str) -> str:
  about = exported.metadata
  return code_by_names(
    filename, about.architecture, exported.num_classes, about.image_size
  )


def _of_code(torch_code: str) -> str:
  return _TORCHVISION if _TORCHVISION in torch_code else _PYTORCH


def library(architecture: str) -> str:
  """Returns what loads an exported folder, as the Hub calls it."""
  known = models.find(architecture)
  if known.network.torch_names is None:
    return _FLAX
  return _TIMM if known.timm else _of_code(known.torch_code)


def framework(library: str) -> str:
  """Returns the framework of a library, as the Hub calls it."""
  return "jax" if library == _FLAX else _PYTORCH


def section(exported: Exported, filename: str) -> str:
  """Returns the card's part on loading a file, or the folder it is in."""
  architecture = exported.metadata.architecture
  known = models.find(architecture)
  if known.network.torch_names is None:
    return _own_section(architecture, filename)
  code = _code(exported, filename)
  if not known.torch_code:
    code += "# Make a module with these names and shapes as `model`, then:\n"
    code += "# model.load_state_dict(state_dict)\n"
  by_names = f"""\
## In PyTorch

```python
{code}```

Pictures are RGB in [0, 1], channels first, normalised by ImageNet's statistics:

```python
{USE_CODE}```
"""
  if _TIMM not in codes(exported, filename):
    return by_names
  return f"""\
## In timm

In this folder, or with its path in place of the dot:

```python
{TIMM_CODE}```

A picture file as evaluation read it (turn it upright first, if its EXIF says
so):

```python
{_TIMM_PICTURES}```

The weights have torchvision's names, so that they load without timm too.

{by_names}"""


def _own_section(architecture: str, filename: str) -> str:
  """Returns the card's part on loading a model that a user's function makes."""
  return f"""\
## In JAX

The model is what `{architecture}` makes, a function that this file does not
hold. With it and gc_jax:

```python
import gc_jax

model = gc_jax.load("{filename}", arch="{architecture}")
logits = gc_jax.predict(model, pictures)  # uint8 [B H W 3], RGB
```

Without gc_jax, `safetensors.numpy.load_file("{filename}")` gives the arrays
under the model's own names, in its own layouts. The model takes RGB in [0, 1],
channels last, normalised by ImageNet's statistics.
"""


def timm_config(exported: Exported) -> dict[str, Any]:
  """Returns config.json in timm's conventions.

  Of an architecture that timm lacks it has the same fields; `library` says
  whose `architecture` it is.
  """
  metadata = exported.metadata
  known = models.find(metadata.architecture)
  size, squash = metadata.image_size, exported.trained_with("data.eval_squash")
  config: dict[str, Any] = {
    "architecture": known.timm.name if known.timm else metadata.architecture,
    "num_classes": exported.num_classes,
    "library": library(metadata.architecture),
  }
  if known.torch_pooling:
    config["global_pool"] = "max" if known.pools_by_maximum else "avg"
  if known.timm and known.pools_by_maximum:
    config["model_args"] = {"global_pool": "max"}  # what timm builds by
  if metadata.class_names:
    config["label_names"] = list(metadata.class_names)
  if metadata.multi_label is not None:
    kind = "multi" if metadata.multi_label else "single"
    config["problem_type"] = f"{kind}_label_classification"
  config["pretrained_cfg"] = {
    "input_size": [3, size, size],
    "fixed_input_size": False,
    "interpolation": "bilinear",
    "crop_pct": 1.0 if squash else crop_pct(size, exported.resize_px),
    "crop_mode": "squash" if squash else "center",
    "mean": list(RGB_MEAN),
    "std": list(RGB_STD),
    "num_classes": exported.num_classes,
    "pool_size": list(exported.grid),
  }
  if known.timm:
    config["pretrained_cfg"] |= {
      "first_conv": known.timm.first_conv,
      "classifier": known.timm.classifier,
    }
  if exported.license:
    config["pretrained_cfg"]["license"] = exported.license
  return config


def crop_pct(size: int, resize_px: int) -> float:
  """Returns the share by which timm divides `size` to get `resize_px`.

  timm rounds down, so that the plain ratio may lose a pixel.
  """
  share = size / resize_px
  while math.floor(size / share) < resize_px:
    share = math.nextafter(share, 0)
  return share
