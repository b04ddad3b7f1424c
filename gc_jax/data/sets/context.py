"""Objects on photographs that may give their class away, with exact masks.

The mechanism of the context sets: where the objects come from is a `Source`,
one for digits, one for fashion, one for photographed things;
`gc_jax.data.sets.context_builder` writes what is drawn here. Each object is
drawn at a random size and place on a crop of a photograph. A photograph
belongs to each class, and a dial says how often the background follows the
class: context that helps to classify, and that an explanation should not
point at.

No object and no pixel of a photograph occurs in two splits.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow_datasets as tfds

from gc_jax.data.sets import compositor, photographs
from gc_jax.data.sets.photographs import PHOTOGRAPHS, SPLITS

SIDE_FRAC = (0.45, 0.75)  # longer side of an object / side of the image
MULTI_SIDE_FRAC = (0.25, 0.42)  # three of these still fit without overlap
MULTI_OBJECTS = (2, 3)


@dataclasses.dataclass(frozen=True)
class Source:
  """Where the objects of a set come from.

  Attributes:
    class_names: what the classes are called; class k has the photograph
      `PHOTOGRAPHS[k]`.
    usable: (class, split) -> numbers of the objects that it may show. No
      number of a class is in two splits.
    cutout: (class, number) -> the object.
  """

  class_names: tuple[str, ...]
  usable: Callable[[int, str], Sequence[int]]
  cutout: Callable[[int, int], compositor.Cutout]


@dataclasses.dataclass(eq=False, kw_only=True)
class ContextConfig(tfds.core.BuilderConfig):
  """One variant of a context set; its name is derived from all fields.

  Attributes:
    image_size: side of the square images, in pixels.
    background_frac: how often the background is the photograph of the class
      (of the first object, when there are several). Otherwise it is uniform
      over all photographs, that one included.
    multi_label: 2 or 3 objects in an image instead of one.
    seed: of every random draw.
    num_examples: images in train, validation and test.
  """

  name: str = ""
  image_size: int = 64
  background_frac: float = 0.5
  multi_label: bool = False
  seed: int = 0
  num_examples: tuple[int, int, int] = (4_000, 500, 1_000)

  def __post_init__(self):
    if not 32 <= self.image_size <= 1024:
      raise ValueError(
        f"--config.data.image_size={self.image_size} must be 32 to 1024 "
        "pixels for context sets; 64 is the tested size."
      )
    if not 0 <= self.background_frac <= 1:
      raise ValueError(
        f"--config.data.background_frac={self.background_frac} must be "
        "between 0 (background says nothing) and 1 (always of the class)."
      )
    if self.seed < 0 or min(self.num_examples) < 1:
      raise ValueError(
        f"seed={self.seed} must be >= 0 and num_examples="
        f"{self.num_examples} at least 1 each."
      )
    default = type(self)
    self.name = (
      f"{'multi' if self.multi_label else 'single'}-{self.image_size}px"
      f"-background{100 * self.background_frac:.10g}"
    )
    if self.seed != default.seed:
      self.name += f"-seed{self.seed}"
    if self.num_examples != default.num_examples:
      self.name += "-examples" + "x".join(map(str, self.num_examples))


@dataclasses.dataclass(frozen=True)
class Example:
  """An image and everything that was drawn for it.

  Attributes:
    picture: the image and the alpha of each object.
    background: uint8 `[H W 3]`, the image before the objects.
    labels: class of each object, in the order of `picture.alphas`.
    numbers: number of each object among those of its class.
    photograph: index into `PHOTOGRAPHS`.
    crop: left, top, right, bottom of the background in the photograph, in
      pixels, the last two exclusive.
  """

  picture: compositor.Picture
  background: np.ndarray
  labels: tuple[int, ...]
  numbers: tuple[int, ...]
  photograph: int
  crop: tuple[int, int, int, int]


def draw_example(
  source: Source, config: ContextConfig, split: str, index: int
) -> Example:
  """Draws one image: a pure function of its arguments.

  Args:
    source: of the objects.
    config: the variant.
    split: one of `SPLITS`.
    index: position in the split. Classes and objects of the first object take
      turns: class index % K, then the split's next object of that class.
  """
  generator = np.random.default_rng([config.seed, SPLITS.index(split), index])
  num_classes = len(source.class_names)
  labels = [index % num_classes]
  usable = source.usable(labels[0], split)
  numbers = [usable[index // num_classes % len(usable)]]
  if config.multi_label:
    extra = int(generator.integers(MULTI_OBJECTS[0], MULTI_OBJECTS[1] + 1)) - 1
    labels += generator.integers(num_classes, size=extra).tolist()
    for label in labels[1:]:
      usable = source.usable(label, split)
      numbers.append(usable[int(generator.integers(len(usable)))])

  follows = generator.random() < config.background_frac
  anywhere = int(generator.integers(len(PHOTOGRAPHS)))
  photograph = labels[0] if follows else anywhere
  background, crop = photographs.draw_background(
    photograph, split, config.image_size, generator
  )
  min_side_frac, max_side_frac = (
    MULTI_SIDE_FRAC if config.multi_label else SIDE_FRAC
  )
  picture = compositor.draw(
    background,
    [source.cutout(*which) for which in zip(labels, numbers, strict=True)],
    generator,
    min_side_frac=min_side_frac,
    max_side_frac=max_side_frac,
  )
  return Example(
    picture=picture,
    background=background,
    labels=tuple(labels),
    numbers=tuple(numbers),
    photograph=photograph,
    crop=crop,
  )
