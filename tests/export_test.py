"""python -m gc_jax.export: a run, its file, its card, and the proof."""

import pathlib
import re
import sys
import types

import numpy as np
import pytest
import safetensors.torch
import torch

import gc_jax
from gc_jax import export, models, torch_io
from gc_jax.inference import trained
from gc_jax.models.network import Network
from gc_jax.torch_io import card, names
from tests.torch_io import torch_models

COMPARED = {"logits", "gradcam", "gradcam_elementwise"}


@pytest.fixture
def command(capsys):
  """Runs the command; returns its status, output and errors."""

  def run(*args):
    status = export.main([str(arg) for arg in args])
    return status, *capsys.readouterr()

  return run


@pytest.fixture
def torchvision(monkeypatch):
  """Our PyTorch twins under torchvision's names, for a card to import."""
  package = types.ModuleType("torchvision")
  package.models = types.ModuleType("torchvision.models")
  package.models.resnet = torch_models
  for name in set(dir(torch_models)) & set(models.MODELS):
    setattr(package.models, name, getattr(torch_models, name))
  for module in (package, package.models):
    monkeypatch.setitem(sys.modules, module.__name__, module)
  monkeypatch.setitem(
    sys.modules, "torchvision.models.resnet", package.models.resnet
  )


@pytest.fixture
def load_by(torchvision, tmp_path, monkeypatch):
  """Returns the model that a card's code loads."""

  def load(code):
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(code, scope)
    return scope["model"]

  return load


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_an_exported_run_computes_the_same_in_pytorch_by_its_card(
  command, smoke_run, tmp_path, load_by, suffix
):
  out = tmp_path / f"model.{suffix}"
  status, printed, errors = command(
    f"--workdir={smoke_run}", f"--out={out}", "--verify"
  )
  assert status == 0, errors
  found = re.findall(r"of (\S+) in PyTorch, over 8 images: (\S+)", printed)
  assert {name for name, _ in found} == COMPARED
  assert all(float(value) < 1e-4 for _, value in found)
  assert all(f"wrote {path}" in printed for path in tmp_path.iterdir())

  text = (tmp_path / f"model.{suffix}.md").read_text()
  assert "0. 0\n1. 1\n" in text and "global max pooling" in text
  loading, use = (
    part.split("```")[0] for part in text.split("```python\n")[1:3]
  )
  pixels = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
  scope = {"torch": torch, "pictures": torch.tensor(pixels)}
  scope["model"] = load_by(loading)
  exec(use, scope)
  np.testing.assert_allclose(
    scope["logits"].detach(),
    gc_jax.predict(gc_jax.load(out), pixels.transpose(0, 2, 3, 1)),
    rtol=1e-4,
    atol=1e-4,  # float32 through nine layers
  )
  of_file, of_run = trained.load_model(out), trained.load_model(smoke_run)
  assert of_file.class_names == of_run.class_names
  assert (of_file.name, of_file.image_size) == (of_run.name, of_run.image_size)
  ours, written = names.to_torch(of_run.model), names.to_torch(of_file.model)
  assert all(np.array_equal(ours[key], written[key]) for key in ours)


@pytest.mark.parametrize(
  "name",
  torch_models.deepest_apart(sorted(set(models.MODELS) - {"vgg16"})),
)
def test_a_cards_code_makes_the_architecture(name, tmp_path, load_by):
  weights = {
    key: torch.zeros(shape, dtype=int if key.endswith("tracked") else None)
    for key, shape in names.torch_shapes(name, 3).items()
  }
  safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
  theirs = load_by(card.loading_code("weights.safetensors", name, 3))
  assert not theirs.training
  pools = torch.nn.AdaptiveMaxPool2d
  count = sum(isinstance(module, pools) for module in theirs.modules())
  assert count == name.endswith("-gmp")


def test_nothing_is_overwritten_unasked(command, smoke_run, tmp_path):
  out = tmp_path / "model.safetensors"
  out.write_bytes(b"mine")
  flags = [f"--workdir={smoke_run}", f"--out={out}"]
  status, _, errors = command(*flags)
  assert status == 2
  assert "exists, and nothing was written" in errors and "--overwrite" in errors
  assert out.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [out]
  assert command(*flags, "--overwrite")[0] == 0
  assert torch_io.load_model(out)
  card_path = tmp_path / "model.safetensors.md"
  out.unlink()
  status, _, errors = command(*flags)
  assert status == 2 and str(card_path) in errors and not out.exists()


def test_the_metadata_of_a_pth_is_not_overwritten_either(
  command, smoke_run, tmp_path
):
  mine = tmp_path / "model.pth.json"
  mine.write_text("mine")
  out = tmp_path / "model.pth"
  status, _, errors = command(f"--workdir={smoke_run}", f"--out={out}")
  assert status == 2 and f"{mine} exists" in errors
  assert mine.read_text() == "mine" and list(tmp_path.iterdir()) == [mine]


def test_a_name_without_suffix_becomes_safetensors(
  command, smoke_run, tmp_path
):
  assert command(f"--workdir={smoke_run}", f"--out={tmp_path / 'gc'}")[0] == 0
  assert torch_io.load_model(tmp_path / "gc.safetensors")


@pytest.mark.parametrize(
  "workdir, name, message",
  [
    ("RUN", "model.onnx", "must end in .safetensors, .pth"),
    (".", "a.pth", "no config.json"),
    ("RUN", "a.safetensors", "pip install torch=="),
  ],
)
def test_an_export_that_cannot_be_made_says_why(
  command, smoke_run, tmp_path, monkeypatch, workdir, name, message
):
  if name == "a.safetensors":
    monkeypatch.setitem(sys.modules, "torch", None)
  workdir = smoke_run if workdir == "RUN" else tmp_path / workdir
  out = tmp_path / name
  status, _, errors = command(
    f"--workdir={workdir}", f"--out={out}", "--verify"
  )
  assert status == 2 and message in errors
  assert not list(tmp_path.iterdir())


def test_a_wrong_file_is_found_out(command, smoke_run, tmp_path, monkeypatch):
  right = names.to_torch

  def swapped(model):
    tensors = right(model)
    mean = tensors["bn1.running_mean"]
    return {**tensors, "bn1.running_mean": np.ascontiguousarray(mean[::-1])}

  monkeypatch.setattr(names, "to_torch", swapped)
  status, _, errors = command(
    f"--workdir={smoke_run}", f"--out={tmp_path / 'a.safetensors'}", "--verify"
  )
  assert status == 1
  assert "PyTorch must compute what" in errors
  assert "in logits, gradcam" in errors


@pytest.mark.parametrize(
  "name", ["alexnet", "squeezenet1_1-gmp", "resnet18", "resnet50-gmp", "vgg16"]
)
def test_every_family_is_compared(name, tmp_path, small_perceptrons):
  """The functional passes against our models; float32 roundings."""
  model = models.create(name, 4, key=models.init_key(3))
  path = tmp_path / "a.safetensors"
  torch_io.save_model(path, model, torch_io.Metadata(name))
  size = 64 if name != "alexnet" else 96
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, size, size, 3), np.uint8)
  differences = card.largest_differences(path, model, images)
  assert set(differences) == COMPARED
  assert max(differences.values()) < 1e-4


def test_a_network_that_states_no_pass_in_pytorch_is_refused_by_name():
  class Mine(Network):
    pass

  with pytest.raises(ValueError, match="Mine has no torch_features and torch_"):
    card.check_verifiable(Mine())


def test_a_card_lists_the_results_of_its_model():
  results = {
    "val/top1": 91.25,
    "val/top5": None,
    "val/gradcam_elementwise/negative_quadrants_heatmap": 7.0,
    "val/gradcam/content_heatmap": 50.0,
  }
  text = card.model_card(
    pathlib.Path("a.pth"), torch_io.Metadata("resnet18"), 3, "A run.", results
  )
  listed = text.split("## Results")[1].split("## Classes")[0].splitlines()
  assert [line for line in listed if line.startswith("-")] == [
    "- Top-1: 91.2 (images classified correctly)",
    "- NQH: 7.0 (negative quadrants heatmap: map of a composite on its "
    "distractors; lower is better)",
  ]
