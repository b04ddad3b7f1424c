"""Compares finished runs: python -m gc_jax.compare RUN... --out=DIR."""

import argparse
import sys
from collections.abc import Sequence

from gc_jax.report import comparison

_DESCRIPTION = """\
Puts finished runs into the paper's table and its Figure 2.

Runs that differ by seed only become one row, mean ± standard deviation; what
else their configurations differ in becomes the row's name. Written to --out:

  comparison.md    the table as Markdown
  comparison.csv   the same with four decimals, for other programs
  comparison.html  one page with table and figure, to pass on
  figure.png       the same images explained by each model, side by side
"""
_EPILOG = """\
example:
  python -m gc_jax.compare runs/baseline runs/gc --out=runs/comparison
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
    help="folder of a finished run (the --workdir of gc_jax.main)",
  )
  parser.add_argument(
    "--out",
    required=True,
    metavar="DIR",
    help="folder to write: new, empty, or with an earlier comparison",
  )
  args = parser.parse_args(argv)
  try:
    written, remarks = comparison.compare(args.runs, args.out)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  for remark in remarks:
    print(f"note: {remark}")
  for path in written:
    print(f"wrote {path}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
