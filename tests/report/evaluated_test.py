"""An evaluation's folder: what is written is read, broken files are named."""

import dataclasses
import json

import numpy as np
import pytest

from gc_jax.report import evaluated
from tests.report import evaluations


@pytest.fixture
def folder(tmp_path):
  return evaluations.write(tmp_path / "eval")


def test_what_was_saved_is_loaded(tmp_path):
  saved = evaluations.make(tmp_path / "eval")
  paths = evaluated.save(saved)
  assert {path.name for path in paths} == set(evaluated.FILENAMES)
  assert all(path.is_file() for path in paths)
  loaded = evaluated.load(tmp_path / "eval")
  # Through JSON: tuples of settings come back as lists.
  settings = dataclasses.asdict(saved.about)["settings"]
  assert dict(loaded.about.settings) == json.loads(json.dumps(settings))
  assert dataclasses.replace(
    loaded.about, settings=saved.about.settings
  ) == dataclasses.replace(saved.about)
  assert loaded.results == saved.results
  assert loaded.per_class == saved.per_class
  assert loaded.curves == saved.curves
  assert loaded.class_names == saved.class_names
  assert len(loaded.examples) == len(saved.examples)
  for ours, theirs in zip(loaded.examples, saved.examples, strict=True):
    for name in ("index", "target", "predicted"):
      assert getattr(ours, name) == getattr(theirs, name)
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_array_equal(ours.object_mask, theirs.object_mask)
    assert list(ours.maps) == list(theirs.maps)
    for method, cam in theirs.maps.items():
      np.testing.assert_array_equal(ours.maps[method], cam)
    assert list(ours.randomized) == list(theirs.randomized)
    for method, stages in theirs.randomized.items():
      assert list(ours.randomized[method]) == list(stages)  # "layer3/1" too
      for stage, cam in stages.items():
        np.testing.assert_array_equal(ours.randomized[method][stage], cam)


def test_an_evaluation_of_accuracy_alone_is_loaded(tmp_path):
  evaluated.save(evaluations.bare(tmp_path / "eval"))
  loaded = evaluated.load(tmp_path / "eval")
  assert loaded.examples == [] and loaded.class_names == []
  assert list(loaded.curves.stages) == [] and loaded.curves.robustness == {}


def test_a_folder_of_another_kind_is_refused(tmp_path):
  assert not evaluated.is_evaluation(tmp_path)
  with pytest.raises(ValueError, match=r"has no evaluation\.json\. Give the"):
    evaluated.load(tmp_path)


@pytest.mark.parametrize("name", evaluated.FILENAMES[:-1])
def test_a_missing_file_is_named(folder, name):
  (folder / name).unlink()
  with pytest.raises(ValueError, match=f"{name} must be .*Evaluate again"):
    evaluated.load(folder)


@pytest.mark.parametrize("name", evaluated.FILENAMES)
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00"])
def test_a_broken_file_is_named(folder, name, content):
  (folder / name).write_bytes(content)
  with pytest.raises(ValueError, match=f"{name} must be .*Evaluate again"):
    evaluated.load(folder)


def test_a_file_of_pictures_that_was_cut_off_is_named(folder):
  path = folder / evaluated.EXAMPLES
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(ValueError, match=r"examples\.npz must be"):
    evaluated.load(folder)


def test_fields_that_are_missing_or_unknown_are_named(folder):
  path = folder / evaluated.ABOUT
  fields = json.loads(path.read_text())
  fields["colour"] = fields.pop("protocol")
  path.write_text(json.dumps(fields))
  with pytest.raises(ValueError, match="lacks protocol; nobody knows its col"):
    evaluated.load(folder)
