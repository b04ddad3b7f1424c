"""Reads files of torch.save without running any code of theirs.

The weights are then looked for as in a state dict that is in memory already.
PyTorch's `weights_only` builds tensors and containers; stand-ins take the place
of plain values beside them. A file that asks for anything else is refused
before it is built.
"""

import pathlib
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gc_jax.torch_io import names

_SAVE = "torch.save(model.state_dict(), FILE)"
# In the first bytes of what torch.save wrote before it wrote zip archives.
_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")

INSTALL_TORCH = "pip install torch==2.13.0"

# Names under which training scripts save the weights they would load again.
_USUAL = (
  *("state_dict", "model_state_dict", "model_state", "model", "net"),
  *("network", "module", "params", "weights"),
)

# An array as a file has it: its dtype by name, and what reads it.
Stored = tuple[str, Callable[[], np.ndarray]]


class _Beside:
  """Stands in for a plain value that is no weight: takes all, does nothing."""

  def __init__(self, *_: Any) -> None:
    pass

  def __setstate__(self, state: Any) -> None:
    pass


class _Dtype:
  """Stands in for a `numpy.dtype`, which trusts what it is given."""

  def __init__(self, code: Any = "", *_: Any) -> None:
    self.code = str(code)
    self.order = "="

  def __setstate__(self, state: Any) -> None:
    self.order = ">" if state[1] == ">" else "<"

  @property
  def name(self) -> str:
    """The dtype's name in NumPy; its code where it has none."""
    is_plain = re.fullmatch(r"[?bhilqBHILQefd]|[iu][1248]|f[248]|b1", self.code)
    return np.dtype(self.code).name if is_plain else f"{self.code!r:.20}"


class _Array:
  """Stands in for a `numpy.ndarray`, which trusts what it is given."""

  def __init__(self, *_: Any) -> None:
    self.shape, self.dtype = (), _Dtype()
    self.is_fortran, self.data = False, b""

  def __setstate__(self, state: Any) -> None:
    _, self.shape, dtype, self.is_fortran, self.data = state
    self.dtype = dtype if isinstance(dtype, _Dtype) else _Dtype()

  def read(self) -> np.ndarray:
    """Returns the array, of one of the dtypes with a name."""
    dtype = np.dtype(self.dtype.code).newbyteorder(self.dtype.order)
    array = np.frombuffer(self.data, dtype).reshape(
      self.shape, order="F" if self.is_fortran else "C"
    )
    return array.astype(dtype.newbyteorder("="))


# Stand-ins by the names that files use: PyTorch looks them up, imports nothing.
_STAND_INS = [
  *(
    (_Beside, name)
    for name in (
      "argparse.Namespace",  # the arguments of torchvision's training script
      "types.SimpleNamespace",
      *(f"builtins.{n}" for n in ("list", "dict", "tuple", "frozenset")),
      *(f"builtins.{n}" for n in ("bool", "int", "float", "str")),
      *(f"datetime.{n}" for n in ("date", "datetime", "time")),
      *(f"datetime.{n}" for n in ("timedelta", "timezone")),
      *(
        f"{module}.{pure}{system}Path"
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for system in ("", "Posix", "Windows")
      ),
    )
  ),
  # Filled item by item, which PyTorch does to dicts and lists alone.
  (lambda *_: {}, "collections.defaultdict"),
  (lambda *_: [], "collections.deque"),
  (_Array, "numpy.ndarray"),
  (_Dtype, "numpy.dtype"),
  *(
    (stand_in, f"numpy.{core}.multiarray.{name}")
    for core in ("core", "_core")  # of NumPy 1 and 2
    for stand_in, name in ((_Beside, "scalar"), (_Array, "_reconstruct"))
  ),
]


def import_torch(purpose: str) -> Any:
  """Returns the module `torch`; raises ValueError where it is not installed."""
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      f"{purpose}, PyTorch must be installed: {INSTALL_TORCH} (the CPU build "
      "is enough). A .safetensors file needs none."
    ) from error
  return torch


def read_numpy(path: pathlib.Path) -> dict[str, list[np.ndarray]]:
  """Returns the lists of arrays by name that a pickle of NumPy's holds.

  Raises:
    ValueError: it holds anything else; nothing of it was run.
  """
  try:
    with path.open("rb") as file:
      content = _OfNumpy(file).load()
    return {
      name: [array.read() for array in arrays]
      for name, arrays in content.items()
    }
  except Exception as error:  # a broken pickle may raise anything
    raise ValueError(
      f"{path} must hold lists of NumPy's arrays by name, and does not "
      f"({error or type(error).__name__}); nothing of it was run. Install its "
      "package again."
    ) from error


class _OfNumpy(pickle.Unpickler):
  """Builds stand-ins for arrays, and nothing that is not among them."""

  def find_class(self, module: str, name: str) -> Any:
    for stand_in, known in _STAND_INS:
      if known == f"{module}.{name}":
        return stand_in
    raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read(path: pathlib.Path) -> tuple[dict[str, Stored], list[str]]:
  """Returns the arrays of the one state dict in a file, and remarks.

  The remarks say where it was found, if under an unusual name, and what was not
  read.

  Raises:
    ValueError: the file cannot be read, is not safe to read, or holds no state
      dict, or several.
  """
  torch = import_torch(f"To read {path}")
  _check_writer(path)
  return find_weights(str(path), _content(torch, path))


def find_weights(
  source: str, content: Any
) -> tuple[dict[str, Stored], list[str]]:
  """Returns the arrays of the one state dict in a value, and remarks.

  They may be PyTorch's, NumPy's, or any that NumPy converts. `source` is what
  messages call the value.
  """
  state_dict, remarks = _state_dict(source, content)
  arrays = {
    key: _stored(value)
    for key, value in state_dict.items()
    if isinstance(key, str) and _is_array(value)
  }
  left = [repr(key) for key in state_dict if key not in arrays]
  if left:
    remarks.append(f"no arrays, and left out: {names.listed(left)}")
  return arrays, remarks


def _check_writer(path: pathlib.Path) -> None:
  """Raises ValueError if torch.save did not write a file."""
  must = f"{path} must be a file of torch.save; it is"
  with path.open("rb") as file:
    head = file.read(64)
  if head.startswith(b"\x80") and _MAGIC not in head:
    raise ValueError(
      f"{must} a pickle that something else wrote, and nothing of it was run. "
      f"Save the model's weights: {_SAVE}."
    )
  try:
    with zipfile.ZipFile(path) as archive:
      members = [name.rpartition("/")[2] for name in archive.namelist()]
  except Exception:  # not a zip, or a broken one: PyTorch says which
    return
  if "constants.pkl" in members:
    raise ValueError(
      f"{must} TorchScript (torch.jit.save), a program with its weights, and "
      "is not run. Save the weights alone: "
      "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)."
    )
  if "data.pkl" not in members:
    is_numpy = bool(members) and all(m.endswith(".npy") for m in members)
    raise ValueError(
      f"{must} {'an .npz archive of NumPy' if is_numpy else 'another archive'}"
      f", with {names.listed(members) or 'nothing'} in it. Save the model's "
      f"weights: {_SAVE}."
    )


def _content(torch: Any, path: pathlib.Path) -> Any:
  """Returns what torch.save was given."""
  serialization = torch.serialization
  with warnings.catch_warnings(), serialization.safe_globals(_STAND_INS):
    # About pickles of another writer, quantised tensors, old storage classes:
    # what is read is checked below.
    warnings.simplefilter("ignore")
    try:
      # Not by its name: PyTorch goes by the suffix ".safetensors".
      with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle may raise anything
      try:
        refused = sorted(serialization.get_unsafe_globals_in_checkpoint(path))
      except Exception:  # of another format, or broken
        refused = re.findall(r"GLOBAL ([\w.<>]+)", str(error))[:1]
      raise ValueError(_why_not(path, error, refused)) from error


def _why_not(path: pathlib.Path, error: Exception, refused: list[str]) -> str:
  must = f"{path} must hold tensors and plain values only; it"
  if refused:
    is_model = any(name.startswith("torch.nn.modules.") for name in refused)
    what = "holds a whole model," if is_model else "asks for"
    return (
      f"{must} {what} {names.listed(refused)}: reading that runs code, and "
      "nothing of it was run. Where it was made, save its state dict alone: "
      f"{_SAVE}."
    )
  if isinstance(error, pickle.UnpicklingError):
    # PyTorch's own message advises to read it all the same.
    return (
      f"{must} is no PyTorch checkpoint, or a broken one, or holds code that "
      "reading it would run, and nothing of it was run. Copy it again, or save "
      f"its state dict alone: {_SAVE}."
    )
  (first, *_) = str(error).splitlines() or [type(error).__name__]
  return f"{path} must be a whole PyTorch checkpoint ({first}). Copy it again."


def _state_dict(
  source: str, content: Any
) -> tuple[Mapping[Any, Any], list[str]]:
  # Trained weights come before averages of them, and those under a usual name
  # before others: the remarks say what was passed over.
  found = dict(_mappings_of_weights(content))
  if not found:
    is_mapping = isinstance(content, Mapping)
    if is_mapping and all(map(_is_array, content.values())):
      return content, []
    kind = "value" if isinstance(content, _Beside) else type(content).__name__
    if is_mapping:
      kind += f" with {names.listed(map(repr, content)) or 'nothing'} in it"
    raise ValueError(
      f"{source} must hold a state dict (names to tensors), alone or under a "
      f"name such as {', '.join(map(repr, _USUAL[:3]))}; it holds a {kind}. "
      "Save model.state_dict()."
    )
  averaged = [w for w in found if any(names.is_average(str(key)) for key in w)]
  left = [where for where in found if where not in averaged] or averaged
  left = [w for w in left if not w or w[-1] in _USUAL] or left
  if len(left) > 1:
    raise ValueError(
      f"{source} must hold the weights of one model; it holds "
      f"{names.listed(map(_written, left))}. Save one of them alone: "
      f"torch.save(torch.load(FILE){_written(left[0])}, NEW_FILE). In memory, "
      f"pass {_written(left[0])}."
    )
  where = left[0]
  others = [_written(other) for other in found if other != where]
  remarks = [f"{names.listed(others)} not read"] if others else []
  if others or not all(key in _USUAL for key in where):
    remarks = [f"read from {_written(where) or 'its top level'}", *remarks]
  return found[where], remarks


def _mappings_of_weights(content: Any):
  """Yields (keys to it, mapping) for what holds arrays named "*.weight"."""
  seen: set[int] = set()
  left = [((), content)]
  while left:
    where, value = left.pop()
    if not isinstance(value, Mapping) or id(value) in seen:
      continue
    seen.add(id(value))
    if any(
      isinstance(key, str) and key.endswith(".weight") and _is_array(v)
      for key, v in value.items()
    ):
      yield where, value
    left += [((*where, key), v) for key, v in reversed(value.items())]


def _written(where: tuple[Any, ...]) -> str:
  """Returns the keys as one types them after the content."""
  return "".join(f"[{key!r}]" for key in where)


def _is_array(value: Any) -> bool:
  return hasattr(value, "dtype") and not isinstance(value, np.generic)


def _stored(value: Any) -> Stored:
  if isinstance(value, _Array):
    return value.dtype.name, value.read
  torch = sys.modules.get("torch")  # who has a tensor has imported it
  if torch is None or not isinstance(value, torch.Tensor):
    dtype = getattr(value.dtype, "name", str(value.dtype))
    return dtype, lambda: np.asarray(value)
  dtype = str(value.dtype).removeprefix("torch.")
  if value.is_nested:
    dtype = f"nested {dtype}"
  elif value.layout is not torch.strided:
    dtype = f"{str(value.layout).removeprefix('torch.')} {dtype}"
  elif value.is_meta:
    dtype = f"{dtype} without numbers, on the meta device"

  def read() -> np.ndarray:
    tensor = value.detach().cpu().resolve_neg()
    is_bfloat16 = tensor.dtype is torch.bfloat16
    return (tensor.float() if is_bfloat16 else tensor).numpy()

  return dtype, read
