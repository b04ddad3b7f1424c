"""Training from a Python session: the public `train`."""

import runpy
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import nnx
from ml_collections import ConfigDict

from gc_jax.inference import trained
from gc_jax.runtime import files
from gc_jax.runtime.config import flatten, meanings
from gc_jax.runtime.messages import nearest_fields
from gc_jax.training import loop


class Trained(NamedTuple):
  """What `train` gives back.

  Attributes:
    model: as `gc_jax.load` returns it, in evaluation mode.
    class_names: of its outputs, in their order.
    results: the content of `results.json`.
    workdir: where all of it is.
  """

  model: nnx.Module
  class_names: tuple[str, ...]
  results: dict[str, Any]
  workdir: files.AnyPath


def train(
  config: ConfigDict | str,
  workdir: files.AnyPath | str,
  fields: Mapping[str, Any] = types.MappingProxyType({}),
) -> Trained:
  """Trains, evaluates and reports, as `python -m gc_jax.main` does.

  Continues where an earlier call with the same workdir stopped.

  Args:
    config: of a recipe, or its file and variant, "configs/folder.py:small".
    workdir: folder of the run.
    fields: those to change, as {"data.path": "pictures"}.

  Raises:
    ValueError: the config, the data or the workdir does not allow the run;
      nothing was written or compiled.
    TrainingDivergedError: a loss is not finite; the last good checkpoint stays.
    CheckpointError: a checkpoint could not be written or read.
  """
  if isinstance(config, str):
    config = _of_recipe(config)
  config = _changed(config, fields)
  workdir = files.as_path(workdir)
  results = loop.train_and_evaluate(config, workdir)
  loaded = trained.load_model(workdir)
  return Trained(loaded.model, loaded.class_names, results, workdir)


def _of_recipe(name: str) -> ConfigDict:
  path, _, variant = name.partition(":")
  if not files.as_path(path).is_file():
    raise ValueError(
      f"config={name!r} must be the file of a recipe, with an optional "
      ":variant, or a config; there is no such file. Paths begin in the folder "
      "that Python was started in."
    )
  get_config = runpy.run_path(path).get("get_config")
  if get_config is None:
    raise ValueError(
      f"config={name!r} must be the file of a recipe; it has no get_config()."
    )
  return get_config(variant) if variant else get_config()


def _changed(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
  """Returns the config with other fields; that of the user is left alone."""
  config = config.copy_and_resolve_references()
  known = flatten(config.to_dict())
  for name, value in fields.items():
    if name not in known:
      near = nearest_fields(name, meanings())
      hint = f" Did you mean {near[0]!r}?" if near else ""
      raise ValueError(f"Unknown field {name!r} in fields.{hint}")
    try:
      config.update_from_flattened_dict({name: value})
    except TypeError as error:
      kind = type(known[name]).__name__
      raise ValueError(
        f"fields[{name!r}] must be of type {kind}; it is {value!r}."
      ) from error
  return config
