"""Models in files: .safetensors, and PyTorch's own .pth; read and written."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from flax import nnx

from gc_jax import models
from gc_jax.models.pixels import RGB_MEAN, RGB_STD
from gc_jax.runtime import files
from gc_jax.torch_io import names, packaged, reading
from gc_jax.torch_io.pickles import import_torch
from gc_jax.torch_io.reading import SAFETENSORS

WRITTEN = (*SAFETENSORS, ".pth")

# A file, or the mapping of names to arrays that it would hold; or the name of
# weights that a package carries, imagenet:NAME.
Source = files.AnyPath | str | Mapping[str, Any]

_MAX_SIDE = 65_535  # pixels, as of a JPEG

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Metadata:
  """What a file says about its weights; the defaults where it does not."""

  architecture: str = ""  # see `models.find`
  class_names: tuple[str, ...] = ()  # of the logits, in order
  # Whether a picture may show several classes: then each logit has a sigmoid,
  # else all have one softmax.
  multi_label: bool | None = None
  image_size: int = 224  # pixels of the side it was trained on
  config_digest: str = ""  # SHA-256 of the run's configuration
  licence: str = ""  # of weights that others published, SPDX

  def to_strings(self) -> dict[str, str]:
    """Returns what is written, every value a string (JSON where it is not)."""
    strings = {
      "format": "flax" if ":" in self.architecture else "pt",  # of kernels
      "architecture": self.architecture,
      "class_names": json.dumps(self.class_names, ensure_ascii=False),
      "multi_label": json.dumps(self.multi_label),
      "image_size": json.dumps(self.image_size),
      "config_digest": self.config_digest,
      "licence": self.licence,
      "pixel_mean": json.dumps(RGB_MEAN),
      "pixel_std": json.dumps(RGB_STD),
    }
    if self.multi_label is None:
      del strings["multi_label"]
    if not self.licence:
      del strings["licence"]
    return strings

  @classmethod
  def from_strings(cls, strings: Mapping[str, Any], source: str) -> "Metadata":
    """Returns what `to_strings` gave; ignores other fields.

    Raises:
      ValueError: names a field that is not as `to_strings` writes it.
    """
    found = {}
    for field in dataclasses.fields(cls):
      if field.name not in strings:
        continue
      text = strings[field.name]
      is_right, wanted = _FIELDS[field.name]
      try:
        value = text if field.type is str else json.loads(text)
      except (TypeError, ValueError, RecursionError):
        value = None
      if not isinstance(text, str) or not is_right(value):
        raise ValueError(
          f"What {source} says about its weights must be as gc_jax writes it: "
          f"{field.name} is {text!r:.60}, and must be {wanted}. Remove it, or "
          "export again."
        )
      found[field.name] = tuple(value) if isinstance(value, list) else value
    return cls(**found)


# What each field of a `Metadata` must be once read, and in words as written.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
  "architecture": (lambda v: isinstance(v, str), "a name"),
  "class_names": (
    lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v),
    """a list of names as JSON, '["cat", "dog"]'""",
  ),
  "multi_label": (lambda v: isinstance(v, bool), "'true' or 'false'"),
  "image_size": (
    lambda v: type(v) is int and 0 < v <= _MAX_SIDE,
    f"a number of pixels from '1' to '{_MAX_SIDE}'",
  ),
  "config_digest": (lambda v: isinstance(v, str), "a digest"),
  "licence": (lambda v: isinstance(v, str), "a name"),
}


def load_model(
  source: Source, arch: str | None = None
) -> tuple[nnx.Module, Metadata]:
  """Returns the model of a PyTorch checkpoint, in evaluation mode.

  One line of the log tells what was taken off the keys, and what beside the
  weights was not read.

  Args:
    source: a torchvision state dict, a training checkpoint that holds one (the
      release's, Lightning's), an index of several files or the folder of one,
      or a file of `save_model`; `.safetensors` needs no PyTorch. Or either of
      the first two in memory, with arrays of any library. Or imagenet:NAME.
    arch: see `models.find`. A file of `save_model` knows it; the keys of others
      do not say how the model pools, and a function of yours must be named.

  Raises:
    ValueError: the source cannot be read or is not safe to read; or its weights
      are not those of `arch`, or have a single output.
  """
  if arch is not None:
    models.find(arch, "--arch")
  where, content, metadata = _opened(source)
  name = _architecture(where, content.arrays, metadata.architecture, arch)
  model, found = _model(where, content, name)
  if found == 1:
    raise ValueError(
      f"{where} must have an output for each class, two at least; it has one, "
      "a sigmoid that has no class to compare with. Give it a second that is "
      "always zero: the softmax of (0, x) is the sigmoid of x. In PyTorch, put "
      "a row of zeros before the last layer's weight and a 0 before its bias, "
      "and save that; class 1 is what the output said."
    )
  if metadata.class_names and len(metadata.class_names) != found:
    raise ValueError(
      f"{where} must name each of its {found} classes; it names "
      f"{len(metadata.class_names)}. Export it again."
    )
  return model, dataclasses.replace(metadata, architecture=name)


def load_initial(source: Source, name: str) -> tuple[nnx.Module, Metadata]:
  """Returns weights to start training from, whatever pooling they had.

  As `load_model` for the architecture `name`, but one output is fine.
  """
  where, content, metadata = _opened(source)
  return _model(where, content, name)[0], metadata


def _model(
  where: str, content: reading.Content, name: str
) -> tuple[nnx.Module, int | None]:
  """Returns the model and its K, and logs what of the file was not used."""
  arrays, source, remarks = names.of_one_model(name, content.arrays, where)
  model = names.from_torch(name, arrays, source)
  if content.remarks or remarks:
    _logger.warning("%s: %s.", where, "; ".join([*content.remarks, *remarks]))
  return model, names.num_classes(name, arrays)


def _architecture(
  where: str,
  tensors: Mapping[str, np.ndarray],
  stated: str,
  asked: str | None,
) -> str:
  """Returns the architecture that the file states or the user asks for."""
  if ":" in stated and asked is None:
    # A file of a stranger's must not say what is run here.
    raise ValueError(
      f"{where} says that a function makes its model, {stated!r}. A file must "
      f"not choose what is run here: --arch={stated} must, if you know that "
      "function (arch in Python)."
    )
  if stated and ":" not in stated:
    models.find(stated, f"architecture in {where}")
  if asked and stated and asked != stated:
    raise ValueError(
      f"{where} says that it holds {stated!r}, and --arch={asked} was asked "
      "for. Leave --arch out, or name the file's."
    )
  if asked or stated:
    return asked or stated
  looks = names.architectures(tensors)
  advice = f"Name one of {', '.join(models.MODELS)}."
  if looks:
    advice = f"It looks like --arch={looks[0]}"
    if f"{looks[0]}-gmp" in models.MODELS:
      advice += f", or {looks[0]}-gmp if it pools by the maximum"
    advice += "."
  raise ValueError(
    f"{where} does not say which architecture it holds, and weights alone do "
    f"not tell how a model pools: --arch must (arch in Python). {advice}"
  )


def save_model(
  path: files.AnyPath | str, model: nnx.Module, metadata: Metadata
) -> list[pathlib.Path]:
  """Writes a model for PyTorch, under torchvision's keys; or its own.

  Args:
    path: `.safetensors` (metadata inside), or `.pth`: a state dict, with its
      metadata in a `.json` beside it. A file of that name is replaced.
    model: of `models.create`.
    metadata: what the file is to say about it.

  Returns:
    The files written.
  """
  path = on_disk(path)
  check_suffix(path)
  check_layout(path, model)
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
  beside = reading.metadata_path(path)
  files.write_text(beside, json.dumps(metadata.to_strings(), indent=2) + "\n")
  return [path, beside]


def check_layout(path: files.AnyPath, model: nnx.Module) -> None:
  """Raises ValueError if a model has no form in a file of a suffix."""
  if path.suffix == ".pth" and type(model).torch_names is None:
    raise ValueError(
      "A .pth must hold weights in PyTorch's layouts, and a model of yours has "
      f"its own. Write {path.with_suffix('.safetensors').name} instead, or a "
      ".stablehlo folder."
    )


def check_suffix(path: files.AnyPath) -> None:
  """Raises ValueError unless a file to be written has a known suffix."""
  if path.suffix not in WRITTEN:
    raise ValueError(
      f"A file of weights must end in {', '.join(WRITTEN)}; {str(path)!r} "
      "does not."
    )


def on_disk(path: files.AnyPath | str) -> pathlib.Path:
  """Returns the path of a PyTorch file; raises ValueError if in a bucket."""
  path = files.as_path(path)
  if files.is_in_bucket(path):
    raise ValueError(
      f"PyTorch files must be on a disk; {path} is in a bucket. Copy it: "
      "gcloud storage cp."
    )
  return pathlib.Path(path)


def _opened(source: Source) -> tuple[str, reading.Content, Metadata]:
  """Returns what to call a source, and what `read` does."""
  if not isinstance(source, Mapping) and not packaged.is_packaged(source):
    source = on_disk(source)
  return reading.name_of(source), *read(source)


def read(
  source: str | pathlib.Path | Mapping[str, Any],
) -> tuple[reading.Content, Metadata]:
  """Returns what is in a source, and its metadata as fields.

  A warning counts numbers that are not finite.
  """
  content, where = reading.read(source), reading.name_of(source)
  metadata = Metadata.from_strings(content.said, where)
  if not content.arrays:
    raise ValueError(f"{where} must hold weights; there is no array in it.")
  counts = {
    key: int((~np.isfinite(array)).sum())
    for key, array in content.arrays.items()
    if not key.endswith(names.COUNTER)
  }
  broken = [f"{key} ({count})" for key, count in counts.items() if count]
  if broken:
    _logger.warning(
      "%s: %d weights are NaN or infinite, in %s. Its logits will be, too.",
      where,
      sum(counts.values()),
      names.listed(broken),
    )
  return content, metadata
