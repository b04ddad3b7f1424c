"""Trains, evaluates and reports.

  python -m gc_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Run again, the same command continues where it stopped. On SIGTERM and on Ctrl-C
it saves the step it is at, and exits with 0 and 130; a second Ctrl-C ends it at
once.
"""

import sys

from absl import flags

from gc_jax import cli
from gc_jax.runtime import files, parallel, signals
from gc_jax.training.loop import train_and_evaluate

_CONFIG = cli.define_config(
  None, "File of the recipe, with an optional :variant."
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of the run, or gs://BUCKET/FOLDER; continued if it exists.",
)
_MULTIHOST = flags.DEFINE_bool(
  "multihost",
  False,
  "One of several processes that train together; launch/ starts them so.",
)


def main(argv: list[str]) -> int:
  """Runs what the flags say; returns its exit status."""
  cli.start(argv)
  with parallel.ending_together():
    if status := cli.exit_status(_train):
      sys.exit(status)
  return cli.DONE


def _train() -> None:
  with signals.told_if_stopped("before training, with nothing to save"):
    parallel.initialize(_MULTIHOST.value)
    workdir = files.as_path(_WORKDIR.value)
    files.check_reachable(workdir)
    train_and_evaluate(_CONFIG.value, workdir)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  with signals.ending_at_ctrl_c("Nothing was begun."):
    cli.run(main, _CONFIG)
