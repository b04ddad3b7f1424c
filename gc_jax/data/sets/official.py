"""Data sets that come as official archives: find, check and prepare them.

ImageNet and COCO are archives that users fetch themselves. Their pictures are
copied byte by byte into array_record files, once; then the archives are no
longer needed.
"""

import contextlib
import functools
import json
import os
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from gc_jax.data import DATASETS, storage
from gc_jax.data.dataset import Dataset, Records
from gc_jax.runtime.messages import unknown_name_message

_ORDER_SEED = 0


class Release(NamedTuple):
  """The official files of a data set."""

  entry: str  # of `DATASETS`
  name: str  # of the folder of prepared data
  version: str  # raise it when any record changes
  files: Mapping[str, Sequence[str]]  # split -> what it may be made from
  folder: str  # what --config.data.path must be the folder of, for messages
  where: str  # the sentence that says where the files come from
  masks: bool  # whether objects have masks
  sliced: bool = False  # whether boxes are also kept as the release slices them

  def sizes(self, folder: pathlib.Path, split: str) -> dict[str, int]:
    """Returns name and size in bytes of the files of a split in a folder."""
    return {
      name: (folder / name).stat().st_size
      for name in self.files[split]
      if (folder / name).is_file()
    }

  def missing(self, folder: pathlib.Path, what: str) -> ValueError:
    """Returns the error for a file that is not there."""
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    return ValueError(
      f"--config.data.path={str(folder)!r} must hold {what}; it holds "
      f"{', '.join(there[:8]) or 'nothing'}. {self.where}"
    )

  def damaged(self, file: pathlib.Path | str, what: str) -> ValueError:
    """Returns the error for a file that is not whole."""
    return ValueError(
      f"{file} must be the whole official file and is damaged or cut short: "
      f"{what}. Fetch it again. {self.where}"
    )

  @contextlib.contextmanager
  def opened(self, file: pathlib.Path, mode: str = "r") -> Iterator[Any]:
    """Opens a zip or tar archive; every error in it names the file."""
    open_archive = zipfile.ZipFile if file.suffix == ".zip" else tarfile.open
    try:
      with open_archive(file, mode) as archive:
        yield archive
    except (
      *(tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError),
      RuntimeError,  # a zip that is encrypted, or compressed in an unknown way
    ) as error:
      if isinstance(error, OSError) and error.errno:
        raise  # the disk failed, not the archive
      raise self.damaged(file, f"reading it ends with: {error}") from error


class Builder(storage.ShardedBuilder, skip_registration=True):
  """Writes one split of a release as array_record files."""

  RELEASE: ClassVar[Release]

  def __init__(
    self,
    path: pathlib.Path,
    split: str,
    class_names: Sequence[str],
    **kwargs: Any,
  ):
    self.path, self.split, self.class_names = path, split, class_names
    super().__init__(config=tfds.core.BuilderConfig(name=split), **kwargs)

  def parts(self) -> list[Sequence[Any]]:
    """Returns what `examples` takes, one part for each shard."""
    raise NotImplementedError

  def examples(
    self, part: Sequence[Any]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (file name, record) of one shard, in order."""
    raise NotImplementedError

  def _create_builder_config(self, builder_config, version):
    return builder_config

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=storage.features(
        self.class_names,
        masks=self.RELEASE.masks,
        sliced=self.RELEASE.sliced,
        file_names=True,
      ),
      license=DATASETS[self.RELEASE.entry].license,
      disable_shuffling=True,
    )

  def sources(self) -> dict[str, int]:
    """See the base class."""
    return self.RELEASE.sizes(self.path, self.split)

  def _shard_iterators_per_split(self, dl_manager):
    parts = self.parts()
    return {self.split: [functools.partial(self.examples, p) for p in parts]}


def locate(
  release: Release,
  split: str,
  path: str | os.PathLike,
  data_dir: str | os.PathLike,
) -> tuple[pathlib.Path | None, pathlib.Path]:
  """Returns the folder of the files, None if not given, and the prepared one.

  A `path` of "" is enough once the split is prepared.

  Raises:
    ValueError: the split is unknown, or it is not prepared and `path` is no
      folder.
  """
  base = split.split("[")[0]
  if base not in release.files:
    raise ValueError(unknown_name_message("split", split, release.files))
  folder = pathlib.Path(os.path.expanduser(path)) if str(path) else None
  final = storage.folder_of(release.name, base, release.version, data_dir)
  if not final.exists() and not (folder and folder.is_dir()):
    raise ValueError(
      f"--config.data.path={str(path)!r} must be the folder of "
      f"{release.folder}. {release.where}"
    )
  return folder, final


def load(
  builder_class: type[Builder],
  split: str,
  folder: pathlib.Path | None,
  final: pathlib.Path,
  is_mixed: bool = False,
) -> Dataset:
  """Returns a split of what `locate` found, prepared first if need be.

  `is_mixed` numbers the records in a random order, always the same.
  """
  base, release = final.parent.name, builder_class.RELEASE
  data_dir = final.parents[2]
  storage.prepare_shards(
    lambda: builder_class(folder, base, data_dir=data_dir), final
  )
  check_sources(final, release.sizes(folder, base) if folder else {})
  builder = tfds.builder_from_directory(final)
  part = storage.positions(builder, split)
  decoders = storage.decoders(masks=release.masks)
  source = builder.as_data_source(base, decoders=decoders)
  order = np.arange(len(source), dtype=np.int32)
  if is_mixed:
    order = np.random.default_rng(_ORDER_SEED).permutation(order)
  return Dataset(
    source=Records(source, order[part], _with_whole_labels),
    class_names=tuple(builder.info.features["labels"].feature.names),
    multi_label=DATASETS[release.entry].classes.multi_label,
    name=release.name,
  )


def _with_whole_labels(record: dict[str, Any]) -> dict[str, Any]:
  # TFDS reads no labels as an empty list, which numpy takes for floats.
  return {**record, "labels": np.asarray(record["labels"], np.int64)}


def check_sources(final: pathlib.Path, sources: dict[str, int]) -> None:
  """Raises ValueError if a prepared folder was made from other archives.

  `sources` is name -> size in bytes of those there are now; others may be gone.
  """
  facts = json.loads((final / storage.FACTS).read_text())
  for name, size in sources.items():
    was = facts["sources"].get(name)
    if was != size:
      known = "did not know it" if was is None else f"saw {was:,} bytes"
      raise ValueError(
        f"{final} must come from the archives in --config.data.path, and "
        f"{name} has {size:,} bytes now where the preparation {known}; set "
        "--config.data.dir to another folder, or remove that one."
      )
