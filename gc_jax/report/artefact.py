"""The folder of an evaluation: of a training run, or of `gc_jax.evaluate`.

  evaluation.json   what was evaluated, and how (`About`)
  results.json      every number, flat: "val/top1", "val/METHOD/METRIC"
  per_class.json    the same numbers by class: {class name: {key: value}}
  curves.json       `Curves`
  gallery.npz       pictures with their maps, see `report.gallery`
  rows.npz          the numbers of each (picture, class) pair, see `report.rows`

The folder of a run holds its config.json and metrics.jsonl as well. Older
folders are read too: of runs without evaluation.json, of evaluations with their
pictures in examples.npz, and of either without rows.npz.
"""

import dataclasses
import inspect
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from gc_jax.attribution import METHODS
from gc_jax.method.metrics import METRICS, Key
from gc_jax.report import gallery, logs
from gc_jax.report import rows as pair_rows
from gc_jax.report.gallery import Example
from gc_jax.runtime import config as saved_config
from gc_jax.runtime import files

PICTURES = "pictures"  # of `About.identity`: a digest of the evaluated split
ABOUT = "evaluation.json"
RESULTS = "results.json"
PER_CLASS = "per_class.json"
CURVES = "curves.json"
FILENAMES = (
  *(RESULTS, PER_CLASS, CURVES, gallery.FILENAME),
  *(pair_rows.FILENAME, ABOUT),
)
# What an evaluation may ask, at the end of a training run and by command.
OF_RUNS = ("classification", "localisation")
QUESTIONS = (*OF_RUNS, "faithfulness", "attacks", "sanity")


def _empty() -> Any:
  return dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class About:
  """What was evaluated, and how."""

  source: str  # where the model is from, for people
  architecture: str  # a key of `MODELS`
  consistency: bool | None  # trained with the consistency loss? None: unknown
  data_name: str  # a key of `DATASETS`, or a stock set
  split: str
  multi_label: bool
  protocol: str
  methods: tuple[str, ...]  # without the controls
  settings: Mapping[str, Any]  # everything else that moves a number, by name
  config: Mapping[str, Any]  # of the evaluation, resolved and nested
  num_images: int
  # Of picture and class, located or not. 0: unknown, as in older ones without
  # rows.npz.
  num_pairs: int = 0
  costly_methods: tuple[str, ...] = ()  # those measured on fewer
  num_costly_images: int = 0  # pairs on which costly numbers were measured
  num_compilations: int = 0  # over all shapes of pictures
  secs: float = 0.0  # over all sittings
  identity: Mapping[str, Any] = _empty()  # tells it from others, by name
  trained: Mapping[str, Any] = _empty()  # as `config`, of training, if known
  questions: tuple[str, ...] = QUESTIONS  # that were asked
  ranked_by: str = ""  # of `gallery.RANKINGS`; "" if the gallery has no order
  # Method to what it was computed with, "steps" for example; of older ones not
  # known.
  method_settings: Mapping[str, Mapping[str, Any]] = _empty()
  # Whether training watched these pictures: they chose its best checkpoint.
  on_validation: bool = False
  step: int = 0  # updates of the evaluated state; 0: unknown
  total_steps: int = 0  # of its training; 0: unknown
  # Methods that were asked for and do not hold for the model: name to why.
  left_out: Mapping[str, str] = _empty()

  def trained_with(self, path: str) -> Any:
    """Returns the field at "loss.reduction" of training; None where unknown."""
    return saved_config.field(self.trained, path)


@dataclasses.dataclass(frozen=True)
class Curves:
  """What takes more than one number.

  Attributes:
    robustness: attack ("fgsm", "pgd") -> epsilon in 1/255 -> accuracy (or
      F1-Overall) in percent; epsilon 0 is the clean picture.
    fractions: of the pixels inserted or deleted, ascending from 0 to 1.
    insertion, deletion: method -> mean probability of the class at each.
    stages: what was randomised, cumulatively, from the head down.
    randomization: method -> mean rank correlation with the trained model's
      map after each stage; None where every map was empty, or constant.
  """

  robustness: Mapping[str, Mapping[str, float]] = _empty()
  fractions: Sequence[float] = ()
  insertion: Mapping[str, Sequence[float]] = _empty()
  deletion: Mapping[str, Sequence[float]] = _empty()
  stages: Sequence[str] = ()
  randomization: Mapping[str, Sequence[float | None]] = _empty()


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
  """An evaluation as its folder tells it."""

  folder: files.AnyPath
  about: About
  results: dict[str, Any]  # flat; None for what is not finite
  per_class: Mapping[str, Mapping[str, float]] = _empty()  # by class name
  curves: Curves = dataclasses.field(default_factory=Curves)
  examples: list[Example] = dataclasses.field(default_factory=list)
  class_names: list[str] = dataclasses.field(default_factory=list)
  training: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  is_run: bool = False
  rows: pair_rows.Rows | None = None  # to be saved; `load` leaves them on disk

  def number(self, key: Key) -> float | None:
    """Returns a result; None where it is missing or not finite."""
    return number(self.results, f"val/{key.name}")

  def interval(self, key: Key) -> tuple[float, float] | None:
    """Returns the ends of a result's 95% interval, where it has one."""
    low = number(self.results, f"val/{key.name}_low")
    high = number(self.results, f"val/{key.name}_high")
    return None if low is None or high is None else (low, high)

  def std(self, key: Key) -> float | None:
    """Returns the spread of a result over its draws, where it has one."""
    return number(self.results, f"val/{key.name}_std")

  def class_name(self, label: int) -> str:
    """Returns the name of a class, or its number where it has none."""
    is_known = 0 <= label < len(self.class_names)
    return self.class_names[label] if is_known else str(label)


def number(results: Mapping[str, Any], name: str) -> float | None:
  """Returns a result as a float; None where it is missing or not finite."""
  value = results.get(name)
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  return float(value) if math.isfinite(value) else None


def make_about(
  config: Mapping[str, Any],
  source: str,
  results: Mapping[str, Any],
  **said: Any,
) -> About:
  """Returns what was evaluated: a run's own model, unless `said` differs.

  Args:
    config: of the evaluation, nested; a field that it lacks has its default.
    source: see `About`.
    results: empty for an unfinished run.
    **said: fields of `About` to use instead of what `config` and `results` say.
  """
  flat = saved_config.computed(config)
  is_measured = lambda *key: f"val/{Key(*key).name}" in results
  measured = [m for m in METHODS if is_measured("content_heatmap", m)]
  fields = {
    "source": source,
    "architecture": flat["model.name"],
    "consistency": (flat["loss.consistency_weight"] or 0) > 0,
    "data_name": flat["data.name"],
    "split": flat["data.eval_split"],
    "multi_label": is_measured("f1_overall"),
    "protocol": flat["eval.protocol"],
    "methods": tuple(measured or flat["eval.methods"]),
    "settings": saved_config.evaluation_settings(config),
    "config": config,
    "num_images": int(number(results, "val/num_examples") or 0),
    "secs": number(results, "time/eval_secs") or 0.0,
    "trained": config,
    "questions": OF_RUNS,
  }
  return About(**(fields | said))


def save(evaluated: Evaluated) -> list[files.AnyPath]:
  """Writes every file, each completely or not at all; returns their paths."""
  folder = evaluated.folder
  gallery.save(folder, evaluated.examples, evaluated.class_names)
  if evaluated.rows is not None:
    pair_rows.save(folder, evaluated.rows)
  for name, value in {
    RESULTS: evaluated.results,
    PER_CLASS: evaluated.per_class,
    CURVES: dataclasses.asdict(evaluated.curves),
    # Last: it says that the folder is complete.
    ABOUT: dataclasses.asdict(evaluated.about),
  }.items():
    files.write_text(folder / name, json.dumps(value, indent=2) + "\n")
  return [path for name in FILENAMES if (path := folder / name).exists()]


def load(folder: str | os.PathLike) -> Evaluated:
  """Reads an evaluation, or a run, finished or not.

  Raises:
    ValueError: the folder is neither, or a file is missing or broken.
  """
  folder = files.as_path(folder)
  is_run = (folder / saved_config.FILENAME).is_file()
  is_complete = is_evaluation(folder)
  if not is_run and not is_complete:
    lacks = f"has neither {saved_config.FILENAME} nor {ABOUT}"
    raise ValueError(
      f"{str(folder)!r} {lacks if folder.exists() else 'does not exist'}. It "
      "must be the folder of a run (the --workdir of gc_jax.main) or of a "
      "finished evaluation (the --out of gc_jax.evaluate). Give the command "
      "again, or name the folder itself, not the one above it."
    )
  training, results, per_class, curves = [], {}, {}, Curves()
  if is_run and (folder / logs.FILENAME).is_file():
    training = logs.read_metrics(folder / logs.FILENAME)
  if is_complete or (folder / RESULTS).is_file():
    results = _read(folder / RESULTS)
  if is_complete:
    fields = _fields(folder / ABOUT, About)
    for name in {"methods", "costly_methods", "questions"} & fields.keys():
      fields[name] = tuple(fields[name])
    if "trained" not in fields and fields["consistency"] is not None:
      fields["trained"] = fields["config"]  # old: a run's model, by its config
    about = About(**fields)
    per_class = _read(folder / PER_CLASS)
    curves = Curves(**_fields(folder / CURVES, Curves))
  else:
    config = saved_config.read(folder)
    for name in ("model.name", "data.name"):
      if not isinstance(saved_config.field(config, name), str):
        raise ValueError(
          f"{folder / saved_config.FILENAME} must be the configuration of a "
          f"run; it has no {name}. Restore it from a copy, or name another run."
        )
    about = make_about(config, str(folder), results)
  if not about.num_pairs and (own := pair_rows.load(folder, ())) is not None:
    explained = int((own.target >= 0).sum())
    about = dataclasses.replace(about, num_pairs=explained)
  if about.trained_with("data.val_split") == about.split:
    about = dataclasses.replace(about, on_validation=True)  # older ones, too
  border = saved_config.field(about.config, "eval.border")
  if about.protocol == "release" and border is None:
    about = dataclasses.replace(about, protocol="corrected")  # its old name
  shown, names = gallery.load(folder, "".join(about.methods[:1]))
  if number(results, "val/num_pairs") == 0:
    results, *of_classes = map(_without_objects, (results, *per_class.values()))
    per_class = dict(zip(per_class, of_classes, strict=True))
  if not about.ranked_by and {one.kind for one in shown} != {"fixed"}:
    is_measured = f"val/{Key('content_heatmap', *about.methods[:1]).name}"
    shown = gallery.of_old_runs(shown, is_measured in results)
    if is_measured in results:
      about = dataclasses.replace(about, ranked_by="content_heatmap")
  return Evaluated(
    folder, about, results, per_class, curves, shown, names, training, is_run
  )


def _without_objects(numbers: Mapping[str, Any]) -> dict[str, Any]:
  """Returns numbers without those that older versions made of no pair."""
  lacking = {name for name, one in METRICS.items() if one.needs_objects}
  if any("content_heatmap" in name for name in numbers):
    lacking.add("zero_map_frac")  # of annotated pairs then
  return {
    name: value
    for name, value in numbers.items()
    if not name.rpartition("/")[2].startswith(tuple(lacking))
  }


def load_finished(folder: str | os.PathLike) -> Evaluated:
  """Reads as `load`; raises ValueError for a run without results.json too."""
  evaluated = load(folder)
  if not evaluated.results and evaluated.is_run:
    raise ValueError(
      f"A run must be finished. {str(evaluated.folder)!r} has no {RESULTS}. "
      "Give its training command again (it resumes and evaluates), or leave "
      "this run out."
    )
  return evaluated


def is_evaluation(folder: files.AnyPath) -> bool:
  """Returns whether the folder holds a finished evaluation."""
  return (folder / ABOUT).is_file()


def pictures_of(folder: files.AnyPath) -> str:
  """Returns the digest of what a finished evaluation was measured on.

  Empty if it does not say so, is not finished, or cannot be read.
  """
  if not (folder / RESULTS).is_file() or not is_evaluation(folder):
    return ""
  try:
    return _read(folder / ABOUT).get("identity", {}).get(PICTURES, "")
  except ValueError:
    return ""


def _read(path: files.AnyPath) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:  # not there, not JSON, not UTF-8
    raise pair_rows.broken(path, str(error)) from error
  if not isinstance(value, dict):
    raise pair_rows.broken(path, f"it holds {value!r:.40}, no JSON object")
  return value


def _fields(
  path: files.AnyPath, kind: type[About] | type[Curves]
) -> dict[str, Any]:
  """Returns the object in a file, checked against a dataclass's fields."""
  value = _read(path)
  known = inspect.signature(kind).parameters
  unknown = sorted(value.keys() - known.keys())
  missing = [
    name
    for name, field in known.items()
    if name not in value and field.default is field.empty
  ]
  faults = {"it lacks": missing, "it has unknown fields:": unknown}
  words = [
    f"{what} {', '.join(names)}" for what, names in faults.items() if names
  ]
  if words:
    raise pair_rows.broken(path, "; ".join(words))
  return value
