"""What a command is doing, said aloud: no command is silent for long.

Whoever does what may take long names it, `doing`. A thread of the command
watches, and names it again whenever nothing else was said for a while: while
jax compiles or a library is imported, nothing else can speak.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

QUIET_SECS = 13.0  # so long nothing is said before a line says what goes on


class Task:
  """Something under way; its `text` may change: "measuring, 8 of 50"."""

  def __init__(self, text: str):
    self.text = text
    self.began = time.monotonic()


class _Voice:
  """What this process is doing, and when anything was last said."""

  def __init__(self):
    self.tasks: list[Task] = []  # the last is the innermost
    self.said_at = time.monotonic()
    self.is_muted = False
    self.is_watched = False


_voice = _Voice()


@contextlib.contextmanager
def doing(text: str) -> Iterator[Task]:
  """Names what is done within; threads may do several things at once."""
  task = Task(text)
  _voice.tasks.append(task)
  try:
    yield task
  finally:
    _voice.tasks.remove(task)


def say(text: str) -> None:
  """Prints a line for people on stderr, without breaking a progress bar."""
  heard()
  if _voice.is_muted:
    return
  # A bar is there only if its library is.
  bars = sys.modules.get("tqdm")
  if bars is not None and sys.stderr.isatty():
    bars.tqdm.write(text, file=sys.stderr)
  else:
    print(text, file=sys.stderr, flush=True)


def heard() -> None:
  """Notes that something was said just now."""
  _voice.said_at = time.monotonic()


def mute() -> None:
  """Says nothing from here on: another process speaks for all."""
  _voice.is_muted = True


@contextlib.contextmanager
def never_silent() -> Iterator[None]:
  """Within, a line says what goes on whenever nothing else was said."""
  if _voice.is_watched:
    yield
    return
  _voice.is_watched = True
  heard()
  ended = threading.Event()
  thread = threading.Thread(
    target=_watch, args=(ended,), name="speaking", daemon=True
  )
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
    _voice.is_watched = False


def _watch(ended: threading.Event) -> None:
  while not ended.wait(_still_quiet()):
    if _still_quiet() <= 0:
      with contextlib.suppress(OSError, ValueError):  # a terminal may be gone
        say(_what_goes_on())


def _still_quiet() -> float:
  """Returns the seconds until a line is due."""
  return max(0.0, _voice.said_at + QUIET_SECS - time.monotonic())


def _what_goes_on() -> str:
  tasks = list(_voice.tasks)
  if not tasks:
    return "still working"
  task = tasks[-1]
  return f"still {task.text}, {time.monotonic() - task.began:.0f} s"
