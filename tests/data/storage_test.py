"""Preparing shard by shard, on shards that are numbers."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gc_jax.data import storage
from gc_jax.data.sets import official


class Numbers(storage.ShardedBuilder, skip_registration=True):
  """Writes 0..8 in three shards; the second may break."""

  name = "numbers"
  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, *, promised=9, breaks=False, size=9, **kwargs):
    self.promised, self.breaks, self.size = promised, breaks, size
    self.written = []
    super().__init__(config=tfds.core.BuilderConfig(name="train"), **kwargs)

  def _create_builder_config(self, builder_config, version):
    return builder_config

  def _info(self):
    features = tfds.features.FeaturesDict({"number": np.int64})
    return tfds.core.DatasetInfo(builder=self, features=features)

  def sources(self):
    return {"numbers.txt": self.size}

  def num_examples(self):
    return self.promised

  def _shard_iterators_per_split(self, dl_manager):
    def examples(start):
      for i in range(start, start + 3):
        if self.breaks and i == 4:
          raise ValueError("the archive breaks off")
        self.counts["even numbers"] += i % 2 == 0
        yield i, {"number": i}
      self.written.append(start)

    return {"train": [lambda s=s: examples(s) for s in (0, 3, 6)]}


@pytest.fixture
def final(tmp_path):
  return storage.folder_of("numbers", "train", "1.0.0", tmp_path)


def prepare(final, **kwargs):
  """Returns the starts of the shards that were written."""
  builder = Numbers(data_dir=final.parents[2], **kwargs)
  storage.prepare_shards(lambda: builder, final)
  return builder.written


def read(final, split="train"):
  builder = tfds.builder_from_directory(final)
  source = builder.as_data_source("train")
  return [int(source[i]["number"]) for i in storage.positions(builder, split)]


def counts(final):
  return json.loads((final / storage.FACTS).read_text())["counts"]


def test_what_is_written_is_an_ordinary_folder_of_tfds(final, capsys):
  assert prepare(final) == [0, 3, 6]
  assert read(final) == list(range(9))
  official.check_sources(final, {"numbers.txt": 9})
  assert counts(final) == {"even numbers": 5}
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("Prepared 9 images of numbers/train in")
  assert line.endswith("5 even numbers")
  storage.prepare_shards(lambda: pytest.fail("asked again"), final)


def test_a_run_that_breaks_keeps_its_finished_shards(final, capsys):
  with pytest.raises(ValueError, match="breaks off"):
    prepare(final, breaks=True)
  assert not final.exists()
  assert prepare(final) == [3, 6]
  assert "Continuing: 1 of 3 parts of train" in capsys.readouterr().err
  assert read(final) == list(range(9))
  assert counts(final) == {"even numbers": 5}


def test_parts_of_other_archives_are_not_kept(final, capsys):
  with pytest.raises(ValueError, match="breaks off"):
    prepare(final, breaks=True)
  assert prepare(final, size=8) == [0, 3, 6]
  said = capsys.readouterr().err
  assert "from other archives (numbers.txt came" in said
  assert "Continuing" not in said


def test_a_run_that_ends_just_before_the_end_keeps_all_shards(
  final, monkeypatch
):
  def stop(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    rename = type(final).rename
    patch.setattr(
      type(final),
      "rename",
      lambda self, to: stop() if to == final else rename(self, to),
    )
    prepare(final)
  assert prepare(final) == []
  assert read(final) == list(range(9))
  assert not (final / "finished").exists()


def test_a_shard_that_lost_bytes_after_all_is_written_again(final):
  with pytest.raises(ValueError, match="breaks off"):
    prepare(final, breaks=True)
  (shard,) = final.parent.glob("incomplete.parts_*/*-00000-of-00003")
  shard.write_bytes(shard.read_bytes()[:-1])
  assert prepare(final) == [0, 3, 6]
  assert read(final) == list(range(9))


def test_fewer_examples_than_known_beforehand_are_an_error(final):
  with pytest.raises(
    ValueError,
    match=r"numbers/train must have 10 images, and the archives have 9 "
    r"\(numbers.txt\); fetch",
  ):
    prepare(final, promised=10)
  assert not final.exists()


def test_no_examples_are_an_error_and_nothing_is_kept(final, monkeypatch):
  monkeypatch.setattr(
    Numbers,
    "_shard_iterators_per_split",
    lambda self, _: {"train": [lambda: iter([]), lambda: iter([])]},
  )
  for _ in range(2):
    with pytest.raises(
      ValueError,
      match=r"numbers/train must have images, .* have none \(numbers.txt\)",
    ):
      prepare(final, promised=None)
    assert not list(final.parent.iterdir())
  monkeypatch.undo()
  assert prepare(final) == [0, 3, 6]


def test_a_prepared_set_without_examples_is_not_taken_for_one(
  final, monkeypatch
):
  """Runs of before made them from archives that held nothing they knew."""
  prepare(final)
  for shard in final.glob("*.array_record*"):
    shard.unlink()
  info = final / "dataset_info.json"
  text = info.read_text()
  assert '"3"' in text
  info.write_text(text.replace('"3"', '"0"'))
  builder = tfds.builder_from_directory(final)
  with pytest.raises(ValueError, match=r"holds none; remove it, so that"):
    storage.positions(builder, "train")


def test_without_a_bar_progress_comes_in_lines(final, capsys, monkeypatch):
  monkeypatch.setattr(storage, "_SILENT_SECS", -1)
  prepare(final)
  said = capsys.readouterr().err
  for i in (1, 2, 3):
    assert f"Preparing numbers/train: {i} of 3 parts" in said


def test_without_locks_two_runs_do_not_share_their_parts(final, no_locks):
  parts = final.parent / "incomplete.parts_1.0.0"
  parts.mkdir(parents=True)
  assert prepare(final) == [0, 3, 6]
  assert not list(parts.iterdir()), "they may be another's"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
  (tmp_path / "numbers").write_text("not a folder")
  final = storage.folder_of("numbers", "train", "1.0.0", tmp_path)
  with pytest.raises(
    ValueError, match=r"numbers must be prepared in .*; set --config.data.dir"
  ):
    storage.prepare_shards(lambda: pytest.fail("too late"), final)


@pytest.mark.parametrize(
  ("split", "expected"),
  [
    ("train[:2]", [0, 1]),
    ("train[-2:]", [7, 8]),
    ("train[:2]+train[8:]", [0, 1, 8]),
    ("train[4:5]", [4]),
    ("train[1shard]", [3, 4, 5]),
  ],
)
def test_parts_of_a_split_are_named_as_tfds_names_them(final, split, expected):
  prepare(final)
  assert read(final, split) == expected


def test_data_of_other_archives_is_refused(final):
  prepare(final)
  assert json.loads((final / storage.FACTS).read_text())["sources"]
  with pytest.raises(ValueError, match=r"numbers.txt has 8 bytes now where"):
    official.check_sources(final, {"numbers.txt": 8})
  with pytest.raises(ValueError, match=r"the preparation did not know it"):
    official.check_sources(final, {"more.txt": 8})
