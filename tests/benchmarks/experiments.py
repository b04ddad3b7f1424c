"""Runs of recipes, one a process: resumed, never made twice, kept small.

Benchmarks that train name their runs here; each is a folder below `--out`. What
is finished stays. A run may be stopped at any time, by Ctrl-C, SIGTERM or a
power cut: the same command goes on from its last checkpoint.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gc_jax.attribution import CONTROLS
from gc_jax.report import artefact, gallery, logs, rows
from gc_jax.runtime import config as saved_config
from gc_jax.runtime import files

_MAIN = ("-m", "gc_jax.main")
_POLL_SECS = 0.2
_KEPT = {*artefact.FILENAMES, saved_config.FILENAME, logs.FILENAME}


class Experiment(NamedTuple):
  """A run: its folder's name, and the arguments of `gc_jax.main`."""

  name: str  # with its seed behind a "_", where it has several
  arguments: tuple[str, ...]
  with_pictures: bool = False  # whether a small one keeps some of its pictures

  @property
  def cell(self) -> str:
    """Returns its name without the seed."""
    return self.name.rpartition("_")[0]

  def secs(self, out: Path) -> float | None:
    """Returns how long it took; None if it is not finished."""
    if not artefact.is_evaluation(out / self.name):
      return None
    found = json.loads((out / self.name / artefact.RESULTS).read_text())
    return found["time/train_secs"] + found["time/eval_secs"]

  def is_begun(self, out: Path) -> bool:
    """Returns whether its folder holds anything."""
    return (out / self.name / saved_config.FILENAME).exists()


def trained(
  workdir: Path, arguments: Sequence[str], program: Sequence[str] = _MAIN
) -> dict[str, float]:
  """Returns the results of a run, which is begun or continued if need be.

  Raises:
    subprocess.CalledProcessError: it ended with an error.
    SystemExit: it was stopped.
  """
  if not artefact.is_evaluation(workdir):
    process = _started(workdir, arguments, program)
    with _waited_for([process]):
      process.wait()
    _check(process, workdir)
  return json.loads((workdir / artefact.RESULTS).read_text())


def _started(
  workdir: Path, arguments: Sequence[str], program=_MAIN, output=None
) -> subprocess.Popen:
  command = [sys.executable, *program, f"--workdir={workdir}", *arguments]
  return subprocess.Popen(command, stdout=output, stderr=output)


def _check(process: subprocess.Popen, workdir: Path) -> None:
  """Raises what `trained` does of a process that has ended."""
  if process.returncode not in (0, 130):
    raise subprocess.CalledProcessError(process.returncode, process.args)
  if not artefact.is_evaluation(workdir):
    sys.exit(f"{workdir} was stopped. Run it again: it goes on from there.")


@contextlib.contextmanager
def _waited_for(processes: Collection[subprocess.Popen]) -> Iterator[None]:
  """Lets runs save before this process ends, if it is asked to end."""
  handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  try:
    yield
  except KeyboardInterrupt:  # which the runs got, too
    for process in processes:
      process.wait()
    raise
  except BaseException:
    for process in processes:
      process.terminate()
    for process in processes:
      process.wait()
    raise
  finally:
    signal.signal(signal.SIGTERM, handler)


def make_all(
  experiments: Sequence[Experiment], out: Path, small: bool, jobs: int = 1
) -> list[str]:
  """Makes what is not finished; returns what failed.

  Args:
    experiments: in their order.
    out: where their folders are.
    small: whether to leave of finished runs what tables and tests need.
    jobs: how many at once, each on its own share of the cores. More than one
      write what they say into OUT/NAME.log, which goes when they are finished.
  """
  failed: list[str] = []
  running: dict[subprocess.Popen, tuple[Experiment, set[int]]] = {}
  free = _shares(jobs)

  def settle() -> None:
    time.sleep(_POLL_SECS)
    for process in [each for each in running if each.poll() is not None]:
      one, cores = running.pop(process)
      free.append(cores)
      try:
        _check(process, out / one.name)
      except subprocess.CalledProcessError as error:
        log = f" See {_log(out, one)}." if jobs > 1 else ""
        print(f"{one.name} failed: {error}{log}", file=sys.stderr, flush=True)
        failed.append(one.name)
        continue
      _log(out, one).unlink(missing_ok=True)
      if small:
        keep_small(out / one.name, one.with_pictures)

  out.mkdir(parents=True, exist_ok=True)  # for logs
  with _waited_for(running):
    for number, one in enumerate(experiments, start=1):
      if one.secs(out) is not None:
        if small:
          keep_small(out / one.name, one.with_pictures)
        continue
      while not free:
        settle()
      print(f"{number} of {len(experiments)}: {one.name}", flush=True)
      cores = free.pop()
      with contextlib.ExitStack() as stack:
        output = None
        if jobs > 1:
          output = stack.enter_context(_log(out, one).open("ab"))
        process = _started(out / one.name, one.arguments, output=output)
      running[process] = one, cores
      if jobs > 1 and hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(process.pid, cores)
    while running:
      settle()
  return failed


def _shares(jobs: int) -> list[set[int]]:
  """Returns the cores of each of some jobs; more jobs than cores share them."""
  if not hasattr(os, "sched_getaffinity"):
    return [set() for _ in range(jobs)]
  cores = sorted(os.sched_getaffinity(0))
  return [set(cores[i::jobs]) or set(cores) for i in range(jobs)]


def _log(out: Path, one: Experiment) -> Path:
  return out / f"{one.name}.log"


def listed(experiments: Sequence[Experiment], out: Path) -> str:
  """Returns a line for each experiment, and how long the others may take."""
  found = {one.name: one.secs(out) for one in experiments}
  known = [secs for secs in found.values() if secs is not None]
  lines = []
  for one in experiments:
    if (secs := found[one.name]) is not None:
      state = f"done in {logs.format_secs(secs)}"
    else:
      state = "begun" if one.is_begun(out) else "to do"
    lines.append(f"{one.name:44} {state}")
  total = f"{len(known)} of {len(found)} are done"
  if known:
    left = (len(found) - len(known)) * statistics.fmean(known)
    total += (
      f", in {logs.format_secs(sum(known))}; the others take about "
      f"{logs.format_secs(left)}"
    )
  return "\n".join([*lines, total])


def keep_small(workdir: Path, with_pictures: bool = False) -> None:
  """Leaves of a finished run what tables and tests need, some 50 kB.

  Weights go, the page, the numbers by class (rows.npz has them) and the columns
  of the control maps. Numbers of single pictures become float16: rounding them
  to a two-thousandth is far below what pictures differ by. It may be
  interrupted, and does nothing to what is small.

  Args:
    workdir: of the run.
    with_pictures: whether to keep the pictures that all runs show.
  """
  folders = [path for path in workdir.iterdir() if path.is_dir()]
  if not folders:  # the checkpoints go last
    return
  run = artefact.load(workdir)
  path = workdir / rows.FILENAME
  with np.load(path) as arrays:
    small = {
      name: values.astype(np.float16) if values.dtype.kind == "f" else values
      for name, values in arrays.items()
      if name.partition("/")[0] not in CONTROLS
    }
  with files.replacing(path) as file:
    np.savez_compressed(file, **small)
  if with_pictures and run.examples:
    fixed = [example for example in run.examples if example.kind == "fixed"]
    gallery.save(workdir, fixed, run.class_names)
  else:
    (workdir / gallery.FILENAME).unlink(missing_ok=True)
  # Not the path on this machine.
  about = dataclasses.asdict(run.about) | {"source": workdir.name}
  for name, value in {artefact.PER_CLASS: {}, artefact.ABOUT: about}.items():
    files.write_text(workdir / name, json.dumps(value, indent=2) + "\n")
  for path in workdir.iterdir():
    if path.is_file() and path.name not in _KEPT:
      path.unlink()
  for folder in folders:
    shutil.rmtree(folder)


def spread(values: Sequence[float]) -> dict[str, float]:
  """Returns the mean and the sample standard deviation of the seeds' values."""
  std = statistics.stdev(values) if len(values) > 1 else 0.0
  return {"mean": statistics.mean(values), "std": std, "n": len(values)}
