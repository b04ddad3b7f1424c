"""Ctrl-C and SIGTERM, in small processes of their own.

How training handles them: parallel_test.py and training/loop_test.py.
"""

import logging
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from gc_jax.runtime import signals

# By its path: the package takes seconds to import, this file none.
IMPORT = f"""
import hashlib, importlib.util, multiprocessing, os, signal, sys, time
import threading
spec = importlib.util.spec_from_file_location("signals", {signals.__file__!r})
signals = importlib.util.module_from_spec(spec)
sys.modules["signals"] = signals
spec.loader.exec_module(signals)
"""


@pytest.fixture
def start(tmp_path):
  """Starts a script, and returns its process once it prints "on"."""
  started = []

  def start(script, ignoring=False):
    path = tmp_path / "script.py"
    # A background process, which these tests may be, ignores Ctrl-C.
    handler = "SIG_IGN" if ignoring else "default_int_handler"
    begin = f"signal.signal(signal.SIGINT, signal.{handler})\n"
    path.write_text(IMPORT + begin + textwrap.dedent(script))
    process = subprocess.Popen(
      [sys.executable, str(path)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    started.append(process)
    assert process.stdout.readline() == "on\n", process.communicate()
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()


def test_a_command_ends_at_ctrl_c_with_a_line_and_130(start):
  process = start(
    """
    with signals.ending_at_ctrl_c("Nothing is lost."):
      print("on", flush=True)
      while True:
        time.sleep(0.05)
    """,
  )
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=20)
  assert process.returncode == 130
  assert said.strip() == "Ended by Ctrl-C. Nothing is lost."


def test_a_command_that_ends_otherwise_leaves_no_trace():
  """A program may call it: the tests of commands do."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    for error in (KeyError, SystemExit):
      with pytest.raises(error), signals.ending_at_ctrl_c(""):
        assert any(t.name == "ctrl_c" for t in threading.enumerate())
        raise error
      assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1
    deadline = time.monotonic() + 20
    while any(t.name == "ctrl_c" for t in threading.enumerate()):
      assert time.monotonic() < deadline
      time.sleep(0.01)
  finally:
    signal.signal(signal.SIGINT, before)


# Like a compilation: long, and deaf to signals, without Python's lock.
COMPILING = """
signals._PATIENCE_SECS = 0.1
with signals.ending_at_ctrl_c("Nothing is lost."):
  # Said once it is under way.
  threading.Timer(0.5, print, ["on"], {"flush": True}).start()
  hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


WAY_OUT = """
import atexit
atexit.register(time.sleep, 60)
with signals.ending_at_ctrl_c("Nothing is lost."):
  print("on", flush=True)
  while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize(
  ("script", "line"),
  [
    (COMPILING, "Ctrl-C came, and waits for what is being computed or comp"),
    (WAY_OUT, "Ended by Ctrl-C. Nothing is lost.\n"),
  ],
  ids=["compiling", "a slow way out"],
)
def test_a_second_ctrl_c_ends_the_process_at_once(start, script, line):
  process = start(script)
  process.send_signal(signal.SIGINT)
  assert process.stderr.readline() == "\n"
  assert process.stderr.readline().startswith(line)
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=20)
  assert process.returncode == 130
  assert said.strip() == "Ended at once, by a second Ctrl-C."


def test_a_background_process_of_a_script_ignores_ctrl_c(start):
  process = start(
    """
    with signals.ending_at_ctrl_c("Nothing is lost."):
      print("on", flush=True)
      sys.stdin.read()
      time.sleep(0.5)
      print("to the end")
    """,
    ignoring=True,
  )
  for _ in range(3):
    process.send_signal(signal.SIGINT)
  said, errors = process.communicate(timeout=20)
  assert (process.returncode, said, errors) == (0, "to the end\n", "")


BLOCKED = """
import signal
print(sorted(int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])))
"""


def blocked_in_a_child(results):
  done = subprocess.run(
    [sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True
  )
  results.append(done.stdout.strip())


def test_signals_are_kept_from_children_also_of_threads():
  wanted = str([int(signal.SIGHUP), int(signal.SIGINT), int(signal.SIGTERM)])
  within, threads, after = [], [], []
  before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
  with signals.kept_from_children():
    blocked_in_a_child(within)
    thread = threading.Thread(target=blocked_in_a_child, args=(threads,))
    thread.start()
    thread.join()
  blocked_in_a_child(after)
  assert within == threads == [wanted]
  assert after != [wanted]
  assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_process_ends_with_the_parent_that_was_killed(start):
  process = start(
    """
    def child():
      signals.end_with_parent()
      print("on", flush=True)
      print(os.getpid(), flush=True)
      time.sleep(60)

    if __name__ == "__main__":
      started = multiprocessing.get_context("spawn").Process(target=child)
      started.start()
      started.join()
    """,
  )
  child = int(process.stdout.readline())
  os.kill(child, 0)
  process.kill()
  process.wait()
  deadline = time.monotonic() + 20
  while is_running(child):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  process.communicate()


def is_running(pid):
  """Returns whether there is such a process, other than as a zombie."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  status = pathlib.Path(f"/proc/{pid}/stat")
  return not status.exists() or " Z " not in status.read_text()


@pytest.mark.parametrize(
  ("number", "by", "status"),
  [(signal.SIGTERM, "SIGTERM", 0), (signal.SIGINT, "Ctrl-C (SIGINT)", 130)],
)
def test_only_the_first_line_about_the_work_is_logged(
  number, by, status, caplog, monkeypatch
):
  monkeypatch.setattr(signals, "_told", threading.Event())
  with caplog.at_level(logging.WARNING):
    stopped = signals.Stopped(number)
    stopped.tell("saved")
    stopped.tell("before training")
  assert stopped.code == status
  # What a checkpoint that cannot be read raises is caught; this must not be.
  assert not isinstance(stopped, Exception)
  (line,) = caplog.messages
  assert line == f"Asked to end by {by}: saved."
