"""Processes that make batches: their room, their end, and what they hear."""

import itertools
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from gc_jax.data import Dataset, pipeline, workers
from tests.data import photos
from tests.runtime.signals_test import is_running

ROOT = pathlib.Path(__file__).parents[2]
MEBI = 2**20


def dataset_of(count=12, classes=3, multi_label=False):
  image = photos.encode(photos.load("coffee.png", (40, 30)))
  return Dataset(
    source=[{"image": image, "labels": [i % classes]} for i in range(count)],
    class_names=tuple(f"class {i}" for i in range(classes)),
    multi_label=multi_label,
    name="photographs",
  )


def batches(dataset, num_workers, **settings):
  settings = {"batch_size": 4, "image_size": 32, **settings}
  return pipeline.train_batches(
    dataset, seed=0, start_step=0, num_workers=num_workers, **settings
  )


@pytest.fixture
def memory(monkeypatch):
  """Shared memory of a size, as Docker's /dev/shm has one."""

  def has(free_bytes):
    def statvfs(path):
      assert path == "/dev/shm"
      if free_bytes is None:
        raise FileNotFoundError(path)
      return types.SimpleNamespace(f_bavail=free_bytes // 4096, f_frsize=4096)

    monkeypatch.setattr(workers.os, "statvfs", statvfs)

  return has


def test_room_for_four_batches_of_each_worker_and_two_is_asked_for(memory):
  batch = 10 * MEBI
  memory(64 * MEBI)
  assert workers.lack_of_room(1, batch, 1) == ""
  lack = workers.lack_of_room(2, batch, 1)
  left, needed = map(float, re.findall(r"([\d.]+) MiB", lack))
  assert left == 64
  assert needed == pytest.approx(10 * batch / MEBI, rel=0.02)
  assert "2 processes need" in lack
  memory(200 * MEBI)
  assert workers.lack_of_room(2, batch, 1) == ""
  # Of several processes on one machine each takes as much.
  assert "2 processes of each of 3 need" in workers.lack_of_room(2, batch, 3)
  # A small batch takes whole pages, as do the 37 semaphores of a worker.
  memory(64 * 1024)
  assert "/dev/shm has 0.1 MiB left" in workers.lack_of_room(2, 200, 1)


def test_where_it_is_no_file_system_it_is_tried(memory, monkeypatch):
  memory(None)  # as on macOS
  assert workers.lack_of_room(8, 2**40, 1) == ""

  def refused(**_):
    raise PermissionError(13, "Permission denied", "/psm_1")

  monkeypatch.setattr(workers.shared_memory, "SharedMemory", refused)
  lack = workers.lack_of_room(1, 1, 1)
  assert lack.startswith("there is no shared memory here ([Errno 13]")


@pytest.mark.parametrize(
  ("settings", "multi_label", "num_bytes"),
  [
    ({}, False, 4 * 32 * 32 * 3),
    ({}, True, 4 * (32 * 32 * 3 + 4 * 3)),
    ({"bring": ["distractors"]}, False, 4 * (4 * 32 * 32 * 3 + 8)),
    ({"bring": ["object_mask"]}, False, 4 * (32 * 32 * 4 + 4)),
    ({"process_count": 2}, False, 2 * 32 * 32 * 3),
  ],
)
def test_the_size_of_a_batch_is_known_before_it_is_made(
  monkeypatch, settings, multi_label, num_bytes
):
  asked = []
  monkeypatch.setattr(
    workers, "lack_of_room", lambda *args: asked.append(args) or "none"
  )
  dataset = dataset_of(multi_label=multi_label)
  made = next(batches(dataset, 3, processes_here=2, **settings))
  assert asked == [(3, num_bytes, 2)]
  whole = sum(array.nbytes for array in made.values())
  assert num_bytes <= whole <= num_bytes + 100


def test_without_room_threads_decode_the_same_and_one_line_says_so(
  memory, caplog
):
  memory(64 * 1024)
  with caplog.at_level(logging.WARNING):
    found = list(itertools.islice(batches(dataset_of(), 4), 5))
  (line,) = caplog.messages
  assert line.startswith("Pictures are decoded by threads of this process")
  for advice in ("--shm-size=1g", "emptyDir", "num_workers=0"):
    assert advice in line
  wanted = itertools.islice(batches(dataset_of(), 0), 5)
  for batch, other in zip(found, wanted, strict=True):
    for name, array in batch.items():
      np.testing.assert_array_equal(array, other[name])


@pytest.mark.parametrize(
  ("code", "words"),
  [
    (-signal.SIGBUS, "by SIGBUS: /dev/shm is full"),
    (-signal.SIGKILL, "by SIGKILL: the system's memory may be full"),
    (-signal.SIGSEGV, "by SIGSEGV: what happened before stands above"),
  ],
)
def test_a_worker_that_is_lost_is_told_with_what_to_do(code, words):
  """In Grain's words; that they are, a real one shows below."""
  with pytest.raises(workers.WorkerLostError, match=words) as told:  # noqa: SIM117
    with workers._losses_told():
      raise RuntimeError(
        f"Worker process was terminated unexpectedly with exit code {code:d}."
      )
  assert "the same command goes on" in str(told.value)
  assert "--config.data.num_workers=0" in str(told.value)
  with pytest.raises(RuntimeError, match="of another kind"):  # noqa: SIM117
    with workers._losses_told():
      raise RuntimeError("of another kind")


SCRIPT = """
import contextlib, os, sys, time
from gc_jax.data import pipeline
from tests.data.workers_test import batches, dataset_of

if __name__ == "__main__":
  dataset = dataset_of(40)
  if "broken" in sys.argv:  # of the fifth batch
    dataset.source[pipeline.shuffled(18, 40, 0)]["image"] = b"no picture"
  made = batches(dataset, int(sys.argv[1]), image_size=256)
  with contextlib.closing(made):
    next(made)
    print("on", flush=True)
    for _ in range(int(sys.argv[2])):
      time.sleep(0.1)  # all that is read ahead is there by then
      next(made)
    print("end", flush=True)
    sys.stdin.read()
"""


def start(tmp_path, *arguments, before=()):
  path = tmp_path / "script.py"
  path.write_text(SCRIPT)
  return subprocess.Popen(
    [*before, sys.executable, str(path), *map(str, arguments)],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def children_of(pid):
  found = []
  for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = stat.read_text().rpartition(")")[2].split()
      command = stat.with_name("cmdline").read_text()
    except OSError:
      continue
    if int(fields[1]) == pid and "spawn_main" in command:
      found.append(int(stat.parent.name))
  return found


# Workers are spawned and import everything: 8 s.
@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
def test_signals_to_all_of_a_command_leave_workers_and_its_death_ends_them(
  tmp_path,
):
  process = start(tmp_path, 2, 10)
  assert process.stdout.readline() == "on\n", process.communicate()
  found = children_of(process.pid)
  assert len(found) == 2
  for child in found:
    os.kill(child, signal.SIGINT)
    os.kill(child, signal.SIGTERM)
  assert process.stdout.readline() == "end\n", process.communicate()
  assert children_of(process.pid) == found
  process.kill()
  process.wait()
  deadline = time.monotonic() + 20
  while any(map(is_running, found)):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
@pytest.mark.parametrize("trouble", ["killed", "broken"])
def test_after_an_error_a_line_says_so_and_no_shared_memory_is_left(
  tmp_path, trouble
):
  """Whether a worker is lost, or meets a broken picture, while others go on."""
  process = start(tmp_path, 3, 1000, trouble)
  assert process.stdout.readline() == "on\n", process.communicate()
  if trouble == "killed":
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
  _, said = process.communicate(timeout=120)
  assert process.returncode == 1
  message = {
    "killed": "WorkerLostError: A process that decodes pictures was ended by",
    "broken": "cannot be read: it is no picture",
  }
  assert message[trouble] in said
  assert "leaked" not in said
  assert not list(pathlib.Path("/dev/shm").glob(f"gc_jax_{process.pid}_*"))


def can_unshare():
  if not shutil.which("unshare"):
    return False
  words = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/dev/shm"]
  return subprocess.run(words, capture_output=True).returncode == 0


@pytest.mark.slow
def test_what_is_asked_for_is_enough(tmp_path):
  """In a /dev/shm of its own, just as large as that.

  The sizes above say the same of a memory that is made up.
  """
  if not can_unshare():
    pytest.skip("this user may mount nothing")
  size = workers_need(1, 4 * 256 * 256 * 3)
  mount = f'mount -t tmpfs -o size={size} none /dev/shm; exec "$@"'
  process = start(
    tmp_path, 1, 30, before=("unshare", "-m", "bash", "-c", mount, "-")
  )
  _, said = process.communicate(timeout=120)
  assert process.returncode == 0, said
  for word in ("decoded by threads", "Traceback", "leaked"):
    assert word not in said


def workers_need(num_workers, batch_bytes):
  """Returns the least whole pages in which nothing lacks."""
  low, high = 0, 2**30
  with pytest.MonkeyPatch.context() as patch:
    while high - low > 4096:
      middle = (low + high) // 2 // 4096 * 4096
      patch.setattr(workers, "_free_bytes", lambda free=middle: free)
      if workers.lack_of_room(num_workers, batch_bytes, 1):
        low = middle
      else:
        high = middle
  return high
