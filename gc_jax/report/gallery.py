"""gallery.npz: the few examples of a run that people look at."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from gc_jax.report import files

FILENAME = "gallery.npz"
_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class GalleryExample:
  """One image with its explanation, alone and within a composite.

  Attributes:
    index: position in the evaluated split.
    kind: best | typical | worst, by content heatmap; or fixed: the images
      that every run on this data shows, for side-by-side figures.
    image: RGB.
    object_mask: pixels of any object of class `target`.
    target: the class explained, a ground-truth class.
    predicted: the class with the highest score.
    cam: element-wise Grad-CAM, >= 0, sums to 1 (all zero where it is empty).
    content_heatmap: percent of `cam` on the object.
    composite: 2×2 images, `image` in `cell`, distractors elsewhere.
    composite_cam: as `cam`, for `target` on the composite.
    cell: where `image` sits in `composite`: 0..3, row-major.
    negative_quadrants_heatmap: percent of `composite_cam` on distractors.
  """

  index: int
  kind: str
  image: UInt8[np.ndarray, "H W 3"]
  object_mask: Bool[np.ndarray, "H W"]
  target: int
  predicted: int
  cam: Float32[np.ndarray, "h w"]
  content_heatmap: float
  composite: UInt8[np.ndarray, "H2 W2 3"]
  composite_cam: Float32[np.ndarray, "h2 w2"]
  cell: int
  negative_quadrants_heatmap: float


_FIELDS = {f.name: f.type for f in dataclasses.fields(GalleryExample)}


def save_gallery(
  path: str | os.PathLike,
  examples: Sequence[GalleryExample],
  class_names: Sequence[str],
) -> None:
  """Writes examples and class names to one .npz, completely or not at all."""
  arrays = {
    "version": np.array(_VERSION),
    "num_examples": np.array(len(examples)),
    "class_names": np.array(list(class_names), dtype=np.str_),
  }
  for position, example in enumerate(examples):
    for name in _FIELDS:
      value = np.asarray(getattr(example, name))
      arrays[f"{position:03d}/{name}"] = value
  with files.replacing(path) as file:
    np.savez_compressed(file, **arrays)


def load_gallery(
  path: str | os.PathLike,
) -> tuple[list[GalleryExample], list[str]]:
  """Returns what `save_gallery` wrote.

  Raises:
    ValueError: the file is no gallery, or another version's.
  """
  with (
    files.as_path(path).open("rb") as file,
    np.load(file, allow_pickle=False) as arrays,
  ):
    version = int(arrays["version"]) if "version" in arrays else None
    if version != _VERSION:
      raise ValueError(
        f"{path} must be a gallery of version {_VERSION}. It says {version}. "
        "Evaluate the run again to write a new one."
      )
    examples = []
    for position in range(int(arrays["num_examples"])):
      fields = {}
      for name, kind in _FIELDS.items():
        value = arrays[f"{position:03d}/{name}"]
        scalar = kind in (int, float, str)
        fields[name] = kind(value.item()) if scalar else value
      examples.append(GalleryExample(**fields))
    return examples, [str(name) for name in arrays["class_names"]]
