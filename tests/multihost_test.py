"""Training in two processes on one machine, as on two hosts.

All are compared with one run of one process with eight devices, by the loss of
every step.
"""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from gc_jax.report.logs import read_metrics
from gc_jax.runtime.checkpoint import FOLDER
from tests.smoke import ROOT, command

# Whole processes, started again and again.
pytestmark = pytest.mark.slow

TOTAL_STEPS = 16
FLAGS = [
  # Average pooling: a rounding may change the maximum, and with it the loss.
  "--config=configs/quickstart.py:gc,smoke",
  # Eight groups on any number of devices, so that composites are the same.
  "--config.compose.groups=8",
  "--config.compose.mode=independent",
  "--config.data.image_size=32",
  "--config.batch_size=32",
  "--config.num_epochs=8",
  "--config.eval.every_epochs=4",
  "--config.eval.methods=('gradcam',)",
  "--config.checkpoint.every_epochs=0.5",
  "--config.checkpoint.keep=100",
  "--config.log.every_steps=1",
  # Small, so that roundings do not grow.
  "--config.optim.lr_per_256=0.005",
  "--config.eval.num_resamples=0",
]


class Processes:
  """Some processes of one training, and what they say."""

  def __init__(self, folder, cache, commands, devices):
    self.started = time.monotonic()
    self.logs = [folder / f"log{i}" for i in range(len(commands))]
    place = {}
    if len(commands) > 1:
      with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free.getsockname()[1]}"
      place["JAX_NUM_PROCESSES"] = str(len(commands))
    count = f"--xla_force_host_platform_device_count={devices}"
    self.processes = []
    for i, words in enumerate(commands):
      with self.logs[i].open("w") as log:
        one = subprocess.Popen(
          words,
          cwd=ROOT,
          stdout=log,
          stderr=log,
          env={
            **os.environ,
            **place,
            "JAX_PROCESS_ID": str(i) if place else "",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            # Of a flag given twice the last counts.
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}",
          },
        )
      self.processes.append(one)

  def wait_for(self, path):
    while not path.exists():
      assert None in self.statuses(), self.said()
      assert time.monotonic() < self.started + 300, self.said()
      time.sleep(0.01)

  def statuses(self):
    return [one.poll() for one in self.processes]

  def end(self, timeout=300):
    """Returns the exit statuses."""
    for one in self.processes:
      one.wait(timeout)
    return self.statuses()

  def said(self):
    return [log.read_text(errors="replace") for log in self.logs]


@pytest.fixture(scope="module")
def start(tmp_path_factory, hearing_ctrl_c):
  """Starts processes; none of them outlives the tests."""
  cache = tmp_path_factory.mktemp("compiled")
  everything = []

  def start(commands, devices):
    folder = tmp_path_factory.mktemp("processes")
    everything.append(Processes(folder, cache, commands, devices))
    return everything[-1]

  yield start
  for processes in everything:
    for one in processes.processes:
      if one.poll() is None:
        one.kill()
        one.wait()


@pytest.fixture(scope="module")
def train(start):
  """Starts a training on eight devices, of one process or of two."""

  def train(workdir, *flags, count=1, devices=8):
    words = command(workdir, *FLAGS, *flags)
    if count == 1:
      return start([words], devices)
    return start([[*words, "--multihost"]] * count, devices // count)

  return train


@pytest.fixture(scope="module")
def lost(train, tmp_path_factory):
  """Two processes, one of them killed: first, as the other ends in a minute."""
  workdir = tmp_path_factory.mktemp("lost") / "run"
  # Of one device each: with more, those of one process go on without each other
  # when the connection is gone, and Gloo, which CPUs talk by, may abort it for
  # that ("Received data size doesn't match") before anything else is said.
  processes = train(workdir, count=2, devices=2)
  processes.wait_for(workdir / FOLDER / "1")
  processes.processes[1].kill()
  processes.killed = time.monotonic()
  return processes


@pytest.fixture(scope="module")
def reference(lost, train, tmp_path_factory):
  """The workdir of an uninterrupted run of one process with eight devices."""
  workdir = tmp_path_factory.mktemp("reference") / "run"
  processes = train(workdir)
  assert processes.end() == [0], processes.said()
  return workdir


def begun(reference, workdir, step):
  """Makes a run of the reference as it was when it had saved a step."""
  shutil.copytree(reference, workdir)
  (workdir / "results.json").unlink()
  for path in (workdir / FOLDER).iterdir():
    if path.name.isdigit() and int(path.name) > step:
      shutil.rmtree(path)
  return workdir


def losses(workdir):
  """Returns the loss of every step, each of which must have one line."""
  lines = [
    (line["step"], line["train/loss"])
    for line in read_metrics(workdir / "metrics.jsonl")
    if "train/loss" in line
  ]
  assert len(dict(lines)) == len(lines)
  return dict(lines)


def saved(workdir):
  return max(
    int(path.name)
    for path in (workdir / FOLDER).iterdir()
    if path.name.isdigit()
  )


def assert_same_losses(workdir, reference, last_step):
  found, wanted = losses(workdir), losses(reference)
  assert list(found) == list(range(1, last_step + 1))
  for step, loss in found.items():
    assert loss == pytest.approx(wanted[step], rel=1e-5), step


def test_two_processes_resume_stop_together_and_end_as_one_process_does(
  reference, train, tmp_path
):
  workdir = begun(reference, tmp_path / "run", step=5)
  for path in (workdir / FOLDER / "5").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  processes = train(workdir, count=2)
  processes.wait_for(workdir / FOLDER / "6")
  # Passed on as SIGTERM, of which jax tells the other.
  processes.processes[1].send_signal(signal.SIGINT)
  time.sleep(0.1)
  processes.processes[1].send_signal(signal.SIGTERM)
  assert processes.end() == [0, 130], processes.said()
  stopped = saved(workdir)
  assert 6 <= stopped < TOTAL_STEPS
  assert (workdir / "unreadable_checkpoint_5").is_dir()
  for text in processes.said():
    assert "The checkpoint of step 5 cannot be read" in text
    assert f"stopped after step {stopped} of {TOTAL_STEPS}, which is" in text
    assert "Traceback" not in text
    assert "The same command goes on from there" in text
  assert not (workdir / "results.json").exists()
  assert_same_losses(workdir, reference, stopped)

  processes = train(workdir, count=2)
  assert processes.end() == [0, 0], processes.said()
  continuing = f"Continuing from the checkpoint of step {stopped} of"
  assert continuing in processes.said()[0]
  assert continuing not in processes.said()[1], "one writes"
  assert_same_losses(workdir, reference, TOTAL_STEPS)
  found, wanted = (
    json.loads((folder / "results.json").read_text())
    for folder in (workdir, reference)
  )
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    if not name.startswith("time/"):
      # A rounding may move a maximum from one picture to the next.
      assert found[name] == pytest.approx(value, abs=3, nan_ok=True), name
  assert found["val/num_examples"] == 40
  names = {path.name for path in workdir.iterdir()}
  assert {"report.html", "gallery.npz", "config.json"} <= names


def test_the_best_checkpoint_is_one_that_was_evaluated(reference):
  scores = {
    int(path.parts[-3]): json.loads(path.read_text())["best"]
    for path in (reference / FOLDER).glob("*/metrics/metrics")
  }
  evaluated = {step for step, score in scores.items() if score > -math.inf}
  assert evaluated == {8, 16}
  assert len(scores) == TOTAL_STEPS


def test_one_device_resumes_a_run_of_eight_and_saves_on_sigterm(
  reference, train, tmp_path
):
  workdir = begun(reference, tmp_path / "run", step=4)
  processes = train(workdir, devices=1)
  processes.wait_for(workdir / FOLDER / "5")
  processes.processes[0].send_signal(signal.SIGTERM)
  time.sleep(0.05)
  processes.processes[0].send_signal(signal.SIGTERM)
  assert processes.end() == [0], processes.said()
  stopped = saved(workdir)
  assert 5 <= stopped < TOTAL_STEPS
  assert f"stopped after step {stopped} of" in processes.said()[0]
  assert_same_losses(workdir, reference, stopped)


# Every number is that of its device.
TOGETHER = """
import sys
import jax
import numpy as np
from gc_jax.runtime import parallel

with parallel.ending_together():
  parallel.initialize(True)
  index, _ = parallel.process()
  here = np.arange(4 * index, 4 * index + 4)
  made = parallel.to_devices(here, parallel.make_mesh())
  for shard in made.addressable_shards:
    assert jax.devices()[int(shard.data[0])] == shard.device
  np.testing.assert_array_equal(parallel.fetch(made), np.arange(8))

  # What one process knows, the other is told.
  assert parallel.any_process(index == 1)
  assert not parallel.any_process(False)
  parallel.main_does(lambda: None)
  assert parallel.added({"a": np.float64(index + 1)}) == {"a": 3}

  def refuse():
    raise ValueError(f"refused by {index}")

  try:
    parallel.main_does(refuse)
  except ValueError as error:
    assert str(error) == "refused by 0", error
  else:
    raise AssertionError("nothing was refused")
  print("all is well")
  # Of one process, and the other waits for it.
  if index == 1:
    sys.exit("an error of the second")
  parallel.wait_for_all("what never comes")
"""


def test_what_one_process_has_both_know_and_an_error_ends_both(start):
  processes = start([[sys.executable, "-c", TOGETHER]] * 2, devices=4)
  first, second = processes.end(timeout=120)
  said = processes.said()
  assert all("all is well" in text for text in said), said
  assert second == 1
  assert "an error of the second" in said[1]
  assert "Process 2 of 2 ends with this error" in said[1]
  assert first not in (None, 0)


def test_both_processes_refuse_a_workdir_that_only_the_first_finds_out(
  train, tmp_path
):
  processes = train(tmp_path / "run", "--workdir=/dev/null/run", count=2)
  assert processes.end(timeout=120) == [2, 2], processes.said()
  for text in processes.said():
    assert "must be a folder that can be written to" in text
    assert "Traceback" not in text


def test_a_process_ends_and_says_so_when_another_is_lost(lost):
  # 60 s until jax gives the other one up, and what a busy machine takes.
  left = lost.killed + 90 - time.monotonic()
  first, second = lost.end(timeout=max(0.1, left))
  assert second == -signal.SIGKILL
  assert first not in (None, 0)
  said = lost.said()[0]
  assert re.search("another task died|connection was lost", said), said
  # Whatever follows the message, it is not buried.
  if "connection was lost" not in said:
    assert len(said[said.index("Terminating") :].splitlines()) < 40
