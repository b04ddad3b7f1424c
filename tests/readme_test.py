"""The commands of the README and of gc_jax/docs, each as it stands.

Recipes are shrunk to seconds, and what is not here (data, a checkpoint, the
compiler of TPUs) is taken by what is. The code that extends gc_jax runs too.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import gc_jax
from configs import base
from gc_jax import data, torch_io
from gc_jax.attribution import METHODS
from gc_jax.data import DATASETS
from gc_jax.method.fields import FIELDS
from gc_jax.method.metrics import METRICS
from gc_jax.models import MODELS
from gc_jax.training.guidance import TERMS
from gc_jax.training.loop import train_and_evaluate
from tests.attribution import foreign
from tests.torch_io import torch_models

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "gc_jax/docs").glob("*.md"))]
PODS = (ROOT / "gc_jax/docs/pods.md").read_text()
# What scripts that make an environment run in it.
WITHIN = {
  "launch/local.sh": "python -m gc_jax.main --config=configs/quickstart.py "
  "--workdir=runs/quickstart",
  "launch/preflight.sh": "python -m gc_jax.preflight",
}


def commands(page):
  """Returns the lines of a page's ```bash blocks, continued lines as one."""
  blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
  lines = "".join(blocks).replace("\\\n", " ").splitlines()
  for script, command in WITHIN.items():
    lines = [line.replace(script, command) for line in lines]
  return [line for line in lines if line != "source .venv/bin/activate"]


# In the order of a reader, each once; and recipes that no page starts.
COMMANDS = [c for page in PAGES for c in commands(page)]
COMMANDS += [
  f"python -m gc_jax.main --config=configs/{recipe} --workdir=runs/{name}"
  for name, recipe in (
    ("multi", "miniature.py:multi-alexnet-gc"),
    ("objects", "context.py:objects_gc"),
  )
]
# Where results hold what those of a softmax of ten do not.
HELD = {
  "configs/miniature.py": "val/pgd_8/f1_overall",
  "configs/imagenet.py": "val/top5",
  "configs/coco.py": "val/f1_overall",
}


def shrunk(command, folder):
  """Returns the arguments with `smoke` variants and folders under `folder`."""
  _, _, module, *arguments = shlex.split(command)
  # Nothing but an export is meant to need PyTorch.
  guard = [] if module == "gc_jax.export" else ["tests.without_torch"]
  for i, argument in enumerate(arguments):
    argument = re.sub(r"(?<=\.py)$", ":smoke", argument)
    argument = re.sub(r"(\.py:(?!smoke).*)$", r"\1,smoke", argument)
    argument = re.sub(r"\bruns/", f"{folder}/", argument)
    argument = re.sub(r"^--topology=.*", "--topology=local", argument)
    argument = re.sub(r"^photo\.jpg$", ".assets/report.jpg", argument)
    argument = argument.replace("my_package.", "tests.examples.")
    argument = re.sub(r"(?<=num_epochs=)\d+", "3", argument)
    arguments[i] = argument
  if module == "gc_jax.evaluate":
    arguments += [
      "--methods=gradcam",
      "--config.eval.costly_rows=2",
      "--config.eval.sanity_rows=1",
      "--config.eval.faithfulness_steps=2",
      "--config.eval.epsilons=(8,)",
    ]
  # A small net in place of one whose compilation takes a minute.
  if module in ("gc_jax.main", "gc_jax.preflight") and "resnet" in command:
    small = "resnet8-small-gmp" if "-gmp" in command else "resnet8-small"
    arguments.append(f"--config.model.name={small}")
  return [sys.executable, "-m", *guard, module, *arguments]


def run(arguments, env):
  done = subprocess.run(
    arguments, capture_output=True, text=True, cwd=ROOT, env=env
  )
  assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stderr}"


def test_every_command_of_a_page_is_one_that_can_be_tried():
  assert len(COMMANDS) >= 10
  for command in COMMANDS:
    assert re.match(r"python -m gc_jax\.\w+ ", command)


@pytest.mark.parametrize(
  "line",
  re.findall(r"`(launch/[^`]+=[^`]+)`", PODS),
  ids=lambda line: line.split()[0],
)
def test_every_launcher_takes_what_the_page_gives_it(line):
  line = line.replace("config=...", "config=configs/quickstart.py")
  words = line.replace("workdir=...", "workdir=runs/gc").split()
  if words[0] in WITHIN:
    words[0] = "launch/worker.sh"  # it takes what gc_jax.main does
  done = subprocess.run(
    [*words, "--dry-run"], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
  """The folder in which a reader tries one command after the other."""
  return tmp_path_factory.mktemp("reader")


@pytest.mark.slow
@pytest.mark.parametrize(
  "command", dict.fromkeys(COMMANDS), ids=lambda command: command.split()[2]
)
def test_every_command_of_the_pages_runs(
  command, reader, compilation_cache, smoke_run
):
  arguments = shrunk(command, reader)
  flags = dict(a.split("=", 1) for a in arguments if re.match("--.*=", a))
  # Tried alone, a command finds a run where another would have left one.
  before = flags.get("--config.go_on_from")
  if before and not pathlib.Path(before).exists():
    config = f"--config={flags['--config']}"
    run([*arguments[:4], config, f"--workdir={before}"], compilation_cache)
  if "gc_jax.main" not in arguments:
    for argument in arguments:
      folder = pathlib.Path(argument.removeprefix("--workdir="))
      if folder.parent == reader and not folder.exists():
        shutil.copytree(smoke_run, folder)
  run(arguments, compilation_cache)
  for written in {"--out", "--workdir"} & flags.keys():
    assert pathlib.Path(flags[written]).exists()
  for recipe, metric in HELD.items():
    if recipe in command and "gc_jax.main" in arguments:
      results = pathlib.Path(flags["--workdir"]) / "results.json"
      assert metric in results.read_text()


def test_the_code_for_a_trained_model_runs(smoke_run, tmp_path):
  page = (ROOT / "gc_jax/docs/explain.md").read_text()
  (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  assert "gc_jax.load(" in block
  torch_model = torch_models.create("resnet18", num_classes=10)
  torch.save(torch_model.state_dict(), tmp_path / "resnet50.pth")
  for written, here in (
    ('"resnet50")', '"resnet18")'),
    ("resnet50.pth", str(tmp_path / "resnet50.pth")),
    ("runs/gc", str(smoke_run)),
    ('["cat", "dog"]', '["3", "5"]'),
  ):
    assert written in block
    block = block.replace(written, here)
  images = np.zeros((2, 64, 64, 3), np.uint8)
  names = {"torch_model": torch_model, "images": images}
  exec(block, names)
  assert names["pictures"].shape == images.shape


def test_the_code_for_a_model_of_ones_own_runs():
  page = (ROOT / "gc_jax/docs/library.md").read_text()
  page = page.replace("layer4", "layer2.1")  # its last block
  wraps, maps, check, guidance, *_ = re.findall(
    r"```python\n(.*?)```", page, re.DOTALL
  )
  assert wraps.count("gc_jax.wrap(") == 6
  model = foreign.NnxNet(5, nnx.Rngs(0))
  model.eval()
  images = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
  names = {
    "gc_jax": gc_jax,
    "jax": jax,
    "nnx": nnx,
    "optax": optax,
    "model": model,
    "images": images,
    "labels": jnp.arange(8) % 5,
    "masks": np.ones((8, 32, 32)),
    "key": jax.random.key(1),
  }
  exec(wraps.splitlines()[0], names)
  exec(maps, names)
  assert names["outside"].shape == (8,)
  exec(check.replace("images", 'images, methods=["gradcam"]'), names)
  exec(guidance, names)
  before = model.bn1.mean[...]
  model.train()
  loss, _ = nnx.value_and_grad(names["loss_fn"])(model)
  assert np.isfinite(loss) and (model.bn1.mean[...] != before).any()


@pytest.mark.slow
@pytest.mark.parametrize("library", ["nnx", "linen", "equinox"])
def test_the_examples_loops_train(library):
  done = subprocess.run(
    [sys.executable, "-m", f"tests.examples.{library}_loop", "--steps=2"],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout)["negative_quadrants_heatmap"] > 0
  path = ROOT / f"tests/examples/{library}_loop.py"
  assert len(path.read_text().splitlines()) < 80


@pytest.fixture
def extended():
  """Every thing that the page adds, for the length of a test."""
  tables = METHODS, MODELS, METRICS, DATASETS, FIELDS, TERMS
  before = [dict(table) for table in tables]
  page = (ROOT / "gc_jax/docs/extending.md").read_text()
  blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
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


def test_a_run_guided_and_measured_by_what_the_page_adds(extended, tmp_path):
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


def test_the_pages_architecture_is_made_explained_and_exported(
  extended, tmp_path
):
  model = gc_jax.create("resnet26", 4)
  images = np.zeros((1, 32, 32, 3), np.uint8)
  assert gc_jax.explain(model, images, [3]).shape == (1, 1, 1)
  file = tmp_path / "resnet26.safetensors"
  torch_io.save_model(file, model, torch_io.Metadata("resnet26"))
  assert type(gc_jax.load(file)) is type(model)


def test_the_pages_method_explains_wrapped_models_too(extended):
  net = gc_jax.wrap(lambda images, tap: tap(images).mean((1, 2)))
  images = np.ones((2, 4, 5, 3), np.float32)
  assert gc_jax.explain(net, images, [0, 2], "activation").shape == (2, 4, 5)


def test_the_pages_data_set_is_read(extended, tmp_path):
  pictures = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
  np.savez(tmp_path / "arrays.npz", bgr=pictures, label=[1, 0])
  config = base.get_config()
  config.data.name = "arrays"
  config.data.path = str(tmp_path / "arrays.npz")
  dataset = data.load(config.data, "train")
  encoded = np.frombuffer(dataset.source[1]["image"], np.uint8)
  np.testing.assert_array_equal(cv2.imdecode(encoded, 1), pictures[1])
  assert data.classes(config.data).count == len(dataset.class_names)


def test_a_method_of_ones_own_is_known_to_the_commands(tmp_path):
  page = (ROOT / "gc_jax/docs/extending.md").read_text()
  (line,) = re.findall(r"`(runpy\.[^`]*)`", page)
  (block,) = re.findall(r"```python\n([^`]*\nMETHODS\[.*?)```", page, re.DOTALL)
  file = tmp_path / "mine.py"
  file.write_text(f"import runpy\nimport jax.numpy as jnp\n{block}\n{line}\n")
  flags = ["none.jpg", "--workdir=none", f"--out={tmp_path / 'out'}"]
  for method, fault in (("activation", "none.jpg"), ("other", "activation")):
    done = subprocess.run(
      [sys.executable, str(file), *flags, f"--method={method}"],
      capture_output=True,
      text=True,
      cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2 and fault in done.stderr
    assert ("Unknown --method" in done.stderr) == (method == "other")


def test_the_tour_runs_and_its_network_learns():
  tour = json.loads((ROOT / "gc_jax/docs/tour.ipynb").read_text())
  cells = [c for c in tour["cells"] if c["cell_type"] == "code"]
  assert not any(cell["outputs"] for cell in cells)  # they would grow old
  names = {}
  for cell in cells:
    exec("".join(cell["source"]), names)
  assert names["losses"][-1] < 0.8 * names["losses"][0]
  assert names["checked"]["fullgrad"].holds
