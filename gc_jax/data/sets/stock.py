"""Stock sets of tensorflow-datasets (TFDS), read without TensorFlow.

`data.name="tfds:NAME[/CONFIG]"`. A prepared TFDS directory is read where it
is; otherwise the set is downloaded and prepared on first use. Which features
hold what is a table, `gc_jax.data.sets.stock_sets`.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gc_jax.data import decode
from gc_jax.data.dataset import Dataset, Records, warn_once
from gc_jax.data.sets import shapes, stock_prepare, stock_sets
from gc_jax.data.sets.stock_sets import PREFIX, Layout
from gc_jax.data.storage import parts_of
from gc_jax.runtime.messages import unknown_name_message


def load(name: str, split: str, *, data_dir: str | os.PathLike = "") -> Dataset:
  """Returns a split, downloaded and prepared first where it is not there.

  Args:
    name: "voc/2007", with or without `PREFIX`.
    split: train, validation or test as `stock_sets.map_splits` says, another
      split of the set, or parts of them: "train[:100]", "train+validation".
    data_dir: "" = TFDS's own default.

  Raises:
    ValueError: there is no such set or split, its features are not enough, or
      it cannot be read or prepared here. Says what to do.
  """
  builder = stock_prepare.open_prepared(
    name.removeprefix(PREFIX), os.path.expanduser(data_dir), _check_features
  )
  layout = _layout(builder)
  full_name = PREFIX + builder.info.full_name
  source = builder.as_data_source(
    _resolve_split(builder, layout, split, full_name),
    decoders=_decoders(builder),
  )
  if not layout.has_objects:
    warn_once(
      f"{full_name} does not say where its objects are: localisation metrics "
      "stay empty."
    )
  convert = functools.partial(record_of, layout)
  return Dataset(
    source=Records(source, np.arange(len(source)), convert),
    class_names=_class_names(builder, layout),
    multi_label=not layout.label,
    name=full_name,
  )


def _layout(builder: tfds.core.DatasetBuilder) -> Layout:
  config = builder.builder_config
  return stock_sets.find_layout(builder.name, config.name if config else "")


def _check_features(builder: tfds.core.DatasetBuilder) -> None:
  """Raises ValueError if the set's features are not enough for a record."""
  features, layout = builder.info.features, _layout(builder)
  names = set()
  if isinstance(features, tfds.features.FeaturesDict):
    names = set(features.keys())
  if not (
    {"image", layout.label or layout.objects} <= names
    and isinstance(features["image"], tfds.features.Image)
    and isinstance(_label_feature(features, layout), tfds.features.ClassLabel)
  ):
    raise ValueError(
      f"--config.data.name='{PREFIX}{builder.name}' must have an "
      f"image and a class label to classify; its features are "
      f"{', '.join(sorted(names)) or type(features).__name__}. Sets that are "
      f"known to work: {', '.join(PREFIX + k for k in stock_sets.EXAMPLES)}."
    )


def _label_feature(features: Any, layout: Layout) -> Any:
  if layout.label:
    return features[layout.label]
  return features[layout.objects].feature["label"]


def _decoders(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
  """Returns decoders that leave images and masks encoded."""
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
  lengths = {each: info.shard_lengths for each, info in own.items()}
  ours = {k: parts_of(theirs, lengths)[0] for k, theirs in mapped.items()}
  lengths = {each: [len(examples)] for each, (_, examples) in ours.items()}
  parts = []
  for each, part in parts_of(split, lengths):
    theirs, examples = ours[each]
    part = examples[part.start : part.stop]
    parts.append(f"{theirs}[{part.start}:{part.stop}]")
  return "+".join(parts)


def _class_names(
  builder: tfds.core.DatasetBuilder, layout: Layout
) -> tuple[str, ...]:
  feature = _label_feature(builder.info.features, layout)
  names = feature.names or [str(k) for k in range(feature.num_classes)]
  if not layout.label_name:
    return tuple(names)
  # Only the records name them. They are shuffled: some hundreds tell.
  named = {}
  for split in builder.info.splits:
    for record in builder.as_data_source(split, decoders=_decoders(builder)):
      text = record[layout.label_name].decode().replace("_", " ")
      named.setdefault(int(record[layout.label]), text)
      if len(named) == feature.num_classes:
        break
  return tuple(named.get(k, name) for k, name in enumerate(names))


def record_of(layout: Layout, record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a record of TFDS in the form of `Dataset`, pictures encoded."""
  objects = _objects(layout, record)
  # Of difficult ones as well: they are there, and a picture that holds one must
  # not be a distractor for its class. Pointing games may skip them.
  labels = [record[layout.label]] if layout.label else objects["label"]
  converted = {"image": record["image"], "labels": [int(k) for k in labels]}
  for feature in stock_sets.FILE_NAMES:
    if isinstance(record.get(feature), bytes):
      converted["name"] = record[feature].decode(errors="replace")
      break
  if objects is not None:
    converted["objects"] = objects
  return converted


def _objects(
  layout: Layout, record: Mapping[str, Any]
) -> dict[str, Any] | None:
  if layout.objects:
    found = record[layout.objects]
    count = len(found["bbox"])
    label = record[layout.label] if layout.label else None
    return {
      "label": found.get("label", np.full(count, label)),
      "bbox": found["bbox"],
      "difficult": found.get("is_difficult", np.zeros(count, bool)),
    }
  if not layout.has_objects:
    return None
  objects = {
    "label": np.array([record[layout.label]]),
    "difficult": np.zeros(1, bool),
  }
  if layout.mask:
    mask = record[layout.mask], layout.mask_levels
    objects["mask"] = _Lazy(_encoded_mask, *mask)
    objects["bbox"] = _Lazy(_box_of_mask, *mask)
  if layout.box:
    objects["bbox"] = np.asarray(record[layout.box])[None]
  return objects


class _Lazy(Sequence):
  """The one value of one object, made when it is asked for.

  Training never asks for masks, and decoding them costs as much as the image.
  """

  def __init__(self, make: Callable[..., Any], *args: Any):
    self._make = functools.cache(functools.partial(make, *args))

  def __len__(self) -> int:
    return 1

  def __getitem__(self, index: int) -> Any:
    return [self._make()][index]


def _inside(encoded: bytes, levels: frozenset[int]) -> np.ndarray:
  mask = decode.stored(decode.read_header(encoded))
  return np.isin(np.asarray(mask), list(levels))


def _encoded_mask(encoded: bytes, levels: frozenset[int]) -> bytes:
  inside = _inside(encoded, levels)
  return shapes.encode(inside) if inside.any() else b""  # the box stands


def _box_of_mask(encoded: bytes, levels: frozenset[int]) -> np.ndarray:
  """Returns ymin xmin ymax xmax in 0..1; the whole image without a pixel."""
  inside = _inside(encoded, levels)
  box = shapes.box_of_mask(inside)
  scaled = shapes.scaled_box(box, inside.shape[::-1]) if box else (0, 0, 1, 1)
  return np.array(scaled, np.float32)
