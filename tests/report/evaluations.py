"""Small folders as gc_jax.evaluate leaves them, for the report's tests."""

import dataclasses
import pathlib

import numpy as np

from gc_jax.report import evaluated
from tests.report import workdirs

METHODS = (
  "gradcam_elementwise",
  "gradcam",
  "gradcam_plus_plus",
  "layercam",
  "cmwp",
  "excitation_backprop",
  "fullgrad",
  "input_gradients",
  "integrated_gradients",
  "smoothgrad",
)
CONTROLS = ("uniform", "center")
STAGES = ("head", "layer4", "layer3/1", "stem")
EPSILONS = (1, 2, 8, 16, 32, 64)


def about(**changes):
  """Returns what was evaluated: a ResNet18 with GC on context digits."""
  values = {
    "source": "runs/gc",
    "architecture": "resnet18",
    "consistency": True,
    "data_name": "context_digits",
    "split": "test",
    "multi_label": False,
    "protocol": "paper",
    "methods": METHODS,
    "settings": {"tolerance_px": 15.0, "epsilons": EPSILONS},
    "config": workdirs.config(model__name="resnet18"),
    "num_images": 1000,
    "costly_methods": ("integrated_gradients", "smoothgrad"),
    "num_costly_images": 100,
    "num_compilations": 14,
    "secs": 321.0,
  }
  return evaluated.About(**values | changes)


def results(methods=METHODS, ch=30.0, multi_label=False, accuracy=86.5):
  """Returns results.json; `ch` is the element-wise content heatmap."""
  values = {"val/num_examples": 1000, "val/num_pairs": 1200}
  if multi_label:
    values |= {"val/f1_per_class": accuracy - 5, "val/f1_overall": accuracy}
  else:
    values |= {"val/top1": accuracy, "val/top5": 99.0}
    values |= {
      "val/top1_low": accuracy - 2.1,
      "val/top1_high": accuracy + 1.9,
    }
  metric = "f1_overall" if multi_label else "top1"
  for epsilon in EPSILONS:
    values[f"val/fgsm_{epsilon}/{metric}"] = accuracy / (1 + epsilon / 4)
    values[f"val/fgsm-within_{epsilon}/{metric}"] = accuracy / (1 + epsilon / 2)
    attacked = f"val/pgd_{epsilon}/{metric}"
    values[attacked] = accuracy / (1 + epsilon)
    values[f"{attacked}_low"] = 0.0
    values[f"{attacked}_high"] = values[attacked] + 6.5
  for position, method in enumerate((*methods, *CONTROLS)):
    low = 8.0 if method in CONTROLS else ch - position
    start = f"val/{method}"
    values |= {
      f"{start}/pointing_game": low + 40.25,
      f"{start}/stochastic_pointing_game": low + 20.5,
      f"{start}/stochastic_pointing_game_std": 0.125,
      f"{start}/stochastic_pointing_game_exact": low + 20.75,
      f"{start}/content_heatmap": low,
      f"{start}/content_heatmap_low": low - 1.5,
      f"{start}/content_heatmap_high": low + 1.5,
      f"{start}/negative_quadrants_heatmap": (
        75.0 if method in CONTROLS else 40.0 + position
      ),
      f"{start}/zero_map_frac": 0.0325 if method == "cmwp" else 0.0,
      f"{start}/insertion_auc": 40.0 + position,
      f"{start}/deletion_auc": 20.0 + position,
      f"{start}/max_box_acc_50": 55.0,
      f"{start}/max_box_acc_v2": 44.0,
      f"{start}/num_pairs": 1200,
    }
  return values


def curves(methods=METHODS):
  """Returns curves; the last method's maps ignore the weights."""
  fractions = [i / 8 for i in range(9)]
  shown = (*methods, *CONTROLS)
  return evaluated.Curves(
    robustness={
      "fgsm": {"0": 86.5, "1": 70.0, "8": 30.0, "64": 35.0},
      "fgsm-within": {"0": 86.5, "1": 70.0, "8": 30.0, "64": 5.0},
      "pgd": {"0": 86.5, "1": 60.0, "8": 2.0, "64": 0.0},
    },
    fractions=fractions,
    insertion={m: [0.1 + 0.8 * f for f in fractions] for m in shown},
    deletion={m: [0.9 - 0.8 * f for f in fractions] for m in shown},
    stages=list(STAGES),
    randomization={
      method: [0.97, 0.96, 0.95, 0.94]
      if method == methods[-1]
      else [0.6, 0.3, 0.1, -0.02]
      for method in methods
    },
  )


def example(index=7, methods=METHODS, randomized=True, size=16):
  """Returns a picture with an object in its top left, and its maps."""
  rng = np.random.default_rng(index)
  object_mask = np.zeros((size, size), bool)
  object_mask[2:7, 3:8] = True

  def cam(cells):
    values = rng.random((cells, cells)).astype(np.float32)
    return values / values.sum()

  return evaluated.Example(
    index=index,
    image=rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
    object_mask=object_mask,
    target=1,
    predicted=1 if index % 2 else 2,
    maps={method: cam(4) for method in (*methods, *CONTROLS)},
    randomized={
      method: {stage: cam(4) for stage in STAGES} for method in methods[:3]
    }
    if randomized
    else {},
  )


def make(folder: pathlib.Path, ch=30.0, accuracy=86.5, **changes):
  """Returns an evaluation; `changes` are fields of `about`."""
  what = about(**changes)
  names = ["zero", "one", "two <&>"]
  scores = results(what.methods, ch, what.multi_label, accuracy)
  return evaluated.Evaluated(
    folder=folder,
    about=what,
    results=scores,
    per_class={
      name: {
        key: float(value)
        for key, value in scores.items()
        if "fgsm" not in key and "pgd" not in key
      }
      for name in names
    },
    curves=curves(what.methods),
    examples=[
      example(index, what.methods, randomized=index < 2) for index in range(3)
    ],
    class_names=names,
  )


def write(folder: pathlib.Path, **changes):
  """Writes an evaluation's folder, as `make`; returns its path."""
  evaluated.save(make(folder, **changes))
  return folder


def bare(folder: pathlib.Path, **changes):
  """Returns an evaluation of accuracy alone."""
  return dataclasses.replace(
    make(folder, methods=(), costly_methods=(), **changes),
    results={"val/top1": 80.0, "val/num_examples": 1000},
    per_class={},
    curves=evaluated.Curves(),
    examples=[],
    class_names=[],
  )
