"""gc_jax.train, and a run that goes on from another in a new workdir."""

import hashlib
import shutil

import numpy as np
import pytest

import gc_jax
from configs import quickstart
from gc_jax.runtime import checkpoint
from gc_jax.runtime import config as saved_config
from gc_jax.training import build
from tests import smoke
from tests.training import small

FIELDS = {
  "model.name": "tests.examples.nets:make",
  "num_epochs": 1.0,
  "checkpoint.every_epochs": 0.5,
  "checkpoint.keep": 3,
  "data.image_size": 32,
  "data.eval_split": "test[:8]",
  "eval.methods": ("gradcam",),
  "optim.schedule": "step",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run of four steps."""
  recipe = f"{smoke.ROOT}/configs/quickstart.py:gc,smoke"
  workdir = tmp_path_factory.mktemp("session") / "whole"
  return gc_jax.train(recipe, str(workdir), FIELDS)


@pytest.fixture
def half(whole, tmp_path):
  """The same run, as it was after two steps."""
  copy = shutil.copytree(whole.workdir, tmp_path / "half")
  shutil.rmtree(copy / "checkpoints/4")
  return copy


def test_a_session_gets_the_model_its_classes_and_results(whole):
  assert whole.class_names == tuple("0123456789")
  assert gc_jax.class_names(whole.model) == whole.class_names
  assert whole.results["step"] == 4
  images = small.pixels(2, 32)
  maps = gc_jax.explain(whole.model, images, ["3", "4"])
  loaded = gc_jax.load(whole.workdir)
  again = gc_jax.explain(loaded, images, [3, 4])
  np.testing.assert_array_equal(maps, again)


def digests(folder):
  return {
    path: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def test_going_on_elsewhere_ends_bitwise_as_the_run_itself(
  whole, half, tmp_path, capsys
):
  before = digests(half)
  config = quickstart.get_config("gc,smoke")
  fields = FIELDS | {"go_on_from": str(half), "eval.every_epochs": 2.0}
  gone = gc_jax.train(config, tmp_path / "on", fields)
  assert config.go_on_from == ""  # the user's own is left as it was
  said = "".join(capsys.readouterr())
  assert f"going on from {half}, step 2: its weights, running stat" in said
  assert "--config.eval.every_epochs: 1.0 there, 2.0 now" in said
  assert digests(half) == before
  # It did not begin anew, which would end alike: step 2 is not its own.
  saved = {path.name for path in (gone.workdir / "checkpoints").iterdir()}
  assert saved == {"4"}
  wanted = checkpoint.read_variables(whole.workdir)
  found = checkpoint.read_variables(gone.workdir)
  assert found.step == wanted.step == 4
  for name, array in wanted.arrays.items():
    np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)
  # What it went on from is needed no more.
  shutil.rmtree(half)
  assert gc_jax.train(config, tmp_path / "on", fields).results["step"] == 4


DIGITS = "0123456789"


@pytest.mark.parametrize(
  ("fields", "workdir", "names", "steps", "message"),
  [
    ({"init_from": "a.pth"}, "on", DIGITS, 9, "Give one of the two"),
    ({"model.name": "vgg16"}, "on", DIGITS, 9, "a run of --config.model.name="),
    ({}, "on", DIGITS, 2, "has done 2 updates.*are 2 in all. Ask for more ep"),
    ({"go_on_from": "none"}, "on", DIGITS, 9, "none has no config.json"),
    ({}, "half", DIGITS, 9, "must be another run than --workdir"),
    ({}, "on", DIGITS[::-1], 9, "the classes of the data, in their order"),
  ],
)
def test_a_run_that_cannot_go_on_from_another_says_why(
  half, tmp_path, fields, workdir, names, steps, message
):
  config = saved_config.completed(saved_config.read(half))
  config.update_from_flattened_dict({"go_on_from": str(half)} | fields)
  with pytest.raises(ValueError, match=message):
    build.check_goes_on(config, tmp_path / workdir, tuple(names), steps)


@pytest.mark.parametrize(
  ("config", "fields", "message"),
  [
    ("configs/nothing.py:gc", {}, "there is no such file"),
    ("tests/smoke.py", {}, "has no get_config"),
    ("configs/quickstart.py:no", {}, "Unknown config variant 'no'"),
    ("configs/quickstart.py", {"epochs": 1}, "Did you mean 'num_epochs'"),
    ("configs/quickstart.py", {"seed": 0.5}, "must be of type int; it is 0.5"),
  ],
)
def test_a_config_that_is_none_is_told(
  tmp_path, monkeypatch, config, fields, message
):
  monkeypatch.chdir(smoke.ROOT)
  with pytest.raises(ValueError, match=message):
    gc_jax.train(config, tmp_path / "run", fields)
  assert list(tmp_path.iterdir()) == []
