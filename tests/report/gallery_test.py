"""Galleries: what is saved is what is loaded."""

import dataclasses

import numpy as np
import pytest

from gc_jax.report import gallery
from tests.report import workdirs


def test_a_gallery_survives_the_round_trip(tmp_path):
  path = tmp_path / "gallery.npz"
  saved = [workdirs.example(3, "best"), workdirs.example(9, "fixed")]
  gallery.save_gallery(path, saved, ["zero", "eins", "zwölf"])
  loaded, names = gallery.load_gallery(path)
  assert names == ["zero", "eins", "zwölf"]
  for before, after in zip(saved, loaded, strict=True):
    for field in dataclasses.fields(gallery.GalleryExample):
      a, b = getattr(before, field.name), getattr(after, field.name)
      assert type(a) is type(b), field.name
      np.testing.assert_array_equal(a, b)
      if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype


def test_an_empty_gallery_survives_the_round_trip(tmp_path):
  gallery.save_gallery(tmp_path / "gallery.npz", [], [])
  assert gallery.load_gallery(tmp_path / "gallery.npz") == ([], [])


def test_a_save_that_fails_keeps_the_old_gallery_and_leaves_no_rest(
  tmp_path, monkeypatch
):
  path = tmp_path / "gallery.npz"
  gallery.save_gallery(path, [workdirs.example(3)], ["zero"])

  def fail(file, **arrays):
    file.write(b"half a file")
    raise OSError("disk full")

  monkeypatch.setattr(np, "savez_compressed", fail)
  with pytest.raises(OSError, match="disk full"):
    gallery.save_gallery(path, [], [])
  assert len(gallery.load_gallery(path)[0]) == 1
  assert [p.name for p in tmp_path.iterdir()] == ["gallery.npz"]


def test_another_npz_is_refused(tmp_path):
  np.savez(tmp_path / "other.npz", x=np.zeros(3))
  with pytest.raises(ValueError, match="must be a gallery of version 1"):
    gallery.load_gallery(tmp_path / "other.npz")
