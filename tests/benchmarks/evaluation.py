"""Times the metrics of an evaluation, beside the maps and beside the plain way.

  python -m tests.benchmarks.evaluation

Pictures are context digits (digits on photographs, with masks) of 448 pixels,
the model a ResNet18 that was not trained. Three things are measured:

- `overhead`: a pass of the evaluation as it is, against the same pass without
  annotations and metrics: forward pass and Grad-CAM alone;
- `plain`: the metrics alone, against one picture after the other, each map
  enlarged and each of 5 x 100 points given a distance map of its own. Both must
  find the same, or the benchmark ends with an error;
- `memory`: what the process holds after a pass over N and over 4 N rows.

Ratios are of one run, taken in turns.
"""

import argparse
import dataclasses
import json
import statistics
import sys

import cv2
import jax
import numpy as np

from configs import base
from gc_jax import data, models
from gc_jax.data import geometry
from gc_jax.data import pairs as pair_rows
from gc_jax.evaluation import localisation, summary
from gc_jax.evaluation import plan as plans
from gc_jax.evaluation.ledger import Ledger, Measured
from gc_jax.method.metrics import GridAnnotation, Key
from gc_jax.runtime import parallel
from tests.benchmarks import measuring

_METHODS = ("gradcam",)
_RUNS, _SAMPLES = 5, 100
_TOLERANCE_PX = 15.0


def main() -> None:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--num_images", type=int, default=64)
  parser.add_argument("--image_size", type=int, default=448)
  parser.add_argument("--batch_size", type=int, default=16)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--rows", type=int, default=2_000, help="N of `memory`")
  arguments = parser.parse_args()
  mesh = parallel.make_mesh()
  with jax.set_mesh(mesh):
    planner = _planner(arguments.image_size, arguments.batch_size, mesh)
    rows = np.arange(arguments.num_images)
    found = {
      "device": parallel.describe(),
      "overhead": _overhead(planner, rows, mesh, arguments.rounds),
      "plain": _plain(planner, rows, mesh, arguments.rounds),
      "memory": _memory(arguments.rows, mesh),
    }
  print(json.dumps(found, indent=2))


def _planner(image_size, batch_size, mesh) -> plans.Planner:
  config = base.get_config()
  config.data.image_size = image_size
  config.eval.batch_size = batch_size
  config.eval.tolerance_px = _TOLERANCE_PX * 224 / image_size
  dataset = data.load(config.data, config.data.eval_split)
  model = models.create(
    "resnet18", len(dataset.class_names), key=models.init_key(0)
  )
  model.eval()
  return plans.Planner(
    parallel.on_all_devices(model, mesh), dataset, config, mesh
  )


def _settings(num_resamples):
  settings = base.get_config().eval
  settings.spg_samples, settings.spg_runs = _SAMPLES, _RUNS
  settings.num_resamples = num_resamples
  return settings


def _overhead(planner, rows, mesh, rounds):
  (one, *_) = planner.passes(("localisation",), _METHODS)
  one = dataclasses.replace(one, rows=rows)

  # A number of each map, so that somebody waits for it.
  sums = jax.jit(lambda cams: {k: v.sum((1, 2)) for k, v in cams.items()})

  def maps_alone(call, batch):
    _, cams, _ = call(localisation.maps, *planner.graph, batch, _METHODS)
    return Measured(call(sums, cams), {}, {})

  bare = dataclasses.replace(one, maker=planner.square, step=maps_alone)

  def run(which):
    ledger = Ledger(len(planner.pairs.index))
    for _ in plans.run([which], planner, ledger):
      pass
    if which is one:
      settings = _settings(num_resamples=1_000)
      summary.summarize(ledger.columns, planner.pairs, settings)

  return _compare(
    {"maps": lambda: run(bare), "maps_and_metrics": lambda: run(one)}, rounds
  )


def _plain(planner, rows, mesh, rounds):
  square = planner.with_objects
  maps, masks = [], []
  for share in pair_rows.batches(planner.pairs, rows, square, mesh.size * 8):
    batch = parallel.to_devices(share.batch, mesh)
    _, cams, _ = localisation.maps(*planner.graph, batch, _METHODS)
    real = share.batch["row"] >= 0
    maps.append(np.asarray(cams[_METHODS[0]])[real])
    masks.append(share.batch["object_mask"][real])
  maps, masks = np.concatenate(maps), np.concatenate(masks)
  located = jax.jit(localisation.on_objects)
  settings = _settings(num_resamples=0)
  ones = np.ones(len(maps), np.float32)
  results = {}

  def ours():
    grid = maps.shape[1:]
    annotations = [
      geometry.on_grid(mask, geometry.dilate(mask, _TOLERANCE_PX), grid)
      for mask in masks
    ]
    batch = {
      "mask": ones,
      "target_mask": ones,
      "annotated": ones,
      "difficult": 0 * ones,
      "annotations": {
        geometry.grid_name(grid): GridAnnotation(
          *map(np.stack, zip(*annotations, strict=True))
        )
      },
    }
    columns = jax.device_get(located({_METHODS[0]: maps}, batch))
    key = Key("stochastic_pointing_game_exact", _METHODS[0])
    sample = columns[key].astype(np.float64)
    results["ours"] = columns
    results["ours_spg"] = summary.stochastic_runs(sample, settings)

  def plain():
    results["plain"] = [
      _one_by_one(cam, mask, np.random.default_rng(i))
      for i, (cam, mask) in enumerate(zip(maps, masks, strict=True))
    ]

  found = _compare({"ours": ours, "plain": plain}, rounds)
  _check_agree(results)
  return found


def _compare(runs, rounds):
  """Returns the median seconds, and how many times as long the second takes."""
  secs = measuring.in_turns(
    {name: measuring.repeated(run) for name, run in runs.items()}, rounds
  )
  first, second = secs.values()
  return {
    "ratio": measuring.ratio(second, first),
    "secs": {name: statistics.median(values) for name, values in secs.items()},
  }


def _one_by_one(cam, mask, random):
  """Returns pointing game, content heatmap and the share of points that hit."""
  height, width = mask.shape
  enlarged = cv2.resize(cam, (width, height), interpolation=cv2.INTER_LINEAR)
  y, x = np.mgrid[:height, :width]

  def hits(place):
    row, column = divmod(int(place), width)
    distance = np.sqrt((y - row) ** 2 + (x - column) ** 2)
    return bool((mask & (distance < _TOLERANCE_PX)).any())

  flat = enlarged.ravel().astype(np.float64)
  share = flat / flat.sum()
  points = random.choice(len(flat), _RUNS * _SAMPLES, p=share)
  return (
    hits(flat.argmax()),
    float((share * mask.ravel()).sum()),
    float(np.mean([hits(point) for point in points])),
  )


def _check_agree(results):
  pointing, content, stochastic = map(
    np.asarray, zip(*results["plain"], strict=True)
  )
  columns = results["ours"]
  name = _METHODS[0]
  exact = columns[Key("stochastic_pointing_game_exact", name)]
  error = np.sqrt((exact * (1 - exact)).sum() / (_RUNS * _SAMPLES))
  apart = {
    "content_heatmap": np.abs(columns[Key("content_heatmap", name)] - content)
    .max()
    .item(),
    "stochastic_pointing_game": abs((exact - stochastic).sum().item()),
    "pointing_game": np.abs(columns[Key("pointing_game", name)] - pointing)
    .sum()
    .item(),
  }
  bounds = (1e-5, 4 * error + 1e-3, 0)
  if any(a > b for a, b in zip(apart.values(), bounds, strict=True)):
    sys.exit(f"The two ways differ by {apart}, more than {bounds}.")


def _memory(num_rows, mesh):
  planner = _planner(64, 100, mesh)
  (one, *_) = planner.passes(("localisation",), _METHODS)
  held = {}
  for count in (num_rows, num_rows, 4 * num_rows):  # the first one warms up
    rows = np.arange(count) % len(planner.pairs.index)
    ledger = Ledger(count)
    on_rows = dataclasses.replace(one, rows=rows)
    for _ in plans.run([on_rows], planner, ledger):
      pass
    held[count] = measuring.resident_bytes() / 2**20
  more = held[4 * num_rows] - held[num_rows]
  return {
    "held_mib": held,
    "more_mib_per_1000_rows": more / (3 * num_rows / 1_000),
    "ledger_bytes_per_row": 4 * len(ledger.columns),
  }


if __name__ == "__main__":
  main()
