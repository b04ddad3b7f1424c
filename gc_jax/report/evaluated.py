"""An evaluation's folder: what `gc_jax.evaluate` measured, as files.

  evaluation.json   what was evaluated, and how (`About`)
  results.json      every number, flat: "val/top1", "val/METHOD/METRIC"
  per_class.json    the same numbers by class: {class name: {key: value}}
  curves.json       `Curves`
  examples.npz      pictures with their maps (`Example`)

Written by the evaluation, read by tables, figures and the page.
"""

import dataclasses
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from gc_jax.report import files

ABOUT = "evaluation.json"
RESULTS = "results.json"
PER_CLASS = "per_class.json"
CURVES = "curves.json"
EXAMPLES = "examples.npz"
FILENAMES = (RESULTS, PER_CLASS, CURVES, EXAMPLES, ABOUT)


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
    config: the resolved configuration, nested.
    num_images: evaluated.
    costly_methods: those of `methods` that were measured on fewer pictures.
    num_costly_images: how many.
    num_compilations: of programs, over all shapes of pictures.
    secs: time taken, of all sittings.
    identity: what makes this evaluation another than others: model, weights,
      methods, settings.
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
  costly_methods: tuple[str, ...]
  num_costly_images: int
  num_compilations: int
  secs: float
  identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Curves:
  """What is no single number.

  Attributes:
    robustness: attack ("fgsm", "pgd") -> epsilon in 1/255 -> accuracy (or
      F1-Overall) in percent; epsilon 0 is the clean picture.
    fractions: of the pixels inserted or deleted, ascending from 0 to 1.
    insertion: method -> mean probability of the class at each fraction.
    deletion: likewise.
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
class Example:
  """A picture with the maps of every method.

  Attributes:
    index: position in the evaluated split.
    image: RGB, as the model saw it.
    object_mask: pixels of any object of class `target`, of the image's size.
    target: the class explained, a ground-truth class.
    predicted: the class with the highest score.
    maps: method -> map, >= 0, sums to 1.
    randomized: method -> stage of `Curves.stages` -> map of the model with its
      weights randomised down to there. Only for a few examples.
  """

  index: int
  image: UInt8[np.ndarray, "H W 3"]
  object_mask: Bool[np.ndarray, "H W"]
  target: int
  predicted: int
  maps: Mapping[str, Float32[np.ndarray, "_ _"]]
  randomized: Mapping[str, Mapping[str, Float32[np.ndarray, "_ _"]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
  """An evaluation as its folder tells it."""

  folder: pathlib.Path
  about: About
  results: dict[str, Any]
  per_class: dict[str, dict[str, float]]
  curves: Curves
  examples: list[Example]
  class_names: list[str]


def save(evaluated: Evaluated) -> list[pathlib.Path]:
  """Writes every file, each completely or not at all; returns their paths."""
  folder = evaluated.folder
  texts = {
    RESULTS: evaluated.results,
    PER_CLASS: evaluated.per_class,
    CURVES: dataclasses.asdict(evaluated.curves),
    # Last: where it is, the rest is.
    ABOUT: dataclasses.asdict(evaluated.about),
  }
  _save_examples(folder / EXAMPLES, evaluated)
  for name, value in texts.items():
    files.write_text(folder / name, json.dumps(value, indent=2) + "\n")
  return [folder / name for name in FILENAMES]


def load(folder: str | os.PathLike) -> Evaluated:
  """Reads an evaluation.

  Raises:
    ValueError: the folder is none, or a file of it is missing or broken.
  """
  folder = pathlib.Path(folder)
  if not is_evaluation(folder):
    raise ValueError(
      "An evaluation must be a folder that gc_jax.evaluate finished (its "
      f"--out); {str(folder)!r} has no {ABOUT}. Give the evaluation's command "
      "again, or name its folder."
    )
  about = _fields(folder / ABOUT, About)
  for name in ("methods", "costly_methods"):
    about[name] = tuple(about[name])
  examples, class_names = _read_examples(folder / EXAMPLES)
  return Evaluated(
    folder=folder,
    about=About(**about),
    results=_read(folder / RESULTS),
    per_class=_read(folder / PER_CLASS),
    curves=Curves(**_fields(folder / CURVES, Curves)),
    examples=examples,
    class_names=class_names,
  )


def is_evaluation(folder: pathlib.Path) -> bool:
  """Returns whether an evaluation was finished there."""
  return (folder / ABOUT).is_file()


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:  # not there, not JSON, not UTF-8
    raise _broken(path, str(error)) from error
  if not isinstance(value, dict):
    raise _broken(path, f"it holds {value!r:.40}, no JSON object")
  return value


def _fields(
  path: pathlib.Path, kind: type[About] | type[Curves]
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
    words += [f"nobody knows its {', '.join(unknown)}"] * bool(unknown)
    raise _broken(path, "; ".join(words))
  return value


def _read_examples(path: pathlib.Path) -> tuple[list[Example], list[str]]:
  try:
    return _load_examples(path)
  # numpy's and zipfile's words for what is missing, cut off, or no archive.
  except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
    raise _broken(path, str(error)) from error
  except (zipfile.BadZipFile, zlib.error) as error:
    raise _broken(path, str(error)) from error


def _broken(path: pathlib.Path, why: str) -> ValueError:
  return ValueError(
    f"{path} must be a file of a finished evaluation: {why}. Evaluate again."
  )


_SCALARS = {"index": int, "target": int, "predicted": int}
_ARRAYS = ("image", "object_mask")


def _save_examples(path: pathlib.Path, evaluated: Evaluated) -> None:
  arrays = {"class_names": np.array(evaluated.class_names, np.str_)}
  for number, example in enumerate(evaluated.examples):
    for name in (*_SCALARS, *_ARRAYS):
      arrays[f"{number:03d}/{name}"] = np.asarray(getattr(example, name))
    for method, cam in example.maps.items():
      arrays[f"{number:03d}/maps/{method}"] = cam
    for method, by_stage in example.randomized.items():
      for stage, cam in by_stage.items():
        arrays[f"{number:03d}/randomized/{method}/{stage}"] = cam
  with files.replacing(path) as file:
    np.savez_compressed(file, **arrays)


def _load_examples(path: pathlib.Path) -> tuple[list[Example], list[str]]:
  fields: dict[str, dict[str, Any]] = {}
  # Opened here: numpy leaves what is no archive open.
  with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
    class_names = [str(name) for name in arrays["class_names"]]
    for key in arrays.files:
      number, _, name = key.partition("/")
      if not name:
        continue
      own = fields.setdefault(number, {"maps": {}, "randomized": {}})
      what, *rest = name.split("/")
      if what == "maps":
        own["maps"][rest[0]] = arrays[key]
      elif what == "randomized":
        own["randomized"].setdefault(rest[0], {})["/".join(rest[1:])] = arrays[
          key
        ]
      else:
        value = arrays[key]
        own[what] = _SCALARS[what](value) if what in _SCALARS else value
  return [Example(**fields[number]) for number in sorted(fields)], class_names
