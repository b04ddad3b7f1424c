"""Models from a workdir, or from a PyTorch file."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import gc_jax
from gc_jax import models, torch_io
from gc_jax.inference import trained
from gc_jax.runtime import checkpoint
from gc_jax.runtime.checkpoint import FOLDER, Checkpoints
from gc_jax.training.step import TrainState

DIGITS = tuple("0123456789")
to_torch = torch_io.names.to_torch


@pytest.fixture(scope="module")
def loaded(smoke_run):
  return trained.load_model(smoke_run)


@pytest.fixture
def copied(smoke_run, tmp_path):
  shutil.copytree(smoke_run, tmp_path / "run")
  return tmp_path / "run"


def set_model(workdir, name):
  config = json.loads((workdir / "config.json").read_text())
  config["model"]["name"] = name
  (workdir / "config.json").write_text(json.dumps(config))


def save_anew(workdir, meta):
  """Replaces the checkpoints by one of step 9 with other `meta`."""
  saved = checkpoint.read_variables(workdir)
  shutil.rmtree(workdir / FOLDER)
  params, batch_stats = (
    nnx.State(
      {n.removeprefix(p): a for n, a in saved.arrays.items() if n.startswith(p)}
    )
    for p in ("params.", "batch_stats.")
  )
  state = TrainState(jnp.asarray(9), params, batch_stats, ())
  checkpoints = Checkpoints(workdir, keep=1)
  checkpoints.save(state, meta, best=0.0)
  checkpoints.close()


def assert_same_weights(model, weights):
  held = to_torch(model)
  assert all(np.array_equal(held[key], weights[key]) for key in weights)


def test_a_run_is_loaded_with_all_that_it_says(loaded, smoke_run):
  assert loaded.name == "resnet8-small-gmp"
  assert loaded.class_names == DIGITS
  assert loaded.multi_label is False
  assert loaded.image_size == 64
  assert loaded.source == f"{smoke_run}, step 8"


def test_the_model_holds_every_number_of_the_last_checkpoint(loaded, smoke_run):
  tell = lambda: {p: p.stat().st_mtime_ns for p in smoke_run.rglob("*")}
  before = tell()
  model = gc_jax.load(smoke_run)
  assert tell() == before  # loading changes nothing in the workdir
  jax.tree.map(
    np.testing.assert_array_equal, nnx.state(model), nnx.state(loaded.model)
  )
  assert model.bn1.use_running_average  # evaluation mode
  saved = checkpoint.read_variables(smoke_run)
  assert saved.step == 8
  _, params, batch_stats = nnx.split(model, nnx.Param, ...)
  held = checkpoint.named_leaves({"params": params, "batch_stats": batch_stats})
  assert held.keys() == saved.arrays.keys()
  for name, array in held.items():
    np.testing.assert_array_equal(array, saved.arrays[name], err_msg=name)
  # Eight steps of training moved them away from what every model starts with.
  assert np.abs(held["batch_stats.bn1.mean.value"]).max() > 0.01


def test_a_run_of_several_labels_says_so(copied):
  save_anew(copied, {"class_names": list(DIGITS), "multi_label": True})
  loaded = trained.load_model(copied)
  assert loaded.multi_label is True and loaded.model.multi_label
  assert loaded.source.endswith("step 9")


def test_the_classes_of_an_older_checkpoint_come_from_the_gallery(copied):
  save_anew(copied, {"train_secs": 1.0})
  assert trained.load_model(copied).class_names == DIGITS
  (copied / "gallery.npz").unlink()
  with pytest.raises(ValueError, match=r"must name its classes; .* of step 9"):
    gc_jax.load(copied)


def test_another_configuration_than_the_checkpoints_is_refused(copied):
  set_model(copied, "resnet18")
  with pytest.raises(
    ValueError,
    match=r"must be of 'resnet18' with 10 classes, as config\.json says; "
    r".* needs shape .*, and there is .*Restore the config\.json",
  ):
    gc_jax.load(copied)
  set_model(copied, "resnet8-smal")
  with pytest.raises(ValueError, match="Did you mean 'resnet8-small'"):
    gc_jax.load(copied)


@pytest.mark.parametrize(
  "text, message",
  [
    (None, r"has no config\.json\. Name the run's"),
    # Latin-1 bytes, which are no UTF-8.
    (
      '{"model": "\xff\xfe"}',
      r"config\.json must be .* it is not JSON .*utf-8",
    ),
    (
      "{",
      r"config\.json must be the configuration of a run, .* it is not JSON",
    ),
    ("{}", r"config\.json must be the configuration .* lacks model\.name"),
    ("[]", r"must be the configuration of a run, a JSON object; it is \[\]"),
    ('{"model": 3}', r"config\.json must be the configuration .* it lacks"),
  ],
)
def test_a_folder_without_a_runs_configuration_is_refused(
  tmp_path, text, message
):
  if text is not None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
  with pytest.raises(ValueError, match=message):
    gc_jax.load(tmp_path)


def test_a_run_that_has_just_begun_says_to_wait(copied):
  shutil.rmtree(copied / FOLDER)
  with pytest.raises(checkpoint.CheckpointError, match="none yet"):
    gc_jax.load(copied)


def test_an_architecture_is_the_runs_own_or_known(smoke_run):
  assert isinstance(gc_jax.load(smoke_run, "resnet8-small-gmp"), nnx.Module)
  with pytest.raises(
    ValueError, match=r"trained 'resnet8-small-gmp', not 'resnet18'\. Leave it"
  ):
    gc_jax.load(smoke_run, "resnet18")
  with pytest.raises(ValueError, match=r"Unknown arch='resnet81'.* mean 'resn"):
    gc_jax.load(smoke_run, "resnet81")


@pytest.mark.parametrize(
  "convert",
  [
    lambda array: array,
    jnp.asarray,
    torch.tensor,
    lambda array: torch.nn.Parameter(torch.tensor(array), array.dtype != int),
  ],
)
def test_a_state_dict_in_memory_is_copied_into_a_model(convert):
  weights = to_torch(models.create("resnet8-small", 3))
  given = {key: convert(array.copy()) for key, array in weights.items()}
  model = gc_jax.load({"state_dict": given, "epoch": 3}, "resnet8-small")
  assert model.bn1.use_running_average
  if convert is not jnp.asarray:  # JAX's arrays never change
    with torch.no_grad():
      for array in given.values():
        array[...] = 0
  assert_same_weights(model, weights)
  assert trained.load_model(given, "resnet8-small").source == "a state dict"


def test_half_floats_in_memory_are_widened():
  weights = to_torch(models.create("resnet8-small", 3))
  halves = {k: jnp.asarray(v, jnp.bfloat16) for k, v in weights.items()}
  counts = {k: v for k, v in weights.items() if k.endswith("tracked")}
  model = gc_jax.load(halves | counts, "resnet8-small")
  wide = {k: np.asarray(v, np.float32) for k, v in halves.items()}
  assert_same_weights(model, wide | counts)


@pytest.mark.parametrize(
  ("change", "arch", "message"),
  [
    ({}, None, r"^The mapping does not say .* like --arch=resnet8-small"),
    ({}, "resnet81", r"^Unknown arch='resnet81'"),
    ({}, "resnet18", r"^The mapping must hold the weights of 'resnet18'"),
    ({"fc.bias": np.zeros(3, int)}, "resnet8-small", r"fc\.bias is int64\. S"),
    ({"fc.bias": "none"}, "resnet8-small", r"do not fit: 1 missing: fc\.bias"),
    ({"fc.weight": np.zeros((2, 2))}, "resnet8-small", r"of another shape: fc"),
  ],
)
def test_a_state_dict_in_memory_is_checked_as_a_file_is(change, arch, message):
  weights = to_torch(models.create("resnet8-small", 3))
  with pytest.raises(ValueError, match=message):
    gc_jax.load(weights | change, arch)
  with pytest.raises(ValueError, match=r"^The mapping must hold a state dict"):
    gc_jax.load({"weights": {}}, "resnet18")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_an_exported_file_is_read_with_all_that_it_says(tmp_path, name):
  metadata = torch_io.Metadata(
    "resnet8-small-gmp", ("cat", "dog"), multi_label=True, image_size=48
  )
  model = models.create(metadata.architecture, 2)
  torch_io.save_model(tmp_path / name, model, metadata)
  loaded = trained.load_model(tmp_path / name)
  assert loaded.class_names == ("cat", "dog") and loaded.multi_label
  assert (loaded.name, loaded.image_size) == ("resnet8-small-gmp", 48)
  assert loaded.source == str(tmp_path / name)
  assert loaded.model.bn1.use_running_average
  assert_same_weights(loaded.model, to_torch(model))


@pytest.mark.parametrize(
  "name, message",
  [
    ("nothing.pth", r"nothing\.pth .* there is none"),
    ("model.onnx", r"\(\.safetensors, \.pth.*model\.onnx is no such file"),
    ("runs", r"the workdir of a run, or a file of weights .* not exist"),
  ],
)
def test_a_path_that_is_no_model_is_refused(tmp_path, name, message):
  (tmp_path / "model.onnx").write_bytes(b"\x08\x07")
  with pytest.raises(ValueError, match=message):
    gc_jax.load(tmp_path / name, "resnet18")


@pytest.fixture
def in_a_module(tmp_path):
  """A Lightning file, which says nothing of its outputs; and its weights."""
  weights = to_torch(models.create("resnet8-small", 3))
  state_dict = {f"model.{k}": torch.from_numpy(v) for k, v in weights.items()}
  content = {"state_dict": state_dict, "epoch": 2, "loss": np.float64(0.5)}
  torch.save(content, tmp_path / "last.ckpt")
  return tmp_path / "last.ckpt", weights


def test_a_file_that_says_nothing_of_its_outputs_leaves_them_open(in_a_module):
  path, weights = in_a_module
  loaded = trained.load_model(path, "resnet8-small")
  assert loaded.multi_label is None and loaded.class_names == ()
  assert_same_weights(loaded.model, weights)


def test_a_file_that_names_no_classes_can_be_given_them(in_a_module, tmp_path):
  path, _ = in_a_module
  assert gc_jax.class_names(gc_jax.load(path, "resnet8-small")) == ()
  names = ("cat", "dog", "café")
  (tmp_path / "names.txt").write_text("cat\ndog \r\ncafé\n\n")
  (tmp_path / "names.json").write_text(json.dumps(names))
  for given in (names, list(names), tmp_path / "names.txt"):
    model = gc_jax.load(path, "resnet8-small", given)
    assert gc_jax.class_names(model) == names
  loaded = trained.load_model(
    path, "resnet8-small", str(tmp_path / "names.json")
  )
  assert loaded.class_names == gc_jax.class_names(loaded.model) == names


@pytest.mark.parametrize(
  "given, message",
  [
    (("cat", "dog"), r"each of the 3 outputs .*; there are 2 names: cat, dog"),
    (
      "none.txt",
      r"must be 'imagenet', or a file .*none\.txt cannot be read so",
    ),
    ("gap.txt", r"gap\.txt cannot be read so: not each is a name"),
    ("ids.json", r"ids\.json cannot be read so: it is no list"),
    ("latin.txt", r"latin\.txt cannot be read so: .* can't decode"),
  ],
)
def test_names_that_are_not_those_of_the_outputs_are_refused(
  in_a_module, tmp_path, monkeypatch, given, message
):
  path, _ = in_a_module
  monkeypatch.chdir(tmp_path)
  (tmp_path / "gap.txt").write_text("cat\n\ndog\nfox")
  (tmp_path / "ids.json").write_text('{"0": "cat"}')
  (tmp_path / "latin.txt").write_bytes("café\n".encode("latin1"))
  with pytest.raises(ValueError, match=message):
    gc_jax.load(path, "resnet8-small", given)


def test_a_run_keeps_the_names_it_was_trained_on(smoke_run):
  assert gc_jax.class_names(gc_jax.load(smoke_run)) == DIGITS
  assert gc_jax.class_names(gc_jax.load(smoke_run, None, DIGITS)) == DIGITS
  with pytest.raises(ValueError, match=r"step 8 names 0, 1, .*Leave it out"):
    gc_jax.load(smoke_run, class_names=DIGITS[::-1])


def test_training_starts_from_a_file(in_a_module, tmp_path):
  path, weights = in_a_module
  start, _ = trained.initial_model(path, "resnet8-small-gmp")
  assert_same_weights(start, weights)

  def refused(path, name, message):
    match = rf"^--config\.init_from: .*{message}"
    with pytest.raises(ValueError, match=match):
      trained.initial_model(path, name)

  refused(path, "resnet18", r"last\.ckpt \(w")
  refused(tmp_path / "no.pth", "resnet8-small", " there is none")
  path.write_text("<html>")
  refused(path, "resnet8-small", " a web page")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_is_a_run_or_a_downloaded_model(
  in_a_module, copied, tmp_path, name
):
  folder = tmp_path / "downloaded"
  folder.mkdir()
  in_a_module[0].rename(folder / name)  # its content tells what it is
  (folder / "config.json").write_text('{"architectures": ["ResNet"]}')
  loaded = trained.load_model(folder, "resnet8-small")
  assert loaded.model.fc.kernel.shape == (64, 3)
  start, _ = trained.initial_model(folder, "resnet8-small")
  assert start.fc.kernel.shape == (64, 3)
  # Beside the checkpoints of a run it is an export.
  shutil.copy(folder / name, copied)
  assert trained.load_model(copied).name == "resnet8-small-gmp"


def test_training_starts_from_a_run_of_the_same_architecture(smoke_run, loaded):
  start, names = trained.initial_model(smoke_run, "resnet8-small")
  assert names == DIGITS
  assert_same_weights(start, to_torch(loaded.model))
  with pytest.raises(
    ValueError,
    match=r"init_from=.* a run of --config\.model\.name=resnet18; it",
  ):
    trained.initial_model(smoke_run, "resnet18")


def test_training_may_start_from_weights_of_another_pooling(tmp_path):
  path = tmp_path / "a.safetensors"
  model = models.create("resnet8-small", 3)
  said = torch_io.Metadata("resnet8-small", class_names=("a", "b", "c"))
  torch_io.save_model(path, model, said)
  start, names = trained.initial_model(path, "resnet8-small-gmp")
  assert names == ("a", "b", "c")
  assert start.pooling == "max" and start.fc.kernel.shape == (64, 3)
  with pytest.raises(ValueError, match="They look like resnet8-small"):
    trained.initial_model(path, "squeezenet1_1")
