"""The paper's tables in small, and the questions that it leaves open.

  python -m tests.benchmarks.miniature --out=runs/miniature --small

Trains every variant of configs/miniature.py over five seeds, then what the open
questions need over three, one run at a time, three to five minutes each on two
idle cores. Stop it whenever you like, and run it again to continue; what is
finished is never made again. The most telling runs come first. `--small` leaves
of each finished run what tables and tests need, without its weights; `--list`
shows what is done, and makes nothing; `--cells` takes some of them:

  python -m tests.benchmarks.miniature --out=runs/miniature --small \
    --cells 'digits-resnet-*' --seeds 0
"""

import argparse
import fnmatch
import sys
from pathlib import Path

from configs import miniature
from tests.benchmarks import experiments
from tests.benchmarks.experiments import Experiment

SEEDS = 5
SEEDS_OF_QUESTIONS = 3
# In the order of importance.
_ARCHITECTURES = ("resnet", "bottleneck", "alexnet")
_SETS = ("digits", "objects", "fashion", "multi")
CELLS = tuple(
  f"{pictures}-{architecture}-{row}"
  for architecture in _ARCHITECTURES
  for pictures in _SETS
  for row in miniature.ROWS[architecture]
)
_COMPOSITE_CELLS = 16**2  # of the ResNets' features, 128 pixels


def _digits(row: str, **fields) -> tuple[str, dict]:
  return f"digits-resnet-{row}", fields


# What the paper leaves open: name -> variant, and the fields that are changed.
# The fields are below `config`, "__" for a dot.
QUESTIONS: dict[str, tuple[str, dict]] = {
  # packed against independent
  "digits-independent": _digits("gc", compose__mode="independent"),
  "objects-independent": (
    "objects-resnet-gc",
    {"compose__mode": "independent"},
  ),
  # λ, and its ramp
  "digits-lambda10": _digits("gc", loss__consistency_weight=10.0),
  "digits-lambda25": _digits("gc", loss__consistency_weight=25.0),
  "digits-lambda150": _digits("gc", loss__consistency_weight=150.0),
  "digits-lambda300": _digits("gc", loss__consistency_weight=300.0),
  "digits-ramp0": _digits("gc", loss__ramp_epochs=0.0),
  "digits-ramp90": _digits("gc", loss__ramp_epochs=9.0),
  # mean against sum: the same weight of a cell, and the paper's λ literally
  "digits-sum": _digits(
    "gc",
    loss__reduction="sum",
    loss__consistency_weight=75.0 / _COMPOSITE_CELLS,
  ),
  "digits-sum1": _digits(
    "gc", loss__reduction="sum", loss__consistency_weight=1.0
  ),
  # stop-gradient
  "digits-stop": _digits("gc", loss__stop_gradient=True),
  # how often the background follows the class; 0.5 is the variants' own
  **{
    f"digits-{row}-background{percent}": _digits(
      row, data__background_frac=percent / 100
    )
    for percent in (0, 90)
    for row in ("ce", "gc")
  },
  # Why GMP+GC gains less than in the paper. These are chosen among, so they are
  # tested on the validation split.
  **{
    f"digits-{row}-{how}": _digits(row, data__eval_split="validation", **fields)
    for how, rows in {
      "tried": {"gmp": {}, "gmp_gc": {}},
      "lambda5": {"gmp_gc": {"loss__consistency_weight": 5.0}},
      "lambda100": {"gmp_gc": {"loss__consistency_weight": 100.0}},
      "ramp0": {"gmp_gc": {"loss__ramp_epochs": 0.0}},
      # An earlier trial's, which had the gain: 16 epochs of lr 0.01.
      "slow": {
        row: {
          "num_epochs": 16.0,
          "optim__lr_per_256": 0.16,
          "optim__warmup_epochs": 2.0,
          "loss__ramp_epochs": 14.4,
        }
        for row in ("gmp", "gmp_gc")
      },
      # A coarser grid: 4x4 cells, as a maximum over few.
      "coarse": {row: {"data__image_size": 32} for row in ("gmp", "gmp_gc")},
    }.items()
    for row, fields in rows.items()
  },
}
# Whose pictures the page shows.
_SHOWN = "objects-resnet-"


def main() -> None:
  """Runs what the arguments say."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument(
    "--cells",
    nargs="+",
    default=["*"],
    metavar="PATTERN",
    help="names of variants or questions, with * for any letters",
  )
  parser.add_argument("--seeds", type=int, nargs="+", default=None)
  parser.add_argument(
    "--small",
    action="store_true",
    help="leave of finished runs what tables and tests need",
  )
  parser.add_argument(
    "--list", action="store_true", help="show what is done, make nothing"
  )
  arguments = parser.parse_args()
  wanted = [
    one
    for one in every_experiment(arguments.seeds)
    if any(fnmatch.fnmatch(_cell(one), each) for each in arguments.cells)
  ]
  if not wanted:
    parser.error(
      f"--cells {' '.join(arguments.cells)} must name some of: "
      f"{', '.join((*CELLS, *QUESTIONS))}."
    )
  if arguments.list:
    print(experiments.listed(wanted, arguments.out))
    return
  failed = experiments.make_all(wanted, arguments.out, arguments.small)
  if failed:
    sys.exit(f"{len(failed)} of {len(wanted)} failed: {', '.join(failed)}.")


def every_experiment(seeds: list[int] | None = None) -> list[Experiment]:
  """Returns all runs in the order of importance; of some seeds, if given."""
  made = [
    _experiment(cell, cell, {}, seed)
    for seed in (range(SEEDS) if seeds is None else seeds)
    for cell in CELLS
  ]
  for seed in range(SEEDS_OF_QUESTIONS) if seeds is None else seeds:
    made += [
      _experiment(name, variant, fields, seed)
      for name, (variant, fields) in QUESTIONS.items()
    ]
  return made


def _experiment(name: str, variant: str, fields: dict, seed: int) -> Experiment:
  fields = {"seed": seed, **fields}
  flags = [f"--config.{k.replace('__', '.')}={v}" for k, v in fields.items()]
  return Experiment(
    f"{name}_{seed}",
    (f"--config=configs/miniature.py:{variant}", *flags),
    with_pictures=seed == 0 and name.startswith(_SHOWN),
  )


def _cell(one: Experiment) -> str:
  return one.name.rpartition("_")[0]


if __name__ == "__main__":
  main()
