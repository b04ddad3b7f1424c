"""Prepared data on disk: what its records hold, and how it gets there.

`prepare` has TFDS prepare a builder, whole or not at all, once for all
processes that ask for it. `prepare_shards` is for large archives: with TFDS,
140 GB would start anew after a lost machine, and be written twice to shuffle
them. It writes each shard once and renames it when it is complete, so that the
next run goes on. Either result is an ordinary TFDS folder, which
`tfds.builder_from_directory` reads.
"""

import collections
import contextlib
import io
import json
import os
import pathlib
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from array_record.python import array_record_module
from jaxtyping import Int

from gc_jax.runtime import files

FACTS = "facts.json"  # beside dataset_info.json: sources, counts
_SILENT_SECS = 60  # between two lines of progress where there is no bar

# TFDS makes a temporary folder for each builder without data, to fetch its
# description from a bucket that is switched off, and leaves the folder behind.
tfds.core.DatasetInfo.initialize_from_bucket = lambda self: None


def features(
  class_names: Sequence[str],
  *,
  masks: bool,
  sliced: bool = False,
  file_names: bool = False,
  encoding_format: str | None = None,
) -> tfds.features.FeaturesDict:
  """Returns the TFDS features of a builder that writes our records.

  With `masks` each object has one, a PNG of the size of the image; with
  `sliced` its box also as the release slices it, see `Dataset`; with
  `file_names` records name the file they come from. `encoding_format` is that
  of the image; None = as it comes.
  """
  of = tfds.features
  label = of.ClassLabel(names=class_names)
  objects = {"label": label, "bbox": of.BBoxFeature(), "difficult": np.bool_}
  if masks:
    objects["mask"] = of.Image(shape=(None, None, 1), encoding_format="png")
  if sliced:
    objects["sliced"] = of.Tensor(shape=(4,), dtype=np.float32)
  record = {
    "image": of.Image(shape=(None, None, 3), encoding_format=encoding_format),
    "labels": of.Sequence(label),
    "objects": of.Sequence(objects),
  }
  if file_names:
    record["file_name"] = of.Text()
  return of.FeaturesDict(record)


def decoders(*, masks: bool) -> dict[str, Any]:
  """Returns TFDS decoders that leave images and masks encoded."""
  image = {"image": tfds.decode.SkipDecoding()}
  return image | ({"objects": {"mask": _SkipDecodingOfMany()}} if masks else {})


class _SkipDecodingOfMany(tfds.decode.SkipDecoding):
  """TFDS's own decoder skips single values only, not those of a sequence."""

  def decode_batch_example_np(self, serialized_examples):
    return serialized_examples


def prepare(
  make_builder: Callable[[], tfds.core.DatasetBuilder],
  *,
  download_config: tfds.download.DownloadConfig | None = None,
  show_progress: bool = False,
) -> tfds.core.DatasetBuilder:
  """Returns a builder whose data is on disk.

  `show_progress` has TFDS draw its own bars, on a terminal.

  Raises:
    ValueError: if the TFDS directory cannot be written to.
  """
  builder = make_builder()
  final = pathlib.Path(builder.data_path)
  if final.exists():
    return builder
  with _claim(final, builder.name) as locked:
    if not final.exists():
      if locked:  # then the processes that made these are dead
        for stale in final.parent.glob(f"incomplete.*_{final.name}"):
          shutil.rmtree(stale)
      with_bars = show_progress and sys.stderr.isatty()
      _prepare(builder, final, download_config, with_bars)
  return make_builder()  # a builder reads its splits from disk when it is made


@contextlib.contextmanager
def _claim(final: pathlib.Path, name: str) -> Iterator[bool]:
  """Holds the right to write `final`; waits while another process does.

  Yields whether it is certain that no other process writes. Where it is not,
  two may prepare side by side, and the work of the second is thrown away.
  """
  lock_path = final.parent / f".{final.name}.lock"
  try:
    final.parent.mkdir(parents=True, exist_ok=True)
    lock_path.touch()
  except OSError as error:
    raise ValueError(
      f"{name} must be prepared in {final.parent}, which cannot be "
      f"written to ({error.strerror}); set --config.data.dir to a folder "
      "that can."
    ) from error

  waiting = lambda holder: _say(f"Waiting for {holder}, which prepares {name}")
  with files.locked(lock_path, waiting) as locked:
    yield locked


def _prepare(builder, final: pathlib.Path, download_config, with_bars) -> None:
  start = time.monotonic()
  if not with_bars:
    tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(download_config=download_config)
  except OSError:
    # The rename fails where another process, without a lock, was faster.
    if not final.exists():
      raise
    return
  finally:
    tfds.enable_progress_bar()
  secs = time.monotonic() - start
  count = sum(split.num_examples for split in builder.info.splits.values())
  config = builder.builder_config
  name = f"{builder.name}/{config.name}" if config else builder.name
  _say(f"Prepared {count:,} images of {name} in {final}: {secs:.1f} s")


class ShardedBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """A builder whose shards can be made one by one, in any run.

  `_shard_iterators_per_split` gives one split, the one the builder's config is
  named after: an evaluation needs the archive of its own split only.
  """

  def __init__(self, **kwargs: Any):
    super().__init__(**kwargs, file_format="array_record")
    # Oddities and how often they occurred: of records, which the iterators
    # count; of archives that every run reads whole.
    self.counts: collections.Counter[str] = collections.Counter()
    self.archive_counts: collections.Counter[str] = collections.Counter()

  def sources(self) -> dict[str, int]:
    """Returns name -> size in bytes of every archive that is read."""
    raise NotImplementedError

  def num_examples(self) -> int | None:
    """Returns how many there will be; None if that is not known yet."""
    return None


def folder_of(name: str, split: str, version: str, data_dir: str | os.PathLike):
  """Returns where TFDS keeps a set whose config is named after its split."""
  root = os.path.expanduser(data_dir or "~/tensorflow_datasets")
  return pathlib.Path(root).absolute() / name / split / version


def prepare_shards(
  make_builder: Callable[[], ShardedBuilder], final: pathlib.Path
) -> None:
  """Writes the data of a builder into `final`, unless it is there.

  `make_builder` is called only if something is to be written.

  Raises:
    ValueError: if `final` cannot be written, or the archives are not sound.
  """
  if final.exists():
    return
  with _claim(final, final.parents[1].name) as locked:
    if not final.exists():
      # Where nothing can be locked, two runs must not write the same parts.
      # Processes in two containers may have the same number.
      process = f"process{socket.gethostname()}-{os.getpid()}"
      mark = "parts" if locked else process
      _prepare_parts(make_builder(), final, mark)


def _prepare_parts(
  builder: ShardedBuilder, final: pathlib.Path, mark: str
) -> None:
  start = time.monotonic()
  parts = final.parent / f"incomplete.{mark}_{final.name}"
  _open_parts(parts, builder.sources())
  ((split, shards),) = builder._shard_iterators_per_split(None).items()
  name, archives = f"{builder.name}/{split}", ", ".join(builder.sources())
  paths = [
    parts / f"{builder.name}-{split}.array_record-{i:05d}-of-{len(shards):05d}"
    for i in range(len(shards))
  ]
  kept = sum(_finished(path) is not None for path in paths)
  if kept:
    _say(f"Continuing: {kept} of {len(shards)} parts of {split} are there")

  done, said = [], start
  # disable=None: no bar where stderr is not a terminal.
  shown = {"desc": f"Preparing {name}", "unit": " images", "leave": False}
  with tqdm.tqdm(total=builder.num_examples(), disable=None, **shown) as bar:
    for path, examples in zip(paths, shards, strict=True):
      finished = _finished(path)
      if finished is None:
        finished = _write(builder, path, examples, bar)
      else:
        bar.update(finished["num_examples"])
      done.append(finished)
      if bar.disable and time.monotonic() - said > _SILENT_SECS:
        said = time.monotonic()
        _say(f"Preparing {name}: {len(done)} of {len(shards)} parts")

  counts = builder.archive_counts.copy()
  for finished in done:
    counts.update(finished["counts"])
  lengths = [finished["num_examples"] for finished in done]
  if not sum(lengths):
    shutil.rmtree(parts)
    raise ValueError(
      f"{name} must have images, and the archives have none ({archives}); see "
      "that they are those that --config.data.path should hold."
    )
  wanted = builder.num_examples()
  if wanted is not None and sum(lengths) != wanted:
    raise ValueError(
      f"{name} must have {wanted:,} images, and the archives have "
      f"{sum(lengths):,} ({archives}); fetch those that are cut short again."
    )
  info = tfds.core.SplitInfo(
    name=split,
    shard_lengths=lengths,
    num_bytes=sum(finished["num_bytes"] for finished in done),
  )
  builder.info.set_splits(tfds.core.splits.SplitDict([info]))
  builder.info.write_to_directory(parts)
  facts = {"sources": builder.sources(), "counts": dict(sorted(counts.items()))}
  (parts / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
  try:
    parts.rename(final)
  except OSError:
    # Another process, without a lock, was faster.
    if not final.exists():
      raise
    shutil.rmtree(parts)
    return
  # Not before: without its notes a finished part would be written again.
  shutil.rmtree(final / "finished")
  odd = "".join(f"; {n:,} {what}" for what, n in facts["counts"].items())
  _say(
    f"Prepared {sum(lengths):,} images of {name} in {final}: "
    f"{time.monotonic() - start:.1f} s{odd}"
  )


def _open_parts(parts: pathlib.Path, sources: dict[str, int]) -> None:
  """Makes the folder of parts; empties it if it is from other archives."""
  made_from = parts / "finished" / "sources.json"
  was = json.loads(made_from.read_text()) if made_from.exists() else {}
  if was != sources:
    if was:
      other = sorted(dict(was.items() ^ sources.items()))
      _say(
        f"Starting anew in {parts}: its parts were made from other archives "
        f"({', '.join(other)} came, went or changed)"
      )
    shutil.rmtree(parts, ignore_errors=True)
    made_from.parent.mkdir(parents=True)
    files.write_text(made_from, json.dumps(sources))


def _finished(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns the note about a shard; None unless the shard is whole."""
  note = path.parent / "finished" / f"{path.name}.json"
  if not note.exists():
    return None
  finished = json.loads(note.read_text())
  # A machine that lost its power may have kept the note and not the bytes.
  whole = path.exists() and path.stat().st_size == finished["num_bytes"]
  return finished if whole else None


def _write(builder, path: pathlib.Path, examples, bar) -> dict[str, Any]:
  before = builder.counts.copy()
  unfinished = path.with_name(f"{path.name}.unfinished")
  # One record a group: reading one then reads no other. Pictures are
  # compressed already.
  writer = array_record_module.ArrayRecordWriter(
    str(unfinished), "group_size:1,uncompressed"
  )
  num_examples = 0
  try:
    for _, example in examples():
      writer.write(builder.info.features.serialize_example(example))
      num_examples += 1
      bar.update()
  finally:
    writer.close()
  finished = {
    "num_examples": num_examples,
    "num_bytes": unfinished.stat().st_size,
    "counts": builder.counts - before,
  }
  unfinished.rename(path)
  # The note comes last: a shard without one is written again.
  note = path.parent / "finished" / f"{path.name}.json"
  files.write_text(note, json.dumps(finished))
  return finished


def _say(line: str) -> None:
  print(line, file=sys.stderr)


def parts_of(
  spec: str, shard_lengths: Mapping[str, Sequence[int]]
) -> list[tuple[str, range]]:
  """Returns the split and the examples of each part of "a[:10%]+b"."""
  splits = {
    name: tfds.core.SplitInfo(name, list(lengths), num_bytes=0)
    for name, lengths in shard_lengths.items()
  }
  every = {name: range(info.num_examples) for name, info in splits.items()}
  parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(splits)
  return [(p.splitname, every[p.splitname][p.from_ : p.to]) for p in parts]


def positions(
  builder: tfds.core.DatasetBuilder, split: str
) -> Int[np.ndarray, "n"]:
  """Returns the numbers, in the whole split, of the examples of a part.

  A part is named in the notation of TFDS: "train[99%:]+train[:10]".

  Raises:
    ValueError: if the part is not understood, or names more than one split; or
      if the split has no examples.
  """
  if not any(info.num_examples for info in builder.info.splits.values()):
    raise ValueError(
      f"{builder.data_path} must hold prepared images and holds none; remove "
      "it, so that it is made anew."
    )
  try:
    splits = builder.info.splits.items()
    parts = parts_of(split, {k: info.shard_lengths for k, info in splits})
    if len(names := sorted({name for name, _ in parts})) > 1:
      raise ValueError(f"its parts are of {' and '.join(names)}")
    return np.concatenate(
      [np.arange(p.start, p.stop, dtype=np.int32) for _, p in parts]
    )
  except (AssertionError, KeyError, ValueError) as error:
    raise ValueError(
      f"split={split!r} must be a split or a part of one, such as "
      f"'train[:10%]': {error}"
    ) from error
