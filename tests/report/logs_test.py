"""Metric lines: appended, resumed, torn, not finite; progress: lines, a bar."""

import io
import json
import time

import numpy as np
import pytest
import tensorboardX

from gc_jax.report import logs
from gc_jax.report.logs import (
  LINE_EVERY_SECS,
  MetricsWriter,
  Progress,
  read_metrics,
)
from gc_jax.runtime import speaking


def _write(workdir, steps, start_step=0):
  writer = MetricsWriter(workdir, start_step)
  for step in steps:
    writer.write(step, {"train/loss": 1.0 / step})
  writer.close()


def _steps(workdir):
  return [line["step"] for line in read_metrics(workdir / "metrics.jsonl")]


def test_each_write_is_one_json_line_readable_at_once(tmp_path):
  """A number that is not finite is null."""
  values = {"train/loss": 0.5, "epoch": np.float32(0.25)}
  infinite = {"a": float("nan"), "b": float("inf"), "c": -np.inf}
  writer = MetricsWriter(tmp_path)
  writer.write(3, values | infinite)
  text = (tmp_path / "metrics.jsonl").read_text()
  writer.close()
  line = json.loads(text, parse_constant=pytest.fail)
  assert line == {"step": 3} | values | dict.fromkeys("abc")
  assert text.endswith("\n")


def test_resuming_removes_replayed_lines_and_beginning_anew_all(tmp_path):
  _write(tmp_path, [1, 2, 3, 4])
  _write(tmp_path, [3, 4, 5], start_step=2)
  assert _steps(tmp_path) == [1, 2, 3, 4, 5]
  _write(tmp_path, [1], start_step=0)
  assert _steps(tmp_path) == [1]


def test_a_torn_last_line_is_dropped_and_the_run_goes_on(tmp_path):
  _write(tmp_path, [1, 2])
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 3, "train/lo')
  assert _steps(tmp_path) == [1, 2]
  _write(tmp_path, [3], start_step=2)
  assert _steps(tmp_path) == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_an_error_naming_the_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
  with pytest.raises(ValueError, match=r"Line 2 is 'not json'\. Remove"):
    read_metrics(path)


def test_tensorboard_hides_the_replayed_steps(tmp_path, monkeypatch):
  class Board:
    def __init__(self, logdir, purge_step):
      purged.append(purge_step)

    def close(self):
      pass

  purged = []
  _write(tmp_path, [1, 2, 3])
  monkeypatch.setattr(tensorboardX, "SummaryWriter", Board)
  _write(tmp_path, [], start_step=2)
  _write(tmp_path, [])
  assert purged == [3, 0]


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_without_shared_memory_only_tensorboard_goes_without(
  tmp_path, monkeypatch, caplog, request, place
):
  """Its queue lies there; a container may have none, or none left."""

  def no_room(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(tensorboardX, "SummaryWriter", no_room)
  folder = request.getfixturevalue("bucket") if place == "bucket" else tmp_path
  writer = MetricsWriter(folder)
  writer.write(1, {"train/loss": 2.0})
  writer.save()
  writer.close()
  (line,) = read_metrics(folder / "metrics.jsonl")
  assert line == {"step": 1, "train/loss": 2.0}
  (message,) = caplog.messages
  assert "Nothing is written for TensorBoard" in message
  assert "No space left" in message


def test_other_processes_write_nothing(tmp_path):
  writer = MetricsWriter(tmp_path / "run", enabled=False)
  writer.write(1, {"train/loss": 1.0})
  writer.close()
  assert list(tmp_path.iterdir()) == []


def test_a_bucket_has_every_line_once_saved_and_goes_on_from_there(bucket):
  writer = MetricsWriter(bucket)
  writer.write(1, {"train/loss": 1.0})
  writer.save()
  assert _steps(bucket) == [1]
  writer.write(2, {"train/loss": 0.5})
  writer.write(3, {"train/loss": 0.3})
  assert _steps(bucket) == [1]
  writer.close()
  assert _steps(bucket) == [1, 2, 3]
  (events,) = bucket.glob("events.out.tfevents.*")
  assert b"train/loss" in events.read_bytes()
  _write(bucket, [3, 4], start_step=2)
  assert _steps(bucket) == [1, 2, 3, 4]


def test_a_bucket_is_brought_up_to_date_every_minute(bucket, monkeypatch):
  writer = MetricsWriter(bucket)
  now = time.monotonic()
  with monkeypatch.context() as patch:
    patch.setattr(time, "monotonic", lambda: now + 61)
    writer.write(1, {"train/loss": 1.0})
  assert (bucket / "metrics.jsonl").exists()
  writer.close()


# Progress.


class _Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """Seconds on the clock, in a list to be changed."""
  secs = [0.0]
  monkeypatch.setattr(time, "monotonic", lambda: secs[0])
  return secs


def test_elsewhere_than_a_terminal_lines_come_at_intervals(clock):
  stream = io.StringIO()
  bar = Progress(100, stream=stream)
  for step in range(1, 101):
    clock[0] += 1.0
    bar.update(step, {"train/loss": 0.5, "unknown": "text"})
  bar.close()
  lines = stream.getvalue().splitlines()
  assert len(lines) == 11  # steps 1, 11, 21, ..., 91 and the last
  assert lines[0] == "  1%  step 1/100  loss 0.5"
  assert lines[1] == " 11%  step 11/100  1 steps/s  1m 29s left  loss 0.5"
  assert lines[-1].startswith("100%  step 100/100")
  assert "left" not in lines[-1]
  assert LINE_EVERY_SECS < speaking.QUIET_SECS


@pytest.mark.parametrize("start_step", [0, 90])
def test_steps_that_hold_a_compilation_are_in_no_time_left(clock, start_step):
  """None is shown before three others, in a run that goes on neither."""
  stream = io.StringIO()
  bar = Progress(200, start_step, stream=stream)
  clock[0] = 3_000.0  # the first step was compiled
  for step in range(1, 3):
    bar.update(start_step + step)
    clock[0] += 12.0
  bar.update(start_step + 3)
  assert "left" not in stream.getvalue()
  clock[0] += 12.0
  bar.update(start_step + 4)
  bar.rest()
  clock[0] += 3_000.0  # and the first evaluation
  bar.update(start_step + 5)
  clock[0] += 12.0
  bar.update(start_step + 6)
  bar.close()
  left = logs.format_secs(12 * (200 - start_step - 6))
  assert f"0.0833 steps/s  {left} left" in stream.getvalue().splitlines()[-1]


def test_numbers_of_a_validation_stand_on_the_line_of_their_step_alone(clock):
  stream = io.StringIO()
  bar = Progress(100, stream=stream)
  bar.update(1, {"train/loss": 2.0})
  bar.update(2, {"val/top1": 50.0})
  clock[0] += 20.0
  bar.update(3, {"train/loss": 1.0})
  bar.close()
  _, validated, last = stream.getvalue().splitlines()
  assert validated == "  2%  step 2/100  loss 2  val top-1 50"
  assert last.endswith("step 3/100  loss 1")


def test_every_guidance_term_is_shown_and_what_it_masks():
  stream = io.StringIO()
  terms = {"train/energy_loss": 2.0, "train/consistency_loss": 3.0}
  weights = {"train/energy_weight": 1.0, "train/consistency_weight": 25.0}
  masked = {"train/masked_pairs_frac": 0.25, "train/energy_masked_frac": 0.0}
  metrics = {"train/loss": 1.0} | terms | weights | masked
  Progress(1, stream=stream).update(1, metrics)
  assert (
    "loss 1  energy 2  consistency 3  masked pairs 25%  energy masked 0%\n"
    in stream.getvalue()
  )


def test_what_is_short_may_stay_unsaid_and_what_is_long_is_said(clock):
  stream = io.StringIO()
  bar = Progress(9, stream=stream, unit="picture", name="PGD", at_once=False)
  for done in range(9):
    bar.update(done)
    clock[0] += 1.9
  bar.update(9)
  bar.close()
  assert stream.getvalue().startswith("PGD   67%  picture 6/9  0.526 pictures/")
  assert len(stream.getvalue().splitlines()) == 1


def test_on_a_terminal_messages_stand_on_their_own_lines():
  stream = _Terminal()
  bar = Progress(10, stream=stream)
  bar.update(4, {"train/loss": 0.25})
  bar.message("saved checkpoint 4")
  bar.update(10, {"val/top1": 75.0})
  bar.close()
  assert "\rsaved checkpoint 4\n" in stream.getvalue()
  assert "10/10" in stream.getvalue()
  assert "loss 0.25]" in stream.getvalue()
  assert "step 10/10" in stream.getvalue() and "val top-1 75\n" in (
    stream.getvalue()
  )


def test_a_bar_shows_the_time_left_of_steps_without_a_compilation(clock):
  stream = _Terminal()
  bar = Progress(10, stream=stream)
  clock[0] = 3_000.0
  for step in range(1, 9):
    bar.update(step)
    clock[0] += 6.0
  bar.close()
  shown = stream.getvalue().split("\r")
  assert not any("left" in one for one in shown if " 3/10" in one)
  assert "8/10 [" in shown[-1] and "0.167 steps/s  12s left]" in shown[-1]
  assert "<" not in stream.getvalue()  # tqdm's own


def test_disabled_shows_nothing():
  stream = io.StringIO()
  bar = Progress(10, enabled=False, stream=stream)
  bar.update(10)
  bar.message("text")
  bar.close()
  assert stream.getvalue() == ""


def test_durations_read_at_a_glance():
  words = [logs.format_secs(secs) for secs in (48.2, 725, 12000)]
  assert words == ["48s", "12m 05s", "3h 20m"]
