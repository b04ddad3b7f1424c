"""Files of weights: what is written, and which models are refused."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from flax import nnx

import gc_jax
from gc_jax import models
from gc_jax.torch_io import (
  Metadata,
  files,
  load_initial,
  load_model,
  names,
  save_model,
)
from tests.torch_io.conftest import NAME, refused, same, save

METADATA = Metadata(
  architecture=NAME,
  class_names=("crème", "ox", "ass"),
  multi_label=True,
  image_size=96,
  config_digest="ab12",
)
SUFFIXES = ("safetensors", "pth")


@pytest.fixture(scope="module")
def model():
  return models.create(NAME, 3)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
  "metadata",
  [METADATA, Metadata(NAME, multi_label=False), Metadata(NAME)],
  ids=["all", "softmax", "unsaid"],
)
def test_a_written_model_is_read_back_with_its_metadata(
  tmp_path, model, suffix, metadata
):
  path = tmp_path / f"model.{suffix}"
  written = save_model(path, model, metadata)
  assert sorted(written) == sorted(tmp_path.iterdir())
  loaded, found = load_model(path)
  assert found == metadata
  assert same(loaded, names.to_torch(model))
  if suffix == "safetensors":
    with safetensors.safe_open(path, "numpy") as file:
      strings = file.metadata()
  else:
    strings = json.loads(path.with_name("model.pth.json").read_text())
  assert strings["format"] == "pt"
  assert json.loads(strings["pixel_mean"]) == [0.485, 0.456, 0.406]
  assert set(map(type, strings.values())) == {str}


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
  with pytest.raises(ValueError, match=r"pip install torch==2"):
    load_model(tmp_path / "a.pth", NAME)
  with pytest.raises(ValueError, match=r"pip install torch==2"):
    save_model(tmp_path / "b.pth", model, METADATA)
  assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0, 7, 1_000, -1_000])
def test_a_truncated_file_is_refused(tmp_path, model, suffix, kept):
  path = tmp_path / f"a.{suffix}"
  save_model(path, model, METADATA)
  path.write_bytes(path.read_bytes()[:kept])
  message = "it is empty" if not kept else "must be a whole"
  with pytest.raises(ValueError, match=rf"{message}.* Copy it again"):
    load_model(path)


def test_the_architecture_and_the_classes_must_be_known_and_agree(
  tmp_path, model, tensors
):
  save(tensors, tmp_path / "a.pth")
  save_model(tmp_path / "a.safetensors", model, METADATA)
  two = Metadata(NAME, class_names=("a", "b"))
  save_model(tmp_path / "two.safetensors", model, two)
  for path, asked, message in (
    ("a.pth", ["resnet8-smal"], r"Did you mean 'resnet8-small'"),
    ("a.pth", [], r"like --arch=resnet8-small, or resnet8-small-gmp if"),
    ("a.pth", ["alexnet"], r"They look like resnet8-small \(or its -gmp\)"),
    ("a.safetensors", ["resnet18"], "says that it holds 'resnet8-small', and"),
    ("two.safetensors", [], r"name each of its 3 classes"),
  ):
    with pytest.raises(ValueError, match=message):
      load_model(tmp_path / path, *asked)


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_a_warning_counts_weights_that_are_not_finite(
  tmp_path, tensors, caplog, kind
):
  tensors = {key: value.double() for key, value in tensors.items()}
  tensors["fc.bias"][:3] = float("nan")
  tensors["bn1.bias"][0] = -float("inf")
  tensors["bn1.weight"][0] = 1e300  # beyond float32
  save(tensors, tmp_path / "a.pth", kind)
  load_model(tmp_path / "a.pth", NAME)
  assert "5 weights are NaN or infinite, in" in caplog.text
  assert "fc.bias (3)" in caplog.text


def test_a_failed_write_leaves_the_old_file(tmp_path, model, monkeypatch):
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


def test_the_log_is_silent_about_usual_files(tmp_path, model, tensors, caplog):
  save(tensors, tmp_path / "a.pth")
  save({"state_dict": tensors, "epoch": 90}, tmp_path / "b.pth")
  save_model(tmp_path / "c.safetensors", model, METADATA)
  for name in ("a.pth", "b.pth", "c.safetensors"):
    load_model(tmp_path / name, NAME)
  assert not caplog.messages


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
@pytest.mark.parametrize(
  ("field", "wanted", "texts"),
  [
    (
      "class_names",
      "a list of names as JSON",
      ["cat,dog", '"ab"', '["cat", 2]', "[" * 100_000],
    ),
    (
      "image_size",
      "a number of pixels from '1' to",
      ["large", "0", "-64", "64.5", "true", "9" * 400],
    ),
    ("multi_label", "'true' or 'false'", ["yes", "1", "null"]),
  ],
)
def test_a_wrong_field_of_the_metadata_is_named(
  tmp_path, tensors, kind, field, wanted, texts
):
  path = tmp_path / "a.pth"
  save(tensors, path)
  for text in texts:
    if kind == "pickle":
      (tmp_path / "a.pth.json").write_text(json.dumps({field: text}))
    else:
      safetensors.torch.save_file(tensors, path, {field: text})
    told = rf"What .*a\.pth says .*: {field} is .* be {wanted}"
    assert re.search(told, refused(path))


BROKEN = {
  "a.pth.json says about a.pth must be a JSON object": (b"[1]", b"null"),
  "a.pth.json must be JSON": (b"", b"{", b"\xff\xfe{", b"[" * 100_000),
  "image_size is 64, and must be": [b'{"image_size": 64}'],
  "and must be a list of": [b'{"class_names": ["a", "b"]}'],
  "architecture is 3, and must be a name": [b'{"architecture": 3}'],
  "is None, and must be a digest": [b'{"config_digest": null}'],
}


@pytest.mark.parametrize("told", BROKEN)
def test_broken_metadata_beside_a_pth_are_refused(tmp_path, tensors, told):
  save(tensors, tmp_path / "a.pth")
  for said in BROKEN[told]:
    (tmp_path / "a.pth.json").write_bytes(said)
    assert told in refused(tmp_path / "a.pth")


@pytest.mark.parametrize("name", [NAME, "squeezenet1_1-gmp"])
def test_a_single_output_is_refused_except_as_a_start(tmp_path, name):
  path = tmp_path / "a.safetensors"
  save_model(path, models.create(name, 1), Metadata(name, ("ill",)))
  with pytest.raises(
    ValueError,
    match=r"a\.safetensors must have an output for each class, two at least; "
    r"it has one, a sigmoid .* softmax of \(0, x\) is the sigmoid of x",
  ):
    load_model(path)
  assert load_initial(path, name)


def test_the_advised_second_output_gives_the_sigmoid(tmp_path):
  one = models.create(NAME, 1)
  weights = names.to_torch(one)
  for key in ("fc.weight", "fc.bias"):
    weights[key] = np.concatenate([np.zeros_like(weights[key]), weights[key]])
  safetensors.numpy.save_file(weights, tmp_path / "two.safetensors")
  two, _ = load_model(tmp_path / "two.safetensors", NAME)
  pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
  (x,), (y,) = gc_jax.predict(one, pixels).T, gc_jax.predict(two, pixels).T[1:]
  # Two columns are summed in another order than one.
  np.testing.assert_allclose(x, y, rtol=1e-5)
  np.testing.assert_allclose(
    nnx.softmax(gc_jax.predict(two, pixels))[:, 1], nnx.sigmoid(x), rtol=1e-5
  )


def test_a_bucket_is_refused(bucket):
  with pytest.raises(
    ValueError, match=r"on a disk; gs:.* is in a bucket\. Cop"
  ):
    load_model(bucket / "a.pth", NAME)
