"""Objects on photographs that may give their class away, with exact masks.

The mechanism of the context sets: where the objects come from is a `Source`,
one for digits, one for fashion, one for photographed things. Each object is
drawn at a random size and place on a crop of a photograph. A photograph
belongs to each class, and a dial says how often the background follows the
class: context that helps to classify, and that an explanation should not
point at.

No object and no pixel of a photograph occurs in two splits.
"""

import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from gc_jax.data import compositor, photographs
from gc_jax.data.dataset import Dataset, unknown_name_message
from gc_jax.data.photographs import PHOTOGRAPHS, SPLITS
from gc_jax.data.prepare import prepare

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


def _png(pixels: np.ndarray) -> bytes:
  import PIL.Image

  buffer = io.BytesIO()
  # Higher levels take twice the time to save a fiftieth of the space.
  PIL.Image.fromarray(pixels).save(buffer, format="png", compress_level=1)
  return buffer.getvalue()


def _box(mask: np.ndarray) -> tfds.features.BBox:
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  height, width = mask.shape
  return tfds.features.BBox(
    ymin=rows[0] / height,
    xmin=columns[0] / width,
    ymax=(rows[-1] + 1) / height,
    xmax=(columns[-1] + 1) / width,
  )


class ContextBuilder(tfds.core.GeneratorBasedBuilder):
  """Writes a context set as array_record files. Each set derives its own.

  Attributes:
    CONFIG: makes the variant that the fields of a config describe.
    CLASS_NAMES: of the set.
    LICENSE: where the pixels are from and under which terms.
  """

  CONFIG: ClassVar[type[ContextConfig]] = ContextConfig
  CLASS_NAMES: ClassVar[tuple[str, ...]] = ()
  LICENSE: ClassVar[str] = ""

  def check_source(self) -> None:
    """Checks that the objects are there to be drawn.

    Raises:
      ValueError: they are not; says what to install.
    """

  def draw(self, split: str, index: int) -> Example:
    """Draws example `index` of a split: see `draw_example`."""
    raise NotImplementedError

  def _create_builder_config(self, builder_config, version):
    # Any values make a config; TFDS would warn that it is not a listed one.
    return builder_config or self.CONFIG()

  def _info(self) -> tfds.core.DatasetInfo:
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
    label = tfds.features.ClassLabel(names=self.CLASS_NAMES)
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": image,
          "labels": tfds.features.Sequence(label),
          "objects": tfds.features.Sequence(
            {
              "label": label,
              "bbox": tfds.features.BBoxFeature(),
              "difficult": np.bool_,
              "mask": tfds.features.Image(
                shape=(None, None, 1), encoding_format="png"
              ),
            }
          ),
        }
      ),
      license=self.LICENSE,
      # Record i is draw(split, i).
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager) -> dict[str, Any]:
    return {
      split: self._generate_examples(split, count)
      for split, count in zip(
        SPLITS, self.builder_config.num_examples, strict=True
      )
    }

  def _generate_examples(
    self, split: str, count: int
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    # disable=None: no bar where stderr is not a terminal.
    for index in tqdm.trange(
      count, desc=f"Drawing {split}", unit=" images", leave=False, disable=None
    ):
      example = self.draw(split, index)
      yield (
        index,
        {
          "image": _png(example.picture.image),
          "labels": list(example.labels),
          "objects": [
            {
              "label": label,
              "bbox": _box(mask),
              "difficult": False,
              "mask": _png(mask.astype(np.uint8) * 255),
            }
            for label, mask in zip(
              example.labels, example.picture.masks, strict=True
            )
          ],
        },
      )


class _SkipDecodingOfMany(tfds.decode.SkipDecoding):
  """TFDS's own skips single values only, not those of a sequence."""

  def decode_batch_example_np(self, serialized_examples):
    return serialized_examples


def load(
  builder_class: type[ContextBuilder],
  split: str,
  data_dir: str | os.PathLike,
  **config: Any,
) -> Dataset:
  """Returns a split, drawn and written first where that was not yet done.

  Args:
    builder_class: the set.
    split: of `SPLITS`, or a part of one: "train[:100]".
    data_dir: TFDS directory; "" = TFDS's own default.
    **config: fields of the set's config.

  Raises:
    ValueError: if the split is unknown, a field is out of range, or what the
      objects are cut out of is not installed and the data not yet drawn.
  """
  builder_config = builder_class.CONFIG(**config)
  if split.split("[")[0] not in SPLITS:
    raise ValueError(unknown_name_message("split", split, SPLITS))

  def make_builder() -> ContextBuilder:
    return builder_class(
      data_dir=os.path.expanduser(data_dir) or None,
      config=builder_config,
      file_format="array_record",
    )

  builder = make_builder()
  if not pathlib.Path(builder.data_path).exists():
    builder.check_source()
  builder = prepare(make_builder)
  return Dataset(
    source=builder.as_data_source(
      split,
      decoders={
        "image": tfds.decode.SkipDecoding(),
        "objects": {"mask": _SkipDecodingOfMany()},
      },
    ),
    class_names=builder_class.CLASS_NAMES,
    multi_label=builder_config.multi_label,
    max_classes_per_image=(
      MULTI_OBJECTS[1] if builder_config.multi_label else 1
    ),
    name=f"{builder_class.name}/{builder_config.name}",
    license=builder_class.LICENSE,
  )
