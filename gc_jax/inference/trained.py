"""Trained models: a run's workdir, a file or state dict of PyTorch's.

Or weights on ImageNet that a package carries, imagenet:NAME.

The public `load`; `load_model` tells what else the file says.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gc_jax import models, torch_io
from gc_jax.inference import arrays, classes
from gc_jax.report import gallery
from gc_jax.runtime import checkpoint, files, speaking
from gc_jax.runtime import config as saved_config
from gc_jax.runtime.messages import listed


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
  """A trained model, and what its file says about it."""

  model: nnx.Module  # in evaluation mode, float32
  name: str  # of the architecture, see `models.find`
  class_names: tuple[str, ...]  # in the order of the outputs; empty if unknown
  # Whether a picture may show several classes: a sigmoid for each then, not one
  # softmax. None if the file does not say.
  multi_label: bool | None
  image_size: int  # pixels of the shorter side it was trained on
  source: str  # where it is from, for people
  consistency: bool | None = None  # trained with that loss; None if unknown
  step: int = 0  # updates of the run; 0 for a file
  num_train: int | None = None  # pictures it learned from; None if unknown


def load(
  path: str | Path | Mapping[str, Any],
  arch: str | None = None,
  class_names: str | Path | Sequence[str] | None = None,
) -> nnx.Module:
  """Returns a trained model in evaluation mode, with float32 activations.

  Args:
    path: the workdir of a run, finished or not (its last checkpoint is read,
      and nothing is changed there); or a PyTorch checkpoint: `.safetensors`,
      what torch.save wrote (`.pth`, `.pth.tar`, `.ckpt`, `.bin`), the index of
      one in several files, or the folder it was downloaded to; or a state dict
      in memory: torchvision's names to arrays of NumPy, JAX or PyTorch, in
      PyTorch's layout, which are copied; or "imagenet:squeezenet1_1", the
      weights on ImageNet in the package ndf.
    arch: the architecture of PyTorch's weights, a key of `MODELS`. A run
      knows its own, and so does a file that gc_jax exported. Of a file of a
      model of yours: the function that makes it, "package.module:function".
    class_names: of weights that do not name theirs, in the order of the
      outputs: the names; or a file of them, a line each (`.json`: a list);
      or "imagenet", ImageNet's 1,000 in the order of torchvision's checkpoints.
      `gc_jax.class_names` gives them back.

  Raises:
    ValueError: there is no such file or run, or it holds something else.
    checkpoint.CheckpointError: the run has no readable checkpoint.
  """
  return load_model(path, arch, class_names).model


def load_model(
  source: str | Path | Mapping[str, Any],
  arch: str | None = None,
  class_names: str | Path | Sequence[str] | None = None,
) -> LoadedModel:
  """Returns what `load` does, with what its file says about it."""
  names = None if class_names is None else classes.read_names(class_names)
  with speaking.doing("reading the model"):
    loaded = _loaded(source, arch)
  if names is not None:
    _check_names(loaded, names)
    loaded = dataclasses.replace(loaded, class_names=names)
  loaded.model.class_names = loaded.class_names
  loaded.model.multi_label = bool(loaded.multi_label)
  return loaded


def _check_names(loaded: LoadedModel, names: Sequence[str]) -> None:
  """Raises ValueError if a model's classes cannot have these names."""
  if loaded.class_names and loaded.class_names != names:
    raise ValueError(
      "class_names is for models that name no classes; "
      f"{loaded.source} names {listed(loaded.class_names)}. Leave it out."
    )
  count = arrays.check_fits(loaded.model, *2 * (loaded.image_size,))
  if len(names) != count:
    raise ValueError(
      f"class_names must name each of the {count:,} outputs of "
      f"{loaded.source}; there are {len(names):,} names: {listed(names)}. Name "
      "those it was trained on, in their order."
    )


def _loaded(
  source: str | Path | Mapping[str, Any], arch: str | None
) -> LoadedModel:
  if arch is not None:
    models.find(arch, "arch")
  if isinstance(source, Mapping):
    return _load_torch(source, arch, "a state dict")
  if torch_io.is_packaged(source):
    return _load_torch(source, arch, str(source))
  path = files.as_path(source)
  if _is_workdir(path):
    return _load_run(path, arch)
  if not path.exists() and path.suffix.lower() not in torch_io.SUFFIXES:
    raise ValueError(
      "A model must be the workdir of a run, or a file of weights "
      f"({', '.join(torch_io.SUFFIXES)}); {path} does not exist. Check the "
      "path."
    )
  return _load_torch(path, arch, str(path))


def _load_torch(
  weights: torch_io.Source, arch: str | None, source: str
) -> LoadedModel:
  model, metadata = torch_io.load_model(weights, arch)
  return LoadedModel(
    model=model,
    name=metadata.architecture,
    class_names=metadata.class_names,
    multi_label=metadata.multi_label,
    image_size=metadata.image_size,
    source=source,
  )


class Initial(NamedTuple):
  """Weights to start training from; class names are empty if unknown."""

  model: nnx.Module
  class_names: tuple[str, ...]


def initial_model(path: str | Path, name: str) -> Initial:
  """Returns weights to start training from, with a head of any size.

  The pooling may differ: average-pooled weights may go on under the maximum.

  Args:
    path: as for `load`.
    name: the architecture that is to start from them, of `models.find`.

  Raises:
    ValueError: as for `load`, or they are another architecture's.
    checkpoint.CheckpointError: as for `load`.
  """
  named = torch_io.is_packaged(path)
  path = path if named else files.as_path(path)
  if named or not _is_workdir(path):
    try:
      model, metadata = torch_io.load_initial(path, name)
    except ValueError as error:
      raise ValueError(f"--config.init_from: {error}") from error
    return Initial(model, metadata.class_names)
  loaded = _load_run(path, None)
  if models.without_gmp(loaded.name) != models.without_gmp(name):
    raise ValueError(
      f"--config.init_from={path} must be a run of --config.model.name={name}; "
      f"it trained {loaded.name!r}. Name that model, or another run."
    )
  return Initial(loaded.model, loaded.class_names)


def class_names(
  workdir: files.AnyPath, meta: Mapping[str, Any]
) -> tuple[str, ...]:
  """Returns the classes of a run, given the `meta` of one of its checkpoints.

  Empty if they are unknown.
  """
  if "class_names" in meta:
    return tuple(meta["class_names"])
  # Older checkpoints do not name them; the gallery of a finished run does.
  return tuple(gallery.load(workdir)[1])


def _is_workdir(path: files.AnyPath) -> bool:
  """Returns whether a path is a folder that only a run's can be."""
  return path.is_dir() and (
    (path / checkpoint.FOLDER).exists() or torch_io.in_folder(path) is None
  )


def _load_run(workdir: files.AnyPath, arch: str | None) -> LoadedModel:
  config = saved_config.read(workdir)
  fields = ("model.name", "data.image_size", "loss.consistency_weight")
  name, image_size, weight = (saved_config.field(config, f) for f in fields)
  if name is None or image_size is None:
    raise ValueError(
      f"{workdir / saved_config.FILENAME} must be the configuration of a run; "
      f"it lacks {' or '.join(fields[:2])}. Restore it from a copy, or name "
      "another run."
    )
  models.find(name, f"model.name of {workdir}")
  if arch not in (None, name):
    raise ValueError(
      f"arch must be the run's own; {workdir} trained {name!r}, not {arch!r}. "
      "Leave it out."
    )
  saved = checkpoint.read_variables(workdir)
  names = class_names(workdir, saved.meta)
  if not names:
    raise ValueError(
      f"A checkpoint must name its classes; the one of step {saved.step} "
      f"in {workdir} is older than that. Give the training command again: the "
      "finished run knows them."
    )
  return LoadedModel(
    model=_rebuilt(name, len(names), saved, workdir),
    name=name,
    class_names=names,
    multi_label=bool(saved.meta.get("multi_label", False)),
    image_size=image_size,
    source=f"{workdir}, step {saved.step}",
    consistency=None if weight is None else weight > 0,
    step=saved.step,
    num_train=saved.meta.get("num_train"),
  )


def _rebuilt(
  name: str,
  num_classes: int,
  saved: checkpoint.Variables,
  workdir: files.AnyPath,
) -> nnx.Module:
  """Returns the architecture with the checkpoint's numbers in it."""
  make = functools.partial(models.create, name, num_classes)
  graphdef, params, batch_stats = nnx.split(
    nnx.eval_shape(make), nnx.Param, ...
  )
  learned = {"params": params, "batch_stats": batch_stats}
  filled = []
  for leaf_name, leaf in checkpoint.named_leaves(learned).items():
    array = saved.arrays.get(leaf_name)
    if array is None or array.shape != leaf.shape:
      found = "none" if array is None else f"shape {array.shape}"
      raise ValueError(
        f"The checkpoint of step {saved.step} in {workdir} must be of "
        f"{name!r} with {num_classes} classes, as {saved_config.FILENAME} "
        f"says; {leaf_name} needs shape {leaf.shape}, and there is {found}. "
        f"Restore the {saved_config.FILENAME} it was trained with."
      )
    filled.append(jnp.asarray(array))
  learned = jax.tree.unflatten(jax.tree.structure(learned), filled)
  model = nnx.merge(graphdef, *learned.values())
  model.eval()
  return model
