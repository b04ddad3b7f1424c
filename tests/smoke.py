"""The run that several files of tests look at, and how it is started."""

import os
import pathlib
import stat
import sys

ROOT = pathlib.Path(__file__).parents[1]
# Eight steps of the smallest recipe; a checkpoint every second one.
FLAGS = [
  "--config=configs/quickstart.py:gmp_gc,smoke",
  "--config.checkpoint.every_epochs=0.5",
  "--config.checkpoint.keep=3",
]


def command(workdir, *flags):
  return [
    sys.executable,
    "-m",
    "tests.without_torch",
    "gc_jax.main",
    f"--workdir={workdir}",
    *([] if any(flag.startswith("--config=") for flag in flags) else FLAGS),
    *flags,
  ]


def unlike_new(folder):
  """Returns files below a folder without the permissions of any new file."""
  mask = os.umask(0)
  os.umask(mask)
  return [
    path
    for path in folder.rglob("*")
    if path.is_file() and stat.S_IMODE(path.stat().st_mode) != 0o666 & ~mask
  ]
