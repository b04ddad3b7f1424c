"""A model of a user's own by command: trained, resumed, measured, exported."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import gc_jax
from gc_jax import data, export
from gc_jax.evaluation import run as evaluating
from gc_jax.pods import check
from gc_jax.report import artefact
from gc_jax.runtime import checkpoint, parallel
from gc_jax.runtime import config as saved_config
from gc_jax.training import build
from tests import smoke
from tests.examples import nets

# A whole run and a whole evaluation.
pytestmark = pytest.mark.slow

NAME = "own_package.own_nets:make"
FLAGS = (
  f"--config={smoke.ROOT}/configs/quickstart.py:gc,smoke",
  f"--config.model.name={NAME}",
  "--config.num_epochs=0.5",
  "--config.checkpoint.every_epochs=0.25",
  "--config.data.eval_split=test[:8]",
  "--config.eval.methods=('gradcam_elementwise','fullgrad')",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with a user's package, in which commands are started.

  Its units are GELUs, for which FullGrad has no rule.
  """
  folder = tmp_path_factory.mktemp("own")
  (folder / "own_package").mkdir()
  text = pathlib.Path(nets.__file__).read_text()
  assert "nnx.relu" in text
  (folder / "own_package/own_nets.py").write_text(
    text.replace("nnx.relu", "nnx.gelu")
  )
  return folder


@pytest.fixture(scope="module")
def train(folder, compilation_cache):
  def train():
    command = [sys.executable, "-m", "gc_jax.main", *FLAGS, "--workdir=run"]
    env = {**compilation_cache, "PYTHONPATH": str(smoke.ROOT)}
    done = subprocess.run(
      command, cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr

  return train


@pytest.fixture(scope="module")
def run(folder, train):
  """The workdir of a finished run, and what was said."""
  said = train()
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield folder / "run", said


def test_it_trains_and_a_method_that_does_not_hold_is_left_out(run):
  workdir, said = run
  assert (
    "note: fullgrad is left out. FullGrad must find only operations" in said
  )
  results = json.loads((workdir / "results.json").read_text())
  assert (
    0 <= results["val/gradcam_elementwise/negative_quadrants_heatmap"] <= 1e2
  )
  assert artefact.load(workdir).about.left_out.keys() == {"fullgrad"}
  assert "FullGrad is left out." in (workdir / "report.html").read_text()
  learned = checkpoint.read_variables(workdir).arrays
  means = [x for name, x in learned.items() if ".mean" in name]
  assert len(means) == 3
  assert all(np.abs(mean).max() > 0 for mean in means)


@pytest.mark.large
def test_resumed_it_ends_bitwise_as_if_never_stopped(run, train):
  workdir, _ = run
  whole = checkpoint.read_variables(workdir)
  steps = {path.name for path in (workdir / "checkpoints").iterdir()}
  assert steps == {"1", "2"}
  shutil.rmtree(workdir / "checkpoints/2")
  assert "Continuing from the checkpoint of step 1 of 2" in train()
  again = checkpoint.read_variables(workdir)
  assert again.step == whole.step == 2
  for name, array in whole.arrays.items():
    np.testing.assert_array_equal(again.arrays[name], array, err_msg=name)


def test_it_is_evaluated_by_the_methods_that_hold(run, tmp_path):
  config = saved_config.completed(saved_config.read(run[0]))
  few = {"costly_rows": 2, "sanity_rows": 2, "faithfulness_steps": 2}
  few |= {"epsilons": (8,), "num_resamples": 10}
  for name, value in few.items():
    config.eval[name] = value
  methods = ("gradcam", "fullgrad", "excitation_backprop")
  said = list(
    evaluating.evaluate(
      config, source=run[0], arch=None, methods=methods, out=tmp_path / "out"
    )
  )
  assert [line.partition(" is left out")[0] for line in said[:2]] == [
    "note: fullgrad",
    "note: excitation_backprop",
  ]
  done = artefact.load(tmp_path / "out")
  assert done.about.methods == ("gradcam",)
  assert done.curves.stages[0] == "head"
  assert [*done.curves.randomization] == ["gradcam"]


def test_preflight_lowers_its_step(run):
  config = saved_config.completed(saved_config.read(run[0]))
  lowered, state, _ = check.lower(
    config, parallel.make_mesh(), data.classes(config.data)
  )
  assert "convolution" in lowered.as_text()
  assert build.num_params(state) == 5_690


@pytest.mark.parametrize("suffix", [".safetensors", ""])
def test_exported_it_has_its_own_names_and_loads_again(
  run, tmp_path, capsys, suffix
):
  out = tmp_path / f"model{suffix}"
  assert export.main([f"--workdir={run[0]}", f"--out={out}"]) == 0
  file = out if suffix else out / "model.safetensors"
  card = out.with_name(f"{out.name}.md") if suffix else out / "README.md"
  assert "torch" not in card.read_text().split("## Pictures")[0]
  assert f'arch="{NAME}"' in card.read_text()
  arrays = safetensors.numpy.load_file(file)
  assert arrays["blocks.1.conv.kernel"].shape == (3, 3, 16, 16)
  assert not any("rngs" in name for name in arrays)
  with pytest.raises(ValueError, match="must not choose what is run here"):
    gc_jax.load(file)
  images = np.zeros((1, 64, 64, 3), np.uint8)
  trained, loaded = gc_jax.load(run[0]), gc_jax.load(file, NAME)
  np.testing.assert_array_equal(
    gc_jax.predict(loaded, images), gc_jax.predict(trained, images)
  )
  assert gc_jax.class_names(loaded) == gc_jax.class_names(trained) != ()


def test_what_has_no_form_for_it_is_refused_before_anything_is_written(
  run, tmp_path, capsys
):
  out = tmp_path / "model.pth"
  assert export.main([f"--workdir={run[0]}", f"--out={out}"]) == 2
  assert "Write model.safetensors instead" in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []
