"""A run as its workdir tells it: configuration, metrics, results, gallery."""

import dataclasses
import json
import os
from typing import Any

from gc_jax.report import files, gallery, metrics_writer


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """What a workdir holds; empty where a file is not there.

  Attributes:
    workdir: the folder.
    config: the resolved configuration, nested as in configs/base.py.
    results: the final evaluation, flat; numbers that are not finite are None.
    metrics: the lines of metrics.jsonl, oldest first.
    examples: the gallery.
    class_names: of the gallery's data set.
  """

  workdir: files.AnyPath
  config: dict[str, Any]
  results: dict[str, Any]
  metrics: list[dict[str, Any]]
  examples: list[gallery.GalleryExample]
  class_names: list[str]

  def setting(self, path: str) -> Any:
    """Returns the field at "loss.reduction"; None where an old run lacks it."""
    value: Any = self.config
    for name in path.split("."):
      if not isinstance(value, dict) or name not in value:
        return None
      value = value[name]
    return value

  def class_name(self, label: int) -> str:
    """Returns the name of a class, or its number where it has none."""
    if 0 <= label < len(self.class_names):
      return self.class_names[label]
    return str(label)


def load_run(workdir: str | os.PathLike) -> Run:
  """Reads a run, finished or not.

  Raises:
    ValueError: the folder is missing or holds no run, or a file is broken.
  """
  workdir = files.as_path(workdir)
  if not workdir.is_dir():
    raise ValueError(
      "A run must be a folder that gc_jax.main made (its --workdir). "
      f"{str(workdir)!r} does not exist. Check the path."
    )
  if not (workdir / "config.json").is_file():
    raise ValueError(
      "A run must be a folder that gc_jax.main made (its --workdir). "
      f"{str(workdir)!r} has no config.json. Name the run's own folder, not "
      "the one above it."
    )
  metrics_path = workdir / metrics_writer.FILENAME
  gallery_path = workdir / gallery.FILENAME
  examples, class_names = [], []
  if gallery_path.is_file():
    examples, class_names = gallery.load_gallery(gallery_path)
  return Run(
    workdir=workdir,
    config=_read_json(workdir / "config.json"),
    results=_read_json(workdir / "results.json"),
    metrics=(
      metrics_writer.read_metrics(metrics_path)
      if metrics_path.is_file()
      else []
    ),
    examples=examples,
    class_names=class_names,
  )


def load_finished_run(workdir: str | os.PathLike) -> Run:
  """Reads a run that has its final evaluation.

  Raises:
    ValueError: as `load_run`, or the run has no results.json yet.
  """
  run = load_run(workdir)
  if not run.results:
    raise ValueError(
      f"A run must be finished. {str(run.workdir)!r} has no results.json. "
      "Give its training command again (it resumes and evaluates), or leave "
      "this run out."
    )
  return run


def _read_json(path: files.AnyPath) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except json.JSONDecodeError as error:
    raise ValueError(
      f"{path} must be JSON. {error}. It is written at the end of a step of "
      "the run: give the training command again."
    ) from error
  if not isinstance(value, dict):
    raise ValueError(f"{path} must hold one JSON object, not {value!r:.40}.")
  return value
