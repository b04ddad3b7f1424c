"""Trains, evaluates and reports.

  python -m gc_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Run again, the same command continues where it stopped.
"""

import difflib
import logging
import sys
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from configs import base
from gc_jax.checkpoint import CheckpointError
from gc_jax.config import flatten
from gc_jax.train import TrainingDivergedError, train_and_evaluate

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
  try:
    train_and_evaluate(_CONFIG.value, Path(_WORKDIR.value))
  except (ValueError, CheckpointError, TrainingDivergedError) as error:
    sys.exit(f"\n{type(error).__name__}: {error}")


def parse_flags(argv: list[str]) -> list[str]:
  """Returns what is left of the command line; exits with one clear line."""
  try:
    rest = flags.FLAGS(argv)
    _CONFIG.value.seed  # noqa: B018 (a file that failed to load says so here)
    return rest
  except (AttributeError, KeyError) as error:
    # ml_collections on a field that does not exist.
    sys.exit(_unknown_field(argv) or str(error))
  except (flags.Error, OSError, ValueError) as error:
    # Errors in a config file come wrapped in their own traceback.
    sys.exit(f"{argv[0]}: {str(error).strip().splitlines()[-1].strip()}")


def _unknown_field(argv: list[str]) -> str:
  """Says which `--config.field` of the arguments is none, and the nearest."""
  known = [f"--config.{name}" for name in flatten(base.get_config().to_dict())]
  for argument in argv:
    name = argument.split("=")[0]
    if name.startswith("--config.") and name not in known:
      nearest = difflib.get_close_matches(name, known, n=1)
      hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
      return f"Unknown field {name}.{hint} configs/base.py has them all."
  return ""


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=parse_flags)
