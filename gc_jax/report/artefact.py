"""The folder of an evaluation: of a training run, or of `gc_jax.evaluate`.

  evaluation.json   what was evaluated, and how (`About`)
  results.json      every number, flat: "val/top1", "val/METHOD/METRIC"
  per_class.json    the same numbers by class: {class name: {key: value}}
  curves.json       `Curves`
  gallery.npz       pictures with their maps (`gallery.Example`)

The folder of a run holds its config.json and metrics.jsonl as well. Written by
the evaluation; tables, figures and pages read it. Folders of before there was
one kind are read too: of runs without evaluation.json, and of evaluations with
their pictures in examples.npz.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from gc_jax.attribution import METHODS
from gc_jax.method.metrics import Key
from gc_jax.report import gallery, metrics_writer
from gc_jax.report.gallery import Example
from gc_jax.runtime import config as saved_config
from gc_jax.runtime import files

ABOUT = "evaluation.json"
RESULTS = "results.json"
PER_CLASS = "per_class.json"
CURVES = "curves.json"
FILENAMES = (RESULTS, PER_CLASS, CURVES, gallery.FILENAME, ABOUT)
# What an evaluation may ask: a training run the first two, at its end.
QUESTIONS = (
  "classification",
  "localisation",
  "faithfulness",
  "attacks",
  "sanity",
)
OF_RUNS = QUESTIONS[:2]


@dataclasses.dataclass(frozen=True)
class About:
  """What was evaluated, and how.

  Attributes:
    source: where the model is from, for people.
    architecture: a key of `MODELS`.
    consistency: whether it was trained with the consistency loss; None where
      its file does not say.
    data_name: a key of `DATASETS`, or a stock set.
    split: of it.
    multi_label: whether a picture may show several classes.
    protocol: "paper" or "release".
    methods: the explanation methods, control rows not among them.
    settings: everything else that moves a number, by name.
    config: the resolved configuration of the evaluation, nested.
    num_images: evaluated.
    costly_methods: those of `methods` that were measured on fewer pictures.
    num_costly_images: how many.
    num_compilations: of programs, over all shapes of pictures.
    secs: time taken, of all sittings.
    identity: what makes this evaluation another than others: model, weights,
      methods, settings.
    trained: the resolved configuration that the model was trained with, nested;
      empty where its file does not say.
    questions: of `QUESTIONS`, those that were asked.
  """

  source: str
  architecture: str
  consistency: bool | None
  data_name: str
  split: str
  multi_label: bool
  protocol: str
  methods: tuple[str, ...]
  settings: Mapping[str, Any]
  config: Mapping[str, Any]
  num_images: int
  costly_methods: tuple[str, ...] = ()
  num_costly_images: int = 0
  num_compilations: int = 0
  secs: float = 0.0
  identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  trained: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  questions: tuple[str, ...] = QUESTIONS

  def trained_with(self, path: str) -> Any:
    """Returns the field at "loss.reduction" of training; None where unknown."""
    return saved_config.field(self.trained, path)


@dataclasses.dataclass(frozen=True)
class Curves:
  """What is no single number.

  Attributes:
    robustness: attack ("fgsm", "pgd") -> epsilon in 1/255 -> accuracy (or
      F1-Overall) in percent; epsilon 0 is the clean picture.
    fractions: of the pixels inserted or deleted, ascending from 0 to 1.
    insertion: method -> mean probability of the class at each fraction.
    deletion: the same of deletion.
    stages: what was randomised, cumulatively, from the head down.
    randomization: method -> mean rank correlation with the trained model's
      map after each stage.
  """

  robustness: Mapping[str, Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )
  fractions: Sequence[float] = ()
  insertion: Mapping[str, Sequence[float]] = dataclasses.field(
    default_factory=dict
  )
  deletion: Mapping[str, Sequence[float]] = dataclasses.field(
    default_factory=dict
  )
  stages: Sequence[str] = ()
  randomization: Mapping[str, Sequence[float]] = dataclasses.field(
    default_factory=dict
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
  """An evaluation as its folder tells it.

  Attributes:
    folder: where it lies.
    about: what was evaluated.
    results: every number, flat; numbers that are not finite are None. Empty
      where a run is not finished.
    per_class: class name -> the same numbers of it.
    curves: what is no single number.
    examples: the gallery.
    class_names: of the data set; empty where there is no gallery.
    training: the lines of a run's metrics.jsonl, oldest first.
    is_run: whether the folder is that of a training run.
  """

  folder: files.AnyPath
  about: About
  results: dict[str, Any]
  per_class: dict[str, dict[str, float]] = dataclasses.field(
    default_factory=dict
  )
  curves: Curves = dataclasses.field(default_factory=Curves)
  examples: list[Example] = dataclasses.field(default_factory=list)
  class_names: list[str] = dataclasses.field(default_factory=list)
  training: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  is_run: bool = False

  def number(self, key: Key) -> float | None:
    """Returns a result; None where it is missing or not finite."""
    return number(self.results, f"val/{key.name}")

  def interval(self, key: Key) -> tuple[float, float] | None:
    """Returns the ends of a result's 95% interval, where it has one."""
    ends = [
      number(self.results, f"val/{key.name}_{end}") for end in ("low", "high")
    ]
    return None if None in ends else (ends[0], ends[1])

  def std(self, key: Key) -> float | None:
    """Returns the spread of a result over its draws, where it has one."""
    return number(self.results, f"val/{key.name}_std")

  def class_name(self, label: int) -> str:
    """Returns the name of a class, or its number where it has none."""
    if 0 <= label < len(self.class_names):
      return self.class_names[label]
    return str(label)


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
  """Returns what was evaluated: a run's own model, unless it is said otherwise.

  Args:
    config: of the evaluation, nested; a field that it lacks has its default.
    source: the model, for people.
    results: of it; those of an unfinished run are empty.
    **said: fields of `About` that are other than a run's configuration and
      results say.
  """
  flat = saved_config.computed(config)
  measured = tuple(
    method
    for method in METHODS
    if f"val/{Key('content_heatmap', method).name}" in results
  )
  of_run = {
    "architecture": flat["model.name"],
    "consistency": (flat["loss.consistency_weight"] or 0) > 0,
    "multi_label": f"val/{Key('f1_overall').name}" in results,
    "methods": measured or tuple(flat["eval.methods"]),
    "secs": number(results, "time/eval_secs") or 0.0,
    "trained": config,
    "questions": OF_RUNS,
  }
  return About(
    source=source,
    data_name=flat["data.name"],
    split=flat["data.eval_split"],
    protocol=flat["eval.protocol"],
    settings=saved_config.evaluation_settings(config),
    config=config,
    num_images=int(number(results, "val/num_examples") or 0),
    **(of_run | said),
  )


def save(evaluated: Evaluated) -> list[files.AnyPath]:
  """Writes every file, each completely or not at all; returns their paths."""
  folder = evaluated.folder
  texts = {
    RESULTS: evaluated.results,
    PER_CLASS: evaluated.per_class,
    CURVES: dataclasses.asdict(evaluated.curves),
    # Last: where it is, the rest is.
    ABOUT: dataclasses.asdict(evaluated.about),
  }
  gallery.save(
    folder / gallery.FILENAME, evaluated.examples, evaluated.class_names
  )
  for name, value in texts.items():
    files.write_text(folder / name, json.dumps(value, indent=2) + "\n")
  return [folder / name for name in FILENAMES]


def load(folder: str | os.PathLike) -> Evaluated:
  """Reads an evaluation, or a run, finished or not.

  Raises:
    ValueError: the folder is none, or a file of it is missing or broken.
  """
  folder = files.as_path(folder)
  is_run = (folder / saved_config.FILENAME).is_file()
  if not is_run and not is_evaluation(folder):
    raise ValueError(
      f"{str(folder)!r} {_lack(folder)}. It must be the folder of a run (the "
      "--workdir of gc_jax.main) or of a finished evaluation (the --out of "
      "gc_jax.evaluate). Give the command again, or name the folder itself, "
      "not the one above it."
    )
  metrics_path = folder / metrics_writer.FILENAME
  training = (
    metrics_writer.read_metrics(metrics_path)
    if is_run and metrics_path.is_file()
    else []
  )
  results_path = folder / RESULTS
  is_finished = is_evaluation(folder) or results_path.is_file()
  results = _read(results_path) if is_finished else {}
  per_class, curves = {}, Curves()
  if is_evaluation(folder):
    about = _about(folder / ABOUT)
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
  examples, class_names = gallery.load(folder, "".join(about.methods[:1]))
  return Evaluated(
    folder=folder,
    about=about,
    results=results,
    per_class=per_class,
    curves=curves,
    examples=examples,
    class_names=class_names,
    training=training,
    is_run=is_run,
  )


def load_finished(folder: str | os.PathLike) -> Evaluated:
  """Reads an evaluation, or a run that has its final one.

  Raises:
    ValueError: as `load`, or a run has no results.json yet.
  """
  evaluated = load(folder)
  if not evaluated.results and evaluated.is_run:
    raise ValueError(
      f"A run must be finished. {str(evaluated.folder)!r} has no {RESULTS}. "
      "Give its training command again (it resumes and evaluates), or leave "
      "this run out."
    )
  return evaluated


def is_evaluation(folder: files.AnyPath) -> bool:
  """Returns whether an evaluation was finished there."""
  return (folder / ABOUT).is_file()


def _lack(folder: files.AnyPath) -> str:
  if not folder.exists():
    return "does not exist"
  return f"has neither {saved_config.FILENAME} nor {ABOUT}"


def _about(path: files.AnyPath) -> About:
  fields = _fields(path, About)
  for name in ("methods", "costly_methods", "questions"):
    if name in fields:
      fields[name] = tuple(fields[name])
  if "trained" not in fields and fields["consistency"] is not None:
    fields["trained"] = fields["config"]  # of a run's model, it was the run's
  return About(**fields)


def _read(path: files.AnyPath) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:  # not there, not JSON, not UTF-8
    raise gallery.broken(path, str(error)) from error
  if not isinstance(value, dict):
    raise gallery.broken(path, f"it holds {value!r:.40}, no JSON object")
  return value


def _fields(
  path: files.AnyPath, kind: type[About] | type[Curves]
) -> dict[str, Any]:
  """Returns the object in a file, held to the fields of a dataclass."""
  value = _read(path)
  known = dataclasses.fields(kind)
  unknown = sorted(set(value) - {field.name for field in known})
  missing = [
    field.name
    for field in known
    if field.name not in value
    and field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  ]
  if unknown or missing:
    words = [f"it lacks {', '.join(missing)}"] * bool(missing)
    words += [f"it has unknown fields: {', '.join(unknown)}"] * bool(unknown)
    raise gallery.broken(path, "; ".join(words))
  return value
