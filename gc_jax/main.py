"""Trains, evaluates and reports.

  python -m gc_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Run again, the same command continues where it stopped. On SIGTERM, on Ctrl-C,
and when its terminal is gone, it saves the step it is at, and exits with 0, 130
and 129; a second Ctrl-C ends it at once.
"""

import sys

from absl import flags

from gc_jax import cli
from gc_jax.runtime import config as saved_config
from gc_jax.runtime import files, signals, speaking

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
  if status := cli.exit_status(_check):
    return status
  from gc_jax.runtime import parallel

  with parallel.ending_together():
    if status := cli.exit_status(_train):
      sys.exit(status)
  return cli.DONE


def _check() -> None:
  """Checks the arguments; imports no more than each check needs."""
  workdir = files.as_path(_WORKDIR.value)
  files.check_reachable(workdir)
  saved_config.check_same_run(_CONFIG.value, workdir)
  with speaking.doing("importing jax"):
    from gc_jax.training import checks
  checks.validate(_CONFIG.value)


def _train() -> None:
  with speaking.doing("importing what a run needs"):
    from gc_jax.runtime import parallel
    from gc_jax.training.loop import train_and_evaluate

  with signals.told_if_stopped("before training, with nothing to save"):
    parallel.initialize(_MULTIHOST.value)
    train_and_evaluate(_CONFIG.value, files.as_path(_WORKDIR.value))


if __name__ == "__main__":
  __doc__ += cli.recipes_for_help()
  flags.mark_flags_as_required(["config", "workdir"])
  with signals.ending_at_ctrl_c("Nothing was begun."):
    cli.run(main, _CONFIG)
