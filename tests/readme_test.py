"""The README's commands, each as it stands, on recipes shrunk to seconds."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

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
