"""Metric lines: appended, resumed, torn, not finite."""

import json
import time

import numpy as np
import pytest
import tensorboardX

from gc_jax.report.logs import MetricsWriter, read_metrics


def _write(workdir, steps, start_step=0):
  writer = MetricsWriter(workdir, start_step)
  for step in steps:
    writer.write(step, {"train/loss": 1.0 / step})
  writer.close()


def _steps(workdir):
  return [line["step"] for line in read_metrics(workdir / "metrics.jsonl")]


def test_each_write_is_one_json_line_readable_at_once(tmp_path):
  writer = MetricsWriter(tmp_path)
  writer.write(3, {"train/loss": 0.5, "epoch": np.float32(0.25)})
  text = (tmp_path / "metrics.jsonl").read_text()
  writer.close()
  assert json.loads(text) == {"step": 3, "train/loss": 0.5, "epoch": 0.25}
  assert text.endswith("\n")


def test_resuming_removes_the_lines_of_replayed_steps(tmp_path):
  _write(tmp_path, [1, 2, 3, 4])
  _write(tmp_path, [3, 4, 5], start_step=2)
  assert _steps(tmp_path) == [1, 2, 3, 4, 5]


def test_beginning_anew_leaves_no_line_of_an_earlier_run(tmp_path):
  _write(tmp_path, [1, 2])
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -np.inf])
def test_a_number_that_is_not_finite_is_null(tmp_path, value):
  writer = MetricsWriter(tmp_path)
  writer.write(1, {"train/loss": value, "train/lr": 0.1})
  writer.close()
  text = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(text, parse_constant=pytest.fail)["train/loss"] is None
  assert read_metrics(tmp_path / "metrics.jsonl")[0]["train/lr"] == 0.1


def test_tensorboard_events_lie_in_the_workdir(tmp_path):
  _write(tmp_path, [1, 2])
  (events,) = tmp_path.glob("events.out.tfevents.*")
  assert b"train/loss" in events.read_bytes()


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
