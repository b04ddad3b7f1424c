"""The config that a run's folder holds, and whether another is the same run."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import base
from gc_jax.data.dataset import listed
from gc_jax.report import files

FILENAME = "config.json"

# Fields that say where and how a run happens, not what it computes: a run may
# be continued with others.
_NOT_THE_RUN = (
  "data.dir",
  "data.num_workers",
  "model.remat",
  "eval.batch_size",
  "log.every_steps",
  "checkpoint.keep",
  "report.baseline",
  "profile_steps",
)


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


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Returns a line for each field in which two configs are another run.

  Args:
    saved: nested, as read from a `config.json`.
    now: nested, from `to_dict`.
  """
  saved, now = flatten(saved), flatten(now)
  return [
    f"--config.{field}: {saved.get(field)!r} there, {now.get(field)!r} now"
    for field in sorted(saved.keys() | now.keys())
    if saved.get(field) != now.get(field) and field not in _NOT_THE_RUN
  ]


def check_same_run(config: ConfigDict, workdir: files.AnyPath) -> None:
  """Checks that `workdir` is empty of other runs.

  A field that is newer than the run has the default of configs/base.py there:
  with it, runs go as they went before there was the field.

  Raises:
    ValueError: it holds a different configuration, says what differs; or one
      that cannot be read.
  """
  if not (workdir / FILENAME).exists():
    return
  newer = flatten(to_dict(base.get_config()))
  lines = differences(newer | flatten(read(workdir)), to_dict(config))
  if lines:
    raise ValueError(
      f"--workdir={workdir} holds a run with another configuration, and "
      "nothing of it was touched. Use another --workdir, or the same "
      "configuration to continue that run. What differs:\n  "
      + listed(lines, most=20, between="\n  ")
    )
