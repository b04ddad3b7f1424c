"""Prepares large archives shard by shard, so that a killed run goes on.

TFDS prepares whole or not at all: 140 GB would start anew after a lost machine,
and its shuffling writes everything twice. Here each shard is written once,
under a name that it gets when it is complete; the next run keeps what is there.
The result is an ordinary TFDS folder that `tfds.builder_from_directory` reads.
"""

import collections
import json
import os
import pathlib
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from array_record.python import array_record_module

from gc_jax.data.prepare import claim

FACTS = "facts.json"  # beside dataset_info.json: sources, counts
_SILENT_SECS = 60  # between two lines of progress where there is no bar


class ShardedBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """A builder whose shards can be made one by one, in any run.

  `_shard_iterators_per_split` gives one split, the one the builder's config is
  named after: whoever only evaluates needs only the archive of that split.

  Attributes:
    counts: what was odd in the records and how often; their iterators count.
    archive_counts: what was odd in archives that every run reads whole.
  """

  def __init__(self, **kwargs: Any):
    super().__init__(**kwargs, file_format="array_record")
    self.counts: collections.Counter[str] = collections.Counter()
    self.archive_counts: collections.Counter[str] = collections.Counter()

  def sources(self) -> dict[str, int]:
    """Returns name and size in bytes of every archive that is read."""
    raise NotImplementedError

  def num_examples(self) -> int | None:
    """Returns how many there will be, where that is known beforehand."""
    return None


def folder_of(name: str, split: str, version: str, data_dir: str | os.PathLike):
  """Returns where TFDS keeps a set whose config is named after its split."""
  root = os.path.expanduser(data_dir or "~/tensorflow_datasets")
  return pathlib.Path(root).absolute() / name / split / version


def prepare_shards(
  make_builder: Callable[[], ShardedBuilder], final: pathlib.Path
) -> None:
  """Writes what `make_builder` gives into `final`, unless it is there.

  Args:
    make_builder: called only if something is to be written. Reads archives.
    final: a name that the folder gets when it is complete.

  Raises:
    ValueError: if `final` cannot be written, or the archives are not sound.
  """
  if final.exists():
    return
  with claim(final, final.parents[1].name) as locked:
    if not final.exists():
      # Where nothing can be locked, two runs must not write the same parts.
      # Containers of two hosts may have the same number.
      process = f"process{socket.gethostname()}-{os.getpid()}"
      mark = "parts" if locked else process
      _prepare(make_builder(), final, mark)


def read_facts(final: pathlib.Path, sources: dict[str, int]) -> dict[str, Any]:
  """Returns the facts of a prepared folder.

  Args:
    final: the folder.
    sources: name and size of the archives that are there now; none is fine.

  Raises:
    ValueError: if it was made from other archives.
  """
  facts = json.loads((final / FACTS).read_text())
  for name, size in sources.items():
    was = facts["sources"].get(name)
    if was != size:
      known = "did not know it" if was is None else f"saw {was:,} bytes"
      raise ValueError(
        f"{final} must come from the archives in --config.data.path, and "
        f"{name} has {size:,} bytes now where the preparation {known}; set "
        "--config.data.dir to another folder, or remove that one."
      )
  return facts


def _prepare(builder: ShardedBuilder, final: pathlib.Path, mark: str) -> None:
  start = time.monotonic()
  parts = final.parent / f"incomplete.{mark}_{final.name}"
  _open_parts(parts, builder.sources())
  ((split, shards),) = builder._shard_iterators_per_split(None).items()
  names = [
    f"{builder.name}-{split}.array_record-{i:05d}-of-{len(shards):05d}"
    for i in range(len(shards))
  ]
  kept = sum(_finished(parts / name) is not None for name in names)
  if kept:
    _say(f"Continuing: {kept} of {len(shards)} parts of {split} are there")

  done, said = [], start
  # disable=None: no bar where stderr is not a terminal.
  with tqdm.tqdm(
    total=builder.num_examples(),
    desc=f"Preparing {builder.name}/{split}",
    unit=" images",
    leave=False,
    disable=None,
  ) as bar:
    for i, (name, examples) in enumerate(zip(names, shards, strict=True)):
      finished = _finished(parts / name)
      if finished is None:
        finished = _write(builder, parts / name, examples, bar)
      else:
        bar.update(finished["num_examples"])
      done.append(finished)
      if bar.disable and time.monotonic() - said > _SILENT_SECS:
        said = time.monotonic()
        _say(
          f"Preparing {builder.name}/{split}: {i + 1} of {len(shards)} parts"
        )

  counts = builder.archive_counts.copy()
  for finished in done:
    counts.update(finished["counts"])
  lengths = [finished["num_examples"] for finished in done]
  if not sum(lengths):
    shutil.rmtree(parts)
    raise ValueError(
      f"{builder.name}/{split} must have images, and the archives have none "
      f"({', '.join(builder.sources())}); see that they are those that "
      "--config.data.path should hold."
    )
  wanted = builder.num_examples()
  if wanted is not None and sum(lengths) != wanted:
    raise ValueError(
      f"{builder.name}/{split} must have {wanted:,} images, and the archives "
      f"have {sum(lengths):,} ({', '.join(builder.sources())}); fetch those "
      "that are cut short again."
    )
  builder.info.set_splits(
    tfds.core.splits.SplitDict(
      [
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=lengths,
          num_bytes=sum(finished["num_bytes"] for finished in done),
        )
      ]
    )
  )
  builder.info.write_to_directory(parts)
  facts = {
    "sources": builder.sources(),
    "counts": dict(sorted(counts.items())),
  }
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
    f"Prepared {sum(lengths):,} images of {builder.name}/{split} in {final}: "
    f"{time.monotonic() - start:.1f} s{odd}"
  )


def _open_parts(parts: pathlib.Path, sources: dict[str, int]) -> None:
  """Makes the folder of parts; empties one made from other archives."""
  made_from = parts / "finished" / "sources.json"
  was = json.loads(made_from.read_text()) if made_from.exists() else {}
  if was != sources:
    if was:
      other = sorted(dict(was.items() ^ sources.items()))
      _say(
        f"Starting anew in {parts}: what is there was made from other archives "
        f"({', '.join(other)} came, went or changed)"
      )
    shutil.rmtree(parts, ignore_errors=True)
    made_from.parent.mkdir(parents=True)
    _replace(made_from, json.dumps(sources))


def _finished(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns what is known of a shard; None unless it is whole."""
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
  _replace(note, json.dumps(finished))
  return finished


def _replace(path: pathlib.Path, text: str) -> None:
  unfinished = path.with_name(f"{path.name}.unfinished")
  unfinished.write_text(text)
  unfinished.replace(path)


def _say(line: str) -> None:
  print(line, file=sys.stderr)


class Reordered:
  """Records of a source by other numbers: some of them, in another order."""

  def __init__(self, source: Any, indices: np.ndarray):
    self._source = source
    self._indices = indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Any:
    return self._source[int(self._indices[index])]


def positions(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[range]:
  """Yields which examples of the whole split a part of it names.

  Args:
    builder: knows how many examples its split has.
    split: in the notation of TFDS, of one split: "train[99%:]+train[:10]".

  Raises:
    ValueError: if it is not understood, or names more than one split; or if
      the split has no examples.
  """
  if not any(info.num_examples for info in builder.info.splits.values()):
    raise ValueError(
      f"{builder.data_path} must hold prepared images and holds none; remove "
      "it, so that it is made anew."
    )
  try:
    spec = tfds.core.ReadInstruction.from_spec(split)
    parts = spec.to_absolute(builder.info.splits)
    if len(names := sorted({part.splitname for part in parts})) > 1:
      raise ValueError(f"its parts are of {' and '.join(names)}")
    for part in parts:
      total = builder.info.splits[part.splitname].num_examples
      start = 0 if part.from_ is None else part.from_
      yield range(total)[start : part.to]
  except (AssertionError, KeyError, ValueError) as error:
    raise ValueError(
      f"split={split!r} must be a split or a part of one, such as "
      f"'train[:10%]': {error}"
    ) from error
