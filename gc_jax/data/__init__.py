"""Data sets by name. Batches of them: `gc_jax.data.pipeline`.

Each entry of `DATASETS` imports its builder when called, so that importing
this package costs nothing. Beside them, "tfds:NAME" is a stock set of TFDS.
"""

import functools
from collections.abc import Callable

import ml_collections

from gc_jax.data import stock_sets
from gc_jax.data.dataset import Dataset, unknown_name_message

__all__ = ["DATASETS", "Dataset", "check_name", "load"]


def _context(
  config_data: ml_collections.ConfigDict,
  split: str,
  *,
  objects: str,
  multi_label: bool = False,
) -> Dataset:
  from gc_jax.data import context_digits, context_fashion, context_objects

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
  from gc_jax.data import imagenet

  return imagenet.load(split, path=config_data.path, data_dir=config_data.dir)


def _coco(config_data: ml_collections.ConfigDict, split: str) -> Dataset:
  from gc_jax.data import coco

  return coco.load(split, path=config_data.path, data_dir=config_data.dir)


def _folder(config_data: ml_collections.ConfigDict, split: str) -> Dataset:
  from gc_jax.data import folder

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
    config_data: `config.data` of configs/base.py.
    split: a split's name, or a part of one in the notation of TFDS:
      "train[:100]", "train[:10%]".

  Raises:
    ValueError: if there is no such data set or split, or a field of
      `config_data` is out of range.
  """
  check_name(config_data.name)
  if config_data.name.startswith(stock_sets.PREFIX):
    from gc_jax.data import stock

    return stock.load(config_data.name, split, data_dir=config_data.dir)
  return DATASETS[config_data.name](config_data, split)
