"""Compares models: python -m gc_jax.compare RUN... --out=DIR."""

import argparse
import sys
from collections.abc import Sequence

from gc_jax import cli
from gc_jax.runtime import files, signals, speaking

_DESCRIPTION = """\
Puts models side by side: finished runs, evaluations, or both.

Runs that differ only by seed become one row, mean ± standard deviation. What
else their configurations differ in names the rows. All must be evaluated on the
same data in the same way. It writes to --out:

  comparison.md    accuracy and maps at a glance, and how each model differs
                   from the first, with paired 95% intervals, as Markdown
  comparison.csv   the glance with four decimals, for other programs
  tables.md        everything measured; on ImageNet and COCO the paper's tables
  tables.csv       the same, a line for every cell, with 95% intervals
  tables.tex       the same as LaTeX, for a paper
  comparison.html  one page with tables and figures, to pass on
  figure.png       the same images explained by each model, side by side
  pareto.png       accuracy against content heatmap, a point for each model
  pareto.csv       its points (two models or more)
  differences.json the differences, in percentage points (two models or more)
  robustness.png   accuracy under attack, if it was measured
"""
_EPILOG = """\
examples:
  python -m gc_jax.compare runs/baseline runs/gc --out=runs/comparison
  python -m gc_jax.compare runs/baseline/eval runs/gc/eval --out=runs/tables
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m gc_jax.compare",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "runs",
    nargs="+",
    metavar="RUN",
    help="folder of a finished run (the --workdir of gc_jax.main), or of an "
    "evaluation (the --out of gc_jax.evaluate)",
  )
  parser.add_argument(
    "--out",
    required=True,
    metavar="DIR",
    help="folder to write: new, empty, or with an earlier comparison",
  )
  args = parser.parse_args(argv)

  def work() -> None:
    for run in args.runs:
      if not files.as_path(run).exists():
        raise ValueError(
          "RUN must be the folder of a finished run or of an evaluation; "
          f"{str(files.as_path(run))!r} does not exist. Check the path."
        )
    with speaking.doing("importing what tables and charts need"):
      from gc_jax.report import comparison

    with speaking.doing("drawing tables and charts"):
      written, remarks = comparison.compare(args.runs, args.out)
    for remark in remarks:
      print(f"note: {remark}")
    for path in written:
      print(f"wrote {path}")

  return cli.exit_status(work)


if __name__ == "__main__":
  with signals.ending_at_ctrl_c(
    "What was written is whole; the same command begins anew."
  ):
    sys.exit(main())
