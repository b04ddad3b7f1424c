"""Small workdirs as a finished run leaves them, for the report's tests."""

import json
import pathlib

import numpy as np

from gc_jax.report import gallery


def config(**changes):
  """Returns a resolved configuration; "model__name" changes model.name."""
  tree = {
    "seed": 0,
    "num_epochs": 10.0,
    "batch_size": 128,
    "data": {
      "name": "context_digits",
      "dir": "",
      "image_size": 16,
      "background_frac": 0.5,
      "eval_split": "test",
    },
    "model": {"name": "resnet18"},
    "loss": {"consistency_weight": 25.0, "reduction": "mean"},
    "compose": {"mode": "packed"},
    "eval": {"protocol": "paper", "tolerance_px": 15.0},
  }
  for path, value in changes.items():
    *groups, name = path.split("__")
    node = tree
    for group in groups:
      node = node[group]
    node[name] = value
  return tree


def results(ch=15.0, top1=86.5, **changes):
  """Returns a final evaluation; `ch` sets the element-wise content heatmap."""
  values = {"step": 320, "val/top1": top1, "val/top5": 99.0, "val/loss": 0.41}
  per_method = {
    "gradcam": (62.0, 41.25, 0.4, 41.0, ch - 1, 36.9),
    "gradcam_elementwise": (63.5, 42.25, 0.3, 42.0, ch, 30.1),
    "uniform": (8.0, 20.0, 0.2, 20.1, 8.2, 75.0),
    "center": (12.0, 22.0, 0.2, 22.3, 9.9, 75.0),
  }
  for method, numbers in per_method.items():
    names = (
      "pointing_game",
      "stochastic_pointing_game",
      "stochastic_pointing_game_std",
      "stochastic_pointing_game_exact",
      "content_heatmap",
      "negative_quadrants_heatmap",
    )
    for name, value in zip(names, numbers, strict=True):
      values[f"val/{method}/{name}"] = value
    values[f"val/{method}/zero_map_frac"] = 0.0
  values |= {
    "val/num_examples": 1000,
    "val/num_pairs": 1000,
    "time/train_secs": 166.0,
    "time/eval_secs": 12.0,
    "model/num_params": 4_903_242,
  }
  return values | changes


def metrics(consistency=True):
  """Returns training and evaluation lines."""
  lines = []
  for step in range(20, 321, 20):
    decay = float(np.exp(-step / 100))
    line = {
      "step": step,
      "epoch": step / 32,
      "train/loss": 2.2 * decay + 0.2,
      "train/classification_loss": 2.1 * decay,
      "train/lr": 0.05,
    }
    if consistency:
      line |= {
        "train/consistency_loss": 0.004 * decay,
        "train/consistency_weight": 25.0,
        "train/grad_norm_features/classification": 0.5 * decay,
        "train/grad_norm_features/consistency": 0.05 * decay,
      }
    lines.append(line)
    if step % 80 == 0:
      lines.append(
        {
          "step": step,
          "epoch": step / 32,
          "val/loss": 2.4 * decay + 0.2,
          "val/top1": 90 - 70 * decay,
        }
      )
  return lines


def example(index=7, kind="fixed", content_heatmap=34.25, cell=2):
  """Returns a 16×16 image, its object in the top left, a 4×4 map on it."""
  rng = np.random.default_rng(index)
  image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
  object_mask = np.zeros((16, 16), bool)
  object_mask[2:7, 3:8] = True
  cam = np.zeros((4, 4), np.float32)
  cam[0, 1] = 1.0
  composite_cam = np.zeros((8, 8), np.float32)
  composite_cam[4, 1] = 1.0
  return gallery.GalleryExample(
    index=index,
    kind=kind,
    image=image,
    object_mask=object_mask,
    target=1,
    predicted=2 if kind == "worst" else 1,
    cam=cam,
    content_heatmap=content_heatmap,
    composite=np.tile(image, (2, 2, 1)),
    composite_cam=composite_cam,
    cell=cell,
    negative_quadrants_heatmap=12.5,
  )


def write(
  workdir: pathlib.Path,
  config=None,
  results=None,
  metrics=None,
  examples=None,
):
  """Writes a workdir; what is None stays missing. Returns its path."""
  workdir.mkdir(parents=True)
  for name, value in (("config", config), ("results", results)):
    if value is not None:
      (workdir / f"{name}.json").write_text(json.dumps(value))
  if metrics is not None:
    text = "".join(json.dumps(line) + "\n" for line in metrics)
    (workdir / "metrics.jsonl").write_text(text)
  if examples is not None:
    names = ["zero", "one", "two <&>"]
    gallery.save_gallery(workdir / "gallery.npz", examples, names)
  return workdir


def write_finished(workdir: pathlib.Path, ch=15.0, top1=86.5, **changes):
  """Writes a finished run with a gallery; `changes` as in `config`."""
  tree = config(**changes)
  kinds = ("best", "typical", "worst", "fixed", "fixed")
  examples = [
    example(index, kind, content_heatmap=ch + index)
    for index, kind in enumerate(kinds)
  ]
  return write(
    workdir,
    tree,
    results(ch, top1),
    metrics(tree["loss"]["consistency_weight"] > 0),
    examples,
  )
