"""Files of weights: what is written, and what is refused."""

import argparse
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from gc_jax import models
from gc_jax.torch_io import Metadata, files, load_model, names, save_model
from tests.torch_io import torch_models

NAME = "squeezenet1_1-gmp"  # 3 MB
METADATA = Metadata(
  architecture=NAME,
  class_names=("crème", "ox"),
  multi_label=True,
  image_size=96,
  config_digest="ab12",
)


@pytest.fixture(scope="module")
def model():
  return models.create(NAME, 2)


@pytest.fixture(scope="module")
def weights(model):
  return names.to_torch(model)


@pytest.fixture
def tensors(weights):
  return {key: torch.from_numpy(value) for key, value in weights.items()}


def same(loaded, weights):
  back = names.to_torch(loaded)
  return all(np.array_equal(back[key], value) for key, value in weights.items())


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_what_is_written_is_read_and_knows_what_it_is(
  tmp_path, model, weights, suffix
):
  path = tmp_path / f"model.{suffix}"
  written = save_model(path, model, METADATA)
  assert sorted(written) == sorted(tmp_path.iterdir())
  loaded, metadata = load_model(path)
  assert metadata == METADATA
  assert same(loaded, weights)
  if suffix == "pth":
    content = torch.load(path, weights_only=True)
  else:
    content = safetensors.torch.load_file(path)
  twin = torch_models.create(NAME, 2)
  twin.load_state_dict(content, strict=True)


def test_safetensors_need_no_pytorch(tmp_path, model):
  path = tmp_path / "model.safetensors"
  save_model(path, model, METADATA)
  code = (
    "import sys; sys.modules['torch'] = None\n"
    "from gc_jax import torch_io\n"
    f"print(torch_io.load_model({str(path)!r})[1].architecture)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert done.stdout.strip() == NAME, done.stderr


def test_without_pytorch_a_pth_says_what_to_install(
  tmp_path, model, monkeypatch
):
  torch.save({}, tmp_path / "a.pth")
  monkeypatch.setitem(sys.modules, "torch", None)
  for use in (
    lambda: load_model(tmp_path / "a.pth", NAME),
    lambda: save_model(tmp_path / "b.pth", model, METADATA),
  ):
    with pytest.raises(ValueError, match=r"pip install torch==2"):
      use()
  assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize("suffix", ["pth", "pt", "pth.tar"])
@pytest.mark.parametrize("wrapped", ["module.{}", "features.module.{}"])
def test_the_releases_training_checkpoints_are_read(
  tmp_path, tensors, weights, suffix, wrapped
):
  """DataParallel around the net, or around its features alone."""
  path = tmp_path / f"checkpoint.{suffix}"
  head, tail = wrapped.split("module.")
  state_dict = {
    head + "module." + key.removeprefix(head)
    if key.startswith(head)
    else key: v
    for key, v in tensors.items()
  }
  assert tail == "{}" and any("module." in key for key in state_dict)
  torch.save(
    {
      "epoch": 90,
      "arch": "squeezenet",
      "state_dict": state_dict,
      "best_acc1": torch.tensor(58.1),
      "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}},
    },
    path,
  )
  loaded, metadata = load_model(path, NAME)
  assert same(loaded, weights)
  assert metadata == Metadata(architecture=NAME)


def test_half_precision_is_widened(tmp_path, tensors, weights):
  half = {k: v.bfloat16() if v.ndim else v for k, v in tensors.items()}
  torch.save(half, tmp_path / "a.pth")
  safetensors.torch.save_file(half, tmp_path / "a.safetensors")
  for name in ("a.pth", "a.safetensors"):
    loaded, _ = load_model(tmp_path / name, NAME)
    for key, value in names.to_torch(loaded).items():
      np.testing.assert_allclose(value, weights[key], rtol=2**-8)


class Payload:
  """A pickle that would write a file when it is read."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_before_it_runs(tmp_path, legacy):
  path, trace = tmp_path / "a.pth", tmp_path / "trace"
  if legacy:
    path.write_bytes(pickle.dumps({"conv1.weight": Payload(str(trace))}))
  else:
    torch.save({"conv1.weight": Payload(str(trace))}, path)
  with pytest.raises(ValueError, match=r"holds code .* nothing of it was run"):
    load_model(path, "resnet18")
  assert not trace.exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("kept", [0, 7, 1_000, -1_000])
def test_a_file_cut_short_is_said_to_be(tmp_path, model, suffix, kept):
  path = tmp_path / f"a.{suffix}"
  save_model(path, model, METADATA)
  path.write_bytes(path.read_bytes()[:kept])
  message = "it is empty" if not kept else "must be a whole"
  with pytest.raises(ValueError, match=rf"{message}.* Copy it again"):
    load_model(path)


def test_other_contents_are_refused(tmp_path, tensors):
  torch.save([1, 2], tmp_path / "list.pth")
  with pytest.raises(ValueError, match=r"must hold a state dict .* a list"):
    load_model(tmp_path / "list.pth", NAME)
  torch.save({"state_dict": {"epoch": 3}}, tmp_path / "numbers.pth")
  with pytest.raises(ValueError, match=r"must hold a state dict"):
    load_model(tmp_path / "numbers.pth", NAME)
  torch.save({}, tmp_path / "nothing.pth")
  with pytest.raises(ValueError, match=r"no array in it"):
    load_model(tmp_path / "nothing.pth", NAME)
  with pytest.raises(ValueError, match=r"there is none"):
    load_model(tmp_path / "missing.pth", NAME)
  (tmp_path / "weights.h5").write_bytes(b"1")
  with pytest.raises(ValueError, match=r"must end in \.safetensors, \.pth"):
    load_model(tmp_path / "weights.h5", NAME)


def test_the_architecture_must_be_known_and_agree(tmp_path, model, tensors):
  torch.save(tensors, tmp_path / "a.pth")
  with pytest.raises(ValueError, match=r"Did you mean 'squeezenet1_1'"):
    load_model(tmp_path / "a.pth", "squeezenet1")
  with pytest.raises(
    ValueError, match=r"like --arch=squeezenet1_1, or squeezenet1_1-gmp if"
  ):
    load_model(tmp_path / "a.pth")
  save_model(tmp_path / "a.safetensors", model, METADATA)
  with pytest.raises(
    ValueError, match=r"says that it holds 'squeezenet1_1-gmp'"
  ):
    load_model(tmp_path / "a.safetensors", "squeezenet1_1")
  with pytest.raises(ValueError, match=r"They look like squeezenet1_1"):
    load_model(tmp_path / "a.pth", "alexnet")


def test_as_many_classes_as_the_data_has(tmp_path, model):
  path = tmp_path / "a.safetensors"
  save_model(path, model, METADATA)
  assert load_model(path, num_classes=2)
  with pytest.raises(ValueError, match=r"must have 80 classes.* it has 2"):
    load_model(path, num_classes=80)
  unnamed = Metadata(NAME, class_names=("a", "b", "c"))
  save_model(path, model, unnamed)
  with pytest.raises(ValueError, match=r"name each of its 2 classes"):
    load_model(path)


def test_nans_are_counted_in_a_warning(tmp_path, tensors, caplog):
  tensors = {key: value.clone() for key, value in tensors.items()}
  tensors["features.0.bias"][:3] = float("nan")
  tensors["classifier.1.bias"][0] = float("nan")
  torch.save(tensors, tmp_path / "a.pth")
  load_model(tmp_path / "a.pth", NAME)
  assert "4 weights are NaN, in" in caplog.text
  assert "features.0.bias (3)" in caplog.text


def test_a_file_that_is_being_written_is_not_there_yet(
  tmp_path, model, monkeypatch
):
  path = tmp_path / "a.safetensors"
  save_model(path, model, METADATA)
  before = path.read_bytes()

  def full_disk(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(files.safetensors.numpy, "save_file", full_disk)
  with pytest.raises(OSError, match="No space left"):
    save_model(path, model, METADATA)
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


def test_metadata_is_plain_strings():
  strings = METADATA.to_strings()
  assert all(isinstance(value, str) for value in strings.values())
  assert strings["format"] == "pt"
  assert json.loads(strings["pixel_mean"]) == [0.485, 0.456, 0.406]
  assert Metadata.from_strings(strings) == METADATA
  assert Metadata.from_strings({}) == Metadata()


def test_torchvisions_training_checkpoints_are_read(tmp_path, model, weights):
  """Their arguments lie beside the weights; parameters may want gradients."""
  parameters = {
    key: torch.from_numpy(value).requires_grad_()
    for key, value in weights.items()
  }
  content = {"model": parameters, "args": argparse.Namespace(lr=0.1)}
  torch.save(content, tmp_path / "a.pth")
  assert same(load_model(tmp_path / "a.pth", NAME)[0], weights)


def test_wrappers_are_taken_off_in_either_kind_of_file(
  tmp_path, tensors, weights
):
  wrapped = {f"_orig_mod.module.{key}": v for key, v in tensors.items()}
  safetensors.torch.save_file(wrapped, tmp_path / "a.safetensors")
  torch.save(wrapped, tmp_path / "a.pth")
  for name in ("a.safetensors", "a.pth"):
    assert same(load_model(tmp_path / name, NAME)[0], weights)


def test_what_is_no_checkpoint_or_says_nothing_readable_is_told(
  tmp_path, tensors
):
  (tmp_path / "page.pth").write_text("<html>404</html>")
  with pytest.raises(ValueError, match="no PyTorch checkpoint, or holds code"):
    load_model(tmp_path / "page.pth", NAME)
  torch.save(tensors, tmp_path / "a.pth")
  for text in ("[1]", "{"):
    (tmp_path / "a.pth.json").write_text(text)
    with pytest.raises(ValueError, match=r"What .*a\.pth\.json says"):
      load_model(tmp_path / "a.pth", NAME)
  metadata = {"class_names": "cat,dog"}
  safetensors.torch.save_file(tensors, tmp_path / "b.safetensors", metadata)
  with pytest.raises(ValueError, match=r"What .*b\.safetensors says"):
    load_model(tmp_path / "b.safetensors", NAME)
