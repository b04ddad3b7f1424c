"""Names that do not collide, and folders in which nothing is lost."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from gc_jax.report import explanations, pictures
from gc_jax.report.explanations import FILENAME, Explanation

IMAGE = np.full((12, 18, 3), 128, np.uint8)
CAM = np.array([[0.0, 2.0, 1.0], [0.0, 0.5, 0.0]], np.float32)


def explanation(name="cat", **changes):
  plain = Explanation(
    file=f"pictures/{name}.jpg",
    size=(12, 18),
    model="runs/gc, step 8",
    outputs="softmax",
    model_size=(8, 12),
    method="gradcam",
    target=1,
    target_name="cat",
    target_probability=0.25,
    predicted=0,
    predicted_name="dog",
    predicted_probability=0.75,
    map_shape=(2, 3),
    map_is_empty=False,
    overlay=f"{name}.gradcam.png",
    map=f"{name}.gradcam.npy",
  )
  return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(
  "pictures, stems",
  [
    (["a/cat.jpg", "b/cat.png", "cat.gif"], ["cat", "cat-2", "cat-3"]),
    (["CAT.jpg", "cat.jpg"], ["CAT", "cat-2"]),
    (["a/x.jpg", "b/x.jpg", "x-2.jpg"], ["x", "x-3", "x-2"]),
  ],
)
def test_names_tell_the_picture_and_the_method(pictures, stems):
  paths = list(map(pathlib.Path, pictures))
  assert explanations.output_names(paths, ["x", "y"]) == [
    {
      method: (f"{stem}.{method}.png", f"{stem}.{method}.npy")
      for method in "xy"
    }
    for stem in stems
  ]


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_map_is_written_raw_and_an_empty_one_is_marked_on_the_picture(
  tmp_path, is_empty
):
  cam = np.full_like(CAM, np.nan) if is_empty else CAM
  out = tmp_path / "new"
  explanations.write(out, explanation(map_is_empty=is_empty), IMAGE, cam)
  with Image.open(out / "cat.gradcam.png") as image:
    found = np.asarray(image)
  shown = 0 * CAM if is_empty else CAM
  np.testing.assert_array_equal(found, pictures.heat_overlay(IMAGE, shown))
  if is_empty:  # below the words, the picture as it is
    assert (found != IMAGE).any()
    np.testing.assert_array_equal(found[-2:], IMAGE[-2:])
  written = np.load(out / "cat.gradcam.npy")
  assert written.dtype == np.float32
  np.testing.assert_array_equal(written, cam)


def test_a_map_of_pixels_is_known_by_the_size_at_which_the_model_saw_it(
  tmp_path,
):
  cam = np.random.default_rng(0).random((8, 12)).astype(np.float32)
  explanations.write(tmp_path, explanation(map_shape=(8, 12)), IMAGE, cam)
  with Image.open(tmp_path / "cat.gradcam.png") as image:
    wanted = pictures.heat_overlay(IMAGE, cam, seen=(8, 12))
    np.testing.assert_array_equal(np.asarray(image), wanted)
  assert (wanted != pictures.heat_overlay(IMAGE, cam)).any()


def test_the_index_grows_and_replaces_what_was_written_again(tmp_path):
  first = [explanation("a"), explanation("b")]
  explanations.write_index(tmp_path, [], first)
  earlier = explanations.open_folder(tmp_path, ["c.gradcam.png"], [], False)
  again = [explanation("b", target=3), explanation("c", target_name=None)]
  explanations.write_index(tmp_path, earlier, again)
  told = json.loads((tmp_path / FILENAME).read_text())
  wanted = [dataclasses.asdict(e) for e in [first[0], *again]]
  assert told == json.loads(json.dumps(wanted))
  assert told[0]["size"] == [12, 18] and told[2]["target_name"] is None


def test_existing_names_are_refused_unless_they_may_be_replaced(tmp_path):
  for name in ["a.gradcam.png", "a.gradcam.npy", "b.gradcam.npy"]:
    (tmp_path / name).write_bytes(b"precious")
  names = ["a.gradcam.png", "a.gradcam.npy", "c.gradcam.png"]
  with pytest.raises(
    ValueError, match=r"has a\.gradcam\.png and 1 more\. Choose .* --overwrite"
  ):
    explanations.open_folder(tmp_path, names, [], overwrite=False)
  assert explanations.open_folder(tmp_path, names, [], overwrite=True) == []
  assert explanations.open_folder(tmp_path, names[2:], [], False) == []
  assert (tmp_path / "a.gradcam.png").read_bytes() == b"precious"


def test_no_explanation_replaces_a_picture_it_explains(tmp_path):
  picture = tmp_path / "a.gradcam.png"
  picture.write_bytes(b"precious")
  out = tmp_path / ".." / tmp_path.name
  with pytest.raises(ValueError, match="must not replace a picture it expl"):
    explanations.open_folder(out, [picture.name], [picture], True)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
  (tmp_path / "out").write_text("")
  with pytest.raises(ValueError, match="--out must be a folder"):
    explanations.open_folder(tmp_path / "out", [], [], True)


@pytest.mark.parametrize("text", ["{", "3", '[{"a": 1}]', "[1]"])
def test_an_index_of_another_kind_is_not_touched(tmp_path, text):
  (tmp_path / FILENAME).write_text(text)
  with pytest.raises(ValueError, match="must be a list of explanations, to be"):
    explanations.open_folder(tmp_path, [], [], True)
  assert (tmp_path / FILENAME).read_text() == text
