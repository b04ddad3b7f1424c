"""What a file of weights is, and is not, however it is called."""

import gzip
import io
import json
import os
import re
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from gc_jax.torch_io import load_model, names
from tests.torch_io.conftest import KINDS, NAME, is_loaded, refused, save


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  "name",
  ["a.ckpt", "a.PTH", "a.pth.tar", "a.SAFETENSORS", "a.h5", "weights"],
)
def test_a_file_is_known_by_its_content(tmp_path, tensors, weights, kind, name):
  save(tensors, tmp_path / name, kind)
  assert is_loaded(tmp_path / name, weights)


def zipped(**files):
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w") as archive:
    for name, data in files.items():
      archive.writestr(name, data)
  return content.getvalue()


def tarred():
  content = io.BytesIO()
  with tarfile.open(fileobj=content, mode="w") as archive:
    archive.addfile(tarfile.TarInfo("a"))
  return content.getvalue()


def of_numpy(save):
  content = io.BytesIO()
  save(content, np.zeros(3))
  return content.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 1\n"


# By name, as archives hold the time: their bytes are others every second.
NO_WEIGHTS = {
  "page": (b"<!DOCTYPE html><html>404", r"it is a web page or XML\. Download"),
  "XML": (b"\n <?xml version='1.0'?><Error>", "it is a web page or XML"),
  "page with a mark": (b"\xef\xbb\xbf<html>", "it is a web page or XML"),
  "LFS": (LFS, r"a pointer of Git LFS .* git lfs pull"),
  "gzip": (gzip.compress(b"weights"), r"is compressed \(gzip\)\. Unpack it"),
  "bzip2": (b"BZh91AY&SY", r"is compressed \(bzip2\)\. Unpack it"),
  "tar": (tarred(), r"is a tar archive\. Unpack it"),
  "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(500), "is an HDF5 file, as Keras"),
  "npy": (of_numpy(np.save), "is an array of NumPy"),
  "npz": (of_numpy(np.savez), r"is an \.npz archive of NumPy, with arr_0\.npy"),
  "zip": (zipped(a="1", b="2"), "is another archive, with a, b in it"),
  "empty zip": (zipped(), "is another archive, with nothing in it"),
  "JSON": (b'{"epochs": 3}', "is JSON without a 'weight_map'"),
  "broken JSON": (b'{"epochs": ', "must be JSON; it cannot be read"),
  "brackets": (b"[" * 10 + b"{", "must be|is no such file"),
  "zeros": (bytes(64), r"must be a whole|is no such file"),
  "GIF": (b"GIF89a" + bytes(64), r"must be a whole|is no such file"),
}


@pytest.mark.parametrize(
  ("content", "told"), NO_WEIGHTS.values(), ids=NO_WEIGHTS
)
def test_a_file_without_weights_is_named_for_what_it_is(
  tmp_path, content, told
):
  for name in ("a.pth", "a.safetensors", "a.ckpt", "a"):
    (tmp_path / name).write_bytes(content)
    assert re.search(told, refused(tmp_path / name))
  assert "there is none" in refused(tmp_path / "missing.pth")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_floats_of_any_width_are_read(tmp_path, tensors, weights, kind, dtype):
  given = {
    key: value.to(getattr(torch, dtype)) if value.ndim else value
    for key, value in tensors.items()
  }
  save(given, tmp_path / "a.bin", kind)
  rtol = {"float16": 2**-10, "bfloat16": 2**-8, "float64": 0}[dtype]
  back = names.to_torch(load_model(tmp_path / "a.bin", NAME)[0])
  for key, value in weights.items():
    assert back[key].dtype == value.dtype
    np.testing.assert_allclose(back[key], value, rtol=rtol, atol=1e-7)


TOLD = {
  "float8_e4m3fn": "F8_E4M3|float8_e4m3fn",
  "float8_e8m0fnu": "F8_E8M0|float8_e8m0fnu",
  "int8": "int8",
  "int64": "int64",
  "bool": "BOOL|bool",
  "complex64": "C64|complex64",
}


@pytest.mark.parametrize(
  ("kind", "dtype"),
  [
    (kind, dtype)
    for kind in KINDS
    for dtype in TOLD
    # Old pickles of float8 PyTorch writes, and cannot read itself.
    if not (kind == "old pickle" and dtype.startswith("float8"))
  ],
)
def test_weights_of_another_dtype_are_refused_by_name(
  tmp_path, tensors, kind, dtype
):
  told = TOLD[dtype]
  for key in ("fc.weight", "fc.bias"):
    tensors[key] = tensors[key].to(getattr(torch, dtype))
  save(tensors, tmp_path / "a.bin", kind)
  with pytest.raises(
    ValueError,
    match=r"a\.bin must hold weights of float16, bfloat16, float32, float64; "
    rf"2 of its \d+ arrays are .* fc\.\w+ is ({told}), fc\.\w+ is ({told})\. S",
  ):
    load_model(tmp_path / "a.bin", NAME)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
  "dtype, convert",
  [
    ("sparse_coo float32", lambda w: w.to_sparse()),
    ("sparse_csr float32", lambda w: w.to_sparse_csr()),
    ("qint8", lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)),
    (
      "quint8",
      lambda w: torch.quantize_per_channel(
        w, torch.ones(len(w)), torch.zeros(len(w)), 0, torch.quint8
      ),
    ),
    ("float32 without numbers", lambda w: w.to("meta")),
    ("nested float32", lambda w: torch.nested.nested_tensor(list(w))),
    ("float4_e2m1fn_x2", lambda w: w.byte().view(torch.float4_e2m1fn_x2)),
  ],
)
def test_tensors_unknown_to_numpy_are_refused_by_name(
  tmp_path, tensors, dtype, convert
):
  tensors["fc.weight"] = convert(tensors["fc.weight"])
  torch.save(tensors, tmp_path / "a.pth")
  assert f"are of another dtype: fc.weight is {dtype}" in refused(
    tmp_path / "a.pth"
  )


@pytest.mark.parametrize(
  "dtype", ["F4", "F6_E2M3", "F6_E3M2", "F8_E5M2FNUZ", "U16"]
)
def test_packed_weights_are_refused_without_pytorch(tmp_path, dtype):
  bits = 16 if dtype == "U16" else int(dtype[1])
  packed = {"dtype": dtype, "shape": [4, 2], "data_offsets": [0, bits]}
  write_raw(tmp_path / "a.safetensors", {"fc.weight": packed}, bytes(bits))
  assert "fc.weight is" in refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  ("count", "dtype", "read"),
  [
    (7, "int32", 7),
    (7, "uint8", 7),
    (7, "float32", 7),  # of averaged weights
    (float("nan"), "float32", 0),
    (-1, "float32", 0),
    (1e30, "float32", 2**31 - 1),
    (2**40, "int64", 2**31 - 1),
  ],
)
def test_a_count_of_batches_may_be_any_number(
  tmp_path, tensors, kind, count, dtype, read, caplog
):
  of_dtype = torch.tensor(count, dtype=getattr(torch, dtype))
  tensors["bn1.num_batches_tracked"] = of_dtype
  save(tensors, tmp_path / "a.pth", kind)
  back = names.to_torch(load_model(tmp_path / "a.pth", NAME)[0])
  assert back["bn1.num_batches_tracked"] == read and not caplog.messages


def test_tensors_of_any_memory_layout_are_read(tmp_path, tensors, weights):
  last, *_ = tensors["fc.weight"].shape
  tensors["fc.weight"] = tensors["fc.weight"].T.contiguous().T
  tensors["fc.bias"] = torch.nn.Parameter(tensors["fc.bias"])
  tensors["conv1.weight"] = tensors["conv1.weight"].to(
    memory_format=torch.channels_last
  )
  twice = torch.stack([tensors["bn1.weight"], tensors["bn1.bias"]])
  tensors["bn1.weight"], tensors["bn1.bias"] = twice  # of one storage
  tensors["bn1.running_var"] = torch.ones(()).expand(32)
  tensors["bn1.running_mean"] = torch._neg_view(-tensors["bn1.running_mean"])
  torch.save(tensors, tmp_path / "a.pth")
  assert last == 3 and is_loaded(tmp_path / "a.pth", weights)


def parts(tensors, folder, kind="safetensors", index="model.safetensors"):
  """Saves tensors in three files and an index; returns the index."""
  keys = sorted(tensors)
  suffix = "safetensors" if kind == "safetensors" else "bin"
  places = {
    key: f"model-0000{1 + i % 3}-of-00003.{suffix}"
    for i, key in enumerate(keys)
  }
  for name in set(places.values()):
    part = {key: tensors[key] for key in keys if places[key] == name}
    save(part, folder / name, kind)
  path = folder / f"{index}.index.json"
  path.write_text(json.dumps({"metadata": {}, "weight_map": places}))
  return path


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
@pytest.mark.parametrize("asked", ["index", "folder"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_model_in_parts_is_read_whole(
  tmp_path, tensors, weights, kind, asked, prefix, caplog
):
  given = {prefix + key: value for key, value in tensors.items()}
  index = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
  path = parts(given, tmp_path, kind, index)
  assert is_loaded(path if asked == "index" else tmp_path, weights)
  assert "read from 3 files" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_downloaded_folder_is_its_model(tmp_path, tensors, weights, name):
  save(tensors, tmp_path / name, name.rpartition(".")[2])
  (tmp_path / "config.json").write_text('{"architecture": "resnet8"}')
  assert is_loaded(tmp_path, weights)
  (tmp_path / name).rename(tmp_path / "else.bin")
  assert "is a folder without model.safetensors or" in refused(tmp_path)


def test_parts_that_do_not_fit_the_index_are_refused(tmp_path, tensors):
  path = parts(tensors, tmp_path)
  second = tmp_path / "model-00002-of-00003.safetensors"
  whole = path.read_text()
  assert "is part 2 of 3. Name the index" in refused(second)
  held = second.read_bytes()
  second.unlink()
  message = "names 3 files, which must lie beside it; 1 do not: model-00002-of"
  assert message in refused(path)
  second.write_bytes(held[:-9])
  with pytest.raises(ValueError, match=r"model-00002.* must be a whole"):
    load_model(path, NAME)
  second.write_text('{"weight_map": {}}')
  with pytest.raises(ValueError, match=r"model-00002.* must hold weights"):
    load_model(path, NAME)
  second.write_bytes(held)
  index = json.loads(whole)
  del index["weight_map"]["conv1.weight"]
  path.write_text(json.dumps(index))
  with pytest.raises(ValueError, match=r"they differ in conv1\.weight\. Copy"):
    load_model(path, NAME)


WRONG_INDEX = {
  "must name files beside it; it names": [
    {"fc.weight": name}
    for name in ("../a.bin", "/etc/passwd", "..", "b\\a.bin", "", "a\0", "\n/a")
  ],
  "1 do not: ": [{"fc.weight": name} for name in ("a" * 5_000, "\udc80")],
  "JSON without a 'weight_map' from arrays": [[], {}, {"a": 3}, None, "a.bin"],
}


@pytest.mark.parametrize("told", WRONG_INDEX)
def test_an_index_names_existing_files_of_its_folder(tmp_path, told):
  path = tmp_path / "sub" / "model.safetensors.index.json"
  path.parent.mkdir()
  (tmp_path / "a.bin").write_bytes(b"1")
  for places in WRONG_INDEX[told]:
    path.write_text(json.dumps({"weight_map": places}))
    assert told in refused(path)


def test_a_pipe_is_refused_without_waiting(tmp_path):
  os.mkfifo(tmp_path / "a.pth")
  assert "it is empty" in refused(tmp_path / "a.pth")


def write_raw(path, header, data=b"", length=None):
  text = json.dumps(header).encode()
  length = len(text) if length is None else length
  path.write_bytes(struct.pack("<Q", length) + text + data)


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


WHOLE = "must be a whole .safetensors file"
META = "__metadata__"


@pytest.mark.parametrize(
  ("header", "size", "told"),
  [
    ({"a": ONE}, 3, WHOLE),
    ({"a": ONE, "b": {**ONE, "data_offsets": [2, 6]}}, 6, WHOLE),
    ({"a": {**ONE, "dtype": "F99"}}, 4, "F99"),
    ({"a": {**ONE, "shape": [2**62, 8]}}, 4, WHOLE),
    ([ONE], 4, "must be a whole"),
    (
      {META: {"class_names": ["a", "b"], "image_size": 64}, "a": ONE},
      4,
      "Its metadata must be strings; class_names is ['a', 'b']; image_size is",
    ),
    ({META: ["pt"], "a": ONE}, 4, WHOLE),
    ({META: {"format": "pt"}}, 0, "there is no array in it"),
  ],
)
def test_a_lying_header_is_refused(tmp_path, header, size, told):
  write_raw(tmp_path / "a.safetensors", header, bytes(size))
  message = refused(tmp_path / "a.safetensors")
  assert all(part in message for part in told.split("; "))


@pytest.mark.parametrize("length", [12, 10**6, 2**62])
def test_a_wrong_length_of_the_header_is_refused(tmp_path, length):
  write_raw(tmp_path / "a.safetensors", {"a": ONE}, bytes(4), length)
  assert "must be a whole" in refused(tmp_path / "a.safetensors")


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
  path = tmp_path / "a.pth"
  path.write_bytes(b"PK")

  def denied(*_, **__):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(type(path), "open", denied)
  assert "it cannot be read: [Errno 13] Permission denied" in refused(path)
