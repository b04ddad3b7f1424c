"""Files on a disk and in a bucket."""

import pathlib

import fsspec
import pytest

from gc_jax.report import files


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
  if request.param == "disk":
    return tmp_path / "run"
  return request.getfixturevalue("bucket")


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_its_folders_and_replaced(folder):
  path = folder / "a" / "b.txt"
  files.write_text(path, "λ")
  files.write_text(str(path), "α")
  assert files.as_path(str(path)).read_text(encoding="utf-8") == "α"
  assert names(path.parent) == ["b.txt"]


def test_of_an_error_half_way_nothing_is_seen(folder):
  files.write_text(folder / "old", "old")
  for name in ("old", "new"):
    with pytest.raises(KeyError), files.replacing(folder / name) as file:
      file.write(b"half")
      raise KeyError
  assert names(folder) == ["old"]
  assert (folder / "old").read_text() == "old"


def test_a_folder_is_copied_with_all_below_it(folder, tmp_path):
  source = tmp_path / "source"
  files.write_text(source / "a" / "b", "1")
  files.write_text(source / "c", "2")
  files.copy_folder(source, folder)
  assert names(folder) == ["a", "c"]
  assert (folder / "a" / "b").read_bytes() == b"1"


def test_paths_on_disks_stay_what_they_are():
  assert files.as_path("runs/gc") == pathlib.Path("runs/gc")
  assert type(files.as_path("runs/gc")) is type(pathlib.Path())
  assert not files.is_in_bucket("runs/gs:")


def test_a_path_in_a_bucket_survives_being_joined(bucket):
  path = files.as_path("gs://bucket/run") / "results.json"
  assert str(path) == "gs://bucket/run/results.json"
  assert files.as_path(path) == path
  assert files.is_in_bucket(path)
  files.check_reachable(path)


@pytest.mark.parametrize("path", ["s3://bucket/run", "http://a/b", "gs://"])
def test_other_places_are_refused(path):
  with pytest.raises(ValueError, match="on a disk or in a bucket, gs://BUCKET"):
    files.as_path(path)


def test_a_bucket_without_gcsfs_says_what_to_install(monkeypatch):
  def missing(_):
    raise ImportError("no gcsfs")

  monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
  with pytest.raises(ValueError, match="pip install gcsfs, or use a folder"):
    files.as_path("gs://bucket/run")


def test_a_bucket_that_does_not_answer_says_what_to_check(bucket, monkeypatch):
  def exists(_):
    raise OSError("401")

  monkeypatch.setattr(type(bucket), "exists", exists)
  with pytest.raises(ValueError, match=r"can be reached: OSError: 401\. Check"):
    files.check_reachable(bucket)
