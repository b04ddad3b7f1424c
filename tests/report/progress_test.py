"""Progress: plain lines in a file, a bar on a terminal."""

import io
import time

from gc_jax.report import logs


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_elsewhere_than_a_terminal_lines_come_at_intervals(monkeypatch):
  secs = [0.0]
  monkeypatch.setattr(time, "monotonic", lambda: secs[0])
  stream = io.StringIO()
  bar = logs.Progress(100, stream=stream)
  for step in range(1, 101):
    secs[0] += 1.0
    bar.update(step, {"train/loss": 0.5, "unknown": "text"})
  bar.close()
  lines = stream.getvalue().splitlines()
  assert len(lines) == 8  # steps 1, 16, 31, ..., 91 and the last
  assert lines[1] == "16%  step 16/100  1 steps/s  1m 24s left  loss 0.5".rjust(
    len(lines[1])
  )
  assert lines[-1].startswith("100%  step 100/100")
  assert "left" not in lines[-1]


def test_a_resumed_run_counts_from_where_it_began(monkeypatch):
  secs = [0.0]
  monkeypatch.setattr(time, "monotonic", lambda: secs[0])
  stream = io.StringIO()
  bar = logs.Progress(100, start_step=90, stream=stream)
  secs[0] = 2.0
  bar.update(91)
  assert " 91%  step 91/100  0.5 steps/s  18s left" in stream.getvalue()


def test_on_a_terminal_messages_stand_on_their_own_lines():
  stream = _Terminal()
  bar = logs.Progress(10, stream=stream)
  bar.update(4, {"train/loss": 0.25})
  bar.message("saved checkpoint 4")
  bar.update(10)
  bar.close()
  assert "\rsaved checkpoint 4\n" in stream.getvalue()
  assert "10/10" in stream.getvalue()
  assert "loss=0.25" in stream.getvalue()


def test_disabled_shows_nothing():
  stream = io.StringIO()
  bar = logs.Progress(10, enabled=False, stream=stream)
  bar.update(10)
  bar.message("text")
  bar.close()
  assert stream.getvalue() == ""


def test_durations_read_at_a_glance():
  assert [logs.format_secs(s) for s in (48.2, 725, 12000)] == [
    "48s",
    "12m 05s",
    "3h 20m",
  ]
