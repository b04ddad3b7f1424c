"""What SIGINT (Ctrl-C), SIGTERM and SIGHUP do to a process and to its children.

Training saves first (`parallel.stop_requested`); the other commands end with a
line. Only commands install handlers: a notebook keeps its own.
"""

import contextlib
import logging
import multiprocessing
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Iterator

# As shells have it after Ctrl-C: 128 + SIGINT.
INTERRUPTED = 130

# The name that people know, and the exit status once all is saved. Launchers
# expect 0 after a stop they asked for.
_STOPS = {
  signal.SIGTERM: ("SIGTERM", 0),
  signal.SIGINT: ("Ctrl-C (SIGINT)", INTERRUPTED),
  # A connection was lost, a window closed: as shells have it, 128 + SIGHUP.
  signal.SIGHUP: ("SIGHUP, as its terminal is gone", 129),
}

_logger = logging.getLogger(__name__)

# A first Ctrl-C may take so long before a line says what it waits for.
_PATIENCE_SECS = 2.0
_told = threading.Event()  # a line said what becomes of the work


class Stopped(SystemExit):
  """Ends the process as it was asked to, once all is saved.

  No `Exception`: code that catches one would try something else.
  """

  def __init__(self, number: signal.Signals = signal.SIGTERM):
    self._by, status = _STOPS[number]
    super().__init__(status)

  def tell(self, what_of_it: str) -> None:
    """Logs what becomes of the work; only the first call counts."""
    if not _told.is_set():
      _told.set()
      _logger.warning("Asked to end by %s: %s.", self._by, what_of_it)


@contextlib.contextmanager
def told_if_stopped(outcome: str) -> Iterator[None]:
  """Logs what becomes of the work, if this process is stopped within."""
  try:
    yield
  except Stopped as stopped:
    stopped.tell(outcome)
    raise


@contextlib.contextmanager
def ending_at_ctrl_c(kept: str) -> Iterator[None]:
  """Ends the process with one line and the status 130 at Ctrl-C.

  A second Ctrl-C ends it at once, whatever it does. Python handles a signal in
  the main thread, between two of its own instructions: not while that thread
  waits for the compiler or a device. A second thread hears at once, by a pipe.
  It also says what a first Ctrl-C waits for. `kept` is a sentence on what is
  left of the work.
  """
  if is_ignored():
    yield
    return
  came = False

  def interrupt_once(*_) -> None:
    nonlocal came
    if not came:  # of a second one `_count_ctrl_c` hears
      came = True
      raise KeyboardInterrupt

  read, write = os.pipe()
  os.set_blocking(write, False)
  handler = signal.signal(signal.SIGINT, interrupt_once)
  wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  threading.Thread(
    target=_count_ctrl_c, args=(read,), name="ctrl_c", daemon=True
  ).start()
  way_out_is_long = False
  try:
    yield
  except KeyboardInterrupt:
    way_out_is_long = True
    _told.set()
    print(f"\nEnded by Ctrl-C. {kept}", file=sys.stderr)
    sys.exit(INTERRUPTED)
  except Stopped:
    way_out_is_long = True
    raise
  finally:
    if not way_out_is_long:
      signal.signal(signal.SIGINT, handler)
      signal.set_wakeup_fd(wakeup)
      os.close(write)


def is_ignored(number: signal.Signals = signal.SIGINT) -> bool:
  """Returns whether a signal is meant for others.

  A shell script lets the processes it starts in the background ignore Ctrl-C,
  and `nohup` the one it starts SIGHUP.
  """
  return signal.getsignal(number) == signal.SIG_IGN


def leave_terminal() -> None:
  """Sends stdout and stderr nowhere, if they do not go to a file.

  The terminal is gone, and with it `tee` and what else read a pipe: an error in
  writing to them would end the process before it has saved.
  """
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for stream in (1, 2):
    with contextlib.suppress(OSError):  # it may be closed
      if not stat.S_ISREG(os.fstat(stream).st_mode):
        os.dup2(nowhere, stream)
  os.close(nowhere)


def _count_ctrl_c(pipe: int) -> None:
  """Reads the numbers of signals, and ends the process at the second SIGINT."""
  came, waited = 0, False
  while True:
    patience = _PATIENCE_SECS if came and not waited else None
    if not select.select([pipe], [], [], patience)[0]:
      waited = True
      if not _told.is_set():
        _say(
          "Ctrl-C came, and waits for what is being computed or compiled. "
          "Ctrl-C again ends at once, with what is saved by then."
        )
      continue
    number = os.read(pipe, 1)
    if not number:
      os.close(pipe)
      return
    came += number == bytes([signal.SIGINT])
    if came == 2:
      _say("Ended at once, by a second Ctrl-C.")
      os._exit(INTERRUPTED)


def _say(text: str) -> None:
  # A terminal may be gone.
  with contextlib.suppress(OSError, ValueError):
    print(f"\n{text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
  """Keeps signals that ask to end from processes that are started within.

  Terminals and clusters send them to every process of a command, and decoding
  processes would end before the main process has saved. Threads started within
  pass this on to processes of theirs. This process hears a signal at the end.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
  """Ends this process, which `multiprocessing` started, when its parent does.

  A process that was killed cannot close those it started.
  """

  def wait() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, name="parent", daemon=True).start()
