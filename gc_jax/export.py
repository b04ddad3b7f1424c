"""Exports a run: python -m gc_jax.export --workdir=DIR --out=FILE."""

import argparse
import sys
from collections.abc import Sequence

from gc_jax import cli
from gc_jax.inference import exporting
from gc_jax.runtime import signals

_DESCRIPTION = """\
Writes the last checkpoint of a run as a file that PyTorch loads, under
torchvision's names: load_state_dict(..., strict=True) takes it.

  FILE.safetensors     weights, and what they are; needs no PyTorch to write
  FILE.pth             the same as a state dict; what they are, in FILE.pth.json
  FILE.safetensors.md  the model card: how to load it, what it scores

A run that trains on is exported as far as it has come.
"""
_EPILOG = """\
example:
  python -m gc_jax.export --workdir=runs/gc --out=gc.safetensors --verify
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m gc_jax.export",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--workdir", required=True, metavar="DIR", help="folder of the run"
  )
  parser.add_argument(
    "--out",
    required=True,
    metavar="FILE",
    help=".safetensors (added where there is no suffix) or .pth",
  )
  parser.add_argument(
    "--verify",
    action="store_true",
    help="load the file in PyTorch and compare logits and both Grad-CAM maps "
    "on pictures of the run; exits with 1 where they differ",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace what is there"
  )
  args = parser.parse_args(argv)

  def work() -> bool:
    lines = exporting.export_run(
      args.workdir, args.out, args.verify, args.overwrite
    )
    try:
      for line in lines:
        print(line, flush=True)
    except exporting.VerificationError as error:
      print(f"error: {error}", file=sys.stderr)
      return False
    return True

  return cli.exit_status(work)


if __name__ == "__main__":
  with signals.ending_at_ctrl_c(
    "What was written is whole; the same command begins anew."
  ):
    sys.exit(main())
