"""What a record of a `Dataset` is in the terms of TFDS: written, read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


def features(
  class_names: Sequence[str],
  *,
  masks: bool,
  file_names: bool = False,
  encoding_format: str | None = None,
) -> tfds.features.FeaturesDict:
  """Returns the features of a builder that writes our records.

  Args:
    class_names: what the labels mean.
    masks: whether each object has one, a PNG of the size of the image.
    file_names: whether records say which file they are from.
    encoding_format: of the image; None = as it comes.
  """
  label = tfds.features.ClassLabel(names=class_names)
  mask = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(
        shape=(None, None, 3), encoding_format=encoding_format
      ),
      "labels": tfds.features.Sequence(label),
      "objects": tfds.features.Sequence(
        {
          "label": label,
          "bbox": tfds.features.BBoxFeature(),
          "difficult": np.bool_,
        }
        | ({"mask": mask} if masks else {})
      ),
    }
    | ({"file_name": tfds.features.Text()} if file_names else {})
  )


def decoders(*, masks: bool) -> dict[str, Any]:
  """Returns what leaves images and masks encoded, as our records have them."""
  image = {"image": tfds.decode.SkipDecoding()}
  return image | ({"objects": {"mask": _SkipDecodingOfMany()}} if masks else {})


class _SkipDecodingOfMany(tfds.decode.SkipDecoding):
  """TFDS's own skips single values only, not those of a sequence."""

  def decode_batch_example_np(self, serialized_examples):
    return serialized_examples
