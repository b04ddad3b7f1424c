"""Trains, evaluates and reports.

  python -m gc_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Run again, the same command continues where it stopped.
"""

import logging
import sys
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "File of the recipe, with an optional :variant."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run; continued if it exists."
)


def main(argv: list[str]) -> None:
  """Runs what the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected argument {argv[1]!r}; use --flag=value.")
  # Libraries log through absl, Orbax a page for every checkpoint.
  absl_logging.set_verbosity(absl_logging.WARNING)
  logging.getLogger("gc_jax").setLevel(logging.INFO)

  # After the flags: whoever asks for --help need not wait for jax.
  from gc_jax.checkpoint import CheckpointError
  from gc_jax.train import TrainingDivergedError, train_and_evaluate

  try:
    train_and_evaluate(_CONFIG.value, Path(_WORKDIR.value))
  except (ValueError, CheckpointError, TrainingDivergedError) as error:
    sys.exit(f"\n{type(error).__name__}: {error}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
