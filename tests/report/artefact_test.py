"""An evaluation's folder: what is written is read, broken files are named."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from gc_jax.method.metrics import Key
from gc_jax.report import artefact, gallery
from gc_jax.report import rows as pair_rows
from tests.report import evaluations


def check_examples(ours, theirs):
  """Their types are held to the fields' annotations as they are made."""
  plain = ([dataclasses.asdict(one) for one in own] for own in (ours, theirs))
  np.testing.assert_equal(*plain)


@pytest.fixture
def folder(tmp_path):
  return evaluations.write(tmp_path / "eval")


@pytest.mark.parametrize("kind", ["run", "evaluation", "bare"])
def test_what_was_saved_is_loaded(tmp_path, kind):
  if kind == "run":
    saved = artefact.load(evaluations.write_run(tmp_path / "x"))
    saved = dataclasses.replace(saved, examples=[evaluations.run_example(3)])
  else:
    make = evaluations.bare if kind == "bare" else evaluations.make
    saved = make(tmp_path / "x")
  paths = artefact.save(saved)
  assert {path.name for path in paths} == set(artefact.FILENAMES) - (
    {"rows.npz"} if kind == "bare" else set()
  )
  loaded = artefact.load(tmp_path / "x")
  check_examples(loaded.examples, saved.examples)
  plain = [
    # Through JSON: tuples come back as lists.
    json.loads(json.dumps(dataclasses.asdict(fields), default=str))
    for fields in (
      dataclasses.replace(one, examples=[], rows=None)
      for one in (saved, loaded)
    )
  ]
  assert plain[0] == plain[1]
  assert loaded.is_run == bool(loaded.training) == (kind == "run")
  names = gallery.load(tmp_path / "x")[1]
  assert names == ([] if kind == "bare" else evaluations.CLASSES)


def test_an_old_evaluation_is_read_whole(tmp_path):
  now = artefact.load(evaluations.write(tmp_path / "now"))
  before = artefact.load(evaluations.write_old(tmp_path / "before"))
  check_examples(before.examples, now.examples)
  assert before.about.trained == dict(before.about.config)
  assert before.about.questions == artefact.QUESTIONS
  other = artefact.load(
    evaluations.write_old(tmp_path / "file", consistency=None)
  )
  assert other.about.trained == {}  # its configuration is not the model's


def test_an_old_run_is_read_whole(tmp_path):
  run = artefact.load_finished(evaluations.write_old_run(tmp_path / "x"))
  assert run.about.methods == evaluations.GRADCAMS
  assert run.about.num_images == 1000 and not run.about.multi_label
  assert run.about.questions == ("classification", "localisation")
  kinds = ("best", "fixed")
  check_examples(
    run.examples, [evaluations.run_example(i, k) for i, k in enumerate(kinds)]
  )
  assert run.number(Key("content_heatmap", "gradcam")) == 14.0
  assert gallery.load(tmp_path / "x")[1] == ["zero", "one", "two <&>"]


def test_a_folder_of_another_kind_is_refused(tmp_path):
  assert not artefact.is_evaluation(tmp_path)
  with pytest.raises(ValueError, match=r"neither config\.json nor evaluation"):
    artefact.load(tmp_path)
  with pytest.raises(ValueError, match="does not exist"):
    artefact.load(tmp_path / "nowhere")


def test_an_unfinished_run_is_refused_with_what_to_do(tmp_path):
  evaluations.write_unfinished(tmp_path / "a", evaluations.config())
  assert artefact.load(tmp_path / "a").results == {}
  with pytest.raises(ValueError, match=r"command again \(it resumes"):
    artefact.load_finished(tmp_path / "a")


@pytest.mark.parametrize(
  "text", ["{}", '{"model": 3}', '{"eval": 1, "model": {"name": "alexnet"}}']
)
def test_a_config_that_is_none_is_named(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=r"config\.json must be .* it has no"):
    artefact.load(tmp_path)


@pytest.mark.parametrize(
  "name", ["results.json", "per_class.json", "curves.json"]
)
def test_a_missing_file_is_named(folder, name):
  (folder / name).unlink()
  with pytest.raises(ValueError, match=f"{name} must be .*Evaluate again"):
    artefact.load(folder)


@pytest.mark.parametrize(
  "name", [n for n in artefact.FILENAMES if n != "rows.npz"]
)
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00"])
def test_a_broken_file_is_named(folder, name, content):
  (folder / name).write_bytes(content)
  with pytest.raises(ValueError, match=f"{name} must be .*Evaluate again"):
    artefact.load(folder)


def test_a_gallery_cut_off_and_another_archive_are_named(folder):
  path = folder / gallery.FILENAME
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(ValueError, match=r"gallery\.npz must be"):
    artefact.load(folder)
  np.savez(path, x=np.zeros(3))
  with pytest.raises(ValueError, match=r"gallery\.npz must be"):
    artefact.load(folder)


def test_a_save_that_fails_keeps_the_old_gallery_and_leaves_no_rest(
  folder, monkeypatch
):
  def fail(file, **arrays):
    file.write(b"half a file")
    raise OSError("disk full")

  monkeypatch.setattr(np, "savez_compressed", fail)
  with pytest.raises(OSError, match="disk full"):
    artefact.save(evaluations.bare(folder))
  assert len(artefact.load(folder).examples) == 3
  assert {path.name for path in folder.iterdir()} == set(artefact.FILENAMES)


def test_fields_that_are_missing_or_unknown_are_named(folder):
  path = folder / artefact.ABOUT
  fields = json.loads(path.read_text())
  fields["colour"] = fields.pop("protocol")
  path.write_text(json.dumps(fields))
  with pytest.raises(ValueError, match="protocol; it has unknown fields: col"):
    artefact.load(folder)


@pytest.mark.parametrize("is_old", [True, False])
def test_the_release_of_before_is_what_is_called_corrected_now(
  tmp_path, is_old
):
  """It clipped boxes, and left classes without a picture out."""
  config = evaluations.config(**{} if is_old else {"eval__border": ""})
  folder = evaluations.write(tmp_path / "x", protocol="release", config=config)
  expected = "corrected" if is_old else "release"
  assert artefact.load(folder).about.protocol == expected


def test_an_old_gallery_filled_its_empty_maps_and_they_are_empty_again(
  tmp_path,
):
  flat = np.full((4, 4), 1 / 16, np.float32)
  made = evaluations.example(0, ("gradcam",))
  maps = {"gradcam": flat, "layercam": made.maps["gradcam"], "uniform": flat}
  randomized = {"gradcam": {"head": flat}}
  made = dataclasses.replace(
    made, kind="best", maps=maps, randomized=randomized
  )
  path = evaluations.write_run(tmp_path / "x", examples=[made])
  now = gallery.load(path)[0][0]
  np.testing.assert_array_equal(now.maps["gradcam"], flat)
  with np.load(path / gallery.FILENAME) as file:
    arrays = dict(file) | {"version": np.array(2)}
  np.savez_compressed(path / gallery.FILENAME, **arrays)
  (then,) = gallery.load(path)[0]
  assert not then.maps["gradcam"].any()
  assert not then.randomized["gradcam"]["head"].any()
  np.testing.assert_array_equal(then.maps["layercam"], maps["layercam"])
  np.testing.assert_array_equal(then.maps["uniform"], flat)


def test_the_quickstarts_baseline_has_what_differences_are_made_of():
  folder = pathlib.Path(__file__).parents[2] / "configs/references"
  baseline = artefact.load(folder / "quickstart_ce")
  top1 = Key("top1")
  rows = pair_rows.load(baseline.folder, [top1])
  assert 100 * rows.columns[top1].mean() == pytest.approx(baseline.number(top1))
