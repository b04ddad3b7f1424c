"""Stock sets of tensorflow-datasets (TFDS), read without TensorFlow.

`data.name="tfds:NAME[/CONFIG]"`. A prepared TFDS directory is read where it
is; otherwise the set is downloaded and prepared on first use. Which features
hold what is a table, `gc_jax.data.sets.stock_sets`.
"""

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from gc_jax.data.dataset import Dataset
from gc_jax.data.sets import stock_prepare, stock_sets
from gc_jax.data.sets.stock_records import Records
from gc_jax.data.sets.stock_sets import Layout
from gc_jax.runtime.messages import unknown_name_message

_logger = logging.getLogger(__name__)


def load(name: str, split: str, *, data_dir: str | os.PathLike = "") -> Dataset:
  """Returns a split, downloaded and prepared first where it is not there.

  Args:
    name: "voc/2007", with or without `stock_sets.PREFIX`.
    split: train, validation or test as `stock_sets.map_splits` says, another
      split of the set, or parts of them: "train[:100]", "train+validation".
    data_dir: TFDS directory; "" = TFDS's own default.

  Raises:
    ValueError: there is no such set or split, its features are not enough, or
      it cannot be read or prepared here. Says what to do.
  """
  builder = stock_prepare.open_prepared(
    name.removeprefix(stock_sets.PREFIX),
    os.path.expanduser(data_dir),
    check=_check_features,
  )
  layout = _layout(builder)
  full_name = stock_sets.PREFIX + builder.info.full_name
  records = Records(_source(builder, layout, split, full_name), layout)
  if not layout.has_objects:
    _say_that_nothing_is_localised(full_name)
  return Dataset(
    source=records,
    class_names=_class_names(builder, layout),
    multi_label=not layout.label,
    name=full_name,
  )


def _layout(builder: tfds.core.DatasetBuilder) -> Layout:
  config = builder.builder_config
  return stock_sets.find_layout(builder.name, config.name if config else "")


def _check_features(builder: tfds.core.DatasetBuilder) -> None:
  """Raises ValueError if a record could not be made of the set's features."""
  features, layout = builder.info.features, _layout(builder)
  if isinstance(features, tfds.features.FeaturesDict):
    names = set(features.keys())
  else:
    names = set()
  needed = {"image", layout.label or layout.objects}
  if not (
    needed <= names
    and isinstance(features["image"], tfds.features.Image)
    and isinstance(_label_feature(features, layout), tfds.features.ClassLabel)
  ):
    raise ValueError(
      f"--config.data.name='{stock_sets.PREFIX}{builder.name}' must have an "
      f"image and a class label to classify; its features are "
      f"{', '.join(sorted(names)) or type(features).__name__}. Sets that are "
      "known to work: "
      f"{', '.join(stock_sets.PREFIX + name for name in stock_sets.EXAMPLES)}."
    )


def _label_feature(features: Any, layout: Layout) -> Any:
  if layout.label:
    return features[layout.label]
  return features[layout.objects].feature["label"]


def _source(
  builder: tfds.core.DatasetBuilder, layout: Layout, split: str, name: str
) -> Sequence[Mapping[str, Any]]:
  """Returns the records of a split as TFDS has them, images encoded."""
  return builder.as_data_source(
    _resolve_split(builder, layout, split, name), decoders=_decoders(builder)
  )


def _decoders(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
  """Returns what leaves images and masks encoded."""
  return {
    name: tfds.decode.SkipDecoding()
    for name, feature in builder.info.features.items()
    if isinstance(feature, tfds.features.Image)
  }


def _resolve_split(
  builder: tfds.core.DatasetBuilder, layout: Layout, split: str, name: str
) -> str:
  """Returns a part of our split in terms of the set's own splits.

  "validation[:50%]" of a set whose validation split is "train[90%:]" becomes
  "train[3312:3496]".
  """
  own = builder.info.splits
  mapped = stock_sets.map_splits(
    each for each in own if each not in layout.unlabelled
  )
  for part in split.split("+"):
    if part.split("[")[0].strip() not in mapped:
      message = unknown_name_message(f"split of {name}", part, mapped)
      if "train" not in mapped:
        message += " It has nothing to train on: evaluate a trained model."
      if layout.unlabelled:
        unlabelled = ", ".join(layout.unlabelled)
        message += f" Its own {unlabelled} split comes without labels."
      raise ValueError(message)
  ranges = {ours: _ranges(theirs, own)[0] for ours, theirs in mapped.items()}
  ours = tfds.core.splits.SplitDict(
    [
      tfds.core.SplitInfo(name=each, shard_lengths=[stop - start], num_bytes=0)
      for each, (_, start, stop) in ranges.items()
    ]
  )
  parts = []
  for name_of_ours, start, stop in _ranges(split, ours):
    name_of_own, offset, _ = ranges[name_of_ours]
    parts.append(f"{name_of_own}[{offset + start}:{offset + stop}]")
  return "+".join(parts)


def _ranges(
  spec: str, splits: Mapping[str, tfds.core.SplitInfo]
) -> list[tuple[str, int, int]]:
  """Returns (split, start, stop) of each part, as numbers of examples."""
  return [
    (
      part.splitname,
      part.from_ or 0,
      splits[part.splitname].num_examples if part.to is None else part.to,
    )
    for part in tfds.core.ReadInstruction.from_spec(spec).to_absolute(splits)
  ]


@functools.cache
def _say_that_nothing_is_localised(name: str) -> None:
  _logger.warning(
    "%s does not say where its objects are: localisation metrics stay empty.",
    name,
  )


def _class_names(
  builder: tfds.core.DatasetBuilder, layout: Layout
) -> tuple[str, ...]:
  feature = _label_feature(builder.info.features, layout)
  names = feature.names or [str(k) for k in range(feature.num_classes)]
  if not layout.label_name:
    return tuple(names)
  # Named in the records alone. They are shuffled: some hundreds tell.
  named = {}
  for split in builder.info.splits:
    for record in builder.as_data_source(split, decoders=_decoders(builder)):
      text = record[layout.label_name].decode().replace("_", " ")
      named.setdefault(int(record[layout.label]), text)
      if len(named) == feature.num_classes:
        break
  return tuple(named.get(k, name) for k, name in enumerate(names))
