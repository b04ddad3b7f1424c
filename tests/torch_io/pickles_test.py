"""What torch.save leaves of a training run, and what of it is read."""

import argparse
import collections
import datetime
import io
import pathlib
import pickle
import types
import zipfile

import numpy as np
import pytest
import torch

from gc_jax import models
from gc_jax.torch_io import load_model, names

NAME = "resnet8-small"
OLD = [False, True]  # PyTorch's format of before 1.6


@pytest.fixture(scope="module")
def weights():
  return names.to_torch(models.create(NAME, 3))


@pytest.fixture
def tensors(weights):
  return {key: torch.from_numpy(value) for key, value in weights.items()}


def save(content, path, old):
  torch.save(content, path, _use_new_zipfile_serialization=not old)


def is_loaded(path, weights):
  back = names.to_torch(load_model(path, NAME)[0])
  return all(np.array_equal(back[key], value) for key, value in weights.items())


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize(
  "where",
  [
    ("state_dict",),
    ("model_state_dict",),
    ("model",),
    ("net",),
    ("network",),
    ("module",),
    ("ema",),
    ("ema_state_dict",),
    ("state_dict_ema",),
    ("weights_of_mine",),
    ("checkpoint", "model", "state_dict"),
    ("ema", "shadow"),
  ],
)
def test_weights_are_found_wherever_they_lie(
  tmp_path, tensors, weights, where, old
):
  content = tensors
  for key in reversed(where):
    content = {
      key: content,
      "epoch": 3,
      "best_acc1": torch.tensor(58.1),
      "criterion": {"weight": torch.ones(3)},
      "optimizer": {"state": {0: {"exp_avg": torch.ones(2), "step": 3}}},
    }
  save(content, tmp_path / "a.pth", old)
  assert is_loaded(tmp_path / "a.pth", weights)


@pytest.mark.parametrize("old", OLD)
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
def test_plain_values_beside_the_weights_are_no_matter(
  tmp_path, tensors, weights, beside, old
):
  save({"state_dict": tensors, **beside}, tmp_path / "a.pth", old)
  assert is_loaded(tmp_path / "a.pth", weights)


def renamed(path, **names):
  """Renames what a checkpoint's pickle asks for."""
  with zipfile.ZipFile(path) as archive:
    files = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(path, "w") as archive:
    for name, data in files.items():
      if name.endswith("data.pkl"):
        for old, new in names.items():
          assert old.replace("__", ".").encode() in data
          data = data.replace(old.replace("__", ".").encode(), new.encode())
      archive.writestr(name, data)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_scalars_of_either_numpy_are_no_matter(
  tmp_path, tensors, weights, core
):
  torch.save({"state_dict": tensors, "best": np.float64(3)}, tmp_path / "a.pth")
  renamed(
    tmp_path / "a.pth", numpy___core__multiarray=f"numpy.{core}.multiarray"
  )
  assert is_loaded(tmp_path / "a.pth", weights)


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_paths_of_another_system_are_no_matter(
  tmp_path, tensors, weights, module
):
  content = {"state_dict": tensors, "out": pathlib.PurePosixPath("a")}
  torch.save(content, tmp_path / "a.pth")
  name = type(content["out"]).__module__
  renamed(
    tmp_path / "a.pth",
    **{f"{name.replace('.', '__')}\nPure": f"{module}\n"},
    Posix="Windows",
  )
  assert is_loaded(tmp_path / "a.pth", weights)


@pytest.mark.parametrize("old", OLD)
def test_arrays_of_numpy_are_weights_as_well(tmp_path, weights, old):
  given = dict(weights)
  given["fc.weight"] = np.asfortranarray(weights["fc.weight"])
  given["fc.bias"] = weights["fc.bias"].astype(">f8")
  given["conv1.weight"] = weights["conv1.weight"][:, ::-1][:, ::-1]
  save({"params": given}, tmp_path / "a.pth", old)
  assert is_loaded(tmp_path / "a.pth", weights)
  for dtype in ("int8", "bool", "object"):
    given["fc.bias"] = weights["fc.bias"].astype(dtype)
    save(given, tmp_path / "a.pth", old)
    with pytest.raises(ValueError, match=r"another dtype: fc\.bias is "):
      load_model(tmp_path / "a.pth", NAME)


def test_weights_come_before_their_averages(tmp_path, tensors, weights, caplog):
  other = {key: value * 0 for key, value in tensors.items()}
  averaged = {f"module.{key}": value for key, value in other.items()}
  averaged["n_averaged"] = torch.tensor(12)
  for name in ("ema", "model_ema", "state_dict_ema", "swa_state", "EMA"):
    caplog.clear()
    torch.save({name: averaged, "model": tensors}, tmp_path / "a.pth")
    assert is_loaded(tmp_path / "a.pth", weights)
    told = f"a.pth: read from ['model']; ['{name}'] not read."
    assert told in caplog.text
  torch.save({"model_ema": averaged, "epoch": 3}, tmp_path / "a.pth")
  assert is_loaded(tmp_path / "a.pth", {k: v.numpy() for k, v in other.items()})


def test_one_of_several_models_must_be_chosen(
  tmp_path, tensors, weights, caplog
):
  other = {key: value * 0 for key, value in tensors.items()}
  for pair in (("teacher", "student"), ("model", "net"), ("a", "b")):
    content = dict(zip(pair, (tensors, other), strict=True))
    torch.save({"epoch": 3, "all": content}, tmp_path / "a.pth")
    with pytest.raises(
      ValueError,
      match=rf"of one model; it holds \['all'\]\['{pair[0]}'\], \['all'\]"
      rf"\['{pair[1]}'\]\. Save the one .*torch\.load\(FILE\)\['all'\]",
    ):
      load_model(tmp_path / "a.pth", NAME)
  torch.save({"teacher": other, "model": tensors}, tmp_path / "a.pth")
  assert is_loaded(tmp_path / "a.pth", weights)
  assert "['teacher'] not read" in caplog.text
  # The same weights under two names are one.
  torch.save({"model": tensors, "net": tensors}, tmp_path / "a.pth")
  assert is_loaded(tmp_path / "a.pth", weights)


def test_what_is_no_array_is_left_out_and_said(
  tmp_path, tensors, weights, caplog
):
  extra = {"epoch": 3, "note": None, 7: torch.ones(2), "list.weight": [1.0]}
  torch.save({**tensors, **extra}, tmp_path / "a.pth")
  assert is_loaded(tmp_path / "a.pth", weights)
  assert "left out: 'epoch', 'note', 7, 'list.weight'" in caplog.text


@pytest.mark.parametrize(
  "content, told",
  [
    ([1, 2], "it holds a list"),
    (3.5, "it holds a float"),
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
def test_what_holds_no_weights_is_said(tmp_path, content, told):
  torch.save(content, tmp_path / "a.pth")
  with pytest.raises(ValueError, match=rf"a\.pth must hold .*({told})"):
    load_model(tmp_path / "a.pth", NAME)


def test_a_dict_in_itself_is_walked_once(tmp_path, tensors, weights):
  content = {"model": tensors}
  content["self"] = content
  torch.save(content, tmp_path / "a.pth")
  assert is_loaded(tmp_path / "a.pth", weights)
  deep = tensors
  for _ in range(200):
    deep = {"model": deep}
  torch.save(deep, tmp_path / "a.pth")
  assert is_loaded(tmp_path / "a.pth", weights)


class Config:
  """What stands for a configuration of a library that is not plain."""

  def __init__(self):
    self.lr = 0.1


class Runs:
  """Makes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, "w")


@pytest.mark.parametrize("old", OLD)
def test_what_is_refused_is_named(tmp_path, tensors, old):
  path = tmp_path / "a.pth"
  save({"state_dict": tensors, "config": Config()}, path, old)
  with pytest.raises(
    ValueError,
    match=r"a\.pth must hold tensors and plain values only; it asks for "
    r"\S*pickles_test\.Config: .* nothing of it was run\. .*"
    r"torch\.save\(model\.state_dict\(\), FILE\)",
  ):
    load_model(path, NAME)
  trace = tmp_path / "trace"
  save({"state_dict": tensors, "log": Runs(str(trace))}, path, old)
  with pytest.raises(ValueError, match=r"asks for _?io\.open: .* nothing of"):
    load_model(path, NAME)
  assert not trace.exists()


def test_many_refused_are_counted(tmp_path, tensors):
  kinds = [type(f"Kind{i}", (), {"__module__": __name__}) for i in range(9)]
  for kind in kinds:
    globals()[kind.__name__] = kind
  content = {"state_dict": tensors, "all": [kind() for kind in kinds]}
  torch.save(content, tmp_path / "a.pth")
  with pytest.raises(ValueError, match=r"Kind0, .*Kind4 and 4 more: reading"):
    load_model(tmp_path / "a.pth", NAME)


def test_a_whole_model_is_refused_as_one(tmp_path):
  torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "a.pth")
  with pytest.raises(
    ValueError,
    match=r"it holds a whole model, torch\.nn\.modules\.container\.Sequential",
  ):
    load_model(tmp_path / "a.pth", NAME)
  torch.save({"ema": torch.nn.Linear(2, 2), "epoch": 3}, tmp_path / "nested.pt")
  with pytest.raises(ValueError, match=r"whole model, torch\.nn\.modules\.lin"):
    load_model(tmp_path / "nested.pt", NAME)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", ["pt", "pth", "ts", "safetensors"])
def test_torchscript_is_refused_with_what_to_do(tmp_path, suffix):
  path = tmp_path / f"a.{suffix}"
  torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
  with pytest.raises(
    ValueError, match=r"it is TorchScript .*torch\.jit\.load\(FILE\)\.state_d"
  ):
    load_model(path, NAME)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_another_hand_is_refused(tmp_path, weights, protocol):
  (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a.weight": 1}, protocol))
  with pytest.raises(
    ValueError, match=r"a\.pkl .* a pickle that something else wrote, and not"
  ):
    load_model(tmp_path / "a.pkl", NAME)


def test_a_broken_archive_is_told(tmp_path, tensors):
  content = io.BytesIO()
  torch.save(tensors, content)
  path = tmp_path / "a.pth"
  path.write_bytes(content.getvalue())
  renamed(path, collections="colle")
  with pytest.raises(ValueError, match=r"asks for colle\.OrderedDict"):
    load_model(path, NAME)
