"""Writes context sets as array_record files, and loads them."""

import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from gc_jax.data import DATASETS, records
from gc_jax.data.dataset import Dataset
from gc_jax.data.prepare import prepare
from gc_jax.data.sets.context import ContextConfig, Example
from gc_jax.data.sets.photographs import SPLITS
from gc_jax.runtime.messages import unknown_name_message


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
  """

  CONFIG: ClassVar[type[ContextConfig]] = ContextConfig
  CLASS_NAMES: ClassVar[tuple[str, ...]] = ()

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
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__,
      features=records.features(
        self.CLASS_NAMES, masks=True, encoding_format="png"
      ),
      license=DATASETS[self.name].license,
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
      decoders=records.decoders(masks=True),
    ),
    class_names=builder_class.CLASS_NAMES,
    multi_label=builder_config.multi_label,
    name=f"{builder_class.name}/{builder_config.name}",
  )
