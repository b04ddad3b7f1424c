"""Batches on their way to the devices; places of processes; requests to end.

Two processes that train together: multihost_test.py.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from gc_jax.runtime import parallel, signals


def numbered(count, loaded, error=None):
  for i in range(count):
    loaded.release()
    yield {"image": np.full((4, 2), i)}
  if error is not None:
    raise error


def test_batches_arrive_in_order_and_divided_and_errors_when_they_are_due():
  broken = numbered(5, threading.Semaphore(0), ValueError("a broken picture"))
  ahead = parallel.to_devices_ahead(broken, parallel.make_mesh())
  for i in range(5):
    batch = next(ahead)
    assert int(batch["image"][0, 0]) == i
    assert len(batch["image"].sharding.device_set) == 4
  with pytest.raises(ValueError, match="a broken picture"):
    next(ahead)


def test_only_the_next_batch_is_loaded_while_one_is_used():
  loaded = threading.Semaphore(0)
  ahead = parallel.to_devices_ahead(numbered(9, loaded), parallel.make_mesh())
  with contextlib.closing(ahead):
    for _ in range(3):
      next(ahead)
      assert loaded.acquire(timeout=60), "the one that is used"
    assert loaded.acquire(timeout=60), "the one after it, without being asked"
    assert not loaded.acquire(timeout=0.2)
  assert not [t for t in threading.enumerate() if "one_ahead" in t.name]


PLACE = {
  "JAX_COORDINATOR_ADDRESS": "10.0.0.2:8476",
  "JAX_NUM_PROCESSES": "2",
  "JAX_PROCESS_ID": "1",
}


@pytest.fixture
def joined(monkeypatch, handlers):
  """Returns what jax is told of the processes, instead of joining them."""
  told = {}
  monkeypatch.setattr(parallel.jax.distributed, "initialize", told.update)
  monkeypatch.setattr(parallel.faulthandler, "enable", lambda **_: None)
  for name in PLACE:
    monkeypatch.delenv(name, raising=False)
  return told


def test_a_process_takes_its_place_from_the_environment_or_jax_finds_it(
  joined, monkeypatch
):
  parallel.initialize(multihost=True)
  assert set(joined) == {"heartbeat_timeout_seconds"}
  for name, value in PLACE.items():
    monkeypatch.setenv(name, value)
  parallel.initialize(multihost=True)
  assert joined.pop("heartbeat_timeout_seconds") < 90
  assert joined == {
    "coordinator_address": "10.0.0.2:8476",
    "num_processes": 2,
    "process_id": 1,
  }


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("JAX_PROCESS_ID", "", "all three.*JAX_PROCESS_ID is missing, and"),
    ("JAX_NUM_PROCESSES", "", "JAX_NUM_PROCESSES is missing.*Set the rest"),
    ("JAX_COORDINATOR_ADDRESS", "", "JAX_COORDINATOR_ADDRESS is missing"),
    ("JAX_COORDINATOR_ADDRESS", "host", "='host' must be HOST:PORT"),
    ("JAX_COORDINATOR_ADDRESS", "host:", "must be HOST:PORT"),
    ("JAX_NUM_PROCESSES", "two", "='two' must be a number of processes"),
    ("JAX_PROCESS_ID", "2", "='2' one of 0 .. JAX_NUM_PROCESSES - 1"),
    ("JAX_PROCESS_ID", "-1", "Correct them"),
  ],
)
def test_a_wrong_place_is_refused(joined, monkeypatch, name, value, message):
  for given, right in PLACE.items():
    monkeypatch.setenv(given, right)
  monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=message):
    parallel.initialize(multihost=True)
  assert not joined


def test_a_machine_where_jax_finds_no_processes_is_refused(joined, monkeypatch):
  def initialize(**_):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(parallel.jax.distributed, "initialize", initialize)
  with pytest.raises(ValueError, match="launch/, set all three, or leave out"):
    parallel.initialize(multihost=True)


@pytest.fixture
def alone(handlers):
  """A process that trains alone; sends it a signal."""
  parallel.initialize(multihost=False)
  return lambda number: os.kill(os.getpid(), number)


STATUSES = {signal.SIGTERM: 0, signal.SIGINT: 130, signal.SIGHUP: 129}


@pytest.mark.parametrize("number", STATUSES)
def test_between_steps_a_signal_waits_until_training_asks(alone, number):
  with parallel.stop_awaited():
    assert parallel.stop_requested(1) is None
    alone(number)
    alone(number)
    stopped = parallel.stop_requested(2)
  assert isinstance(stopped, signals.Stopped)
  assert stopped.code == STATUSES[number]


@pytest.mark.parametrize("number", STATUSES)
def test_before_and_after_training_a_signal_ends_at_once(alone, number):
  with pytest.raises(signals.Stopped) as ended:
    alone(number)
  assert ended.value.code == STATUSES[number]
  for again in STATUSES:
    alone(again)  # ignored: the first one is on its way
  assert parallel.stop_requested().code == STATUSES[number]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_a_shell_or_nohup_ignores_stays_ignored(handlers, number):
  signal.signal(number, signal.SIG_IGN)
  parallel.initialize(multihost=False)
  assert signal.getsignal(number) == signal.SIG_IGN


IN_A_TERMINAL = """
import os, pathlib, signal, sys, time
from gc_jax.runtime import parallel

os.login_tty(int(sys.argv[2]))
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run by nohup
parallel.initialize(multihost=False)
with parallel.stop_awaited():
  screen = os.dup(1)
  if sys.argv[3] == "tee":  # a reader that ends with the terminal
    read, write = os.pipe()
    os.dup2(write, 1), os.dup2(write, 2), os.close(write), os.close(read)
  os.write(screen, b"on")
  while (stopped := parallel.stop_requested()) is None:
    time.sleep(0.01)
  stopped.tell("saved")
  print("a line that nobody reads", flush=True)
  pathlib.Path(sys.argv[1]).write_text("saved")
raise stopped
"""


@pytest.mark.parametrize("reader", ["terminal", "tee"])
def test_a_process_saves_when_its_terminal_is_closed(tmp_path, reader):
  ours, terminal = os.openpty()
  arguments = [tmp_path / "file", str(terminal), reader]
  process = subprocess.Popen(
    [sys.executable, "-c", IN_A_TERMINAL, *arguments], pass_fds=[terminal]
  )
  os.close(terminal)
  said = b""
  while b"on" not in said:
    said += os.read(ours, 100)
  os.close(ours)
  try:
    assert process.wait(timeout=60) == 129
  finally:
    process.kill()
  assert (tmp_path / "file").read_text() == "saved"


def test_a_library_leaves_signals_alone(handlers):
  now = {number: signal.getsignal(number) for number in STATUSES}
  with parallel.stop_awaited():
    assert parallel.stop_requested(1) is None
    assert now == {number: signal.getsignal(number) for number in STATUSES}


@pytest.mark.parametrize(("number", "status"), STATUSES.items())
def test_a_signal_of_one_process_reaches_all_of_them(
  joined, monkeypatch, number, status
):
  """Jax tells all of SIGTERM; only who got another says so as it ends."""
  came = []
  parallel.initialize(multihost=True)
  signal.signal(signal.SIGTERM, lambda *_: came.append(1))
  monkeypatch.setattr(parallel.jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(
    parallel.multihost_utils,
    "reached_preemption_sync_point",
    lambda number: bool(came),
  )
  assert parallel.stop_requested(1) is None
  os.kill(os.getpid(), number)
  assert came == [1]
  stopped = parallel.stop_requested(2)
  assert stopped.code == status
  with pytest.raises(signals.Stopped), parallel.ending_together():
    raise stopped  # Python's own way out: the others know of it


def test_the_steps_that_processes_ask_about_have_no_gaps(handlers, monkeypatch):
  """The processes may have agreed to stop at any of them."""
  asked = []

  def reached(number):
    asked.append(number)
    return number == 5

  monkeypatch.setattr(parallel.jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(
    parallel.multihost_utils, "reached_preemption_sync_point", reached
  )
  steps = (3, 4, 7, None, None)
  stops = [bool(parallel.stop_requested(step)) for step in steps]
  assert stops == [False, False, True, True, True]
  assert asked == list(range(1, 10))


def test_processes_of_one_machine_are_counted(monkeypatch):
  assert parallel.processes_here() == 1

  def gathered(here):
    return np.stack([here, here + 1, here, here + 2])

  monkeypatch.setattr(parallel.jax, "process_count", lambda: 4)
  monkeypatch.setattr(parallel.multihost_utils, "process_allgather", gathered)
  assert parallel.processes_here() == 2


@pytest.mark.parametrize(
  ("error", "status"),
  [(KeyError("why"), 1), (SystemExit(2), 2), (SystemExit("why"), 1)],
)
def test_an_error_of_one_of_several_processes_ends_it_at_once(
  error, status, monkeypatch, capsys
):
  ended = []
  monkeypatch.setattr(parallel, "_LAST_WORDS_SECS", 0)
  monkeypatch.setattr(parallel.os, "_exit", ended.append)
  with pytest.raises(type(error)), parallel.ending_together():
    raise error  # alone, it takes Python's way out
  monkeypatch.setattr(parallel.jax.distributed, "is_initialized", lambda: True)
  with parallel.ending_together():
    raise error
  assert ended == [status]
  said = capsys.readouterr().err
  assert "Process 1 of 1 ends with this error" in said
  assert ("why" in said) == (status == 1)
