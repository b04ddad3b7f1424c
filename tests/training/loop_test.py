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
import threading
import time

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from configs import quickstart
from gc_jax import data, models, torch_io
from gc_jax.report.logs import read_metrics
from gc_jax.runtime import checkpoint, files, parallel, signals
from gc_jax.runtime import config as saved_config
from gc_jax.runtime.checkpoint import (
  FOLDER,
  CheckpointError,
  Checkpoints,
  read_variables,
)
from gc_jax.training import build, loop
from gc_jax.training.step import TrainState
from tests.data import photos
from tests.smoke import ROOT, command


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
  if check:
    assert done.returncode == 0, done.stderr
  return done


def final_arrays(workdir):
  """Returns every array of the last checkpoint, by name."""
  with ocp.CheckpointManager((workdir / FOLDER).absolute()) as manager:
    step = manager.latest_step()
    restored = manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
    )
  return step, {k: np.asarray(v) for k, v in restored["state"].items()}


@pytest.fixture(scope="module")
def finished(smoke_run):
  """An uninterrupted run; tests that change it take `copied`."""
  return smoke_run


@pytest.fixture
def copied(finished, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(finished, workdir)
  return workdir


def test_a_run_leaves_what_the_contract_says(finished):
  names = {path.name for path in finished.iterdir()}
  assert {
    "config.json",
    "metrics.jsonl",
    "checkpoints",
    "results.json",
    "report.html",
    "gallery.npz",
  } <= names
  assert any(name.startswith("events.out.tfevents") for name in names)
  results = json.loads((finished / "results.json").read_text())
  assert results["step"] == 8
  assert results["val/num_examples"] == 40
  assert results["val/uniform/negative_quadrants_heatmap"] == pytest.approx(75)
  for method in ("gradcam", "gradcam_elementwise", "uniform", "center"):
    for metric in (
      "pointing_game",
      "stochastic_pointing_game",
      "stochastic_pointing_game_std",
      "stochastic_pointing_game_exact",
      "content_heatmap",
      "negative_quadrants_heatmap",
      "zero_map_frac",
    ):
      assert np.isfinite(results[f"val/{method}/{metric}"])
  lines = read_metrics(finished / "metrics.jsonl")
  logged = {name for line in lines for name in line}
  assert {
    "train/loss",
    "train/grad_norm",
    "train/grad_norm_features/classification",
    "train/grad_norm_features/consistency",
    "train/masked_pairs_frac",
    "train/consistency_weight",
    "train/lr",
    "val/top1",
  } <= logged
  assert lines[-1]["step"] == 8


# Three runs; its parts are in trained_test.py and state_test.py.
@pytest.mark.large
def test_a_run_starts_from_weights_with_a_head_of_its_own(tmp_path):
  path = tmp_path / "given.safetensors"
  name = "resnet8-small-gmp"
  given = models.create(name, 7)
  torch_io.save_model(path, given, torch_io.Metadata(name))
  flags = [
    f"--config.init_from={path}",
    "--config.optim.lr_per_256=1e-6",
    "--config.num_epochs=0.5",
  ]
  done = run(tmp_path / "run", *flags)
  said = f"Starting from {path}; of another size, so initialised anew: fc.bias"
  assert said in done.stderr
  learned = read_variables(tmp_path / "run").arrays
  np.testing.assert_allclose(
    learned["params.conv1.kernel.value"], given.conv1.kernel[...], atol=1e-5
  )
  assert learned["params.fc.kernel.value"].shape == (64, 10)

  # Going on from the checkpoint asks for the file no more.
  path.unlink()
  run(tmp_path / "run", *flags)
  done = run(tmp_path / "other", *flags, check=False)
  assert done.returncode != 0 and "there is none" in done.stderr
  assert not (tmp_path / "other").exists()


def test_a_checkpoint_knows_its_classes(finished):
  meta = read_variables(finished).meta
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
  assert "cup/broken.jpg, cannot be read: it is no picture" in refused.stderr
  assert "Traceback" not in refused.stderr
  shutil.rmtree(workdir)

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


def test_kill_9_and_the_same_command_end_bitwise_where_no_kill_does(
  finished, tmp_path
):
  workdir = tmp_path / "run"
  process = subprocess.Popen(
    command(workdir), cwd=ROOT, stderr=subprocess.DEVNULL
  )
  # At any time after the first checkpoint: nobody chooses the step.
  first = workdir / FOLDER / "2"
  deadline = time.monotonic() + 300
  while not first.exists() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (workdir / "results.json").exists()

  again = run(workdir)
  assert "Continuing from the checkpoint of step" in again.stderr
  step, arrays = final_arrays(workdir)
  wanted_step, wanted = final_arrays(finished)
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


@pytest.mark.large  # in two processes: multihost_test.py
def test_a_corrupt_last_checkpoint_falls_back_to_the_one_before(copied):
  for path in (copied / FOLDER / "8").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  (copied / "results.json").unlink()
  done = run(copied)
  assert "The checkpoint of step 8 cannot be read" in done.stderr
  assert "Continuing from the checkpoint of step 6" in done.stderr
  assert (copied / "unreadable_checkpoint_8").is_dir()
  assert (copied / "results.json").exists()


def contents(folder):
  """Returns when every file was written, but for the lock of the folder."""
  return {
    path: path.stat().st_mtime_ns
    for path in folder.rglob("*")
    if path.is_file() and path.name != files.LOCK
  }


def test_a_workdir_of_another_configuration_is_refused_untouched(copied):
  before = contents(copied)
  done = run(copied, "--config.optim.momentum=0.8", check=False)
  assert done.returncode == 2
  assert "--config.optim.momentum: 0.9 there, 0.8 now" in done.stderr
  assert "Traceback" not in done.stderr
  assert contents(copied) == before


def again(workdir):
  """Gives the command of a run again, in this process."""
  config = saved_config.completed(saved_config.read(workdir))
  return loop.train_and_evaluate(config, workdir)


DIGITS = tuple("0123456789")


@pytest.fixture
def data_has(monkeypatch):
  """Changes what the data is said to be; nothing of it may be computed with."""

  def change(**fields):
    load = data.load

    def changed(*args):
      return dataclasses.replace(load(*args), **fields)

    monkeypatch.setattr(data, "load", changed)

    def never(*args, **kwargs):
      raise AssertionError("computed")

    monkeypatch.setattr(build, "create_state", never)

  return change


OTHER_CLASSES = {
  "renamed": (
    ("0", "1", "2", "3", "4", "5", "6", "7", "8", "Ten"),
    ["only there: 9", "only now: Ten", "class 9: '9' there, 'Ten' now"],
  ),
  "renamed, so that all move": (
    ("A", *DIGITS[:9]),
    ["only there: 9", "only now: A", "class 0: '0' there, 'A' now"],
  ),
  "in another order": (
    DIGITS[::-1],
    ["the same names in another order", "and 5 more"],
  ),
  "one added": (
    (*DIGITS, "X"),
    ["10 there", "11 now", "only now: X", "class 10: none there, 'X' now"],
  ),
  "one removed": (
    (*DIGITS[:4], *DIGITS[5:]),
    ["10 there", "9 now", "only there: 4", "class 4: '4' there, '5' now"],
  ),
}


@pytest.mark.parametrize("kind", OTHER_CLASSES)
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_of_other_classes_is_refused_untouched(
  copied, data_has, kind, is_finished
):
  if not is_finished:
    for name in ("results.json", "report.html", "gallery.npz"):
      (copied / name).unlink()
  before = contents(copied)
  now, words = OTHER_CLASSES[kind]
  data_has(class_names=now)
  with pytest.raises(ValueError, match="learned other classes than") as told:
    again(copied)
  text = str(told.value)
  for word in [*words, "there: 0, 1, 2, 3, 4, and 5 more", "another --workdir"]:
    assert word in text
  assert contents(copied) == before


def test_a_run_of_other_labels_is_refused_untouched(copied, data_has):
  before = contents(copied)
  data_has(multi_label=True)
  with pytest.raises(
    ValueError, match="show one class each, and those of the data show several"
  ):
    again(copied)
  assert contents(copied) == before


def test_a_message_of_many_classes_has_few_lines(finished, data_has):
  data_has(
    class_names=tuple(f"class {i} {'long ' * 200}" for i in range(2_000))
  )
  with pytest.raises(ValueError, match="learned other classes") as told:
    again(finished)
  assert len(str(told.value).splitlines()) < 15
  assert len(str(told.value)) < 4_000
  assert "and 1,995 more" in str(told.value)


def test_of_a_run_from_before_classes_were_saved_the_gallery_knows_them(
  copied, data_has, monkeypatch
):
  monkeypatch.setattr(checkpoint, "read_meta", lambda _: {"train_secs": 1.0})
  data_has(class_names=(*DIGITS[:9], "Ten"))
  with pytest.raises(ValueError, match="learned other classes"):
    again(copied)
  (copied / "gallery.npz").unlink()
  with pytest.raises(AssertionError, match="computed"):  # nobody knows
    again(copied)


def test_names_in_another_form_of_unicode_are_the_same(
  copied, data_has, monkeypatch
):
  """A disk of a Mac takes them apart."""
  composed, decomposed = "caf\u00e9", "cafe\u0301"
  meta = {"class_names": [*DIGITS[:9], composed]}
  monkeypatch.setattr(checkpoint, "read_meta", lambda _: meta)
  data_has(class_names=(*DIGITS[:9], decomposed))
  with pytest.raises(AssertionError, match="computed"):
    again(copied)


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
  with files.held(copied, "--workdir"):
    pass  # an error let go of it


@pytest.fixture
def alone():
  """Makes this process a command that trains alone, for as long."""
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  signal.signal(signal.SIGINT, signal.default_int_handler)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parallel, "_stop", parallel._Stop())
    patch.setattr(signals, "_told", threading.Event())
    parallel.initialize(multihost=False)
    yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize(
  ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)]
)
def test_a_signal_while_it_is_evaluated_leaves_what_was_there(
  copied, alone, monkeypatch, caplog, number, status
):
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
  """Notes what was waited for."""

  def __init__(self, error=None):
    self.closed, self.error = 0, error

  def close(self):
    self.closed += 1
    if self.error:
      raise self.error


@pytest.mark.parametrize("error", [None, CheckpointError("a full disk")])
def test_what_is_being_saved_is_saved_though_something_else_breaks(
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


NAMES = ("a", "b", "c")


@pytest.mark.parametrize(
  ("given", "anew"),
  [
    (NAMES, []),
    ((), []),  # it does not say
    (("x", "y", "z"), ["fc.bias", "fc.kernel"]),
    (("a", "b", "c", "d"), ["fc.bias", "fc.kernel"]),
  ],
)
def test_of_weights_to_start_from_outputs_of_other_classes_start_anew(
  given, anew, caplog
):
  config = quickstart.get_config("ce,smoke")
  config.init_from = "runs/other"
  make = lambda count, seed: models.create(
    "resnet8-small", count, key=models.init_key(seed)
  )
  state = TrainState(
    jnp.asarray(0), *nnx.split(make(3, 1), nnx.Param, ...)[1:], ()
  )
  model = make(len(given) or 3, 2)
  with caplog.at_level(logging.INFO, "gc_jax"):
    started = loop._started_from(
      loop.Initial(model, given), state, config, NAMES
    )
  (line,) = caplog.messages
  assert line.startswith("Starting from runs/other")
  assert ("of other classes, so initialised anew: fc" in line) == bool(anew)
  assert ("there, " in line) == bool(anew)
  theirs = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
  fresh = dict(nnx.to_flat_state(state.params))
  for path, leaf in nnx.to_flat_state(started.params):
    name = ".".join(map(str, path))
    source = fresh if name in anew else theirs
    np.testing.assert_array_equal(leaf[...], source[path][...], err_msg=name)


@pytest.mark.parametrize("given", [("c", "b", "a"), ("a", "b", "d")])
def test_outputs_of_classes_renamed_or_reordered_are_not_gone_on_with(given):
  config = quickstart.get_config("ce,smoke")
  initial = loop.Initial(None, given)
  with pytest.raises(ValueError, match=r"(?s)3 there: .*init_head=False"):
    loop._check_initial_classes(initial, config, NAMES)
  config.init_head = False
  loop._check_initial_classes(initial, config, NAMES)


def test_outputs_start_anew_where_that_is_asked(caplog):
  config = quickstart.get_config("ce,smoke")
  config.init_head = False
  model = models.create("resnet8-small", 3, key=models.init_key(2))
  fresh = models.create("resnet8-small", 3, key=models.init_key(1))
  state = TrainState(jnp.asarray(0), *nnx.split(fresh, nnx.Param, ...)[1:], ())
  initial = loop.Initial(model, NAMES)
  with caplog.at_level(logging.INFO, "gc_jax"):
    started = loop._started_from(initial, state, config, NAMES)
  assert "init_head=False says, so initialised anew: fc" in caplog.text
  ours = nnx.to_pure_dict(started.params)
  np.testing.assert_array_equal(ours["fc"]["kernel"], fresh.fc.kernel[...])
  np.testing.assert_array_equal(
    ours["conv1"]["kernel"], model.conv1.kernel[...]
  )


@pytest.fixture
def hearing_ctrl_c():
  """What is started hears it, also where these tests run in the background."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


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
  deadline = time.monotonic() + 300
  while not metrics.exists() or not metrics.stat().st_size:
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.01)
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
  assert "at step" in done.stderr
  assert "Lower --config.optim.lr_per_256" in done.stderr
  assert "Traceback" not in done.stderr
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


def test_energy_without_objects_is_refused_before_anything_is_written(
  tmp_path,
):
  for name in ("cat", "cup"):
    (tmp_path / "mine" / name).mkdir(parents=True)
    for i in range(50):
      path = tmp_path / "mine" / name / f"{i}.png"
      path.write_bytes(photos.encode(photos.load("coffee.png", (8, 8)), "png"))
  config = quickstart.get_config("energy,smoke")
  config.data.name = "folder"
  config.data.path = str(tmp_path / "mine")
  config.data.dir = str(tmp_path / "tfds")
  config.batch_size = 16
  workdir = tmp_path / "run"
  message = (
    r"--config\.loss\.energy_weight=1\.0 must be told where objects are, .*; "
    r"folder/mine, split 'train\[:64\]', has none"
  )
  with pytest.raises(ValueError, match=message):
    loop.train_and_evaluate(config, workdir)
  assert not workdir.exists()


def test_a_full_disk_while_saving_is_told_with_the_last_good_step(tmp_path):
  """A limit on the size of files stands in for the disk: writes fail alike."""
  script = f"""
import resource, signal, sys
import jax, jax.numpy as jnp
from pathlib import Path
from gc_jax.runtime.checkpoint import CheckpointError, Checkpoints
from gc_jax.training.step import TrainState
from tests.smoke import ROOT, command

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
  assert "Could not save a checkpoint" in done.stdout
  assert os.strerror(errno.EFBIG) in done.stdout
  assert "The last good one: step 1" in done.stdout
  assert "Make room" in done.stdout


@pytest.mark.large  # without a command: checkpoint_test.py
def test_no_readable_checkpoint_at_all_is_an_error_not_a_fresh_start(
  copied, tmp_path
):
  for path in (copied / FOLDER).rglob("*"):
    if path.is_file() and path.parent != copied / FOLDER:
      path.write_bytes(b"")
  done = run(copied, check=False)
  assert done.returncode == 2
  assert "None of the checkpoints" in done.stderr
  assert "use another --workdir" in done.stderr


def test_the_best_checkpoint_outlives_the_last_ones(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=2)
  for step, best in [(1, 0.1), (2, 0.9), (3, 0.3), (4, 0.2)]:
    params = nnx.State({"w": jnp.ones(3) * step})
    state = TrainState(jnp.asarray(step), params, nnx.State({}), ())
    checkpoints.save(state, {"step": step}, best=best)
    if step == 3:
      # As after a restart: what is best is read from the disk.
      checkpoints.close()
      checkpoints = Checkpoints(tmp_path, keep=2)
  like = TrainState(
    jnp.asarray(0), nnx.State({"w": jnp.zeros(3)}), nnx.State({}), ()
  )
  checkpoints.wait()
  state, meta = checkpoints.restore(like)
  checkpoints.close()
  assert meta == {"step": 4}
  np.testing.assert_array_equal(state.params["w"], 4.0)
  kept = {
    int(p.name) for p in (tmp_path / FOLDER).iterdir() if p.name.isdigit()
  }
  assert kept == {2, 3, 4}
