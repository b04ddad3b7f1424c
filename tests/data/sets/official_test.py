"""What ImageNet and COCO share: official archives, prepared once and whole."""

import os
import re
import shutil
import signal
import subprocess
import sys
import types
from typing import NamedTuple

import pytest

from gc_jax.data.sets import coco, imagenet, official
from tests.data import archives
from tests.data.archives import digest, refused


class Case(NamedTuple):
  module: types.ModuleType
  builder: str
  train: str  # the archive of training pictures
  others: tuple[str, ...]  # what training needs besides
  website: str
  num_validation: int


CASES = {
  "imagenet": Case(
    imagenet,
    "Imagenet",
    "ILSVRC2012_img_train.tar",
    ("ILSVRC2012_devkit_t12.tar.gz",),
    "https://image-net.org",
    archives.NUM_VALIDATION,
  ),
  "coco": Case(
    coco,
    "Coco2014",
    "train2014.zip",
    ("annotations_trainval2014.zip",),
    "https://cocodataset.org",
    archives.NUM_COCO["validation"],
  ),
}


@pytest.fixture(scope="module", params=CASES)
def built(request, tmp_path_factory):
  """Returns a case, its archives, and the folder of both splits prepared."""
  case = CASES[request.param]
  folder = tmp_path_factory.mktemp(request.param)
  build = {"imagenet": archives.build_imagenet, "coco": archives.build_coco}
  build[request.param](folder)
  data_dir = tmp_path_factory.mktemp("tfds")
  for split in ("train", "validation"):
    case.module.load(split, path=folder, data_dir=data_dir)
  return case, folder, data_dir


@pytest.fixture
def broken(built, tmp_path):
  """Returns a case and a copy of its archives, to break."""
  case, folder, _ = built
  return case, shutil.copytree(folder, tmp_path / "archives")


def test_prepared_data_is_read_without_the_archives(built, monkeypatch):
  case, folder, data_dir = built
  monkeypatch.setattr(official.Release, "opened", lambda *_: pytest.fail())
  for path in (folder, ""):
    assert len(case.module.load("train", path=path, data_dir=data_dir).source)


def test_parts_of_a_split_make_the_whole(built):
  case, _, data_dir = built

  def names(split):
    dataset = case.module.load(split, path="", data_dir=data_dir)
    return [record["file_name"] for record in dataset.source]

  whole, first = names("train"), names("train[:60%]")
  assert first + names("train[60%:]") == whole
  assert len(first) == round(0.6 * len(whole))
  assert names("validation[3:5]") == names("validation")[3:5]


def test_an_unknown_split_is_answered(built):
  case, _, data_dir = built
  with pytest.raises(ValueError, match=r"split='train\[:x\]' must be a split"):
    case.module.load("train[:x]", path="", data_dir=data_dir)
  with pytest.raises(ValueError, match="Did you mean 'validation'"):
    case.module.load("validaton", path="", data_dir=data_dir)


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_without_a_folder_the_message_says_what_to_set(built, tmp_path, path):
  case = built[0]
  message = refused(case.module, path and tmp_path / path, tmp_path)
  assert re.search(r"--config.data.path='.*' must be the folder of", message)
  assert case.website in message


def test_a_missing_file_is_named_with_where_to_get_it(broken, tmp_path):
  case, folder = broken
  for name in (case.train, *case.others):
    (folder / name).rename(tmp_path / "away")
    message = refused(case.module, folder, tmp_path)
    assert f"--config.data.path='{folder}' must hold {name}" in message
    assert "it holds " in message and case.website in message
    (tmp_path / "away").rename(folder / name)


def test_a_split_needs_only_its_own_pictures(broken, tmp_path):
  case, folder = broken
  (folder / case.train).unlink()
  dataset = case.module.load("validation", path=folder, data_dir=tmp_path)
  assert len(dataset.source) == case.num_validation


@pytest.mark.parametrize(
  "change",
  [
    lambda whole: b"",
    lambda whole: whole[: len(whole) * 6 // 10],
    lambda whole: whole[: len(whole) * 9 // 10],
    lambda whole: b"<html>please log in</html>" * 99,
  ],
)
def test_a_file_that_is_not_whole_is_named(broken, tmp_path, change):
  case, folder = broken
  for name in (case.train, *case.others):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(change(whole))
    message = refused(case.module, folder, tmp_path)
    assert f"{name} must be the whole official file and is damaged" in message
    (folder / name).write_bytes(whole)


def test_prepared_data_of_other_archives_is_not_taken_for_these(
  broken, tmp_path
):
  case, folder = broken
  case.module.load("train", path=folder, data_dir=tmp_path)
  with (folder / case.train).open("ab") as file:
    file.write(bytes(10_240))
  with pytest.raises(
    ValueError,
    match=rf"{case.train} has [\d,]+ bytes now where .* saw [\d,]+ bytes; set "
    r"--config.data.dir",
  ):
    case.module.load("train", path=folder, data_dir=tmp_path)


PROGRAM = """
import importlib, os, signal, sys
from gc_jax.data.sets import coco

coco._SHARD_IMAGES = 10
module = importlib.import_module(sys.argv[1])
builder = getattr(module, sys.argv[2])
example, seen = builder._example, []

def deadly(*arguments):
  seen.append(1)
  if len(seen) == 25:
    os.kill(os.getpid(), signal.SIGKILL)
  return example(*arguments)

builder._example = deadly
module.load("train", path=sys.argv[3], data_dir=sys.argv[4])
"""


def test_after_kill_9_the_next_run_goes_on_and_gives_the_same(
  built, tmp_path, capsys, monkeypatch
):
  case, folder, data_dir = built
  names = case.module.__name__, case.builder
  died = subprocess.run(
    [sys.executable, "-c", PROGRAM, *names, folder, tmp_path],
    env={**os.environ, "PYTHONPATH": os.getcwd()},
    capture_output=True,
    text=True,
  )
  assert died.returncode == -signal.SIGKILL, died.stderr
  (parts,) = tmp_path.glob("*/train/incomplete.parts_*")
  shards = parts.glob("*array_record-*-of-*")
  inodes = {path.name: path.stat().st_ino for path in shards}
  finished = {k: i for k, i in inodes.items() if "unfinished" not in k}
  assert len(inodes) == 3 and len(finished) == 2
  monkeypatch.setattr(coco, "_SHARD_IMAGES", 10)
  dataset = case.module.load("train", path=folder, data_dir=tmp_path)
  assert "Continuing: 2 of 4 parts" in capsys.readouterr().err
  (prepared,) = tmp_path.glob("*/train/1.*")
  (whole,) = data_dir.glob("*/train/1.*")
  for name, inode in finished.items():
    assert (prepared / name).stat().st_ino == inode, f"{name} is another file"
  assert not list(prepared.glob("*finished*"))
  expected = case.module.load("train", path="", data_dir=data_dir)
  assert digest(dataset) == digest(expected)
  # Counts of the killed run are not added to those of the next.
  assert (prepared / "facts.json").read_text() == (
    whole / "facts.json"
  ).read_text()
