"""Runs as a whole: what they leave behind, and how they go on after trouble."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from configs import quickstart
from gc_jax import data
from gc_jax.report import artefact
from gc_jax.report.logs import read_metrics
from gc_jax.runtime import checkpoint, files, parallel, signals
from gc_jax.runtime import config as saved_config
from gc_jax.runtime.checkpoint import (
  FOLDER,
  CheckpointError,
  Checkpoints,
  read_variables,
)
from gc_jax.runtime.messages import class_differences
from gc_jax.training import build, loop
from gc_jax.training.step import TrainState
from tests.data import photos
from tests.smoke import ROOT, command, unlike_new


@pytest.fixture(scope="module", autouse=True)
def shared_compilations(compilation_cache):
  """Every process here is started with the shared environment."""
  with pytest.MonkeyPatch.context() as patch:
    for name, value in compilation_cache.items():
      patch.setenv(name, value)
    yield


def run(workdir, *flags, check=True):
  done = subprocess.run(
    command(workdir, *flags), capture_output=True, text=True, cwd=ROOT
  )
  assert "Traceback" not in done.stderr
  if check:
    assert done.returncode == 0, done.stderr
  return done


def wait_until(happened, process):
  deadline = time.monotonic() + 300
  while not happened() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.005)


def final_arrays(workdir):
  """Returns every array of the last checkpoint, by name."""
  with ocp.CheckpointManager((workdir / FOLDER).absolute()) as manager:
    step = manager.latest_step()
    restored = manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
    )
  return step, {k: np.asarray(v) for k, v in restored["state"].items()}


@pytest.fixture
def copied(smoke_run, tmp_path):
  """An uninterrupted run that a test may change."""
  workdir = tmp_path / "run"
  shutil.copytree(smoke_run, workdir)
  return workdir


def test_a_run_leaves_the_files_and_numbers_of_the_contract(smoke_run):
  names = {path.name for path in smoke_run.iterdir()}
  assert {
    *("config.json", "metrics.jsonl", "checkpoints"),
    *("results.json", "report.html", "gallery.npz"),
  } <= names
  assert any(name.startswith("events.out.tfevents") for name in names)
  assert unlike_new(smoke_run) == []
  results = json.loads((smoke_run / "results.json").read_text())
  assert results["step"] == 8
  assert results["val/num_examples"] == 40
  assert results["val/uniform/negative_quadrants_heatmap"] == pytest.approx(75)
  for method in ("gradcam", "gradcam_elementwise", "uniform", "center"):
    for metric in (
      *("pointing_game", "content_heatmap", "negative_quadrants_heatmap"),
      *("stochastic_pointing_game", "stochastic_pointing_game_std"),
      *("stochastic_pointing_game_exact", "zero_map_frac"),
    ):
      assert np.isfinite(results[f"val/{method}/{metric}"])
  lines = read_metrics(smoke_run / "metrics.jsonl")
  logged = {name for line in lines for name in line}
  assert {
    *("train/loss", "train/lr", "train/grad_norm", "val/top1"),
    *("train/masked_pairs_frac", "train/consistency_weight"),
    "train/grad_norm_features/classification",
    "train/grad_norm_features/consistency",
  } <= logged
  assert lines[-1]["step"] == 8
  meta = read_variables(smoke_run).meta
  assert meta["class_names"] == list("0123456789")
  assert meta["multi_label"] is False


@pytest.mark.slow  # two runs of an own recipe, one compiled: 30 s
def test_a_folder_with_broken_pictures_is_trained_on_and_they_are_counted(
  tmp_path,
):
  """As the recipe says it, with distractors from the whole folder."""
  folder = tmp_path / "mine"
  for split, count in (("train", 12), ("val", 4)):
    for name, photo in (("cat", "chelsea.png"), ("cup", "coffee.png")):
      image = photos.load(photo, (100, 80))
      (folder / split / name).mkdir(parents=True)
      for i in range(count):
        part = image.crop((i, i, i + 80, i + 60))
        path = folder / split / name / f"{i}.jpg"
        path.write_bytes(photos.encode(part))
    (folder / split / "cup" / "broken.jpg").write_text("no picture")
  workdir = tmp_path / "run"
  flags = [
    "--config=configs/folder.py:gc,smoke",
    "--config.data.name=folder",
    f"--config.data.path={folder}",
    f"--config.data.dir={tmp_path / 'tfds'}",
    "--config.data.train_split=train",
    "--config.data.val_split=validation",
    "--config.data.eval_split=test",
    "--config.compose.mode=independent",
    "--config.compose.distractors=dataset",
    "--config.num_epochs=4",
  ]
  refused = run(workdir, *flags, check=False)
  for name in ("train/cup/broken.jpg", "val/cup/broken.jpg"):
    assert f"{name}: it is no picture" in refused.stderr
  assert "compiling" not in refused.stderr and not workdir.exists()

  run(workdir, *flags, "--config.data.on_error=skip")
  results = json.loads((workdir / "results.json").read_text())
  assert results["step"] == 4
  assert results["val/num_examples"] == 8
  assert results["data/skipped_eval"] == 1
  # Four steps of 16, a little over two epochs of 25; distractors besides.
  assert results["data/skipped_train"] >= 2
  assert results["data/dropped_train"] == results["data/dropped_eval"] == 0
  lines = read_metrics(workdir / "metrics.jsonl")
  assert sum(line.get("train/skipped_frac", 0) for line in lines) > 0
  assert (workdir / "report.html").exists()


def test_a_run_killed_and_started_again_ends_bitwise_as_if_never_killed(
  smoke_run, tmp_path
):
  workdir = tmp_path / "run"
  process = subprocess.Popen(
    command(workdir), cwd=ROOT, stderr=subprocess.DEVNULL
  )
  # At any time after the first checkpoint: nobody chooses the step.
  wait_until((workdir / FOLDER / "2").exists, process)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (workdir / "results.json").exists()

  again = run(workdir)
  assert "Continuing from the checkpoint of step" in again.stderr
  step, arrays = final_arrays(workdir)
  wanted_step, wanted = final_arrays(smoke_run)
  assert step == wanted_step == 8
  assert arrays.keys() == wanted.keys()
  for name in wanted:
    np.testing.assert_array_equal(arrays[name], wanted[name], err_msg=name)
  # The numbers of every step once, none twice, none lost.
  steps = [
    line["step"]
    for line in read_metrics(workdir / "metrics.jsonl")
    if "train/loss" in line
  ]
  assert steps == sorted(set(steps))
  assert steps[-1] == 8


# A workdir that holds another run.


def contents(folder):
  """Returns when every file was written, but for the lock of the folder."""
  return {
    path: path.stat().st_mtime_ns
    for path in folder.rglob("*")
    if path.is_file() and path.name != files.LOCK
  }


def again(workdir, **fields):
  """Gives the command of a run again, in this process."""
  config = saved_config.completed(saved_config.read(workdir))
  config.update(fields)
  return loop.train_and_evaluate(config, workdir)


def test_a_workdir_of_another_configuration_is_refused_untouched(copied):
  before = contents(copied)
  with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
    again(copied, seed=1)
  assert contents(copied) == before


DIGITS = tuple("0123456789")


@pytest.fixture
def data_has(monkeypatch):
  """Changes what the data is said to be, and forbids computing with it."""

  def change(**fields):
    load = data.load

    def changed(*args):
      return dataclasses.replace(load(*args), **fields)

    monkeypatch.setattr(data, "load", changed)

    def never(*args, **kwargs):
      raise AssertionError("computed")

    monkeypatch.setattr(build, "create_state", never)

  return change


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"class_names": (*DIGITS[:9], "Ten")},
      r"(?s)learned other classes than .* 0, 1, 2, 3, 4, and 5 more.*"
      r"another --workdir",
    ),
    (
      {"multi_label": True},
      "show one class each, and those of the data show several",
    ),
  ],
)
def test_a_run_of_other_classes_is_refused_untouched(
  copied, data_has, fields, message, is_finished
):
  if not is_finished:
    for name in ("results.json", "report.html", "gallery.npz"):
      (copied / name).unlink()
  before = contents(copied)
  data_has(**fields)
  with pytest.raises(ValueError, match=message):
    again(copied)
  assert contents(copied) == before


@pytest.mark.parametrize(
  ("now", "words"),
  [
    ((*DIGITS[:9], "Ten"), "only there: 9; only now: Ten; class 9: '9' there"),
    (DIGITS[::-1], "the same names in another order; and 5 more"),
    ((*DIGITS, "X"), "10 there; 11 now; class 10: none there, 'X' now"),
    (DIGITS[:4] + DIGITS[5:], "9 now; only there: 4; class 4: '4' there, '5'"),
    ([f"class {i} {'long ' * 200}" for i in range(2_000)], "and 1,995 more"),
  ],
)
def test_classes_that_differ_are_told_in_few_lines(now, words):
  text = class_differences(DIGITS, now)
  assert all(word in text for word in words.split("; ")), text
  assert len(text.splitlines()) < 12 and len(text) < 4_000


def test_a_finished_run_measured_on_other_pictures_is_refused_untouched(
  copied, smoke_run, data_has
):
  before = contents(copied)
  before_about = smoke_run / artefact.ABOUT
  data_has(names=[f"{i}.png" for i in range(40)])  # unnamed before
  with pytest.raises(ValueError, match=r"measured on other pictures.*evaluate"):
    again(copied)
  assert contents(copied) == before
  # What a broken file says, nobody knows; nor of a run that is not finished.
  (copied / artefact.ABOUT).write_text("{")
  with pytest.raises(AssertionError, match="computed"):
    again(copied)
  shutil.copy(before_about, copied / artefact.ABOUT)
  (copied / "results.json").unlink()
  with pytest.raises(AssertionError, match="computed"):
    again(copied)


@pytest.mark.parametrize("count", [20, 200])
def test_a_run_keeps_the_steps_it_began_with_whatever_pictures_there_are_now(
  copied, data_has, capsys, count
):
  began = read_variables(copied).meta["num_train"]
  (copied / artefact.ABOUT).unlink()
  data_has(source=[{"labels": [i % 10]} for i in range(count)], num_located=0)
  with pytest.raises(AssertionError, match="computed"):
    again(copied)
  said = " ".join(capsys.readouterr().err.split())
  assert (
    f"began with {began} pictures to train on; the data has {count}" in said
  )
  assert " 8 steps of " in said


def test_the_gallery_of_an_older_run_knows_its_classes(
  copied, data_has, monkeypatch
):
  """Its checkpoints do not say."""
  monkeypatch.setattr(checkpoint, "read_meta", lambda _: {"train_secs": 1.0})
  data_has(class_names=(*DIGITS[:9], "Ten"))
  with pytest.raises(ValueError, match="learned other classes"):
    again(copied)
  for name in ("gallery.npz", artefact.ABOUT):
    (copied / name).unlink()
  with pytest.raises(AssertionError, match="computed"):  # nobody knows
    again(copied)


def test_names_in_another_form_of_unicode_are_the_same():
  """A disk of a Mac takes them apart."""
  assert class_differences(["caf\u00e9"], ["cafe\u0301"]) == ""


def test_a_second_run_in_a_workdir_is_refused_by_the_name_of_the_first(
  copied, data_has
):
  data_has()
  before = contents(copied)
  with (
    files.held(copied, "--workdir"),
    pytest.raises(
      ValueError, match=rf"written to by process {os.getpid()} on .*since 20"
    ),
  ):
    again(copied)
  assert contents(copied) == before
  with pytest.raises(AssertionError, match="computed"):  # and now it is not
    again(copied)


def test_unfit_data_is_refused_before_anything_is_written(tmp_path, data_has):
  data_has(class_names=("only",))
  with pytest.raises(ValueError, match="at least two classes"):
    loop.train_and_evaluate(quickstart.get_config("smoke"), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_needs_no_more_the_weights_it_started_from(
  copied, data_has
):
  fields = saved_config.read(copied) | {"init_from": "gone.pth"}
  (copied / saved_config.FILENAME).write_text(json.dumps(fields))
  data_has()
  with pytest.raises(AssertionError, match="computed"):
    again(copied)
  shutil.rmtree(copied / FOLDER)
  with pytest.raises(ValueError, match="there is none"):
    again(copied)


@pytest.mark.parametrize("given", [("c", "b", "a"), ("a", "b", "d")])
def test_outputs_of_renamed_or_reordered_classes_are_no_start(given):
  config = quickstart.get_config("ce,smoke")
  initial = loop.Initial(None, given)
  with pytest.raises(ValueError, match=r"(?s)3 there: .*init_head=False"):
    loop._check_initial_classes(initial, config, ("a", "b", "c"))
  config.init_head = False
  loop._check_initial_classes(initial, config, ("a", "b", "c"))


# Signals and errors.


@pytest.mark.parametrize(
  ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)]
)
def test_a_signal_during_the_evaluation_leaves_the_run_as_it_was(
  copied, handlers, monkeypatch, caplog, number, status
):
  parallel.initialize(multihost=False)

  def full(self, *_):
    os.kill(os.getpid(), number)
    raise AssertionError("went on")

  monkeypatch.setattr(loop.Evaluation, "full", full)
  before = contents(copied)
  with (
    caplog.at_level(logging.WARNING),
    pytest.raises(signals.Stopped) as stopped,
  ):
    again(copied)
  assert stopped.value.code == status
  (line,) = [m for m in caplog.messages if "Asked to end" in m]
  assert f"training is done, and saved in {copied}. The same command" in line
  after = contents(copied)
  for name in ("results.json", "report.html", "gallery.npz"):
    assert after[copied / name] == before[copied / name]


class FakeCheckpoints(Checkpoints):
  """Counts how often it was closed."""

  def __init__(self, error=None):
    self.closed, self.error = 0, error

  def close(self):
    self.closed += 1
    if self.error:
      raise self.error


@pytest.mark.parametrize("error", [None, CheckpointError("a full disk")])
def test_a_save_under_way_is_finished_though_something_else_breaks(
  error, caplog
):
  checkpoints = FakeCheckpoints(error)
  with (
    pytest.raises(ValueError, match="a broken picture"),
    loop._saved_whatever_happens(checkpoints),
  ):
    raise ValueError("a broken picture")
  assert checkpoints.closed == 1
  assert caplog.messages == (["a full disk"] if error else [])
  with contextlib.suppress(CheckpointError):
    with loop._saved_whatever_happens(checkpoints):
      pass
    assert not error, "this one counts"
  assert checkpoints.closed == 2


# A whole run with a process that decodes.
@pytest.mark.slow
def test_ctrl_c_in_a_terminal_saves_the_step_says_so_and_is_130(
  tmp_path, hearing_ctrl_c
):
  """It goes to all processes of the command, those that decode among them."""
  workdir = tmp_path / "run"
  flags = [
    "--config=configs/quickstart.py:ce,smoke",
    "--config.num_epochs=1000",
    "--config.checkpoint.every_epochs=1000",
    "--config.eval.every_epochs=1000",
    "--config.data.num_workers=1",
  ]
  process = subprocess.Popen(
    command(workdir, *flags),
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  metrics = workdir / "metrics.jsonl"
  wait_until(lambda: metrics.exists() and metrics.stat().st_size, process)
  os.killpg(process.pid, signal.SIGINT)
  _, said = process.communicate(timeout=60)
  assert process.returncode == 130, said
  (line,) = [text for text in said.splitlines() if "Asked to end" in text]
  step = int(line.split("stopped after step ")[1].split(" ")[0])
  assert f"of 4000, which is saved in {workdir}. The same command" in line
  assert [p.name for p in (workdir / FOLDER).iterdir()] == [str(step)]
  for word in ("Traceback", "leaked", "KeyboardInterrupt", "Error"):
    assert word not in said


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
  workdir = tmp_path / "run"
  done = run(workdir, "--config.optim.lr_per_256=1e30", check=False)
  assert done.returncode == 2
  assert "Lower --config.optim.lr_per_256" in done.stderr
  assert not (workdir / "results.json").exists()
  saved = [p.name for p in (workdir / FOLDER).glob("*") if p.name.isdigit()]
  step = int(done.stderr.split("at step ")[1].split(":")[0])
  assert all(int(name) < step for name in saved)


def test_a_path_that_cannot_be_a_workdir_is_refused(tmp_path):
  blocker = tmp_path / "file"
  blocker.write_text("in the way")
  with pytest.raises(ValueError, match="must be a folder that can be written"):
    loop.train_and_evaluate(quickstart.get_config("gc,smoke"), blocker / "run")
  assert blocker.read_text() == "in the way"


# Checkpoints.


def test_a_full_disk_while_saving_is_told_with_the_last_good_step(tmp_path):
  """A limit on the size of files stands in for the disk: writes fail alike."""
  script = f"""
import resource, signal, sys
import jax, jax.numpy as jnp
from pathlib import Path
from gc_jax.runtime.checkpoint import CheckpointError, Checkpoints
from gc_jax.training.step import TrainState

def state(step):
  key = jax.random.key(step)
  params = jax.random.normal(key, (100_000,))
  return TrainState(jnp.asarray(step), params, {{}}, ())

checkpoints = Checkpoints(Path({str(tmp_path)!r}), keep=2)
checkpoints.save(state(1), {{}}, best=0.0)
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
  checkpoints.save(state(2), {{}}, best=0.0)
  checkpoints.wait()
except CheckpointError as error:
  print(error)
  sys.exit(7)
"""
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 7, done.stderr
  for words in (
    "Could not save a checkpoint",
    os.strerror(errno.EFBIG),
    "The last good one: step 1",
    "Make room",
  ):
    assert words in done.stdout


def test_the_best_checkpoint_outlives_the_last_ones(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=2)
  for step, best in [(1, 0.1), (2, 0.9), (3, 0.3), (4, 0.2)]:
    state = TrainState(jnp.asarray(step), nnx.State({}), nnx.State({}), ())
    checkpoints.save(state, {}, best=best)
    if step == 3:
      # As after a restart: what is best is read from the disk.
      checkpoints.close()
      checkpoints = Checkpoints(tmp_path, keep=2)
  checkpoints.close()
  kept = {
    int(p.name) for p in (tmp_path / FOLDER).iterdir() if p.name.isdigit()
  }
  assert kept == {2, 3, 4}
