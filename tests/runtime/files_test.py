"""Files on a disk and in a bucket, their names, and who holds them."""

import errno
import fcntl
import logging
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading

import fsspec
import pytest

from gc_jax.runtime import files


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


def test_an_error_half_way_leaves_no_trace(folder):
  files.write_text(folder / "old", "old")
  for name in ("old", "new"):
    with pytest.raises(KeyError), files.replacing(folder / name) as file:
      file.write(b"half")
      raise KeyError
  assert names(folder) == ["old"]
  assert (folder / "old").read_text() == "old"


def test_a_folder_is_copied_with_its_subfolders(folder, tmp_path):
  source = tmp_path / "source"
  files.write_text(source / "a" / "b", "1")
  files.write_text(source / "c", "2")
  files.copy_folder(source, folder)
  assert names(folder) == ["a", "c"]
  assert (folder / "a" / "b").read_bytes() == b"1"


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path)
  return tmp_path / "home"


def test_a_home_folder_is_what_a_shell_makes_of_it(home):
  user = pathlib.Path("~root").expanduser()
  for written, meant in {
    "~": home,
    "~/": home,
    "~/runs/a b": home / "runs/a b",
    "~/../other": home / "../other",
    "~root/runs": user / "runs",
    "runs/gc": pathlib.Path("runs/gc"),
    "runs/~/a": pathlib.Path("runs/~/a"),
    "/~/a": pathlib.Path("/~/a"),
    "a~": pathlib.Path("a~"),
    "./~/runs": home.parent / "~" / "runs",
  }.items():
    assert files.as_path(written) == meant, written
    # A path that was read once stays the same.
    assert files.as_path(str(files.as_path(written))) == meant, written
  assert files.as_path(pathlib.Path("~/runs")) == pathlib.Path("~/runs")


def test_an_unknown_home_folder_is_refused(home, monkeypatch):
  with pytest.raises(
    ValueError, match=r"'~nobody-at-all/x' begins with a home"
  ):
    files.as_path("~nobody-at-all/x")
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)
  with pytest.raises(ValueError, match="there is none: HOME is not set"):
    files.as_path("~/x")


@pytest.mark.parametrize("name", [b"caf\xe9", b"runs/\xff/a", b"\x80.png"])
def test_a_name_that_is_no_utf8_is_refused(name):
  with pytest.raises(ValueError, match=r"must be UTF-8.*\\udc.*Rename it"):
    files.as_path(os.fsdecode(name))


def test_a_path_in_a_bucket_survives_being_joined(bucket):
  path = files.as_path("gs://bucket/run") / "results.json"
  assert str(path) == "gs://bucket/run/results.json"
  assert files.as_path(path) == path
  assert files.is_in_bucket(path) and not files.is_in_bucket("runs/gs:")
  files.check_reachable(path)


@pytest.mark.parametrize("path", ["s3://bucket/run", "http://a/b", "gs://"])
def test_other_kinds_of_storage_are_refused(path):
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


def whoever_holds(folder):
  """Returns the words in which another process would be refused."""
  with pytest.raises(ValueError) as refused:  # noqa: SIM117
    with files.held(folder, "--workdir"):
      raise AssertionError
  return str(refused.value)


def test_a_folder_is_held_by_one_process_and_the_other_is_told_which(tmp_path):
  files.write_text(tmp_path / "a", "as it was")
  with files.held(tmp_path, "--workdir"):
    text = whoever_holds(tmp_path)
    assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in text
    assert f"--workdir={tmp_path} is being written to by" in text
    assert "use another --workdir" in text
    assert f"remove {tmp_path / files.LOCK}" in text
    assert len(text.splitlines()) == 1
  # At the end it is free, at an error too.
  with pytest.raises(KeyError), files.held(tmp_path, "--workdir"):
    raise KeyError
  with files.held(tmp_path, "--workdir"):
    assert names(tmp_path) == [files.LOCK, "a"]
  assert names(tmp_path) == ["a"]


# By its path: the package takes seconds to import.
HOLDER = f"""
import importlib.util, os, pathlib, sys, time
spec = importlib.util.spec_from_file_location("files", {files.__file__!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.held(pathlib.Path(sys.argv[1]), "--workdir"):
  print("held", flush=True)
  time.sleep(60)
"""


def test_a_killed_process_holds_nothing(tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
  )
  with process:
    assert process.stdout.readline() == "held\n"
    assert f"process {process.pid} on" in whoever_holds(tmp_path)
    # A copy is another folder, whatever the file in it says.
    shutil.copytree(tmp_path, tmp_path / "copy")
    with files.held(tmp_path / "copy", "--workdir"):
      pass
    process.send_signal(signal.SIGKILL)
  with files.held(tmp_path, "--workdir"):
    assert f"process {os.getpid()} on" in (tmp_path / files.LOCK).read_text()


def test_the_lock_counts_and_not_the_text_in_its_file(tmp_path):
  for content in (b"", b"\xff\xfe garbage", b"process"):
    (tmp_path / files.LOCK).write_bytes(content)
    with files.held(tmp_path, "--workdir"):
      (tmp_path / files.LOCK).write_bytes(content)
      assert "is being written to by" in whoever_holds(tmp_path)


def test_a_file_system_without_locks_gets_a_warning(
  tmp_path, monkeypatch, caplog
):
  def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", no_locks)
  with caplog.at_level(logging.WARNING), files.held(tmp_path, "--out"):
    pass
  (line,) = caplog.messages
  assert line.startswith(f"--out={tmp_path} is on a file system without locks")


def test_a_bucket_is_not_guarded(bucket):
  with files.held(bucket, "--workdir"), files.held(bucket, "--workdir"):
    assert not bucket.exists()


def test_a_waiting_process_locks_the_new_file_after_the_old_one_is_removed(
  tmp_path,
):
  lock, events = tmp_path / "lock", []
  waiting = threading.Event()

  def wait():
    with files.locked(lock, lambda _: waiting.set()) as certain:
      events.append(f"second, {certain}")
      with pytest.raises(BlockingIOError), lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

  thread = threading.Thread(target=wait)
  with files.locked(lock, lambda _: None):
    thread.start()
    assert waiting.wait(timeout=20)
    events.append("first")
  thread.join(timeout=20)
  assert events == ["first", "second, True"]
  assert not lock.exists()


def test_a_waiting_process_is_told_the_holder_and_may_refuse(tmp_path):
  lock, told = tmp_path / "lock", []

  def refuse(holder):
    told.append(holder)
    raise KeyError

  with files.locked(lock, refuse) as certain:
    assert certain and not told
    with pytest.raises(KeyError), files.locked(lock, refuse):
      raise AssertionError
  assert f"process {os.getpid()}" in told[0]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_has_the_permissions_of_any_new_one_whoever_wrote_it(
  tmp_path, mask
):
  """As safetensors does, which puts a private file in place of an empty one."""
  before = os.umask(mask)
  try:
    with files.replacing(tmp_path / "weights") as file:
      os.unlink(file.name)
      os.close(os.open(file.name, os.O_CREAT | os.O_WRONLY, 0o600))
  finally:
    os.umask(before)
  assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o666 & ~mask
