"""The paper's tables in small, and the questions that it leaves open.

  python -m tests.benchmarks.miniature --out=runs/miniature --small

Trains every variant of configs/miniature.py over five seeds, over three where
a run with the loss takes more than five minutes, then what the open questions
need over three, one run at a time; with `--jobs=2` two, each on its share of
the cores. Stop it whenever you like, and run it again to continue: what is
finished is never made again. The most telling runs come first. `--small` leaves
of each finished run what tables and tests need, without its weights; `--list`
shows what is done, and makes nothing; `--page` writes the page of what is done,
OUT/README.md, as every call does at its end; `--cells` takes some:

  python -m tests.benchmarks.miniature --out=runs/miniature --small \
    --cells 'digits-resnet-*' --seeds 0
"""

import argparse
import fnmatch
import sys
from pathlib import Path
from typing import NamedTuple

from configs import miniature
from tests.benchmarks import experiments, miniature_page
from tests.benchmarks.experiments import Experiment
from tests.benchmarks.miniature_charts import METHOD

_SEEDS = 5
_FEWER_SEEDS = 3  # of what takes longer, and of the open questions
_LONGER = ("*-bottleneck-*", "multi-*")
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
_SLOW = {
  "num_epochs": 16.0,
  "optim__lr_per_256": 0.16,
  "optim__warmup_epochs": 2.0,
}


def _digits(row: str, **fields) -> tuple[str, dict]:
  return f"digits-resnet-{row}", fields


def _weighted(weight: float) -> dict[str, float]:
  return {"loss__consistency_weight": float(weight)}


# Variants with other fields than the tables', for what the paper leaves open.
# The fields are below `config`, "__" for a dot.
VARIATIONS: dict[str, tuple[str, dict]] = {
  "digits-independent": _digits("gc", compose__mode="independent"),
  "objects-independent": (
    "objects-resnet-gc",
    {"compose__mode": "independent"},
  ),
  **{
    f"digits-lambda{weight}": _digits("gc", **_weighted(weight))
    for weight in (10, 25, 150, 300)
  },
  "digits-ramp0": _digits("gc", loss__ramp_epochs=0.0),
  "digits-ramp90": _digits("gc", loss__ramp_epochs=9.0),
  # The same weight of a cell as with "mean", and one that is 3.4 times as high.
  "digits-sum": _digits(
    "gc",
    loss__reduction="sum",
    loss__consistency_weight=75.0 / _COMPOSITE_CELLS,
  ),
  "digits-sum1": _digits(
    "gc", loss__reduction="sum", loss__consistency_weight=1.0
  ),
  "digits-stop": _digits("gc", loss__stop_gradient=True),
  **{
    f"digits-{row}-background{percent}": _digits(
      row, data__background_frac=percent / 100
    )
    for percent in (0, 90)
    for row in ("ce", "gc")
  },
  **{
    f"objects-{row}-background0": (
      f"objects-resnet-{row}",
      {"data__background_frac": 0.0},
    )
    for row in ("ce", "gc")
  },
  # These are chosen among, so they are tested on the validation split.
  **{
    f"digits-{row}-{how}": _digits(row, data__eval_split="validation", **fields)
    for how, rows, fields in (
      ("as-is", ("gmp", "gmp_gc"), {}),
      *(
        (f"lambda{weight}", ("gmp_gc",), _weighted(weight))
        for weight in (25, 100, 300, 3000)
      ),
      # Other causes that were thought of, at that small a λ: the ramp; the
      # steps, of an earlier trial that had the gain: 16 epochs of lr 0.01; a
      # maximum over few cells, 4x4.
      ("ramp0", ("gmp_gc",), _weighted(25) | {"loss__ramp_epochs": 0.0}),
      ("slow", ("gmp",), _SLOW),
      (
        "slow",
        ("gmp_gc",),
        _SLOW | _weighted(25) | {"loss__ramp_epochs": 14.4},
      ),
      ("coarse", ("gmp",), {"data__image_size": 32}),
      ("coarse", ("gmp_gc",), _weighted(25) | {"data__image_size": 32}),
    )
    for row in rows
  },
}


class Question(NamedTuple):
  """What the paper leaves open."""

  title: str
  # With the words for each; the first is what the others are compared with.
  cells: tuple[tuple[str, str], ...]
  methods: tuple[str, ...] = (METHOD,)  # by whose maps
  background: int | None = None  # percent that follow the class, if it is that
  in_order: bool = False  # whether the cells are steps of one number


_ON_VALIDATION = "(validation split)"
QUESTIONS = (
  *(
    Question(
      f"`packed` or `independent` composites, {pictures}",
      (
        (f"{pictures}-resnet-gc", "packed"),
        (f"{pictures}-independent", "independent"),
      ),
      (METHOD, "cmwp", "fullgrad"),
    )
    for pictures in ("digits", "objects")
  ),
  Question(
    "How large a λ (75 in the tables)",
    (
      ("digits-resnet-ce", "plain"),
      *((f"digits-lambda{weight}", f"λ = {weight}") for weight in (10, 25)),
      ("digits-resnet-gc", "λ = 75"),
      *((f"digits-lambda{weight}", f"λ = {weight}") for weight in (150, 300)),
    ),
    in_order=True,
  ),
  Question(
    "How long a ramp (half of the training in the tables)",
    (
      ("digits-resnet-gc", "half"),
      ("digits-ramp0", "none"),
      ("digits-ramp90", "90 %"),
    ),
  ),
  Question(
    "`mean` or `sum` over the cells of a map",
    (
      ("digits-resnet-gc", "mean, λ = 75"),
      ("digits-sum", "sum, λ = 75/256"),
      ("digits-sum1", "sum, λ = 1"),
    ),
  ),
  Question(
    "A gradient through the target, or not",
    (("digits-resnet-gc", "with it"), ("digits-stop", "without")),
  ),
  *(
    Question(
      f"When {percent} % of backgrounds follow the class, {pictures}",
      ((plain, "plain"), (guided, "GC")),
      background=percent,
    )
    for pictures, percent, plain, guided in (
      ("digits", 0, "digits-ce-background0", "digits-gc-background0"),
      ("digits", 50, "digits-resnet-ce", "digits-resnet-gc"),
      ("digits", 90, "digits-ce-background90", "digits-gc-background90"),
      ("objects", 0, "objects-ce-background0", "objects-gc-background0"),
      ("objects", 50, "objects-resnet-ce", "objects-resnet-gc"),
    )
  ),
  Question(
    f"GMP+GC against GMP: how large a λ, 1000 in the tables {_ON_VALIDATION}",
    (
      ("digits-gmp-as-is", "GMP"),
      *(
        (f"digits-gmp_gc-lambda{weight}", f"λ = {weight}")
        for weight in (25, 100, 300)
      ),
      ("digits-gmp_gc-as-is", "λ = 1000"),
      ("digits-gmp_gc-lambda3000", "λ = 3000"),
    ),
    in_order=True,
  ),
  *(
    Question(
      f"The same, λ = 25, {words} {_ON_VALIDATION}",
      ((plain, "GMP"), (f"digits-gmp_gc-{name}", "GMP+GC")),
    )
    for words, plain, name in (
      ("from the first step on", "digits-gmp-as-is", "ramp0"),
      ("with smaller steps for longer", "digits-gmp-slow", "slow"),
      ("on 4x4 cells", "digits-gmp-coarse", "coarse"),
    )
  ),
)
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
    "--jobs", type=int, default=1, help="how many runs at once"
  )
  parser.add_argument(
    "--list", action="store_true", help="show what is done, make nothing"
  )
  parser.add_argument(
    "--page", action="store_true", help="write the page, train nothing"
  )
  arguments = parser.parse_args()
  wanted = [
    one
    for one in every_experiment(arguments.seeds)
    if any(fnmatch.fnmatch(one.cell, each) for each in arguments.cells)
  ]
  if not wanted:
    parser.error(
      f"--cells {' '.join(arguments.cells)} must name some of: "
      f"{', '.join((*CELLS, *VARIATIONS))}."
    )
  if arguments.list:
    print(experiments.listed(wanted, arguments.out))
    return
  failed = []
  if not arguments.page:
    failed = experiments.make_all(
      wanted, arguments.out, arguments.small, arguments.jobs
    )
  of_sets = {
    name: [cell for cell in CELLS if cell.startswith(f"{name}-")]
    for name in _SETS
  }
  miniature_page.write(arguments.out, of_sets, QUESTIONS, every_experiment())
  if failed:
    sys.exit(f"{len(failed)} of {len(wanted)} failed: {', '.join(failed)}.")


def every_experiment(seeds: list[int] | None = None) -> list[Experiment]:
  """Returns all runs in the order of importance; of some seeds, if given."""
  every = {cell: (cell, {}) for cell in CELLS} | VARIATIONS
  return [
    _experiment(name, *every[name], seed)
    for cells in (CELLS, VARIATIONS)
    for seed in (range(_SEEDS) if seeds is None else seeds)
    for name in cells
    if seeds is not None or seed < _num_seeds(name)
  ]


def _num_seeds(cell: str) -> int:
  """Returns over how many seeds a cell of tables or questions is trained."""
  longer = any(fnmatch.fnmatch(cell, each) for each in _LONGER)
  return _FEWER_SEEDS if longer or cell in VARIATIONS else _SEEDS


def _experiment(name: str, variant: str, fields: dict, seed: int) -> Experiment:
  fields = {"seed": seed, **fields}
  flags = [f"--config.{k.replace('__', '.')}={v}" for k, v in fields.items()]
  return Experiment(
    f"{name}_{seed}",
    (f"--config=configs/miniature.py:{variant}", *flags),
    with_pictures=seed == 0 and name.startswith(_SHOWN),
  )


if __name__ == "__main__":
  main()
