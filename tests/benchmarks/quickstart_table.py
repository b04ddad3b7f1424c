"""The tables of results: variants of a recipe over several seeds.

  python -m tests.benchmarks.quickstart_table --out=runs/quickstart_table
  python -m tests.benchmarks.quickstart_table --out=runs/objects \
    --rows objects_ce objects_gc

The first is the quickstart's, the second that of photographed objects by a
network fine-tuned from ImageNet.

Trains what is not trained yet (run again, it continues), then compares. Prints
JSON: mean and sample standard deviation of each metric by variant, and for
each seed what GC, GMP+GC and energy changed against their plain counterparts.
The comparison in OUT/comparison has intervals.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

from gc_jax.report import artefact
from gc_jax.report import rows as pair_rows
from tests.benchmarks import experiments

METHOD = "val/gradcam_elementwise"
METRICS = {
  "top1": "val/top1",
  "pointing_game": f"{METHOD}/pointing_game",
  "stochastic_pointing_game_exact": (
    f"{METHOD}/stochastic_pointing_game_exact"
  ),
  "content_heatmap": f"{METHOD}/content_heatmap",
  "negative_quadrants_heatmap": f"{METHOD}/negative_quadrants_heatmap",
  "train_secs": "time/train_secs",
}
ROWS = {
  "ce": ["--config=configs/quickstart.py:ce"],
  "gc": ["--config=configs/quickstart.py:gc"],
  "gmp": ["--config=configs/quickstart.py:gmp"],
  "gmp_gc": ["--config=configs/quickstart.py:gmp_gc"],
  "energy": ["--config=configs/quickstart.py:energy"],
  "gc_independent": [
    "--config=configs/quickstart.py:gc",
    "--config.compose.mode=independent",
  ],
}
QUICKSTART = tuple(ROWS)
ROWS |= {
  f"objects_{row}": [f"--config=configs/context.py:objects_{row},finetune"]
  for row in ("ce", "gc")
}
PAIRS = (
  ("gc", "ce"),
  ("gmp_gc", "gmp"),
  ("energy", "ce"),
  ("gc_independent", "ce"),
  ("objects_gc", "objects_ce"),
)


def main() -> None:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--rows", nargs="+", choices=ROWS, default=QUICKSTART)
  parser.add_argument(
    "--reference",
    type=Path,
    help="folder to keep the first plain run in, as the quickstart's baseline",
  )
  arguments = parser.parse_args()

  results = {}
  for seed in arguments.seeds:
    for row in arguments.rows:
      results[row, seed] = experiments.trained(
        arguments.out / f"{row}_{seed}", [*ROWS[row], f"--config.seed={seed}"]
      )

  rows = {
    row: {
      name: experiments.spread([results[row, s][key] for s in arguments.seeds])
      for name, key in METRICS.items()
    }
    for row in arguments.rows
  }
  changes = {
    f"{row}/{plain}": {
      seed: {
        "top1_points": results[row, seed]["val/top1"]
        - results[plain, seed]["val/top1"],
        **{
          f"{name}_ratio": results[row, seed][METRICS[name]]
          / results[plain, seed][METRICS[name]]
          for name in list(METRICS)[2:]
        },
      }
      for seed in arguments.seeds
    }
    for row, plain in PAIRS
    if row in arguments.rows and plain in arguments.rows
  }
  print(json.dumps({"rows": rows, "changes": changes}, indent=2))
  if arguments.reference:
    _keep(arguments.out / f"ce_{arguments.seeds[0]}", arguments.reference)
  workdirs = [
    arguments.out / f"{row}_{seed}"
    for row in arguments.rows
    for seed in arguments.seeds
  ]
  subprocess.run(
    [
      sys.executable,
      "-m",
      "gc_jax.compare",
      *map(str, workdirs),
      f"--out={arguments.out / 'comparison'}",
    ],
    check=True,
  )


def _keep(workdir: Path, folder: Path) -> None:
  """Copies what a report needs of its baseline, and no more."""
  folder.mkdir(parents=True, exist_ok=True)
  for name in ("config.json", pair_rows.FILENAME):
    shutil.copy(workdir / name, folder / name)
  run = artefact.load(workdir)
  fixed = [example for example in run.examples if example.kind == "fixed"]
  artefact.save(dataclasses.replace(run, folder=folder, examples=fixed))


if __name__ == "__main__":
  main()
