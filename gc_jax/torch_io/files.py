"""Weights in files: .safetensors, and PyTorch's own .pth.

Reading never runs code: a pickle that holds more than tensors and plain values
is refused by PyTorch's `weights_only`, before any of it is executed.
"""

import argparse
import dataclasses
import json
import logging
import pathlib
import pickle
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from gc_jax.data.dataset import unknown_name_message
from gc_jax.models import MODELS
from gc_jax.models.layers import RGB_MEAN, RGB_STD
from gc_jax.report import files
from gc_jax.torch_io import names

SAFETENSORS = (".safetensors",)
PICKLES = (".pth", ".pt", ".tar")  # .pth.tar, as the release writes
SUFFIXES = (*SAFETENSORS, *PICKLES)
WRITTEN = (*SAFETENSORS, ".pth")

INSTALL_TORCH = "pip install torch==2.13.0"

# Where the weights lie in a training checkpoint: the release's, torchvision's.
_STATE_DICTS = ("state_dict", "model")

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Metadata:
  """What a file says of its weights.

  Attributes:
    architecture: a key of `models.MODELS`; "" where the file does not say.
    class_names: of the logits, in order; () where the file does not say.
    multi_label: whether a picture may show several classes.
    image_size: pixels of the side it was trained on; torchvision's where the
      file does not say.
    config_digest: SHA-256 of the run's configuration; "" without a run.
  """

  architecture: str = ""
  class_names: tuple[str, ...] = ()
  multi_label: bool = False
  image_size: int = 224
  config_digest: str = ""

  def to_strings(self) -> dict[str, str]:
    """Returns what is written, every value a string (JSON where it is not)."""
    return {
      "format": "pt",  # kernels lie as PyTorch has them
      "architecture": self.architecture,
      "class_names": json.dumps(self.class_names, ensure_ascii=False),
      "multi_label": json.dumps(self.multi_label),
      "image_size": json.dumps(self.image_size),
      "config_digest": self.config_digest,
      "pixel_mean": json.dumps(RGB_MEAN),
      "pixel_std": json.dumps(RGB_STD),
    }

  @classmethod
  def from_strings(cls, strings: Mapping[str, str]) -> "Metadata":
    """Returns what was written; what is not there stays empty."""
    return cls(
      architecture=strings.get("architecture", ""),
      class_names=tuple(json.loads(strings.get("class_names", "[]"))),
      multi_label=json.loads(strings.get("multi_label", "false")),
      image_size=json.loads(strings.get("image_size", "224")),
      config_digest=strings.get("config_digest", ""),
    )


def load_model(
  path: str | pathlib.Path,
  arch: str | None = None,
  num_classes: int | None = None,
) -> tuple[nnx.Module, Metadata]:
  """Returns the model of a PyTorch checkpoint, in evaluation mode.

  Args:
    path: a torchvision state dict, a training checkpoint that holds one (the
      release's), or a file of `save_model`; `.safetensors` needs no PyTorch.
    arch: a key of `models.MODELS`. A file of `save_model` knows it; others
      must be told, for their keys do not say how the model pools.
    num_classes: K that the weights must have; None = any.

  Returns:
    The model, and what is known of it, its architecture at least.

  Raises:
    ValueError: the file cannot be read, is not safe to read, or holds other
      weights than those of `arch`.
  """
  path = pathlib.Path(path)
  if arch is not None and arch not in MODELS:
    raise ValueError(unknown_name_message("--arch", arch, MODELS))
  tensors, metadata = read(path)
  name = _architecture(path, tensors, metadata.architecture, arch)
  model = names.from_torch(name, tensors, str(path))
  found = names.num_classes(name, tensors)
  if num_classes is not None and found != num_classes:
    raise ValueError(
      f"{path} must have {num_classes} classes, as the data has; it has "
      f"{found}. Use the data it was trained on, or train from it with "
      "--config.init_from, which starts a head of the right size."
    )
  if metadata.class_names and len(metadata.class_names) != found:
    raise ValueError(
      f"{path} must name each of its {found} classes; it names "
      f"{len(metadata.class_names)}. Export it again."
    )
  return model, dataclasses.replace(metadata, architecture=name)


def _architecture(
  path: pathlib.Path,
  tensors: Mapping[str, np.ndarray],
  stated: str,
  asked: str | None,
) -> str:
  """Returns which model a file holds, as it says or as the user says."""
  if stated and stated not in MODELS:
    raise ValueError(
      unknown_name_message(f"architecture in {path}", stated, MODELS)
    )
  if asked and stated and asked != stated:
    raise ValueError(
      f"{path} says that it holds {stated!r}, and --arch={asked} was asked "
      "for. Leave --arch out, or name the file's."
    )
  if asked or stated:
    return asked or stated
  looks = names.architectures(tensors)
  advice = f"Name one of {', '.join(MODELS)}."
  if looks:
    advice = f"It looks like --arch={looks[0]}"
    if f"{looks[0]}-gmp" in MODELS:
      advice += f", or {looks[0]}-gmp if it pools by the maximum"
    advice += "."
  raise ValueError(
    f"{path} does not say which architecture it holds, and weights alone do "
    f"not tell how a model pools: --arch must. {advice}"
  )


def save_model(
  path: str | pathlib.Path, model: nnx.Module, metadata: Metadata
) -> list[pathlib.Path]:
  """Writes a model for PyTorch, under torchvision's keys.

  Args:
    path: `.safetensors` (metadata inside), or `.pth`: a state dict, with its
      metadata in a `.json` beside it. A file of that name is replaced.
    model: any of `models.MODELS`.
    metadata: what the file is to say of it.

  Returns:
    The files written.

  Raises:
    ValueError: the suffix is neither, or PyTorch is not there to write `.pth`.
  """
  path = pathlib.Path(path)
  check_suffix(path, WRITTEN)
  if path.suffix in SAFETENSORS:
    with files.replacing(path) as file:
      # By name, in pieces: `save` would hold a second copy of all weights.
      safetensors.numpy.save_file(
        names.to_torch(model), file.name, metadata.to_strings()
      )
    return [path]
  torch = import_torch(f"To write {path}")
  tensors = {
    key: torch.from_numpy(array) for key, array in names.to_torch(model).items()
  }
  with files.replacing(path) as file:
    torch.save(tensors, file)
  beside = _metadata_path(path)
  files.write_text(beside, json.dumps(metadata.to_strings(), indent=2) + "\n")
  return [path, beside]


def check_suffix(path: pathlib.Path, known: tuple[str, ...] = SUFFIXES):
  """Checks that a file's name says of which kind it is.

  Raises:
    ValueError: it does not.
  """
  if path.suffix not in known:
    raise ValueError(
      f"A file of weights must end in {', '.join(known)}; {str(path)!r} "
      "does not."
    )


def read(
  path: pathlib.Path,
) -> tuple[dict[str, np.ndarray], Metadata]:
  """Returns the arrays of a file by PyTorch's keys, and what it says of them.

  Floating arrays come as float32. NaNs are counted in a warning.

  Raises:
    ValueError: the file cannot be read, or is not safe to read.
  """
  check_suffix(path)
  if not path.is_file():
    raise ValueError(f"{path} must be a file of weights; there is none.")
  if not path.stat().st_size:
    raise ValueError(f"{path} must hold weights; it is empty. Copy it again.")
  if path.suffix in SAFETENSORS:
    tensors, metadata = _read_safetensors(path)
  else:
    tensors, metadata = _read_pickle(path)
  if not tensors:
    raise ValueError(f"{path} must hold weights; there is no array in it.")
  _warn_of_nans(path, tensors)
  return tensors, metadata


def import_torch(purpose: str) -> Any:
  """Returns the module `torch`.

  Raises:
    ValueError: it is not installed; says how to.
  """
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      f"{purpose}, PyTorch must be installed: {INSTALL_TORCH} (the CPU build "
      "is enough). A .safetensors file needs none."
    ) from error
  return torch


def _read_safetensors(path: pathlib.Path):
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      tensors = {
        _without_wrappers(key): _float32(file.get_tensor(key))
        for key in file.keys()  # noqa: SIM118
      }
      return tensors, _metadata(path, file.metadata() or {})
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path} must be a whole .safetensors file ({error}). Copy it again."
    ) from error


def _read_pickle(path: pathlib.Path):
  torch = import_torch(f"To read {path}")
  try:
    with warnings.catch_warnings():
      # Of a pickle not written by torch.save: it is read, or refused below.
      warnings.filterwarnings("ignore", "Detected pickle protocol")
      # torchvision's training checkpoints hold their arguments: plain values.
      with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    # What PyTorch says here advises to read it all the same.
    raise ValueError(
      f"{path} must hold tensors and plain values only; it is no PyTorch "
      "checkpoint, or holds code that reading it would run, and nothing of it "
      "was run. Save its state dict alone: torch.save(model.state_dict(), "
      "FILE)."
    ) from error
  except (EOFError, RuntimeError, OSError) as error:
    raise ValueError(
      f"{path} must be a whole PyTorch checkpoint ({_first_line(error)}). "
      "Copy it again."
    ) from error
  tensors = {
    _without_wrappers(key): _float32(_to_numpy(tensor))
    for key, tensor in _state_dict(path, content, torch).items()
  }
  beside = _metadata_path(path)
  text = beside.read_text() if beside.is_file() else "{}"
  return tensors, _metadata(beside, text)


def _metadata(path: pathlib.Path, strings: Mapping[str, str] | str) -> Metadata:
  """Returns what a file says, in JSON or as strings already."""
  try:
    strings = json.loads(strings) if isinstance(strings, str) else strings
    return Metadata.from_strings(strings)
  except (AttributeError, TypeError, ValueError) as error:
    raise ValueError(
      f"What {path} says of its weights must be as gc_jax writes it; it cannot "
      f"be read: {error}. Remove it, or export again."
    ) from error


def _state_dict(path: pathlib.Path, content: Any, torch: Any) -> dict:
  for name in _STATE_DICTS:
    if isinstance(content, dict) and isinstance(content.get(name), dict):
      content = content[name]
  if not isinstance(content, dict) or not all(
    isinstance(value, torch.Tensor) for value in content.values()
  ):
    raise ValueError(
      f"{path} must hold a state dict (names to tensors), or one under "
      f"{' or '.join(map(repr, _STATE_DICTS))}; it holds a "
      f"{type(content).__name__}. Save model.state_dict()."
    )
  return content


def _without_wrappers(key: str) -> str:
  """Returns the key as it is without DataParallel or torch.compile."""
  wrappers = ("module", "_orig_mod")
  return ".".join(part for part in key.split(".") if part not in wrappers)


def _to_numpy(tensor: Any) -> np.ndarray:
  tensor = tensor.detach()
  return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _float32(array: np.ndarray) -> np.ndarray:
  if np.issubdtype(array.dtype, np.integer):
    return array
  return array.astype(np.float32, copy=False)


def _warn_of_nans(
  path: pathlib.Path, tensors: Mapping[str, np.ndarray]
) -> None:
  counts = {key: int(np.isnan(value).sum()) for key, value in tensors.items()}
  broken = [f"{key} ({count})" for key, count in counts.items() if count]
  if broken:
    _logger.warning(
      "%s: %d weights are NaN, in %s. Its logits will be, too.",
      path,
      sum(counts.values()),
      ", ".join(broken[:6]) + (" ..." if len(broken) > 6 else ""),
    )


def _metadata_path(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f"{path.name}.json")


def _first_line(error: Exception) -> str:
  return (str(error) or type(error).__name__).splitlines()[0]
