"""Reads files of weights, whatever they are called, and state dicts in memory.

The first bytes of a file tell its kind: names lie, as after a download. The
dtypes of all arrays are checked before one is read.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors

from gc_jax.torch_io import names, packaged, pickles
from gc_jax.torch_io.pickles import Stored

# Suffixes, in any case; an index names the files of a model in parts.
SAFETENSORS = (".safetensors",)
PICKLES = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".pkl")  # .pth.tar: releases
SUFFIXES = (*SAFETENSORS, *PICKLES, ".json")

# The file to read in a folder that holds one model; the first that exists.
_IN_FOLDER = (
  "model.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
)

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_INTEGERS = tuple(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))
# safetensors' names of dtypes; messages show the others as they are.
_OF_SAFETENSORS = {
  **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
  **{f"I{n}": f"int{n}" for n in (8, 16, 32, 64)},
  **{f"U{n}": f"uint{n}" for n in (8, 16, 32, 64)},
}
# Arrays that may be integers.
_COUNTERS = (names.COUNTER, "n_averaged", "total_ops", "total_params")

# A file's name, and no path to another folder.
_BESIDE = re.compile(r"(?!\.{1,2}$)[^/\\\0]+")

_MAX_HEADER = 100_000_000  # bytes, safetensors' own bound

# First bytes of files that hold no weights: what they are, what to do.
_NO_WEIGHTS = (
  (
    b"version https://git-lfs",
    "a pointer of Git LFS to a file elsewhere",
    "Fetch the file itself: git lfs pull",
  ),
  (b"<", "a web page or XML", "Download the file itself"),
  (b"\x1f\x8b", "compressed (gzip)", "Unpack it"),
  (b"BZh", "compressed (bzip2)", "Unpack it"),
  (b"\xfd7zXZ", "compressed (xz)", "Unpack it"),
  (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "Unpack it"),
  (b"7z\xbc\xaf", "compressed (7z)", "Unpack it"),
  (b"Rar!", "compressed (rar)", "Unpack it"),
  (b"\x89HDF", "an HDF5 file, as Keras writes", "Save PyTorch's state dict"),
  (b"\x93NUMPY", "an array of NumPy", "Save PyTorch's state dict"),
  (b"GGUF", "a GGUF file, of quantised weights", "Save PyTorch's state dict"),
)


class Content(NamedTuple):
  """What is in a file of weights, or in a state dict."""

  arrays: dict[str, np.ndarray]  # by PyTorch's keys, float32 but for counters
  said: Mapping[str, Any]  # metadata as the file has them, name to string
  remarks: list[str]  # where the arrays were found, and what was not read


def in_folder(folder: Any) -> Any | None:
  """Returns the file that holds the model of a folder; None without one."""
  there = (folder / name for name in _IN_FOLDER)
  return next((path for path in there if path.is_file()), None)


def name_of(source: str | pathlib.Path | Mapping[str, Any]) -> str:
  """Returns what messages call a source of weights."""
  return "The mapping" if isinstance(source, Mapping) else str(source)


def read(source: str | pathlib.Path | Mapping[str, Any]) -> Content:
  """Returns what is in a file, in all files of an index, or in a state dict.

  A string is a name of weights that a package carries, imagenet:NAME.

  Raises:
    ValueError: it cannot be read, is not safe to read, or holds no weights.
  """
  if isinstance(source, Mapping):
    name = name_of(source)
    stored, remarks = pickles.find_weights(name, source)
    # Copies: a model must not change with what its weights came from.
    arrays = {k: np.array(v) for k, v in _arrays(name, stored).items()}
    return Content(arrays, {}, remarks)
  if isinstance(source, str):
    return Content(*packaged.read(source), [])
  path = source
  if path.is_dir():
    inside = in_folder(path)
    if inside is None:
      raise ValueError(
        f"{path} must be a file of weights; it is a folder without "
        f"{' or '.join(_IN_FOLDER[:3])}. Name a file in it."
      )
    path = inside
  kind = _kind(path)
  if kind == "index":
    return _read_index(path)
  part = re.search(r"-(\d{5})-of-(\d{5})\.\w+$", path.name)
  if part and int(part[2]) > 1:
    raise ValueError(
      f"{path} must hold a whole model; it is part {int(part[1])} of "
      f"{int(part[2])}. Name the index beside it, *.index.json."
    )
  return _read_one(path, kind)


def _kind(path: pathlib.Path) -> str:
  """Returns "safetensors", "pickle" or "index", by the first bytes."""
  must = f"{path} must be a file of weights; "
  try:
    if not path.stat().st_size:  # before it is opened: a pipe would wait
      raise ValueError(f"{path} must hold weights; it is empty. Copy it again.")
    with path.open("rb") as file:
      head = file.read(512)
  except FileNotFoundError as error:
    raise ValueError(f"{must}there is none. Check the path.") from error
  except OSError as error:
    raise ValueError(f"{must}it cannot be read: {error}.") from error
  header = int.from_bytes(head[:8], "little")
  if head[8:9] == b"{" and header <= _MAX_HEADER:
    return "safetensors"
  if head.startswith((b"PK", b"\x80")):
    return "pickle"
  text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
  if text.startswith(b"{"):
    return "index"
  for start, what, advice in _NO_WEIGHTS:
    if text.startswith(start):
      raise ValueError(f"{must}it is {what}. {advice}.")
  if head[257:262] == b"ustar":
    raise ValueError(f"{must}it is a tar archive. Unpack it.")
  suffix = path.suffix.lower()
  if suffix in SAFETENSORS:
    return "safetensors"  # safetensors says what is wrong with it
  if suffix in PICKLES:
    raise ValueError(
      f"{path} must be a whole PyTorch checkpoint; it begins with "
      f"{head[:8]!r}, as none does. Copy it again."
    )
  raise ValueError(
    "Weights must be in a PyTorch or safetensors file "
    f"({', '.join(SUFFIXES[:-1])}); {path} is no such file. Save "
    "model.state_dict() as one."
  )


def _read_one(path: pathlib.Path, kind: str) -> Content:
  if kind == "safetensors":
    stored, said = _safetensors(path)
    return Content(_arrays(str(path), stored), said, [])
  stored, remarks = pickles.read(path)
  arrays = _arrays(str(path), stored)
  beside = metadata_path(path)
  said = _json(beside) if beside.is_file() else {}
  if not isinstance(said, dict):
    raise ValueError(
      f"What {beside} says about {path.name} must be a JSON object, as gc_jax "
      f"writes it; it is {said!r:.60}. Remove it, or export again."
    )
  return Content(arrays, said, remarks)


def metadata_path(path: pathlib.Path) -> pathlib.Path:
  """Returns the file with the metadata of a pickled file."""
  return path.with_name(f"{path.name}.json")


def _json(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(
      f"{path} must be JSON; it cannot be read: {error}. Remove it, or copy it "
      "again."
    ) from error


def _read_index(path: pathlib.Path) -> Content:
  """Returns what is in the files that an index names, all of them together."""
  index = _json(path)
  places = index.get("weight_map") if isinstance(index, dict) else None
  if (
    not isinstance(places, dict)
    or not places
    or not all(isinstance(name, str) for name in places.values())
  ):
    raise ValueError(
      f"{path} must be a file of weights, or the index of one in parts; it is "
      "JSON without a 'weight_map' from arrays to files. Name another file."
    )
  parts = sorted(set(places.values()))
  outside = [name for name in parts if not _BESIDE.fullmatch(name)]
  if outside:
    raise ValueError(
      f"{path} must name files beside it; it names "
      f"{names.listed(map(repr, outside))}. Use the index as it was saved."
    )
  missing = [n for n in parts if not os.path.isfile(path.parent / n)]
  if missing:
    raise ValueError(
      f"{path} names {len(parts)} files, which must lie beside it; "
      f"{len(missing)} do not: {names.listed(missing)}. Copy them there."
    )
  arrays, said = {}, {}
  for name in parts:
    part = path.parent / name
    kind = _kind(part)
    if kind == "index":
      raise ValueError(
        f"{part} must hold weights, as {path.name} says; it is JSON. Copy it "
        "again."
      )
    content = _read_one(part, kind)
    wrong = content.arrays.keys() ^ {k for k, n in places.items() if n == name}
    if wrong:
      raise ValueError(
        f"{part} must hold the arrays that {path.name} says; they differ in "
        f"{names.listed(sorted(wrong))}. Copy both again."
      )
    arrays |= content.arrays
    said = said or content.said
  return Content(arrays, said, [f"read from {len(parts)} files"])


def _safetensors(
  path: pathlib.Path,
) -> tuple[dict[str, Stored], Mapping[str, str]]:
  try:
    file = safetensors.safe_open(path, framework="numpy")
    stored = {}
    for key in file.keys():  # noqa: SIM118
      dtype = file.get_slice(key).get_dtype()
      read = lambda key=key: file.get_tensor(key)
      stored[key] = (_OF_SAFETENSORS.get(dtype, dtype), read)
    return stored, file.metadata() or {}
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path} must be a whole .safetensors file ({error}). "
      f"{_wrong_metadata(path) or 'Copy it again.'}"
    ) from error
  except OSError as error:
    raise ValueError(
      f"{path} must be a file of weights; it cannot be read: {error}."
    ) from error


def _wrong_metadata(path: pathlib.Path) -> str:
  """Says which metadata are no strings; "" if all are."""
  with path.open("rb") as file:
    size = int.from_bytes(file.read(8), "little")
    try:
      header = json.loads(file.read(min(size, _MAX_HEADER)))
      said = header["__metadata__"]
      wrong = {k: v for k, v in said.items() if not isinstance(v, str)}
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
      return ""
  listed = names.listed(f"{k} is {v!r:.40}" for k, v in wrong.items())
  return f"Its metadata must be strings; {listed}." if wrong else ""


def _arrays(source: str, stored: Mapping[str, Stored]) -> dict[str, np.ndarray]:
  """Returns the arrays: float32, but for counters that are integers."""
  refused = [
    f"{key} is {dtype}"
    for key, (dtype, _) in stored.items()
    if dtype not in _FLOATS
    and not (dtype in _INTEGERS and key.split(".")[-1] in _COUNTERS)
  ]
  if refused:
    raise ValueError(
      f"{source} must hold weights of {', '.join(_FLOATS)}; {len(refused)} of "
      f"its {len(stored)} arrays are of another dtype: {names.listed(refused)}."
      " Save the weights before they are converted, or turn them into floats "
      "(dequantize(), to_dense(), float())."
    )
  arrays = {}
  for key, (_, load) in stored.items():
    try:
      array = load()
    except Exception as error:  # of a tensor like no other, or a broken array
      raise ValueError(
        f"{source} must hold whole arrays; {key} cannot be read: "
        f"{type(error).__name__}. Save model.state_dict() again."
      ) from error
    if not np.issubdtype(array.dtype, np.integer):
      with np.errstate(over="ignore"):  # `files.read` counts infinities
        array = array.astype(np.float32, copy=False)
    arrays[key] = array
  return arrays
