"""The pictures of an evaluation with their maps: gallery.npz."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from gc_jax.attribution import CONTROLS
from gc_jax.report.rows import CONFIDENCE, broken
from gc_jax.runtime import files

FILENAME = "gallery.npz"
_OLD_FILENAME = "examples.npz"  # of evaluations
_VERSION = 3  # before it, an empty map was written as a uniform one


def _empty() -> Any:
  return dataclasses.field(default_factory=dict)


class Ranking(NamedTuple):
  """What orders pictures from best to worst, in words for a page."""

  by: str
  best: str
  typical: str
  worst: str


# The first that is measured is taken.
RANKINGS = {
  "content_heatmap": Ranking(
    "content heatmap (CH)",
    "The maps with the most mass on the object.",
    "Maps around the median.",
    "The maps with the least mass on the object, empty ones first.",
  ),
  "negative_quadrants_heatmap": Ranking(
    "negative quadrants heatmap (NQH), as no mask or box says where objects "
    "are",
    "The composites with the least of their map on the three other pictures.",
    "Composites around the median.",
    "The composites with the most of their map on the three other pictures, "
    "empty maps first.",
  ),
  CONFIDENCE: Ranking(
    "the probability of the true class, as no metric of maps was measured",
    "The pictures whose class the model is most sure of. It says nothing of "
    "their maps.",
    "Pictures around the median.",
    "The pictures whose class the model is least sure of.",
  ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """A picture with its maps.

  Attributes:
    index: position in the evaluated split.
    image: RGB, as the model saw it.
    object_mask: pixels of any object of class `target`, a ground-truth class.
    maps: method -> map, >= 0, sums to 1, or to 0 if it is empty.
    kind: best | typical | worst, by one of `RANKINGS`; wrong: classified so,
      the true class the least likely; or fixed: the pictures that every
      evaluation of this data shows, for side-by-side figures.
    randomized: method -> stage of `Curves.stages` -> map of the model with its
      weights randomised down to there. Only for a few examples.
    composite: 2×2 images, `image` in `cell`, distractors elsewhere; or None.
    cell: where `image` sits: 0..3, row-major.
    composite_maps: as `maps`, for `target` on the composite.
    scores: metric -> method -> percent, of this picture alone.
    name: the picture's file, as in rows.npz; "" where it is not known.
    probability, predicted_probability: of the target and of the predicted
      class, in 0..1; None where an older version evaluated.
    predicted_maps: as `maps`, for the class `predicted`, where it is another.
  """

  index: int
  image: UInt8[np.ndarray, "H W 3"]
  object_mask: Bool[np.ndarray, "H W"]
  target: int
  predicted: int
  maps: Mapping[str, Float32[np.ndarray, "_ _"]]
  kind: str = "fixed"
  randomized: Mapping[str, Mapping[str, Float32[np.ndarray, "_ _"]]] = _empty()
  composite: UInt8[np.ndarray, "H2 W2 3"] | None = None
  cell: int = 0
  composite_maps: Mapping[str, Float32[np.ndarray, "_ _"]] = _empty()
  scores: Mapping[str, Mapping[str, float]] = _empty()
  name: str = ""
  probability: float | None = None
  predicted_probability: float | None = None
  predicted_maps: Mapping[str, Float32[np.ndarray, "_ _"]] = _empty()


# Fields with names of a method or metric and of a stage or method; others have
# one name or none.
_NESTED = ("scores", "randomized")


def save(
  folder: files.AnyPath, examples: Sequence[Example], class_names: Sequence[str]
) -> None:
  """Writes the file, completely or not at all."""
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

  for position, example in enumerate(examples):
    for field in dataclasses.fields(Example):
      add(f"{position:03d}/{field.name}", getattr(example, field.name))
  with files.replacing(folder / FILENAME) as file:
    np.savez_compressed(file, **arrays)


def load(
  folder: files.AnyPath, method: str = ""
) -> tuple[list[Example], list[str]]:
  """Returns the examples of a folder, and class names; none without a gallery.

  Args:
    folder: of an evaluation.
    method: whose maps an old file holds, of when there was a single one.

  Raises:
    ValueError: the file is no gallery, or broken.
  """
  path = folder / FILENAME
  if not path.is_file():
    path = folder / _OLD_FILENAME
  if not path.is_file():
    return [], []
  try:
    # Opened here: numpy leaves what is no archive open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      names = [str(name) for name in arrays["class_names"]]
      return _examples(arrays, method), names
  except Exception as error:  # numpy, zipfile and zlib raise many kinds
    raise broken(path, str(error)) from error


def of_old_runs(examples: Sequence[Example], is_ranked: bool) -> list[Example]:
  """Returns examples of a time that did not say what ranked them.

  That was the content heatmap, or nothing where none was measured: their kinds
  then say nothing, and all pictures are shown once. An empty map is no best.
  """
  if is_ranked:
    return [
      one
      for one in examples
      if one.kind != "best" or any(cam.any() for cam in one.maps.values())
    ]
  once = {(one.index, one.target): one for one in examples}
  return [dataclasses.replace(one, kind="fixed") for one in once.values()]


def _examples(arrays: Mapping[str, np.ndarray], method: str) -> list[Example]:
  version = int(arrays["version"]) if "version" in arrays else 1
  fields: dict[str, dict[str, Any]] = {}
  for key, value in arrays.items():
    number, *path = key.split("/", 2)
    if not path:
      continue  # the version, the class names
    # A stage may hold a slash: "maps/METHOD", but "randomized/METHOD/STAGE".
    if path[0] in _NESTED:
      path = [path[0], *path[1].split("/", 1)]
    example = fields.setdefault(number, {})
    for part in path[:-1]:
      example = example.setdefault(part, {})
    example[path[-1]] = value.item() if value.ndim == 0 else value
  for example in fields.values():
    example.setdefault("maps", {})
    if "cam" in example:  # an old one, of a single method
      example["maps"] = {method: example.pop("cam")}
      example["composite_maps"] = {method: example.pop("composite_cam")}
      example["scores"] = {
        name: {method: example.pop(name)}
        for name in ("content_heatmap", "negative_quadrants_heatmap")
      }
    if version < _VERSION:
      groups = [example["maps"], example.get("composite_maps", {})]
      for maps in (*groups, *example.get("randomized", {}).values()):
        _empty_constants(maps)
  return [Example(**example) for _, example in sorted(fields.items())]


def _empty_constants(maps: dict[str, np.ndarray]) -> None:
  """Zeroes the maps that an old gallery filled, but no control."""
  for name, cam in maps.items():
    if name not in CONTROLS and cam.size > 1 and (cam == cam.flat[0]).all():
      maps[name] = np.zeros_like(cam)
