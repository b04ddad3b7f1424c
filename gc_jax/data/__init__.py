"""Data sets by name. Batches of them: `gc_jax.data.pipeline`.

Each entry of `DATASETS` imports its builder when called, so that importing
this package costs nothing. Beside them, "tfds:NAME" is a stock set of TFDS.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import ml_collections

from gc_jax.data.dataset import Dataset
from gc_jax.data.sets import stock_sets
from gc_jax.runtime import files
from gc_jax.runtime.messages import unknown_name_message

__all__ = ["DATASETS", "Classes", "Dataset", "check_name", "classes", "load"]


class Classes(NamedTuple):
  """What a classifier must know of a data set.

  Attributes:
    count: K.
    multi_label: whether an image may show several.
  """

  count: int
  multi_label: bool


# Sets whose classes are settled before any file of theirs is read; a test holds
# the numbers to the builders.
_SETTLED = {
  "context_digits": Classes(10, False),
  "context_digits_multi": Classes(10, True),
  "context_fashion": Classes(10, False),
  "context_fashion_multi": Classes(10, True),
  "context_objects": Classes(10, False),
  "context_objects_multi": Classes(10, True),
  "imagenet": Classes(1_000, False),
  "coco": Classes(80, True),
}


def _context(
  config_data: ml_collections.ConfigDict,
  split: str,
  *,
  objects: str,
  multi_label: bool = False,
) -> Dataset:
  from gc_jax.data.sets import context_digits, context_fashion, context_objects

  load_split = {
    "digits": context_digits.load,
    "fashion": context_fashion.load,
    "objects": context_objects.load,
  }[objects]
  return load_split(
    split,
    data_dir=config_data.dir,
    image_size=config_data.image_size,
    background_frac=config_data.background_frac,
    multi_label=multi_label,
  )


def _imagenet(config_data: ml_collections.ConfigDict, split: str) -> Dataset:
  from gc_jax.data.sets import imagenet

  return imagenet.load(split, path=config_data.path, data_dir=config_data.dir)


def _coco(config_data: ml_collections.ConfigDict, split: str) -> Dataset:
  from gc_jax.data.sets import coco

  return coco.load(split, path=config_data.path, data_dir=config_data.dir)


def _folder(config_data: ml_collections.ConfigDict, split: str) -> Dataset:
  from gc_jax.data.sets import folder

  return folder.load(
    split,
    path=config_data.path,
    data_dir=config_data.dir,
    on_error=config_data.on_error,
  )


# name -> (config.data, split) -> Dataset
DATASETS: dict[str, Callable[[ml_collections.ConfigDict, str], Dataset]] = {
  "context_digits": functools.partial(_context, objects="digits"),
  "context_digits_multi": functools.partial(
    _context, objects="digits", multi_label=True
  ),
  "context_fashion": functools.partial(_context, objects="fashion"),
  "context_fashion_multi": functools.partial(
    _context, objects="fashion", multi_label=True
  ),
  "context_objects": functools.partial(_context, objects="objects"),
  "context_objects_multi": functools.partial(
    _context, objects="objects", multi_label=True
  ),
  "imagenet": _imagenet,
  "coco": _coco,
  "folder": _folder,
}


def check_name(name: str) -> None:
  """Checks that there is a data set of this name, as far as names tell.

  Raises:
    ValueError: there is none; gives the nearest.
  """
  if name in DATASETS or name.startswith(stock_sets.PREFIX):
    return
  stock = [stock_sets.PREFIX + example for example in stock_sets.EXAMPLES]
  raise ValueError(
    unknown_name_message("--config.data.name", name, [*DATASETS, *stock])
  )


def load(config_data: ml_collections.ConfigDict, split: str) -> Dataset:
  """Returns a split of the data set `config_data.name`, prepared if need be.

  Args:
    config_data: `config.data` of runtime/config.py.
    split: a split's name, or a part of one in the notation of TFDS:
      "train[:100]", "train[:10%]".

  Raises:
    ValueError: if there is no such data set or split, or a field of
      `config_data` is out of range.
  """
  check_name(config_data.name)
  config_data = _with_paths(config_data)
  if config_data.name.startswith(stock_sets.PREFIX):
    from gc_jax.data.sets import stock

    return stock.load(config_data.name, split, data_dir=config_data.dir)
  return DATASETS[config_data.name](config_data, split)


def classes(config_data: ml_collections.ConfigDict, count: int = 0) -> Classes:
  """Returns the classes of the data set `config_data.name`, without its data.

  Of a folder the names in it are read. A folder that is not here is taken to
  be single-label.

  Args:
    config_data: `config.data` of runtime/config.py.
    count: of the classes, where only the user knows; 0 = look it up.

  Raises:
    ValueError: it cannot be known without data, and `count` is not given.
  """
  name = config_data.name
  check_name(name)
  if name in _SETTLED:
    return _SETTLED[name]._replace(count=count or _SETTLED[name].count)
  if name.startswith(stock_sets.PREFIX):
    stock = name.removeprefix(stock_sets.PREFIX)
    multi_label = not stock_sets.find_layout(*_named(stock)).label
  elif config_data.path and not count:
    from gc_jax.data.sets.folder_layout import read_layout

    layout = read_layout(_with_paths(config_data).path)
    return Classes(len(layout.class_names), layout.multi_label)
  else:
    multi_label = False
  if not count:
    raise ValueError(
      f"The number of classes of --config.data.name={name!r} must be known, "
      "and is only with its data; say it: --num_classes=K."
    )
  return Classes(count, multi_label)


def _with_paths(
  config_data: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Returns the fields with a home folder in place of each ~.

  Raises:
    ValueError: a path cannot be one; names the field.
  """
  found = config_data.copy_and_resolve_references()
  for field in ("path", "dir"):
    try:
      found[field] = found[field] and str(files.as_path(found[field]))
    except ValueError as error:
      raise ValueError(f"--config.data.{field}: {error}") from error
  return found


def _named(stock: str) -> tuple[str, str]:
  """Returns (name, config) of "voc/2007"; the config may be ""."""
  name, _, config = stock.partition("/")
  return name, config
