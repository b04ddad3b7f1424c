"""The README's commands, each as it stands, on recipes shrunk to seconds."""

import pathlib
import re
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest

import gc_jax
from configs import base
from gc_jax import data, torch_io
from gc_jax.attribution import METHODS
from gc_jax.data import DATASETS
from gc_jax.method.losses import FIELDS
from gc_jax.method.metrics import METRICS
from gc_jax.models import MODELS
from gc_jax.training.guidance import TERMS
from gc_jax.training.loop import train_and_evaluate

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands():
  blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
  lines = "".join(blocks).replace("\\\n", " ").splitlines()
  return [line for line in lines if line.startswith("python -m gc_jax.")]


def shrunk(command, folder):
  """Returns the arguments with `smoke` variants and folders under `folder`."""
  arguments = shlex.split(command)[1:]
  # Nothing but an export is meant to need PyTorch.
  if "gc_jax.export" not in arguments:
    arguments[1:1] = ["tests.without_torch"]
  arguments = [sys.executable, *arguments]
  for i, argument in enumerate(arguments):
    argument = re.sub(r"(?<=\.py)$", ":smoke", argument)
    argument = re.sub(r"(\.py:(?!smoke).*)$", r"\1,smoke", argument)
    arguments[i] = re.sub(r"\bruns/", f"{folder}/", argument)
  if "gc_jax.evaluate" in arguments:
    arguments += [
      "--methods=gradcam",
      "--config.eval.costly_rows=2",
      "--config.eval.sanity_rows=1",
      "--config.eval.faithfulness_steps=2",
      "--config.eval.epsilons=(8,)",
    ]
  return arguments


def test_the_readme_has_commands_to_try():
  assert len(commands()) >= 3


def test_every_command_of_the_readme_runs(tmp_path, compilation_cache):
  for command in commands():
    done = subprocess.run(
      shrunk(command, tmp_path),
      capture_output=True,
      text=True,
      cwd=ROOT,
      env=compilation_cache,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
  table = (tmp_path / "comparison" / "comparison.md").read_text()
  assert "Baseline" in table
  assert "GC" in table


def test_the_multi_label_recipe_runs(tmp_path, compilation_cache):
  command = (
    "python -m gc_jax.main --config=configs/quickstart_multi.py "
    "--workdir=runs/multi"
  )
  done = subprocess.run(
    shrunk(command, tmp_path),
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=compilation_cache,
  )
  assert done.returncode == 0, done.stderr
  results = (tmp_path / "multi" / "results.json").read_text()
  assert "val/f1_per_class" in results
  assert "val/f1_overall" in results


# A small net in place of ResNet18, whose compilation takes a minute.
@pytest.mark.slow
@pytest.mark.parametrize(
  ("recipe", "model", "metric"),
  [
    ("context.py:objects_gc", "resnet8-small", "val/top1"),
    ("imagenet.py:resnet50-ce", "resnet8-small", "val/top5"),
    ("coco.py:resnet50-gmp_gc", "resnet8-small-gmp", "val/f1_overall"),
  ],
)
def test_other_recipes_run_without_their_data(
  tmp_path, compilation_cache, recipe, model, metric
):
  done = subprocess.run(
    [
      *shrunk("python -m gc_jax.main --workdir=runs/other", tmp_path),
      f"--config=configs/{recipe},smoke",
      f"--config.model.name={model}",
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=compilation_cache,
  )
  assert done.returncode == 0, done.stderr
  assert metric in (tmp_path / "other" / "results.json").read_text()


@pytest.mark.parametrize(
  "path", re.findall(r"\]\(([^)#:]+)\)", README), ids=str
)
def test_every_file_the_readme_points_to_is_there(path):
  assert (ROOT / path).exists()


@pytest.fixture
def extended():
  """Every thing that the README adds, for the length of a test."""
  tables = METHODS, MODELS, METRICS, DATASETS, FIELDS, TERMS
  before = [dict(table) for table in tables]
  (section,) = re.findall(r"## Extending\n(.*?)\n## ", README, re.DOTALL)
  blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
  names = {}
  for block in blocks:
    exec(block, names)
  yield blocks
  for table, entries in zip(tables, before, strict=True):
    table.clear()
    table.update(entries)


def test_each_of_five_additions_takes_a_few_lines(extended):
  assert len(extended) == 5
  assert all(5 <= len(block.splitlines()) <= 18 for block in extended)


def test_a_run_guided_and_measured_by_what_the_readme_adds(extended, tmp_path):
  config = base.shrink(base.get_config())
  config.model.name = "resnet8-small"
  config.num_epochs = 1.0
  config.loss.consistency_weight = 0.0
  config.loss.entropy_weight = 0.1
  config.eval.methods = ("activation", "gradcam_elementwise")
  results = train_and_evaluate(config, tmp_path / "run")
  assert 0 < results["val/activation/peak"] <= 100
  report = (tmp_path / "run" / "report.html").read_text()
  for title in ("Mean activation", "Peak", "entropy of the map"):
    assert title in report


def test_the_readmes_architecture_is_made_explained_and_exported(
  extended, tmp_path
):
  model = gc_jax.create("resnet26", 4)
  images = np.zeros((1, 32, 32, 3), np.uint8)
  assert gc_jax.explain(model, images, [3]).shape == (1, 1, 1)
  file = tmp_path / "resnet26.safetensors"
  torch_io.save_model(file, model, torch_io.Metadata("resnet26"))
  assert type(gc_jax.load(file)) is type(model)


def test_the_readmes_data_set_is_read(extended, tmp_path):
  pictures = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
  np.savez(tmp_path / "arrays.npz", bgr=pictures, label=[1, 0])
  config = base.get_config()
  config.data.name = "arrays"
  config.data.path = str(tmp_path / "arrays.npz")
  dataset = data.load(config.data, "train")
  encoded = np.frombuffer(dataset.source[1]["image"], np.uint8)
  np.testing.assert_array_equal(cv2.imdecode(encoded, 1), pictures[1])
  assert data.classes(config.data).count == len(dataset.class_names)
