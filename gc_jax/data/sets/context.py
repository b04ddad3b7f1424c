"""Context sets: objects on photographs that may give their class away.

Each object is drawn at a random size and place on a crop of a photograph, and
its exact mask is kept. Every class has a photograph, and `background_frac` says
how often the background follows the class: context that helps to classify, and
that an explanation should not point at.

The photographs are those in scikit-image's wheel; `gc_jax.data.sets.
context_sets` has the objects. No object and no pixel of a photograph occurs in
two splits.
"""

import functools
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
import tqdm
from jaxtyping import UInt8

from gc_jax.data import DATASETS, storage
from gc_jax.data.dataset import Dataset
from gc_jax.data.sets import compositor, shapes
from gc_jax.runtime.messages import unknown_name_message

# The first ten belong to the classes 0..9, the others to none.
PHOTOGRAPHS = (
  "brick.png",
  "chelsea.png",
  "coffee.png",
  "coins.png",
  "grass.png",
  "gravel.png",
  "hubble_deep_field.jpg",
  "ihc.png",
  "moon.png",
  "motorcycle_left.png",
  "astronaut.png",
  "camera.png",
  "cell.png",
  "clock_motion.png",
)

SPLITS = ("train", "validation", "test")
MIN_CROP_PX, MAX_CROP_PX = 64, 128  # side of a background, in the photograph
SIDE_FRAC = (0.45, 0.75)  # longer side of an object / side of the image
MULTI_SIDE_FRAC = (0.25, 0.42)  # three of these still fit without overlap
MULTI_OBJECTS = (2, 3)


@functools.cache
def load_photograph(photograph: int) -> UInt8[np.ndarray, "H W 3"]:
  """Returns the photograph `PHOTOGRAPHS[photograph]`, grey ones as RGB."""
  import skimage

  path = pathlib.Path(skimage.__file__).parent / "data"
  path = path / PHOTOGRAPHS[photograph]
  with PIL.Image.open(path, formats=("PNG", "JPEG")) as image:
    return np.asarray(image.convert("RGB"))


def region(photograph: int, split: str) -> tuple[int, int, int, int]:
  """Returns the (left, top, right, bottom) that a split sees of a photograph.

  The longer side is cut in three, the first part for training. The other two
  are a quarter of it each, but never shorter than the largest crop.
  """
  height, width = load_photograph(photograph).shape[:2]
  longer = max(height, width)
  part = max(MAX_CROP_PX, longer // 4)
  edges = (0, longer - 2 * part, longer - part, longer)
  start, stop = edges[SPLITS.index(split) :][:2]
  if width >= height:
    return start, 0, stop, height
  return 0, start, width, stop


class Source(NamedTuple):
  """The objects of a set, numbered in each class."""

  # For each class, split -> the numbers it may show, none of them in two.
  usable: Sequence[Mapping[str, Sequence[int]]]
  cutout: Callable[[int, int], compositor.Cutout]  # of (class, number)


@dataclass(eq=False, kw_only=True)
class ContextConfig(tfds.core.BuilderConfig):
  """One variant of a context set; its name is derived from all fields.

  `background_frac` is how often the background is the photograph of the class
  (of the first object, when there are several). Otherwise it is uniform over
  all photographs, that one included.
  """

  name: str = ""
  image_size: int = 64  # side of the square images, in pixels
  background_frac: float = 0.5
  multi_label: bool = False  # 2 or 3 objects in an image instead of one
  seed: int = 0  # of every random draw
  num_examples: tuple[int, int, int] = (4_000, 500, 1_000)  # of each split

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
    default = type(self)
    self.name = (
      f"{'multi' if self.multi_label else 'single'}-{self.image_size}px"
      f"-background{100 * self.background_frac:.10g}"
    )
    if self.seed != default.seed:
      self.name += f"-seed{self.seed}"
    if self.num_examples != default.num_examples:
      self.name += "-examples" + "x".join(map(str, self.num_examples))


class Example(NamedTuple):
  """An image and everything that was drawn for it."""

  picture: compositor.Picture
  background: np.ndarray  # uint8 [H W 3], the image before the objects
  labels: tuple[int, ...]  # class of each object
  numbers: tuple[int, ...]  # of each object in its class
  photograph: int  # index into PHOTOGRAPHS
  crop: tuple[int, int, int, int]  # left, top, right, bottom in the photograph


def draw_example(
  source: Source, config: ContextConfig, split: str, index: int
) -> Example:
  """Draws image `index` of a split: a pure function of its arguments.

  Classes and objects of the first object take turns: class index % K, then the
  split's next object of that class.
  """
  generator = np.random.default_rng([config.seed, SPLITS.index(split), index])
  num_classes = len(source.usable)
  labels = [index % num_classes]
  usable = source.usable[labels[0]][split]
  numbers = [usable[index // num_classes % len(usable)]]
  if config.multi_label:
    extra = int(generator.integers(MULTI_OBJECTS[0], MULTI_OBJECTS[1] + 1)) - 1
    labels += generator.integers(num_classes, size=extra).tolist()
    for label in labels[1:]:
      usable = source.usable[label][split]
      numbers.append(usable[int(generator.integers(len(usable)))])

  follows = generator.random() < config.background_frac
  anywhere = int(generator.integers(len(PHOTOGRAPHS)))
  photograph = labels[0] if follows else anywhere

  left, top, right, bottom = region(photograph, split)
  side = int(generator.integers(MIN_CROP_PX, MAX_CROP_PX + 1))
  x = int(generator.integers(left, right - side + 1))
  y = int(generator.integers(top, bottom - side + 1))
  # Crop, then resize: resize(box=...) looks at pixels beyond the box.
  crop = load_photograph(photograph)[y : y + side, x : x + side]
  size = config.image_size, config.image_size
  background = np.asarray(
    PIL.Image.fromarray(crop).resize(size, PIL.Image.Resampling.BILINEAR)
  )
  picture = compositor.draw(
    background,
    [source.cutout(*which) for which in zip(labels, numbers, strict=True)],
    generator,
    MULTI_SIDE_FRAC if config.multi_label else SIDE_FRAC,
  )
  crop = x, y, x + side, y + side
  return Example(
    picture, background, tuple(labels), tuple(numbers), photograph, crop
  )


class ContextBuilder(tfds.core.GeneratorBasedBuilder):
  """Writes a context set as array_record files. Each set derives its own."""

  CONFIG: ClassVar[type[ContextConfig]] = ContextConfig
  CLASS_NAMES: ClassVar[tuple[str, ...]] = ()

  def source(self) -> Source:
    """Returns the objects, or raises ValueError with how to install them."""
    raise NotImplementedError

  def _create_builder_config(self, builder_config, version):
    # Any values make a config; TFDS would warn that it is not a listed one.
    return builder_config or self.CONFIG()

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__,
      features=storage.features(
        self.CLASS_NAMES, masks=True, encoding_format="png"
      ),
      license=DATASETS[self.name].license,
      # Record i is draw_example(..., split, i).
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager) -> dict[str, Any]:
    counts = zip(SPLITS, self.builder_config.num_examples, strict=True)
    return {
      split: self._generate_examples(split, count) for split, count in counts
    }

  def _generate_examples(
    self, split: str, count: int
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    source = self.source()
    # disable=None: no bar where stderr is not a terminal.
    for index in tqdm.trange(
      count, desc=f"Drawing {split}", unit=" images", leave=False, disable=None
    ):
      example = draw_example(source, self.builder_config, split, index)
      picture = example.picture
      yield (
        index,
        {
          "image": _png(picture.image),
          "labels": list(example.labels),
          "objects": [
            {
              "label": label,
              "bbox": tfds.features.BBox(
                *shapes.scaled_box(shapes.box_of_mask(mask), mask.shape[::-1])
              ),
              "difficult": False,
              "mask": _png(mask.astype(np.uint8) * 255),
            }
            for label, mask in zip(example.labels, picture.masks, strict=True)
          ],
        },
      )


def _png(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  # Higher levels take twice the time to save a fiftieth of the space.
  PIL.Image.fromarray(pixels).save(buffer, format="png", compress_level=1)
  return buffer.getvalue()


def load(
  builder_class: type[ContextBuilder],
  split: str,
  *,
  data_dir: str | os.PathLike = "",
  **config: Any,
) -> Dataset:
  """Returns a split, drawn and written first where that was not yet done.

  `config` are fields of the set's config.
  """
  builder_config = builder_class.CONFIG(**config)
  if split.split("[")[0] not in SPLITS:
    raise ValueError(unknown_name_message("split", split, SPLITS))

  make_builder = functools.partial(
    builder_class,
    data_dir=os.path.expanduser(data_dir) or None,
    config=builder_config,
    file_format="array_record",
  )
  builder = make_builder()
  if not pathlib.Path(builder.data_path).exists():
    builder.source()  # or say what is missing
  return Dataset(
    source=storage.prepare(make_builder).as_data_source(
      split, decoders=storage.decoders(masks=True)
    ),
    class_names=builder_class.CLASS_NAMES,
    multi_label=builder_config.multi_label,
    name=f"{builder_class.name}/{builder_config.name}",
  )
