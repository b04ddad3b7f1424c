"""Names that do not collide, folders in which nothing is lost, and the page."""

import dataclasses
import html
import io
import json
import pathlib
import re
import urllib.parse

import numpy as np
import pypdf
import pytest
from PIL import Image

from gc_jax.report import explanations, pictures
from gc_jax.report.explanations import (
  FILENAME,
  PAGE,
  SKIPPED,
  ClassScore,
  Explanation,
  Skipped,
)
from tests.report import browser

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
def test_a_map_is_written_raw_and_an_empty_one_is_marked(tmp_path, is_empty):
  cam = np.full_like(CAM, np.nan) if is_empty else CAM
  out = tmp_path / "new"
  e = explanations.write(out, explanation(map_is_empty=is_empty), IMAGE, cam)
  with Image.open(out / "cat.gradcam.png") as image:
    wanted = pictures.heat_overlay(IMAGE, cam)
    np.testing.assert_array_equal(np.asarray(image), wanted)
  written = np.load(out / "cat.gradcam.npy")
  assert written.dtype == np.float32
  np.testing.assert_array_equal(written, cam)
  assert bool(e.page_map) != is_empty


def test_a_map_of_pixels_is_known_by_the_size_at_which_the_model_saw_it(
  tmp_path,
):
  cam = np.random.default_rng(0).random((8, 12)).astype(np.float32)
  e = explanations.write(tmp_path, explanation(map_shape=(8, 12)), IMAGE, cam)
  with Image.open(tmp_path / "cat.gradcam.png") as image:
    wanted = pictures.heat_overlay(IMAGE, cam, seen=(8, 12))
    np.testing.assert_array_equal(np.asarray(image), wanted)
  assert (wanted != pictures.heat_overlay(IMAGE, cam)).any()
  layer = pictures.heat_layer(cam, IMAGE.shape[:2], (8, 12))
  assert (tmp_path / e.page_map).read_bytes() == layer.content


def test_the_index_grows_and_replaces_what_was_written_again(tmp_path):
  first = [explanation("a"), explanation("b")]
  explanations.write_index(tmp_path, [], first)
  earlier = explanations.open_folder(tmp_path, ["c.gradcam.png"], [], False)
  assert earlier == first
  scores = (ClassScore(0, "dog", 0.75), ClassScore(1, None, 0.25))
  again = [explanation("b", target=3), explanation("c", top=scores)]
  explanations.write_index(tmp_path, earlier, again)
  told = json.loads((tmp_path / FILENAME).read_text())
  assert [e["file"] for e in told] == [f"pictures/{c}.jpg" for c in "abc"]
  assert told[0]["size"] == [12, 18] and told[1]["target"] == 3
  assert told[2]["top"] == [
    {"id": 0, "name": "dog", "probability": 0.75},
    {"id": 1, "name": None, "probability": 0.25},
  ]
  assert explanations.open_folder(tmp_path, [], [], False) == [first[0], *again]


def test_explanations_of_before_the_page_are_read_and_shown(tmp_path):
  known = dataclasses.asdict(explanation())
  of_page = ["top", "true", "true_name", "true_probability"]
  for name in [*of_page, "page_image", "page_map"]:
    del known[name]
  (tmp_path / FILENAME).write_text(json.dumps([known]))
  (old,) = explanations.open_folder(tmp_path, [], [], False)
  assert old == explanation()
  explanations.write_index(tmp_path, [old], [explanation("new")])
  page = (tmp_path / PAGE).read_text()
  assert 'src="cat.gradcam.png"' in page and "dog" in page


def test_skipped_pictures_are_remembered_until_they_are_explained(tmp_path):
  skipped = [Skipped(f"pictures/{c}.jpg", f"{c} is broken") for c in "ab"]
  explanations.write_index(tmp_path, [], [explanation()], skipped)
  told = json.loads((tmp_path / SKIPPED).read_text())
  assert told[1] == {"file": "pictures/b.jpg", "reason": "b is broken"}
  assert "2 pictures could not be read" in (tmp_path / PAGE).read_text()
  mended = explanation("a")
  explanations.write_index(tmp_path, [explanation()], [mended])
  assert len(json.loads((tmp_path / SKIPPED).read_text())) == 1
  page = (tmp_path / PAGE).read_text()
  assert "1 picture could not be read" in page and "b is broken" in page
  explanations.write_index(tmp_path, [mended], [explanation("b")])
  assert not (tmp_path / SKIPPED).exists()
  assert "could not be read" not in (tmp_path / PAGE).read_text()


def write(out, image=IMAGE, cam=CAM, **changes):
  """Writes an explanation with its files; returns it."""
  e = explanation(**changes)
  stem = pathlib.Path(e.file).stem
  e = dataclasses.replace(
    e, page_image=explanations.write_image(out, stem, image)
  )
  return explanations.write(out, e, image, cam)


def text_of(page):
  return html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page)))


def test_the_page_shows_every_picture_with_its_files(tmp_path):
  odd = "50% #1 & <b>?"
  e = [
    write(tmp_path, name=odd),
    write(tmp_path, name=odd, method="cmwp", overlay=f"{odd}.cmwp.png"),
    write(tmp_path, 2 * IMAGE, 0 * CAM, name="b", map_is_empty=True),
  ]
  explanations.write_index(tmp_path, [], e)
  page = (tmp_path / PAGE).read_text()
  links = re.findall(r'(?:src|href)="([^"#]+)"', page)
  assert len(links) == (1 + 2 * 4) + (1 + 3)
  for link in links:
    path = urllib.parse.unquote(link)
    assert (tmp_path / path).is_file() and not path.startswith("/")
  assert page.count("<article") == 2
  assert f'<h4 title="pictures/{html.escape(odd)}.jpg">' in page
  told = text_of(page)
  assert "2 pictures explained" in told
  # An empty map is said to be, and no heat.
  assert page.count('class="heat"') == 2 and e[2].page_map == ""
  assert "1 of 3 maps is empty" in told and "empty map of cat" in told


@pytest.mark.parametrize(
  "true, outputs, verdict, sentence",
  [
    (None, "softmax", None, "nothing here says what is right"),
    (0, "softmax", True, "of 1 whose folder tells the class, 1 has it"),
    (1, "softmax", False, "of 1 whose folder tells the class, 0 have it"),
    (0, "sigmoid", True, "of 1 whose folder tells the class, 1 has it"),
    (1, "sigmoid", None, "of 1 whose folder tells the class, 0 have it"),
  ],
)
def test_right_and_wrong_are_said_where_folders_tell(
  tmp_path, true, outputs, verdict, sentence
):
  name = None if true is None else ("dog", "cat")[true]
  share = None if true is None else (0.75, 0.0004)[true]
  e = explanation(
    true=true, true_name=name, true_probability=share, outputs=outputs
  )
  assert e.is_right is verdict
  explanations.write_index(tmp_path, [], [e])
  page = (tmp_path / PAGE).read_text()
  told = text_of(page)
  assert sentence in told
  assert ("✓ right (folder: dog)" in told) == (verdict is True)
  assert ("✗ wrong (folder: cat, <0.1%)" in told) == (verdict is False)
  assert ('data-right="yes"' in page, 'data-right="no"' in page) == (
    verdict is True,
    verdict is False,
  )


def test_a_picture_of_the_same_name_replaces_none_on_the_page(tmp_path):
  first = write(tmp_path)
  other = write(
    tmp_path,
    2 * IMAGE,
    file="others/cat.jpg",
    method="cmwp",
    overlay="cat.cmwp.png",
    map="cat.cmwp.npy",
  )
  assert first.page_image != other.page_image
  explanations.write_index(tmp_path, [first], [other])
  page = (tmp_path / PAGE).read_text()
  assert re.findall("<h4[^>]*>(.*?)</h4>", page) == [
    "pictures/cat.jpg",
    "others/cat.jpg",
  ]
  again = write(tmp_path, IMAGE + 1)  # the picture was changed
  explanations.write_index(tmp_path, [first, other], [again])
  shown = {path.name for path in (tmp_path / "index_files").iterdir()}
  names = {again.page_image, other.page_image, again.page_map, other.page_map}
  assert {f"index_files/{name}" for name in shown} == names


def test_what_was_written_is_known_as_such(tmp_path):
  own = write(tmp_path)
  explanations.write_index(tmp_path, [], [own])
  is_result = explanations.results()
  for name in (own.overlay, own.page_image, own.page_map):
    assert is_result(tmp_path / name)
  for name in ("cat.jpg", "index_files.png", "deeper/cat.gradcam.png"):
    assert not is_result(tmp_path / name)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
  """A browser, and the page of two right pictures and one wrong, one empty."""
  out = tmp_path_factory.mktemp("explained")
  right = dict(true=0, true_name="dog", true_probability=0.75)
  wrong = dict(true=1, true_name="cat", true_probability=0.25)
  rng = np.random.default_rng(0)
  photo = lambda *size: rng.integers(0, 256, (*size, 3), dtype=np.uint8)
  e = [
    write(out, photo(300, 400), name="long_" * 12, size=(300, 400), **right),
    write(out, name="b", map_is_empty=True, cam=0 * CAM, **right),
    write(out, photo(400, 300), name="c", size=(400, 300), **wrong),
  ]
  explanations.write_index(out, [], e)
  with browser.started() as chromium:
    yield chromium, out / PAGE


SHOWN = "[...document.querySelectorAll('.example')].filter(e => !e.hidden)"


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_and_every_picture_is_there(opened, width, dark):
  chromium, page = opened
  chromium.open(page, width, dark=dark)
  assert chromium.run("document.documentElement.scrollWidth") <= width
  chromium.run(
    "Promise.all([...document.images].map(i => {"
    " i.loading = 'eager'; return i.decode(); }))"
  )
  assert chromium.run("document.images.length") == 8
  # The map covers its picture, to the pixel.
  boxes = chromium.run(
    "[...document.querySelectorAll('.layers:has(.heat)')].map(l =>"
    " [...l.querySelectorAll('img')].map(i => i.getBoundingClientRect())"
    ".map(b => [b.x, b.y, b.width, b.height].map(Math.round)))"
  )
  assert len(boxes) == 2 and all(below == above for below, above in boxes)
  assert chromium.errors() == []
  assert all(url.startswith("file:") for url in chromium.requests())


def test_all_pictures_are_printed(opened):
  chromium, page = opened
  chromium.open(page, height=200)  # most of them are far below
  printed = pypdf.PdfReader(io.BytesIO(chromium.pdf()))
  pictures = [image for page in printed.pages for image in page.images]
  # Of the second, the map is empty; it shows the same picture twice.
  assert len({image.data for image in pictures}) >= 3 + 2
  told = "".join(page.extract_text() for page in printed.pages)
  for words in ("long_", "b.jpg", "c.jpg", "right (folder: dog)", "empty map"):
    assert words in told


def test_pictures_are_found_by_class_and_verdict(opened):
  chromium, page = opened
  chromium.open(page)
  count = lambda: chromium.run(f"{SHOWN}.length")
  assert count() == 3
  chromium.choose("select[name=right]", "no")
  assert count() == 1
  assert chromium.run(f"{SHOWN}[0].querySelector('h4').textContent") == "c.jpg"
  told = chromium.run("document.querySelector('.count').value")
  assert told == "1 of 3 pictures"
  chromium.choose("select[name=right]", "")
  names = chromium.run(
    "[...document.querySelectorAll('select[name=class] option')]"
    ".map(o => o.textContent)"
  )
  assert names == ["all", "cat", "dog"]


def test_the_slider_fades_the_map_alone_and_a_click_enlarges_both(opened):
  chromium, page = opened
  chromium.open(page)
  chromium.choose("input[name=opacity]", "25")
  opacity = "getComputedStyle(document.querySelector('{}')).opacity"
  assert chromium.run(opacity.format(".layers img.heat")) == "0.25"
  assert chromium.run(opacity.format(".layers:has(.heat) img")) == "1"
  chromium.click(".example figure[data-method] .layers")
  assert chromium.run("document.querySelector('dialog').open")
  assert chromium.run("document.querySelectorAll('dialog img').length") == 2
  wide, high = chromium.run(
    "(() => { const b = document.querySelector('dialog .layers')"
    ".getBoundingClientRect(); return [b.width, b.height]; })()"
  )
  assert wide > 600 and wide / high == pytest.approx(4 / 3, rel=0.02)


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


@pytest.mark.parametrize("name", [explanations.PAGE, explanations.SKIPPED])
def test_files_called_as_ours_are_not_ours_without_an_index(tmp_path, name):
  (tmp_path / name).write_text("precious")
  with pytest.raises(ValueError, match=rf"has {name}\. Choose .* --overwrite"):
    explanations.open_folder(tmp_path, [], [], overwrite=False)
  assert (tmp_path / name).read_text() == "precious"
  assert explanations.open_folder(tmp_path, [], [], overwrite=True) == []
  (tmp_path / FILENAME).write_text("[]")
  assert explanations.open_folder(tmp_path, [], [], overwrite=False) == []


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
