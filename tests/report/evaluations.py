"""Small folders of runs and evaluations, for the report's tests."""

import dataclasses
import json
import pathlib

import numpy as np

from gc_jax.attribution import CONTROLS
from gc_jax.attribution import METHODS as ALL_METHODS
from gc_jax.method.metrics import Key
from gc_jax.report import artefact, gallery
from gc_jax.report.rows import Rows
from gc_jax.runtime import config as saved_config

METHODS = tuple(ALL_METHODS)
STAGES = ("head", "layer4", "layer3/1", "stem")
EPSILONS = (1, 2, 8, 16, 32, 64)
GRADCAMS = ("gradcam_elementwise", "gradcam")
CLASSES = ["zero", "one", "two <&>"]


def config(**changes):
  """Returns an old configuration; "model__name" changes model.name.

  It lacks most fields of today.
  """
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
      node = node.setdefault(group, {})
    node[name] = value
  return tree


def metrics(consistency=True):
  """Returns the lines of metrics.jsonl."""
  lines = []
  for step in range(20, 321, 20):
    decay = float(np.exp(-step / 100))
    line = {"step": step, "epoch": step / 32, "train/lr": 0.05}
    line |= {
      "train/loss": 2.2 * decay + 0.2,
      "train/classification_loss": 2.1 * decay,
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
      val = {"val/loss": 2.4 * decay + 0.2, "val/top1": 90 - 70 * decay}
      lines.append({"step": step, "epoch": step / 32, **val})
  return lines


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
    "settings": {},
    "config": config(),
    "trained": config(),
    "num_images": 1000,
    "num_pairs": 1200,
    "costly_methods": ("integrated_gradients", "smoothgrad"),
    "num_costly_images": 100,
    "num_compilations": 14,
    "secs": 321.0,
  } | changes
  if values["consistency"] is None:  # nobody knows how it was trained
    values["trained"] = {}
  return artefact.About(**values)


def results(methods=METHODS, ch=30.0, multi_label=False, accuracy=86.5):
  """Returns results.json; `ch` is the element-wise content heatmap."""
  if multi_label:
    metric = "f1_overall"
    values = {"f1_per_class": accuracy - 5, "f1_overall": accuracy}
  else:
    metric = "top1"
    ends = {"top1_low": accuracy - 2.1, "top1_high": accuracy + 1.9}
    values = {"top1": accuracy, "top5": 99.0, **ends}
  for epsilon in EPSILONS:
    values[f"fgsm_{epsilon}/{metric}"] = accuracy / (1 + epsilon / 4)
    values[f"fgsm-within_{epsilon}/{metric}"] = accuracy / (1 + epsilon / 2)
    pgd = accuracy / (1 + epsilon)
    values[f"pgd_{epsilon}/{metric}"] = pgd
    values[f"pgd_{epsilon}/{metric}_low"] = 0.0
    values[f"pgd_{epsilon}/{metric}_high"] = pgd + 6.5
  for position, method in enumerate((*methods, *CONTROLS)):
    is_control = method in CONTROLS
    low = 8.0 if is_control else ch - position
    own = {
      "pointing_game": low + 40.25,
      "stochastic_pointing_game": low + 20.5,
      "stochastic_pointing_game_std": 0.125,
      "stochastic_pointing_game_exact": low + 20.75,
      "content_heatmap": low,
      "content_heatmap_low": low - 1.5,
      "content_heatmap_high": low + 1.5,
      "negative_quadrants_heatmap": 75.0 if is_control else 40.0 + position,
      "zero_map_frac": 0.0325 if method == "cmwp" else 0.0,
      "insertion_auc": 40.0 + position,
      "deletion_auc": 20.0 + position,
      "max_box_acc_50": 55.0,
      "max_box_acc_v2": 44.0,
    }
    values |= {f"{method}/{name}": value for name, value in own.items()}
  counts = {"num_examples": 1000, "num_pairs": 1200}
  return {f"val/{name}": value for name, value in (counts | values).items()}


def rows(methods=METHODS, ch=30.0, accuracy=86.5):
  """Returns pairs, two a picture; what is hard is so for every model."""
  ease = np.random.default_rng(0).random(80, np.float32)
  index = np.arange(80) // 2
  right = np.where(np.arange(80) % 2, np.nan, ease < accuracy / 100)
  target = np.arange(80) % 3
  predicted = np.where(right == 1, target, (target + 1) % 3)
  columns = {Key("top1"): np.float32(right)}
  columns[Key("predicted")] = np.float32(
    np.where(np.isnan(right), np.nan, predicted)
  )
  for method in methods:
    for metric in ("pointing_game", "content_heatmap", "zero_map_frac"):
      columns[Key(metric, method)] = np.clip(ease + np.float32(ch) / 100, 0, 1)
  return Rows(index, target, np.array(["a.png"] * 80), columns)


def curves(methods=METHODS):
  """Returns curves; the last method's maps ignore the weights."""
  fractions = [i / 8 for i in range(9)]
  shown = (*methods, *CONTROLS)
  randomization = {method: [0.6, 0.3, 0.1, -0.02] for method in methods}
  randomization |= {method: [0.97, 0.96, 0.95, 0.94] for method in methods[-1:]}
  return artefact.Curves(
    robustness={
      "fgsm": {"0": 86.5, "1": 70.0, "2": 60.0, "8": 30.0, "64": 35.0},
      "fgsm-within": {"0": 86.5, "1": 70.0, "8": 30.0, "64": 5.0},
      "pgd": {"0": 86.5, "1": 60.0, "8": 2.0, "64": 0.0},
    },
    fractions=fractions,
    insertion={m: [0.1 + 0.8 * f for f in fractions] for m in shown},
    deletion={m: [0.9 - 0.8 * f for f in fractions] for m in shown},
    stages=list(STAGES),
    randomization=randomization,
  )


def example(index=7, methods=METHODS, randomized=True):
  """Returns a picture with an object in its top left, and its maps."""
  rng = np.random.default_rng(index)
  object_mask = np.zeros((16, 16), bool)
  object_mask[2:7, 3:8] = True

  def cam(*_):
    values = rng.random((4, 4)).astype(np.float32)
    return values / values.sum()

  return gallery.Example(
    index=index,
    image=rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
    object_mask=object_mask,
    target=1,
    predicted=1 if index % 2 else 2,
    maps={method: cam() for method in (*methods, *CONTROLS)},
    randomized={
      method: {stage: cam() for stage in STAGES}
      for method in methods[: 3 * randomized]
    },
  )


def make(folder: pathlib.Path, ch=30.0, accuracy=86.5, **changes):
  """Returns an evaluation; `changes` are fields of `about`."""
  what = about(**changes)
  scores = results(what.methods, ch, what.multi_label, accuracy)
  own = {
    key.removeprefix("val/"): float(value)
    for key, value in scores.items()
    if "fgsm" not in key and "pgd" not in key
  }
  return artefact.Evaluated(
    folder=folder,
    about=what,
    results=scores,
    per_class={name: dict(own) for name in CLASSES},
    curves=curves(what.methods),
    examples=[
      example(index, what.methods, randomized=index < 2) for index in range(3)
    ],
    class_names=CLASSES,
    rows=rows(what.methods, ch, accuracy),
  )


def write(folder: pathlib.Path, **changes):
  """Writes an evaluation's folder, as `make`; returns its path."""
  artefact.save(make(folder, **changes))
  return folder


def bare(folder: pathlib.Path, **changes):
  """Returns an evaluation of accuracy alone."""
  what = about(methods=(), costly_methods=(), **changes)
  return artefact.Evaluated(
    folder, what, {"val/top1": 80.0, "val/num_examples": 1000}
  )


def run_results(ch=15.0, top1=86.5, **changes):
  """Returns results.json of a run by both Grad-CAMs."""
  values = {
    key: value
    for key, value in results(GRADCAMS, ch, accuracy=top1).items()
    if "fgsm" not in key
    and "pgd" not in key
    and not key.endswith(("_auc", "_50", "_v2"))
  }
  values |= {
    "step": 320,
    "val/loss": 0.41,
    "time/train_secs": 166.0,
    "time/eval_secs": 12.0,
    "model/num_params": 4_903_242,
  }
  return values | changes


def run_example(index=7, kind="fixed", content_heatmap=34.25):
  """Returns a picture as a run shows it: one map, and the composite's."""
  plain = example(index, ())
  cam = np.zeros((4, 4), np.float32)
  composite_cam = np.zeros((8, 8), np.float32)
  cam[0, 1] = composite_cam[4, 1] = 1.0
  method = GRADCAMS[0]
  return dataclasses.replace(
    plain,
    kind=kind,
    predicted=2 if kind == "worst" else 1,
    maps={method: cam},
    composite=np.tile(plain.image, (2, 2, 1)),
    cell=2,
    composite_maps={method: composite_cam},
    scores={
      "content_heatmap": {method: content_heatmap},
      "negative_quadrants_heatmap": {method: 12.5},
    },
  )


def write_run(folder: pathlib.Path, ch=15.0, top1=86.5, **parts):
  """Writes the folder of a finished run; returns its path.

  Args:
    folder: of the run.
    ch: its element-wise content heatmap.
    top1: its accuracy.
    **parts: fields of `Evaluated` in place of those of a finished run; or of
      the configuration, as "model__name".
  """
  changes = {k: parts.pop(k) for k in list(parts) if "__" in k or k == "seed"}
  tree = config(**changes)
  kinds = ("best", "typical", "worst", "fixed", "fixed")
  values = {
    "results": run_results(ch, top1),
    "training": metrics(tree["loss"]["consistency_weight"] > 0),
    "examples": [
      run_example(index, kind, content_heatmap=ch + index)
      for index, kind in enumerate(kinds)
    ],
    "class_names": CLASSES,
    "rows": rows(GRADCAMS, ch, top1),
  } | parts
  what = artefact.make_about(tree, str(folder), values["results"])
  write_unfinished(folder, tree, values["training"])
  artefact.save(artefact.Evaluated(folder, what, is_run=True, **values))
  return folder


def write_unfinished(folder: pathlib.Path, tree, training=()):
  """Writes what a run has before its evaluation; returns its path."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / saved_config.FILENAME).write_text(json.dumps(tree))
  text = "".join(json.dumps(line) + "\n" for line in training)
  if text:
    (folder / "metrics.jsonl").write_text(text)
  return folder


def write_old_run(folder: pathlib.Path, ch=15.0, **changes):
  """Writes a finished run as it was left before evaluation.json was."""
  write_unfinished(folder, config(**changes), metrics())
  (folder / "results.json").write_text(json.dumps(run_results(ch)))
  arrays = {"version": np.array(1), "num_examples": np.array(2)}
  arrays["class_names"] = np.array(CLASSES, np.str_)
  names = ("index", "kind", "image", "object_mask", "target", "predicted")
  for number, kind in enumerate(("best", "fixed")):
    own = run_example(number, kind)
    fields = {
      name: getattr(own, name) for name in (*names, "composite", "cell")
    }
    (fields["cam"],) = own.maps.values()
    (fields["composite_cam"],) = own.composite_maps.values()
    fields |= {name: one[GRADCAMS[0]] for name, one in own.scores.items()}
    for name, value in fields.items():
      arrays[f"{number:03d}/{name}"] = np.asarray(value)
  np.savez_compressed(folder / gallery.FILENAME, **arrays)
  return folder


def write_old(folder: pathlib.Path, **changes):
  """Writes an evaluation as it was left before runs were alike."""
  made = make(folder, **changes)
  artefact.save(made)
  what = json.loads((folder / artefact.ABOUT).read_text())
  del what["trained"], what["questions"]
  (folder / artefact.ABOUT).write_text(json.dumps(what))
  names = ("class_names", "index", "image", "object_mask", "target")
  names += ("predicted", "maps", "randomized")
  with np.load(folder / gallery.FILENAME) as now:
    arrays = {
      key: value
      for key, value in now.items()
      if (key.split("/")[1:] or [key])[0] in names
    }
  np.savez_compressed(folder / "examples.npz", **arrays)
  (folder / gallery.FILENAME).unlink()
  (folder / "rows.npz").unlink()
  return folder
