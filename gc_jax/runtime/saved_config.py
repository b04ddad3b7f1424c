"""The config that a run's folder holds, and whether another is the same run."""

import json
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import base
from gc_jax.runtime import files
from gc_jax.runtime.messages import listed

FILENAME = "config.json"

# Fields that say where and how a run happens, not what it computes: a run may
# be continued with others, and its numbers compare with those of others.
_NOT_THE_RUN = (
  "data.dir",
  "data.num_workers",
  "model.remat",
  "eval.batch_size",
  "eval.max_shapes",
  "log.every_steps",
  "checkpoint.keep",
  "report.baseline",
  "profile_steps",
)
# Fields without effect where the consistency loss is off.
_OF_CONSISTENCY = (
  "loss.consistency_weight",
  "loss.reduction",
  "loss.stop_gradient",
  "loss.ramp_epochs",
  "loss.target_draw",
)
# Fields of the data that move the numbers of an evaluation. Broken pictures
# passed over change the number of images, which is compared itself.
_EVALUATED_DATA = (
  "data.name",
  "data.path",
  "data.image_size",
  "data.background_frac",
  "data.eval_split",
  "data.eval_resize_px",
  "data.eval_squash",
)
# Fields of an evaluation that move none of the numbers that two have in common.
_NOT_MEASURED = ("eval.methods", "eval.every_epochs")


def to_dict(config: ConfigDict) -> dict[str, Any]:
  """Returns the config as nested plain values, just as JSON gives them back."""
  return json.loads(config.to_json_best_effort())


def read(workdir: files.AnyPath) -> dict[str, Any]:
  """Returns the resolved configuration of a run, nested plain values.

  Raises:
    ValueError: the folder is no run's, or what it holds is no configuration.
  """
  path = workdir / FILENAME
  try:
    config = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise ValueError(
      "A workdir must be the folder of a run (the --workdir of gc_jax.main); "
      f"{workdir} has no {FILENAME}. Name the run's own folder, not the one "
      "above or below it."
    ) from error
  except json.JSONDecodeError as error:
    raise ValueError(
      f"{path} must be the configuration of a run; it is not JSON ({error}). "
      "Restore it from a copy, or name another folder."
    ) from error
  if not isinstance(config, dict):
    raise ValueError(
      f"{path} must be the configuration of a run, a JSON object; it is "
      f"{config!r:.40}. Restore it from a copy, or name another folder."
    )
  return config


def completed(saved: Mapping[str, Any]) -> ConfigDict:
  """Returns the configuration of a run with every field there is today.

  Args:
    saved: from `read`. A field it lacks, of an older run, has the default of
      configs/base.py; one that there no longer is, is left out.
  """
  completed = base.get_config().copy_and_resolve_references()
  known = flatten(completed.to_dict())
  for name, value in flatten(saved).items():
    if name in known:
      as_before = tuple(value) if isinstance(value, list) else value
      completed.update_from_flattened_dict({name: as_before})
  return completed


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns "loss.reduction" to value, in the order of the configuration."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def field(config: Mapping[str, Any], path: str) -> Any:
  """Returns the field at "loss.reduction"; None where it is missing."""
  value: Any = config
  for name in path.split("."):
    if not isinstance(value, Mapping) or name not in value:
      return None
    value = value[name]
  return value


def computed(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the flat fields that decide what a run computes.

  The one list of what makes a run this run: to continue it, to average it with
  others, to compare its numbers.

  Args:
    config: nested. A field that it lacks has the default of configs/base.py:
      with it, runs go as they went before there was the field.
  """
  flat = flatten(to_dict(base.get_config())) | flatten(config)
  left_out = set(_NOT_THE_RUN)
  if flat["data.name"] == "folder":
    # Its path says which data set it is. Archives may lie anywhere.
    flat["data.path"] = os.path.normpath(flat["data.path"])
  else:
    left_out.add("data.path")
  # 25 and 25.0 are one setting.
  return {
    name: float(value) if type(value) is int else value
    for name, value in flat.items()
    if name not in left_out
  }


def model_settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the flat fields that make a model: but for its seed, all there are.

  Runs that agree in them are repetitions of one experiment.

  Args:
    config: nested, that the model was trained with.
  """
  flat = computed(config)
  plain = (flat["loss.consistency_weight"] or 0) <= 0
  return {
    name: value
    for name, value in sorted(flat.items())
    if name != "seed"
    and not name.startswith(("eval.", "data.eval_"))
    and not (plain and name in _OF_CONSISTENCY)
    and not (plain and name.startswith("compose."))
  }


def evaluation_settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the flat fields that move the numbers of an evaluation.

  Args:
    config: nested.
  """
  flat = computed(config)
  unused = set(_NOT_MEASURED)
  if not str(flat["data.name"]).startswith("context_"):
    unused.add("data.background_frac")
  return {
    name: value
    for name, value in flat.items()
    if (name in _EVALUATED_DATA or name.startswith("eval."))
    and name not in unused
  }


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Returns a line for each field in which two configs are another run.

  Args:
    saved: nested, as read from a `config.json`.
    now: nested, from `to_dict`.
  """
  fields = computed(saved), computed(now)
  newer = flatten(to_dict(base.get_config()))
  saved, now = newer | flatten(saved), newer | flatten(now)
  return [
    f"--config.{name}: {saved.get(name)!r} there, {now.get(name)!r} now"
    for name in sorted(fields[0].keys() | fields[1].keys())
    if fields[0].get(name) != fields[1].get(name)
  ]


def check_same_run(config: ConfigDict, workdir: files.AnyPath) -> None:
  """Checks that `workdir` is empty of other runs.

  Raises:
    ValueError: it holds a different configuration, says what differs; or one
      that cannot be read.
  """
  if not (workdir / FILENAME).exists():
    return
  lines = differences(read(workdir), to_dict(config))
  if lines:
    raise ValueError(
      f"--workdir={workdir} holds a run with another configuration, and "
      "nothing of it was touched. Use another --workdir, or the same "
      "configuration to continue that run. What differs:\n  "
      + listed(lines, most=20, between="\n  ")
    )
