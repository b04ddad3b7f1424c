import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from gc_jax.data.sets import context
from gc_jax.data.sets.context_sets import ContextDigits
from tests.data import archives

SMALL = {"image_size": 32, "num_examples": (20, 10, 10)}

PROGRAM = """
import os, signal, sys
from gc_jax.data.sets import context
from gc_jax.data.sets.context_sets import ContextDigits

draw_example = context.draw_example

def draw_or_die(source, config, split, index):
  if f"{split}-{index}" == sys.argv[2]:
    os.kill(os.getpid(), signal.SIGKILL)
  return draw_example(source, config, split, index)

context.draw_example = draw_or_die
print("start", flush=True)
dataset = context.load(
  ContextDigits,
  "test",
  data_dir=sys.argv[1],
  image_size=32,
  num_examples=(20, 10, 10),
)
assert len([record["image"] for record in dataset.source]) == 10
"""


def start(data_dir, die_at="never"):
  return subprocess.Popen(
    [sys.executable, "-c", PROGRAM, str(data_dir), die_at],
    env={**os.environ, "PYTHONPATH": os.getcwd()},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def folders(data_dir):
  return sorted(
    path.name
    for path in data_dir.glob("context_digits/*/*")
    if not path.name.startswith(".")
  )


def load(split, data_dir):
  return context.load(ContextDigits, split, data_dir=data_dir, **SMALL)


def digest(data_dir):
  return [archives.digest(load(split, data_dir)) for split in context.SPLITS]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  data_dir = tmp_path_factory.mktemp("uninterrupted")
  load("test", data_dir)
  return data_dir


@pytest.mark.parametrize("die_at", ["train-7", "test-9"])
def test_a_killed_preparation_is_done_again_from_the_start(
  die_at, tmp_path, uninterrupted
):
  child = start(tmp_path, die_at)
  child.communicate(timeout=60)
  assert child.returncode == -signal.SIGKILL
  (left,) = folders(tmp_path)
  assert left.startswith("incomplete.")

  load("test", tmp_path)
  assert folders(tmp_path) == ["1.0.0"]
  assert digest(tmp_path) == digest(uninterrupted)


def test_of_two_preparations_at_once_one_waits_for_the_other(
  tmp_path, uninterrupted
):
  folder = tmp_path / "context_digits" / context.ContextConfig(**SMALL).name
  folder.mkdir(parents=True)
  with folder.joinpath(".1.0.0.lock").open("w") as lock:
    # Hold both back until both are under way.
    fcntl.flock(lock, fcntl.LOCK_EX)
    children = [start(tmp_path), start(tmp_path)]
    for child in children:
      assert child.stdout.readline() == "start\n"
    time.sleep(0.5)
    assert not folders(tmp_path), "somebody did not wait"
  errors = [child.communicate(timeout=60)[1] for child in children]
  assert [child.returncode for child in children] == [0, 0], errors
  assert sum("Prepared 40 images" in error for error in errors) == 1
  assert all("Waiting for another process, which" in e for e in errors)
  assert folders(tmp_path) == ["1.0.0"]
  assert digest(tmp_path) == digest(uninterrupted)


def test_without_locks_the_slower_of_two_takes_the_copy_of_the_faster(
  tmp_path, uninterrupted, no_locks, monkeypatch, capsys
):
  folder = f"context_digits/{context.ContextConfig(**SMALL).name}/1.0.0"
  draw_example = context.draw_example

  def overtaken(source, config, split, index):
    if (split, index) == ("test", 5):
      shutil.copytree(uninterrupted / folder, tmp_path / folder)
    return draw_example(source, config, split, index)

  monkeypatch.setattr(context, "draw_example", overtaken)
  dataset = load("test", tmp_path)
  assert len(dataset.source) == 10
  assert folders(tmp_path) == ["1.0.0"]
  assert "Prepared" not in capsys.readouterr().err


def test_finished_data_is_not_prepared_again(uninterrupted, monkeypatch):
  def never(*_):
    raise AssertionError("drawn again")

  monkeypatch.setattr(context, "draw_example", never)
  dataset = load("train", uninterrupted)
  assert len(dataset.source) == 20


def test_other_failures_are_passed_on(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(context, "draw_example", full)
  with pytest.raises(OSError, match="No space left"):
    load("test", tmp_path)
  assert not folders(tmp_path)
