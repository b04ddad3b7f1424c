"""Checkpoints of training runs: which parts are read, and what is refused."""

import argparse
import collections
import datetime
import pathlib
import pickle
import types
import zipfile

import numpy as np
import pytest
import torch

from gc_jax.torch_io import load_model
from tests.torch_io.conftest import NAME, is_loaded, refused, save

PICKLES = ("pickle", "old pickle")


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize(
  "where",
  [
    ("state_dict",),
    ("model_state_dict",),
    ("model",),
    ("net",),
    ("module",),
    ("state_dict_ema",),
    ("weights_of_mine",),
    ("checkpoint", "model", "state_dict"),
    ("ema", "shadow"),
  ],
)
def test_weights_are_found_under_any_name(
  tmp_path, tensors, weights, where, kind
):
  content = tensors
  for key in reversed(where):
    content = {
      key: content,
      "epoch": 3,
      "arch": "resnet",
      "best_acc1": torch.tensor(58.1),
      "criterion": {"weight": torch.ones(3)},
      "optimizer": {"state": {0: {"exp_avg": torch.ones(2), "step": 3}}},
    }
  save(content, tmp_path / "a.pth", kind)
  assert is_loaded(tmp_path / "a.pth", weights)


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize(
  "beside",
  [
    {"best_acc": np.float64(91.25)},
    {"best_acc": np.float32(91.25), "seen": np.int64(3), "ok": np.bool_(True)},
    {"name": np.str_("a"), "day": np.datetime64("2020-01-01")},
    {"history": np.arange(6.0).reshape(2, 3), "ids": np.array([1, 2])},
    {"things": np.array([{}, None], object), "z": np.complex64(1j)},
    {"rows": np.zeros(2, [("a", "f4"), ("b", "i4")])},
    {"args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs/a"))},
    {"args": types.SimpleNamespace(lr=0.1)},
    {"out": pathlib.PurePosixPath("a"), "from": pathlib.PureWindowsPath("C:/")},
    {"log": collections.defaultdict(list, loss=[1.0, 2.0])},
    {"last": collections.deque([1.0], maxlen=3), "n": collections.Counter("a")},
    {"when": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)},
    {"took": datetime.timedelta(3), "kinds": frozenset([1]), "of": {1, 2}},
  ],
  ids=lambda beside: "_".join(beside),
)
def test_plain_values_beside_the_weights_are_ignored(
  tmp_path, tensors, weights, beside, kind
):
  save({"state_dict": tensors, **beside}, tmp_path / "a.pth", kind)
  assert is_loaded(tmp_path / "a.pth", weights)


def rename(path, **names):
  """Renames what a checkpoint's pickle asks for; "__" stands for a dot."""
  with zipfile.ZipFile(path) as archive:
    files = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(path, "w") as archive:
    for name, data in files.items():
      if name.endswith("data.pkl"):
        for old, new in names.items():
          assert old.replace("__", ".").encode() in data
          data = data.replace(old.replace("__", ".").encode(), new.encode())
      archive.writestr(name, data)


PATHS = type(pathlib.PurePosixPath("a")).__module__.replace(".", "__")


@pytest.mark.parametrize(
  ("value", "renamed"),
  [
    (np.float64(3), {"numpy___core__multiarray": "numpy.core.multiarray"}),
    (np.float64(3), {"numpy___core__multiarray": "numpy._core.multiarray"}),
    *(
      (
        pathlib.PurePosixPath("a"),
        {f"{PATHS}\nPure": f"{module}\n", "Posix": "Windows"},
      )
      for module in ("pathlib", "pathlib._local")
    ),
  ],
)
def test_values_of_other_versions_and_systems_are_ignored(
  tmp_path, tensors, weights, value, renamed
):
  save({"state_dict": tensors, "best": value}, tmp_path / "a.pth")
  rename(tmp_path / "a.pth", **renamed)
  assert is_loaded(tmp_path / "a.pth", weights)


@pytest.mark.parametrize("kind", PICKLES)
def test_numpy_arrays_are_read_as_weights(tmp_path, weights, kind):
  given = dict(weights)
  given["fc.weight"] = np.asfortranarray(weights["fc.weight"])
  given["fc.bias"] = weights["fc.bias"].astype(">f8")
  given["conv1.weight"] = weights["conv1.weight"][:, ::-1][:, ::-1]
  save({"params": given}, tmp_path / "a.pth", kind)
  assert is_loaded(tmp_path / "a.pth", weights)
  for dtype in ("int8", "bool", "object"):
    given["fc.bias"] = weights["fc.bias"].astype(dtype)
    save(given, tmp_path / "a.pth", kind)
    assert "another dtype: fc.bias is " in refused(tmp_path / "a.pth")


def test_trained_weights_come_before_their_averages(
  tmp_path, tensors, weights, caplog
):
  path = tmp_path / "a.pth"
  averaged = {f"module.{key}": value * 0 for key, value in tensors.items()}
  averaged["n_averaged"] = torch.tensor(12)
  for name in ("ema", "model_ema", "state_dict_ema", "swa_state", "EMA"):
    caplog.clear()
    save({name: averaged, "model": tensors}, path)
    assert is_loaded(path, weights)
    told = f"{path}: read from ['model']; ['{name}'] not read."
    assert caplog.messages == [told]
  save({"model_ema": averaged, "epoch": 3}, path)
  assert is_loaded(path, {key: value * 0 for key, value in weights.items()})


def test_one_of_several_models_must_be_chosen(
  tmp_path, tensors, weights, caplog
):
  path = tmp_path / "a.pth"
  other = {key: value * 0 for key, value in tensors.items()}
  for a, b in (("teacher", "student"), ("model", "net"), ("a", "b")):
    save({"epoch": 3, "all": {a: tensors, b: other}}, path)
    assert (
      f"of one model; it holds ['all']['{a}'], ['all']['{b}']. Save one of "
      f"them alone: torch.save(torch.load(FILE)['all']['{a}'], NEW_FILE)"
    ) in refused(path)
  save({"teacher": other, "model": tensors}, path)
  assert is_loaded(path, weights)
  assert "['teacher'] not read" in caplog.text
  # The same weights under two names are one model.
  save({"model": tensors, "net": tensors}, path)
  assert is_loaded(path, weights)


def test_entries_that_are_no_arrays_are_left_out_and_named(
  tmp_path, tensors, weights, caplog
):
  extra = {"epoch": 3, "note": None, 7: torch.ones(2), "list.weight": [1.0]}
  save({**tensors, **extra}, tmp_path / "a.pth")
  assert is_loaded(tmp_path / "a.pth", weights)
  assert "left out: 'epoch', 'note', 7, 'list.weight'" in caplog.text


@pytest.mark.parametrize(
  ("content", "told"),
  [
    ([1, 2], "it holds a list"),
    (np.float64(3), "it holds a value"),
    (None, "it holds a NoneType"),
    ("weights", "it holds a str"),
    ({"state_dict": {"epoch": 3}}, "a dict with 'state_dict' in it"),
    ({"state_dict": {}}, "a dict with 'state_dict' in it"),
    ({"a": {"b": {"weight": torch.ones(2)}}}, "a dict with 'a' in it"),
    (torch.ones(2), "it holds a Tensor"),
    ({}, "there is no array in it"),
  ],
  ids=lambda value: f"{type(value).__name__}",
)
def test_a_checkpoint_without_weights_is_refused(tmp_path, content, told):
  save(content, tmp_path / "a.pth")
  assert told in refused(tmp_path / "a.pth")


def test_a_dict_that_holds_itself_is_searched_once(tmp_path, tensors, weights):
  content = {"model": tensors}
  content["self"] = content
  save(content, tmp_path / "a.pth")
  assert is_loaded(tmp_path / "a.pth", weights)
  deep = tensors
  for _ in range(200):
    deep = {"model": deep}
  save(deep, tmp_path / "a.pth")
  assert is_loaded(tmp_path / "a.pth", weights)


class Config:
  """A configuration object that is not plain."""

  def __init__(self):
    self.lr = 0.1


class Runs:
  """Makes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, "w")


@pytest.mark.parametrize("kind", PICKLES)
def test_code_in_a_checkpoint_is_named_and_never_runs(tmp_path, tensors, kind):
  path, trace = tmp_path / "a.pth", tmp_path / "trace"
  save({"state_dict": tensors, "config": Config()}, path, kind)
  with pytest.raises(
    ValueError,
    match=r"a\.pth must hold tensors and plain values only; it asks for "
    r"\S*pickles_test\.Config: .* nothing of it was run\. .*"
    r"torch\.save\(model\.state_dict\(\), FILE\)",
  ):
    load_model(path, NAME)
  save({"state_dict": tensors, "log": Runs(str(trace))}, path, kind)
  with pytest.raises(ValueError, match=r"asks for _?io\.open: .* nothing of"):
    load_model(path, NAME)
  assert not trace.exists()


@pytest.mark.parametrize(
  ("content", "told"),
  [
    (torch.nn.Sequential(torch.nn.Linear(2, 2)), "container.Sequential"),
    ({"ema": torch.nn.Linear(2, 2), "epoch": 3}, "linear.Linear"),
  ],
)
def test_a_whole_model_is_refused(tmp_path, content, told):
  save(content, tmp_path / "a.pth")
  message = refused(tmp_path / "a.pth")
  assert f"it holds a whole model, torch.nn.modules.{told}" in message


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_torchscript_is_refused_with_what_to_do(tmp_path, suffix):
  path = tmp_path / f"a.{suffix}"
  torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
  message = refused(path)
  assert "it is TorchScript" in message and "torch.jit.load(FILE)" in message


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_another_writer_is_refused_and_never_runs(
  tmp_path, protocol
):
  content = {"a.weight": Runs(str(tmp_path / "trace"))}
  (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
  message = refused(tmp_path / "a.pkl")
  assert "a pickle that something else wrote, and nothing of it was" in message
  assert not (tmp_path / "trace").exists()
