"""Files and folders as people, programs and file systems name them."""

import os
import pathlib
import unicodedata

import hypothesis
import pytest
from hypothesis import strategies as st

from gc_jax.data.sets import folder_files
from gc_jax.data.sets.folder_files import Finder, kind_of, list_tree
from tests.data.photos import touch

# One name, as one character and as a letter with an accent.
COMPOSED, DECOMPOSED = (
  unicodedata.normalize(form, "café") for form in ("NFC", "NFD")
)


# Kinds.


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("train/cat/a.jpg", "picture"),
    ("train/cat/a.JFIF", "picture"),
    ("Train/cat/a.Jpe", "picture"),
    ("a.TIF", "picture"),
    ("train/masks/a.png", "picture"),  # a class may be called so
    ("masks.png", "picture"),
    ("masks/train/cat/a.PNG", "mask"),
    ("MASKS/a.png", "mask"),
    ("masks/a.jpg", "mask"),  # to be refused by its reader
    ("masks/readme.txt", ""),
    ("labels.csv", "labels"),
    ("LABELS.CSV", "labels"),
    ("Boxes.csv", "boxes"),
    ("train/boxes.csv", ""),
    ("train/cat/a.XML", "xml"),
    ("Annotations/cat/a.xml", "xml"),
    ("annotations/a.png", ""),
    ("annotations.JSON", "json"),
    ("Annotations/instances.json", "json"),
    ("train/instances.json", ""),
    ("train/cat/a.heic", ""),
    ("train/cat/jpg", ""),
  ],
)
def test_a_file_is_known_by_its_place_and_ending_in_any_case(name, kind):
  assert kind_of(name) == kind


@pytest.mark.parametrize(
  ("name", "place"),
  [
    ("masks/train/cat/a.png", "train/cat/a.png"),
    ("Annotations/a.xml", "a.xml"),
    ("train/masks/a.png", "train/masks/a.png"),
    ("masks", "masks"),
  ],
)
def test_masks_and_annotations_mirror_the_pictures(name, place):
  assert folder_files.mirrored(name) == place


# Trees.


def test_files_that_systems_leave_are_ignored(tmp_path):
  touch(tmp_path, "cat/a.jpg", "cat/Thumbs.db", "cat/.DS_Store", "cat/._a.jpg")
  touch(tmp_path, "desktop.ini", "__MACOSX/cat/a.jpg", "cat/@eaDir/a.jpg")
  touch(tmp_path, ".git/a.jpg", "cat/Icon\r")
  tree = list_tree(tmp_path)
  assert list(tree.files) == ["cat/a.jpg"] and tree.folders == ("cat",)


def test_links_are_followed_and_those_to_nothing_are_known(tmp_path):
  touch(tmp_path, "pool/1.jpg", "pool/2.jpg", "more/3.jpg", "real/dog/0.jpg")
  root = tmp_path / "mine"
  root.symlink_to("real")
  (root / "dog/1.jpg").symlink_to("../../pool/1.jpg")
  (root / "dog/all").symlink_to(tmp_path / "more", target_is_directory=True)
  (root / "fox").symlink_to("../pool")  # with the same picture
  (root / "dog/gone.jpg").symlink_to("nowhere.jpg")
  (root / "dog/itself.jpg").symlink_to("itself.jpg")
  tree = list_tree(root)
  assert list(tree.files) == [
    "dog/0.jpg",
    "dog/1.jpg",
    "dog/all/3.jpg",
    "dog/gone.jpg",
    "dog/itself.jpg",
    "fox/1.jpg",
    "fox/2.jpg",
  ]
  assert tree.broken == ("dog/gone.jpg", "dog/itself.jpg")


@pytest.mark.parametrize(
  ("link", "target"),
  [
    ("mine/train/cat/up", ".."),
    ("mine/train/cat/self", "."),
    ("mine/train/all", "../../mine"),
    ("mine/train/cat/out", "../../.."),  # to a folder above the root
    ("other/back", "../mine/train"),  # by way of another link
  ],
)
def test_a_link_to_a_folder_that_holds_it_is_refused(tmp_path, link, target):
  touch(tmp_path, "mine/train/cat/a.jpg", "other/b.jpg")
  (tmp_path / "mine/train/dog").symlink_to("../../other")
  (tmp_path / link).symlink_to(target)
  with pytest.raises(
    ValueError, match=r"must not lead to a folder that holds it[^/]*Remove 1:"
  ) as told:
    list_tree(tmp_path / "mine")
  assert f"/{link.split('/')[-1]} -> {tmp_path}" in str(told.value)


@pytest.mark.parametrize(
  "name", [b"train/caf\xe9/a.jpg", b"train/caf\xe9.jpg", b"\x8c\xa2/a.jpg"]
)
def test_a_name_that_is_not_utf8_is_refused_and_its_bytes_are_shown(
  tmp_path, name
):
  touch(tmp_path, os.fsdecode(name), "train/cat/a.jpg")
  with pytest.raises(
    ValueError, match=r"must be UTF-8, and 1 are not:"
  ) as told:
    list_tree(tmp_path)
  message = str(told.value)
  message.encode()  # it can be printed
  bad = next(part for part in name.split(b"/") if not part.isascii())
  assert bad.decode(errors="backslashreplace") in message
  assert "convmv" in message


def test_a_root_that_is_not_utf8_is_refused(tmp_path):
  root = tmp_path / os.fsdecode(b"caf\xe9")
  root.mkdir()
  with pytest.raises(ValueError, match=r"caf\\xe9 must be UTF-8") as told:
    folder_files.check_root(str(root))
  str(told.value).encode()


def test_two_files_that_look_the_same_are_refused(tmp_path):
  touch(tmp_path, f"cat/{COMPOSED}.jpg", f"cat/{DECOMPOSED}.jpg")
  with pytest.raises(
    ValueError, match=r"look the same, 'cat/cafe\\u0301.jpg' and 'cat/caf\\xe9"
  ):
    list_tree(tmp_path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_files_are_in_one_order_however_accents_are_stored(tmp_path, form):
  touch(tmp_path, *(unicodedata.normalize(form, f"{c}.jpg") for c in "fézà"))
  found = map(folder_files.normalized, list_tree(tmp_path).files)
  assert list(found) == ["f.jpg", "z.jpg", "à.jpg", "é.jpg"]


# Pictures as tables name them.

PICTURES = [
  "train/cat/000.jpg",
  "train/cat/001.png",
  "train/dog/000.jpg",
  "train/dog/B.JPG",
  "val/cat/002.jpg",
  f"val/{DECOMPOSED}/{DECOMPOSED}.png",
]


@pytest.fixture
def find(tmp_path):
  (tmp_path / "mine").mkdir()
  return Finder(PICTURES, tmp_path / "mine")


@pytest.mark.parametrize(
  ("written", "found"),
  [
    ("train/cat/000.jpg", PICTURES[0]),
    ("cat/000.jpg", PICTURES[0]),
    ("001.png", PICTURES[1]),
    (" 001.png ", PICTURES[1]),
    ("./train/cat/001.png", PICTURES[1]),
    ("../train/cat/001.png", PICTURES[1]),
    ("train//cat/./001.png", PICTURES[1]),
    ("train\\cat\\001.png", PICTURES[1]),
    ("C:\\data\\mine\\train\\cat\\001.png", PICTURES[1]),
    ("/somewhere/else/mine/train/cat/001.png", PICTURES[1]),
    ("mine/train/cat/001.png", PICTURES[1]),
    ("Train/Cat/001.PNG", PICTURES[1]),
    ("dog/b.jpg", PICTURES[3]),
    ("001", PICTURES[1]),
    ("train/dog/b", PICTURES[3]),
    (f"{COMPOSED}.png", PICTURES[5]),
    (f"val/{DECOMPOSED}/{COMPOSED}.PNG", PICTURES[5]),
    (COMPOSED.upper(), PICTURES[5]),
  ],
)
def test_a_picture_is_found_however_it_is_written(find, written, found):
  assert find(written) == found


def test_an_absolute_path_is_found_by_every_name_of_the_folder(tmp_path):
  (tmp_path / "real").mkdir()
  (tmp_path / "mine").symlink_to("real")
  find = Finder(PICTURES, tmp_path / "mine")
  for root in ("real", "mine"):
    assert find(str(tmp_path / root / "train/cat/000.jpg")) == PICTURES[0]


@pytest.mark.parametrize(
  ("written", "message"),
  [
    (
      "000.jpg",
      r"'000.jpg' names 2 pictures, 'train/cat/000.jpg' and 'train/d",
    ),
    ("000", r"'000' names 2 pictures"),
    ("007.jpg", r"there is no picture '007.jpg'$"),
    ("", r"there is no picture ''$"),
    (".", r"there is no picture '.'$"),
    ("cat", r"there is no picture 'cat'$"),
    ("001.jpg", r"no picture '001.jpg'; there is 'train/cat/001.png'$"),
    # Of another folder, though it ends as a picture of this one does.
    ("val/cat/000.jpg", r"there is no picture 'val/cat/000.jpg'"),
    ("/else/cat/000.jpg", r"there is no picture '/else/cat/000.jpg'"),
    ("mine/cat/000.jpg", r"there is no picture"),
    ("x" * 9_999, r"there is no picture 'x{77}\.\.\.'$"),
  ],
)
def test_text_that_names_no_picture_or_several_is_refused(
  find, written, message
):
  with pytest.raises(ValueError, match=message):
    find(written)


def test_a_whole_path_is_never_short_for_a_longer_one(tmp_path):
  find = Finder(["a.jpg", "x/a.jpg", "x/B.jpg", "b.jpg"], tmp_path)
  assert find("a.jpg") == find("A.JPG") == find("a") == "a.jpg"
  assert find("b.jpg") == "b.jpg" and find("B.jpg") == "x/B.jpg"


def test_a_backslash_may_be_part_of_a_name(tmp_path):
  find = Finder(["cat\\a.jpg", "b.jpg"], tmp_path)
  assert find("cat\\a.jpg") == "cat\\a.jpg"


@hypothesis.settings(max_examples=300, derandomize=True, deadline=None)
@hypothesis.given(
  st.lists(
    st.sampled_from(["train", "cat", "000", ".jpg", "/", "\\", "..", ".", "é"])
    | st.text(max_size=3)
  )
)
def test_any_text_names_a_picture_or_raises_valueerror(parts):
  find = Finder(PICTURES, pathlib.Path("mine"))
  written = "".join(parts)
  try:
    assert find(written) in PICTURES
  except ValueError as error:
    assert "picture" in str(error)
  assert set(find.of_stem(written)) <= set(PICTURES)


def test_masks_are_matched_by_the_path_without_an_ending(find, tmp_path):
  assert find.of_stem("train/cat/000") == ["train/cat/000.jpg"]
  assert find.of_stem("Train/Dog/b") == ["train/dog/B.JPG"]
  assert find.of_stem(f"val/{COMPOSED}/{COMPOSED}") == [PICTURES[5]]
  assert find.of_stem("cat/000") == []
  both = Finder(["a.jpg", "A.jpg", "a.png"], tmp_path)
  assert both.of_stem("a") == ["a.jpg", "a.png"]
  assert both.of_stem("A") == ["A.jpg"]
