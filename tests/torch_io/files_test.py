"""Files of weights: what is written, and what is refused."""

import json
import pickle
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
  with pytest.raises(ValueError, match=r"a\.pth must .* nothing of it was run"):
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
  with pytest.raises(
    ValueError, match=r"\(\.safetensors, \.pth, .*weights\.h5 is no such file"
  ):
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


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_numbers_that_are_not_finite_are_counted_in_a_warning(
  tmp_path, tensors, caplog, suffix
):
  tensors = {key: value.double() for key, value in tensors.items()}
  tensors["features.0.bias"][:3] = float("nan")
  tensors["classifier.1.bias"][0] = -float("inf")
  tensors["features.3.squeeze.bias"][0] = 1e300  # none of float32
  if suffix == "pth":
    torch.save(tensors, tmp_path / "a.pth")
  else:
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
  load_model(tmp_path / f"a.{suffix}", NAME)
  assert "5 weights are NaN or infinite, in" in caplog.text
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


def test_parameters_that_want_gradients_are_read(tmp_path, weights):
  parameters = {
    key: torch.from_numpy(value).requires_grad_()
    for key, value in weights.items()
  }
  torch.save({"model": parameters}, tmp_path / "a.pth")
  assert same(load_model(tmp_path / "a.pth", NAME)[0], weights)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_one_line_tells_what_was_taken_off(
  tmp_path, tensors, weights, suffix, caplog
):
  wrapped = {f"_orig_mod.module.{key}": v for key, v in tensors.items()}
  wrapped["n_averaged"] = torch.tensor(3)
  path = tmp_path / f"a.{suffix}"
  if suffix == "pth":
    torch.save({"ema": tensors, "net": wrapped}, path)
    where = "read from ['net']; ['ema'] not read; "
  else:
    safetensors.torch.save_file(wrapped, path)
    where = ""
  assert same(load_model(path, NAME)[0], weights)
  assert caplog.messages == [
    f"{path}: {where}'_orig_mod.' and 'module.' taken off its keys; no "
    "weights, and left out: n_averaged."
  ]


def test_nothing_is_told_of_weights_as_one_saves_them(
  tmp_path, model, tensors, caplog
):
  torch.save(tensors, tmp_path / "a.pth")
  torch.save({"state_dict": tensors, "epoch": 90}, tmp_path / "b.pth")
  save_model(tmp_path / "c.safetensors", model, METADATA)
  for name in ("a.pth", "b.pth", "c.safetensors"):
    load_model(tmp_path / name, NAME)
  assert not caplog.messages


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(
  "field, text, wanted",
  [
    ("class_names", "cat,dog", "a list of names as JSON"),
    ("class_names", '"ab"', "a list of names as JSON"),
    ("class_names", '["cat", 2]', "a list of names as JSON"),
    ("class_names", "[" * 100_000, "a list of names as JSON"),
    ("image_size", "large", "a number of pixels from '1' to"),
    ("image_size", "0", "a number of pixels from '1' to"),
    ("image_size", "-64", "a number of pixels from '1' to"),
    ("image_size", "64.5", "a number of pixels from '1' to"),
    ("image_size", "true", "a number of pixels from '1' to"),
    ("image_size", "9" * 400, "a number of pixels from '1' to"),
    ("multi_label", "yes", "'true' or 'false'"),
    ("multi_label", "1", "'true' or 'false'"),
    ("multi_label", "null", "'true' or 'false'"),
  ],
)
def test_a_field_that_is_not_as_it_is_written_is_named(
  tmp_path, tensors, suffix, field, text, wanted
):
  path = said_by = tmp_path / f"a.{suffix}"
  if suffix == "pth":
    torch.save(tensors, path)
    said_by = tmp_path / "a.pth.json"
    said_by.write_text(json.dumps({"architecture": NAME, field: text}))
  else:
    safetensors.torch.save_file(tensors, path, {field: text})
  with pytest.raises(
    ValueError, match=rf"What .*a\.{suffix} says .*: {field} is .* be {wanted}"
  ) as error:
    load_model(path, NAME)
  assert len(str(error.value)) < 500 and said_by.exists()


@pytest.mark.parametrize(
  "said, told",
  [
    (b"[1]", r"What .*a\.pth\.json says of a\.pth must be a JSON object"),
    (b'"text"', r"What .*a\.pth\.json says of a\.pth must be a JSON object"),
    (b"null", r"What .*a\.pth\.json says of a\.pth must be a JSON object"),
    (b"{", r"a\.pth\.json must be JSON"),
    (b"\xff\xfe{", r"a\.pth\.json must be JSON"),
    (b"[" * 100_000, r"a\.pth\.json must be JSON"),
    (b"", r"a\.pth\.json must be JSON"),
    (b'{"image_size": 64}', r"a\.pth says .* image_size is 64, and must be"),
    (b'{"class_names": ["a", "b"]}', "class_names is .* and must be a list of"),
    (b'{"architecture": 3}', "architecture is 3, and must be a name"),
    (b'{"config_digest": null}', "config_digest is None, and must be a digest"),
  ],
  ids=lambda value: str(value[:12]),
)
def test_what_lies_beside_a_pth_must_be_as_it_is_written(
  tmp_path, tensors, said, told
):
  torch.save(tensors, tmp_path / "a.pth")
  (tmp_path / "a.pth.json").write_bytes(said)
  with pytest.raises(ValueError, match=told):
    load_model(tmp_path / "a.pth", NAME)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("kind", [True, False, None])
def test_a_file_states_what_its_outputs_are_or_does_not(
  tmp_path, model, suffix, kind
):
  path = tmp_path / f"a.{suffix}"
  save_model(path, model, Metadata(NAME, multi_label=kind))
  assert load_model(path)[1].multi_label is kind


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("name", ["resnet8-small", "squeezenet1_1-gmp"])
def test_one_output_is_refused_but_as_a_start(tmp_path, suffix, name):
  """It has no class to compare with; only its features are gone on from."""
  path = tmp_path / f"a.{suffix}"
  save_model(path, models.create(name, 1), Metadata(name, ("ill",)))
  with pytest.raises(
    ValueError,
    match=rf"a\.{suffix} must have an output for each class, two at least; it "
    r"has one, a sigmoid .* softmax of \(0, x\) is the sigmoid of x",
  ):
    load_model(path)
  assert load_initial(path, name)
  save_model(path, models.create(name, 2), Metadata(name))
  assert load_model(path)


def test_what_one_output_said_is_class_1_of_the_file_that_is_advised(tmp_path):
  one = models.create("resnet8-small", 1)
  weights = names.to_torch(one)
  for key in ("fc.weight", "fc.bias"):
    weights[key] = np.concatenate([np.zeros_like(weights[key]), weights[key]])
  safetensors.numpy.save_file(weights, tmp_path / "two.safetensors")
  two, _ = load_model(tmp_path / "two.safetensors", "resnet8-small")
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
