"""python -m gc_jax.export: a run, its file, its card, and the proof."""

import dataclasses
import json
import re
import subprocess
import sys
import types

import jaxtyping
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

import gc_jax
from gc_jax import export, models, torch_io
from gc_jax.inference import programs, trained
from gc_jax.torch_io import loading, names
from tests.smoke import unlike_new
from tests.torch_io import torch_models

COMPARED = {"logits", "gradcam", "gradcam_elementwise"}


@pytest.fixture
def command(capsys, smoke_run):
  """Exports a run; returns the command's status, output and errors."""

  def run(out, *flags, workdir=smoke_run):
    status = export.main([f"--workdir={workdir}", f"--out={out}", *flags])
    return status, *capsys.readouterr()

  return run


@pytest.fixture
def torchvision(monkeypatch):
  """Our PyTorch twins under torchvision's names, for a card to import."""
  package = types.ModuleType("torchvision")
  package.models = types.ModuleType("torchvision.models")
  package.models.resnet = torch_models
  package.models.VisionTransformer = torch_models.VisionTransformer
  for name in set(dir(torch_models)) & set(models.MODELS):
    setattr(package.models, name, getattr(torch_models, name))
  for module in (package, package.models):
    monkeypatch.setitem(sys.modules, module.__name__, module)
  for name in ("resnet", "vision_transformer"):
    monkeypatch.setitem(sys.modules, f"torchvision.models.{name}", torch_models)


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
  status, printed, errors = command(out, "--verify")
  assert status == 0, errors
  found = re.findall(r"of (\w+) in PyTorch, over 8 images: (\S+)", printed)
  assert {name for name, _ in found} == COMPARED
  assert all(float(value) < 1e-4 for _, value in found)
  assert all(f"wrote {path}" in printed for path in tmp_path.iterdir())
  assert unlike_new(tmp_path) == []

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
  torch_models.deepest_apart(
    sorted(set(models.MODELS) - {"vgg16", "vit_small", "vit_base"})
  ),
)
def test_a_cards_code_makes_the_architecture(name, tmp_path, load_by):
  weights = {
    key: torch.zeros(shape, dtype=int if key.endswith("tracked") else None)
    for key, shape in names.torch_shapes(name, 3).items()
  }
  safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
  theirs = load_by(loading.code_by_names("weights.safetensors", name, 3, 160))
  assert not theirs.training
  if name == "vit_tiny":  # for pictures of another size than its weights
    assert theirs.encoder.pos_embedding.shape == (1, 101, 192)
  pools = torch.nn.AdaptiveMaxPool2d
  count = sum(isinstance(module, pools) for module in theirs.modules())
  assert count == name.endswith("-gmp")


def test_nothing_is_overwritten_unasked(command, tmp_path):
  out = tmp_path / "model.safetensors"
  out.write_bytes(b"mine")
  status, _, errors = command(out)
  assert status == 2
  assert "exists, and nothing was written" in errors and "--overwrite" in errors
  assert out.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [out]
  assert command(out, "--overwrite")[0] == 0
  assert torch_io.load_model(out)
  card_path = tmp_path / "model.safetensors.md"
  out.unlink()
  status, _, errors = command(out)
  assert status == 2 and str(card_path) in errors and not out.exists()


def test_the_metadata_of_a_pth_is_not_overwritten_either(command, tmp_path):
  mine = tmp_path / "model.pth.json"
  mine.write_text("mine")
  status, _, errors = command(tmp_path / "model.pth")
  assert status == 2 and f"{mine} exists" in errors
  assert mine.read_text() == "mine" and list(tmp_path.iterdir()) == [mine]


def test_a_name_without_suffix_becomes_a_folder(
  command, smoke_run, tmp_path, with_timm, monkeypatch
):
  out = tmp_path / "gc"
  monkeypatch.setenv("PYTHONPATH", with_timm.get("PYTHONPATH", ""))
  status, printed, errors = command(out, "--license=mit", "--verify")
  assert status == 0, errors
  names_of = {path.name for path in out.iterdir()}
  assert names_of == {"model.safetensors", "config.json", "README.md"}
  # The card's own code, in torchvision itself.
  (found,) = re.findall(r"code for torchvision in PyTorch.*: (\S+) of", printed)
  assert float(found) < 1e-4
  _, front, text = (out / "README.md").read_text().split("---\n", 2)
  block = yaml.safe_load(front)
  assert block["license"] == "mit" and block["library_name"] == "torchvision"
  (model,) = block["model-index"]
  (top1,) = (
    each for each in model["results"][0]["metrics"] if each["type"] == "top1"
  )
  low, high = top1["args"]["interval_95"]
  assert low <= top1["value"] <= high
  assert "Trained on 64 pictures of context digits" in text
  config = json.loads((out / "config.json").read_text())
  assert config["label_names"] == [str(digit) for digit in range(10)]
  assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]
  same = trained.load_model(out).class_names
  assert same == trained.load_model(smoke_run).class_names


def test_a_card_whose_code_is_wrong_is_found_out(
  command, tmp_path, with_timm, monkeypatch
):
  average = dataclasses.replace(
    models.MODELS["resnet8-small-gmp"], torch_pooling="other"
  )
  monkeypatch.setitem(models.MODELS, "resnet8-small-gmp", average)
  monkeypatch.setenv("PYTHONPATH", with_timm.get("PYTHONPATH", ""))
  status, _, errors = command(tmp_path / "a.safetensors", "--verify")
  assert status == 1 and "in logits by the card's code" in errors


def test_a_folder_is_replaced_only_where_an_export_was(
  command, smoke_run, tmp_path
):
  out = tmp_path / "gc"
  out.mkdir()
  (out / ".gitattributes").touch()  # a new clone from the Hub
  assert command(out)[0] == 0
  status, _, errors = command(out)
  assert status == 2 and "holds an earlier export" in errors
  assert command(out, "--overwrite")[0] == 0
  kept = {path: path.read_bytes() for path in out.iterdir()}
  status, _, errors = command(out, "--overwrite", "--format=stablehlo")
  assert status == 2 and "no earlier export as stablehlo" in errors
  assert {path: path.read_bytes() for path in out.iterdir()} == kept
  before = sorted(smoke_run.rglob("*"))
  status, _, errors = command(smoke_run, "--overwrite")
  assert status == 2 and "no earlier export" in errors
  assert sorted(smoke_run.rglob("*")) == before


# What a reader of the card does, where gc_jax is not.
_ALONE = """\
import sys
import numpy as np

images, targets = (np.load("given.npz")[name] for name in ("images", "targets"))
CODE
np.savez("found.npz", logits=logits, maps=maps)
assert not any(name.startswith(("gc_jax", "flax")) for name in sys.modules)
"""


def test_programs_compute_the_same_without_gc_jax(
  command, smoke_run, tmp_path, monkeypatch
):
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  out = tmp_path / "gc.stablehlo"
  status, printed, errors = command(out, "--method=layercam", "--verify")
  assert status == 0, errors
  found = re.findall(r"of (\w+) without gc_jax, over 8 images: (\S+)", printed)
  assert {name for name, _ in found} == {"predict", "logits", "maps"}
  assert "one picture at a time" not in printed

  config = json.loads((out / "config.json").read_text())
  assert config["platforms"] == ["cpu", "cuda", "tpu"]
  explain = config["programs"]["explain"]
  assert explain["method"] == "layercam"
  assert explain["arguments"]["images"]["shape"] == ["b", 64, 64, 3]
  text = (out / "README.md").read_text()
  blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
  targets = np.array([0, 9, -1], np.int32)
  np.savez(out / "given.npz", images=images, targets=targets)
  script = _ALONE.replace("CODE", "".join(blocks))
  done = subprocess.run(
    [sys.executable, "-I", "-c", script],
    capture_output=True,
    text=True,
    cwd=out,
  )
  assert done.returncode == 0, done.stderr
  with np.load(out / "found.npz") as found:
    theirs = dict(found)
  model = gc_jax.load(smoke_run)
  logits = gc_jax.predict(model, images)
  np.testing.assert_allclose(theirs["logits"], logits, rtol=1e-4, atol=1e-5)
  targets[-1] = np.argmax(logits[-1])
  maps = gc_jax.explain(model, images, targets, "layercam", normalize=False)
  np.testing.assert_allclose(theirs["maps"], maps, rtol=1e-4, atol=1e-6)


def test_programs_that_differ_are_found_out(command, tmp_path, monkeypatch):
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  right = programs.make

  def shifted(*args):
    made = right(*args)
    bias = made.weights["fc.bias"] + np.arange(10, dtype=np.float32)
    return dataclasses.replace(made, weights={**made.weights, "fc.bias": bias})

  monkeypatch.setattr(programs, "make", shifted)
  status, _, errors = command(tmp_path / "a.stablehlo", "--verify")
  assert status == 1 and "computed without gc_jax must be" in errors


@pytest.mark.parametrize(
  "workdir, name, message",
  [
    ("RUN", "model.onnx", "must end in .safetensors, .pth, .stablehlo"),
    (".", "a.pth", "no config.json"),
    ("RUN", "a.safetensors", "pip install torch=="),
    ("RUN", "a --format=onnx", "Unknown --format='onnx'"),
    ("RUN", "a.pth --format=safetensors", "must be a .safetensors file for"),
    ("RUN", "a.pth --format=folder", "must be a folder for --format=folder"),
    ("RUN", "a --method=gradcam", "--method is of --format=stablehlo"),
    ("RUN", "a.stablehlo --method=gradcamm", "Did you mean 'gradcam'"),
    ("RUN", "a --license=MIT", "an identifier of Hugging Face's list"),
  ],
)
def test_an_export_that_cannot_be_made_says_why(
  command, smoke_run, tmp_path, monkeypatch, workdir, name, message
):
  if name == "a.safetensors":
    monkeypatch.setitem(sys.modules, "torch", None)
  workdir = smoke_run if workdir == "RUN" else tmp_path / workdir
  name, *flags = name.split()
  status, _, errors = command(
    tmp_path / name, "--verify", *flags, workdir=workdir
  )
  assert status == 2 and message in errors
  assert not list(tmp_path.iterdir())


def test_a_wrong_file_is_found_out(command, tmp_path, monkeypatch):
  right = names.to_torch

  def swapped(model):
    tensors = right(model)
    mean = tensors["bn1.running_mean"]
    return {**tensors, "bn1.running_mean": np.ascontiguousarray(mean[::-1])}

  monkeypatch.setattr(names, "to_torch", swapped)
  status, _, errors = command(tmp_path / "a.safetensors", "--verify")
  assert status == 1
  assert "what is computed in PyTorch must be" in errors
  assert "in logits, gradcam" in errors
