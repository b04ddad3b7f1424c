"""gallery.npz: the examples of an evaluation that people look at."""

import dataclasses
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from gc_jax.runtime import files

FILENAME = "gallery.npz"
_FILENAME_OF_BEFORE = "examples.npz"  # of evaluations
_VERSION = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """A picture with its maps.

  Attributes:
    index: position in the evaluated split.
    image: RGB, as the model saw it.
    object_mask: pixels of any object of class `target`, of the image's size.
    target: the class explained, a ground-truth class.
    predicted: the class with the highest score.
    maps: method -> map, >= 0, sums to 1.
    kind: best | typical | worst, by content heatmap; or fixed: the pictures
      that every evaluation of this data shows, for side-by-side figures.
    randomized: method -> stage of `Curves.stages` -> map of the model with its
      weights randomised down to there. Only for a few examples.
    composite: 2×2 images, `image` in `cell`, distractors elsewhere; or None.
    cell: where `image` sits in `composite`: 0..3, row-major.
    composite_maps: as `maps`, for `target` on the composite.
    scores: metric -> method -> percent, of this picture alone.
  """

  index: int
  image: UInt8[np.ndarray, "H W 3"]
  object_mask: Bool[np.ndarray, "H W"]
  target: int
  predicted: int
  maps: Mapping[str, Float32[np.ndarray, "_ _"]]
  kind: str = "fixed"
  randomized: Mapping[str, Mapping[str, Float32[np.ndarray, "_ _"]]] = (
    dataclasses.field(default_factory=dict)
  )
  composite: UInt8[np.ndarray, "H2 W2 3"] | None = None
  cell: int = 0
  composite_maps: Mapping[str, Float32[np.ndarray, "_ _"]] = dataclasses.field(
    default_factory=dict
  )
  scores: Mapping[str, Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )


# How deep the names of an example's maps and scores go.
_DEPTH = {"maps": 1, "composite_maps": 1, "scores": 2, "randomized": 2}


def save(
  path: files.AnyPath, examples: Sequence[Example], class_names: Sequence[str]
) -> None:
  """Writes examples and class names, completely or not at all."""
  arrays = {
    "version": np.array(_VERSION),
    "class_names": np.array(class_names, np.str_),
  }

  def add(name, value):
    if isinstance(value, Mapping):
      for key, inner in value.items():
        add(f"{name}/{key}", inner)
    elif value is not None:
      arrays[name] = np.asarray(value)

  for number, example in enumerate(examples):
    for field in dataclasses.fields(Example):
      add(f"{number:03d}/{field.name}", getattr(example, field.name))
  with files.replacing(path) as file:
    np.savez_compressed(file, **arrays)


def load(
  folder: files.AnyPath, method: str = ""
) -> tuple[list[Example], list[str]]:
  """Returns the examples of a folder, and class names; none without a gallery.

  Args:
    folder: of an evaluation.
    method: whose maps a file of before there were several methods holds.

  Raises:
    ValueError: the file is broken, or none of these.
  """
  paths = [folder / name for name in (FILENAME, _FILENAME_OF_BEFORE)]
  path = next((path for path in paths if path.is_file()), None)
  if path is None:
    return [], []
  try:
    # Opened here: numpy leaves what is no archive open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      fields: dict[str, dict[str, Any]] = {}
      names = [str(name) for name in arrays["class_names"]]
      for key in arrays.files:
        number, _, rest = key.partition("/")
        if not rest:
          continue
        example = fields.setdefault(number, {})
        name, _, inner = rest.partition("/")
        *outer, last = [name, *inner.split("/", _DEPTH.get(name, 1) - 1)]
        if not inner:
          outer, last = [], name
        for part in outer:
          example = example.setdefault(part, {})
        value = arrays[key]
        example[last] = value.item() if value.ndim == 0 else value
      made = [_example(fields[number], method) for number in sorted(fields)]
    return made, names
  # numpy's and zipfile's words for what is missing, cut off, or no archive.
  except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
    raise broken(path, str(error)) from error
  except (zipfile.BadZipFile, zlib.error) as error:
    raise broken(path, str(error)) from error


def _example(fields: dict[str, Any], method: str) -> Example:
  """Returns an example; one of before had a single method's maps and scores."""
  metrics = "content_heatmap", "negative_quadrants_heatmap"
  if "cam" in fields:
    fields["maps"] = {method: fields.pop("cam")}
    fields["composite_maps"] = {method: fields.pop("composite_cam")}
    fields["scores"] = {name: {method: fields.pop(name)} for name in metrics}
  fields.setdefault("maps", {})
  return Example(**fields)


def broken(path: files.AnyPath, why: str) -> ValueError:
  """Returns what is raised about a file that is none."""
  return ValueError(
    f"{path} must be a file of a finished evaluation: {why}. Evaluate again: "
    "give the command that wrote it."
  )
