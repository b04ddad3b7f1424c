"""Trains, evaluates and reports.

  python -m gc_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Run again, the same command continues where it stopped.
"""

import sys
from pathlib import Path

from absl import app, flags

from gc_jax import command_line
from gc_jax.checkpoint import CheckpointError
from gc_jax.train import TrainingDivergedError, train_and_evaluate

_CONFIG = command_line.define_config(
  None, "File of the recipe, with an optional :variant."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run; continued if it exists."
)


def main(argv: list[str]) -> None:
  """Runs what the flags say."""
  command_line.start(argv)
  try:
    train_and_evaluate(_CONFIG.value, Path(_WORKDIR.value))
  except (ValueError, CheckpointError, TrainingDivergedError) as error:
    sys.exit(f"\n{type(error).__name__}: {error}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=command_line.parser(_CONFIG))
