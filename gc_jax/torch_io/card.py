"""The model card beside exported weights: what they are, how to load them."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from gc_jax.models import MODELS, is_gmp
from gc_jax.models.network import RGB_MEAN, RGB_STD
from gc_jax.torch_io.files import Metadata
from gc_jax.torch_io.reading import SAFETENSORS

# Results worth a line, where the run has them.
_RESULTS = {
  "val/top1": "top-1",
  "val/f1_per_class": "F1 per class",
  "val/f1_overall": "F1 overall",
  "val/gradcam_elementwise/pointing_game": "pointing game",
  "val/gradcam_elementwise/stochastic_pointing_game_exact": (
    "stochastic pointing game (exact)"
  ),
  "val/gradcam_elementwise/content_heatmap": "content heatmap",
  "val/gradcam_elementwise/negative_quadrants_heatmap": (
    "negative quadrants heatmap (lower is better)"
  ),
}


def loading_code(filename: str, architecture: str, num_classes: int) -> str:
  """Returns PyTorch code that makes the model and loads the weights.

  Args:
    filename: of the weights, `.safetensors` or `.pth`.
    architecture: a key of `models.MODELS`.
    num_classes: K.
  """
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
  metadata: Metadata,
  num_classes: int,
  run: str,
  results: Mapping[str, Any],
) -> str:
  """Returns the card as Markdown.

  Args:
    path: of the weights.
    metadata: what the file says of them.
    num_classes: K.
    run: what was trained, in a sentence.
    results: of the run's final evaluation; may be empty.
  """
  names = metadata.class_names
  classes = "\n".join(f"{i}. {name}" for i, name in enumerate(names))
  measured = "\n".join(
    f"- {label}: {results[key]:.1f}"
    for key, label in _RESULTS.items()
    if results.get(key) is not None
  )
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
