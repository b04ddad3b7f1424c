"""Splits, classes and labels of folders as people have them."""

import os
import re
import unicodedata

import pytest

from gc_jax.data.sets.folder_layout import read_layout
from tests.data.photos import touch

BASE = tuple(
  f"{split}/{name}/{i}.jpg"
  for split in ("train", "val")
  for name in ("cat", "dog")
  for i in range(2)
)
COMPOSED, DECOMPOSED = (
  unicodedata.normalize(form, "café") for form in ("NFC", "NFD")
)


def problem(root):
  with pytest.raises(ValueError) as told:
    read_layout(str(root))
  message = str(told.value)
  assert len(message.splitlines()) <= 30
  return message


# Classes.


def test_a_class_need_not_be_in_every_split(tmp_path):
  fox = ["train/fox/a.jfif", "train/fox/b.JPE", "train/fox/c.Jfif"]
  layout = read_layout(str(touch(tmp_path, *BASE, *fox)))
  assert layout.class_names == ("cat", "dog", "fox") and not layout.multi_label
  assert [n for n in layout.labels if "fox" in n] == fox


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ("", r"must hold pictures .*; none is among its 0 files"),
    ("a/x.txt", r"none is among its 1 file "),
    ("a/1.jpg a/2.jpg", r"at least two classes, and shows 1 \(a\)"),
    ("1.jpg a/2.jpg", r"mine/1.jpg must lie in the folder of its class"),
    ("train/a/1.jpg train/2.jpg", r"class, as .*mine/train/CLASS/2.jpg"),
    (
      "train/a/1.jpg train/b/1.jpg extra/a/1.jpg",
      r"mine/extra stands beside .*mine/train and must be called val, validat",
    ),
    (
      "train/cat/1.jpg train/b/1.jpg val/cats/1.jpg",
      r"mine/val/cats/1.jpg shows a class that no training picture shows. "
      r"Unknown class='cats'. Known: b, cat. Did you mean 'cat'\?",
    ),
    ("Val/a/1.jpg Val/b/1.jpg test/a/1.jpg", r"hold `train`; .* in Val, test"),
  ],
)
def test_a_wrong_arrangement_is_refused_with_its_place(
  tmp_path, names, message
):
  (tmp_path / "mine").mkdir()
  told = problem(touch(tmp_path / "mine", *names.split()))
  assert re.search(message, told), told


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
  assert "must be a folder, and does not exist" in problem(tmp_path / "none")
  touch(tmp_path, "file")
  assert "must be a folder, and is a file" in problem(tmp_path / "file")


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (["train/fox/a.heic", "train/fox/b.HEIC"], r"2 files \(.heic 2\)$"),
    (["train/ant/"], r"train/ant holds 0 files$"),
    (["train/ant/deep/.gitkeep"], r"train/ant holds 0 files$"),
    (["val/fox/a.npy", "train/fox/a.jpg"], r"val/fox holds 1 file \(.npy 1\)$"),
    (["train/fox/deep/a.txt"], r"train/fox holds 1 file \(.txt 1\)$"),
    (["train/masks/a.txt"], r"train/masks holds 1 file \(.txt 1\)$"),
  ],
)
def test_a_class_folder_without_pictures_is_refused(tmp_path, names, message):
  told = problem(touch(tmp_path, *BASE, *names))
  assert re.search(message, told, re.MULTILINE), told
  assert "1 folder without:" in told and ".jfif" in told


def test_class_folders_without_pictures_at_the_top_are_refused(tmp_path):
  touch(tmp_path, "cat/1.jpg", "dog/1.jpg", "ant/1.heic")
  touch(tmp_path, "masks/readme.txt", "Annotations/readme.txt", ".git/x")
  touch(tmp_path, *(f"x{i}/" for i in range(1500)))
  told = problem(tmp_path)
  assert "1,501 folders without:" in told and "and 1,496 more" in told
  held = re.findall(r"/(\w+) holds (\d)", told)
  assert held[:2] == [("ant", "1"), ("x0", "0")]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_class_is_one_however_its_accent_is_stored(tmp_path, form):
  written = unicodedata.normalize(form, "é")
  touch(tmp_path, *BASE, f"train/{written}/a.jpg", "val/é/b.jpg")
  layout = read_layout(str(tmp_path))
  assert layout.class_names == ("cat", "dog", "é")
  assert layout.class_id("é") == layout.class_id("e\u0301 ") == 2
  assert layout.labels[f"train/{written}/a.jpg"] == [2]
  # As it is stored, to be opened.
  assert all(os.path.exists(tmp_path / name) for name in layout.labels)


@pytest.mark.parametrize("name", ["a\nb", "a\x01", "a\u2028b", "\x7f"])
def test_the_name_of_a_class_is_one_line(tmp_path, name):
  told = problem(touch(tmp_path, *BASE, f"train/{name}/1.jpg"))
  assert "must be one line, without control characters" in told
  assert repr(name) in told


def test_messages_about_many_classes_are_short_and_come_once(tmp_path, caplog):
  names = [f"class_number_{i:04}" for i in range(1500)]
  touch(tmp_path, *(f"{s}/{n}/a.jpg" for s in ("train", "val") for n in names))
  for _ in range(3):  # as for three splits
    layout = read_layout(str(tmp_path))
  (record,) = caplog.records
  assert record.getMessage().startswith(
    "1,500 classes have one training picture, 'class_number_0000' first"
  )
  with pytest.raises(ValueError, match=r"Known: class_number_0003, ") as told:
    layout.class_id("Class3")
  assert len(str(told.value)) < 400


# Splits.


@pytest.mark.parametrize(
  ("train", "val"),
  [
    ("train", "val"),
    ("Train", "VAL"),
    ("TRAINING", "Valid"),
    ("train", "test"),
  ],
)
def test_folders_of_splits_are_known_in_any_case(tmp_path, train, val):
  renamed = [n.replace("train", train).replace("val", val) for n in BASE]
  splits = read_layout(str(touch(tmp_path, *renamed))).splits
  # Without a test folder, the test split is that of validation.
  held_out = "test" if val == "test" else "validation"
  assert splits[held_out] == [n for n in sorted(renamed) if n.startswith(val)]
  assert (splits["validation"] == splits["test"]) == (val != "test")
  assert all(name.startswith(train) for name in splits["train"])


@pytest.mark.parametrize("top", ["", "train/"])
def test_a_hash_of_the_path_chooses_what_is_held_out(tmp_path, top):
  def splits_of(root, forms, count=60):
    letters = [unicodedata.normalize(form, "é") for form in forms]
    for i, letter in enumerate(letters * (count // len(letters))):
      touch(root, *(f"{top}{name}/{letter}{i}.jpg" for name in "ab"))
    splits = read_layout(str(root)).splits
    return {
      split: [unicodedata.normalize("NFC", name) for name in names]
      for split, names in splits.items()
    }

  splits = splits_of(tmp_path / "nfc", ["NFC"])
  held_out = ("validation",) if top else ("validation", "test")
  assert top == "" or splits["test"] == splits["validation"]
  for split in held_out:
    # Of 120: a tenth each, within four standard deviations.
    assert abs(len(splits[split]) - 12) <= 4 * (120 * 0.1 * 0.9) ** 0.5
    assert not {*splits[split]} & {*splits["train"]}
  assert sum(len(splits[k]) for k in ("train", *held_out)) == 120
  # However accents are stored, and whatever else there is.
  assert splits_of(tmp_path / "nfd", ["NFD"]) == splits
  fewer = splits_of(tmp_path / "fewer", ["NFC"], 30)
  assert all({*fewer[split]} <= {*splits[split]} for split in fewer)


def test_a_class_with_one_picture_trains_on_it_however_its_hash_falls(
  tmp_path, caplog
):
  for i in range(30):
    root = touch(tmp_path / str(i), "a/1.jpg", "a/2.jpg", f"b/{i}.jpg")
    assert f"b/{i}.jpg" in read_layout(str(root)).splits["train"]
  read_layout(str(touch(tmp_path / "fox", *BASE, "train/fox/1.jpg")))
  assert "1 class has one training picture, 'fox' first" in caplog.text


def test_an_unreadable_folder_is_refused(tmp_path, monkeypatch):
  """The user of a test may be root, who reads everything."""
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith("dog"):
      raise PermissionError(13, "Permission denied", str(path))
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refuse)
  told = problem(touch(tmp_path, *BASE))
  assert "train/dog must be readable (Permission denied)" in told


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (["Train/cat/9.jpg"], r"one folder for the train split.*Train and train"),
    (["training/cat/9.jpg"], r"holds train and training"),
    (["valid/cat/9.jpg"], r"for the validation split, .*val and valid"),
    (["Train/"], r"holds Train and train"),
    (["test/"], r"/test must hold pictures .*holds 0 files"),
    (["test/cat/a.heic"], r"/test must hold pictures .*1 file \(.heic 1\)"),
    (["masks/a.png", "Masks/b.png"], r"one masks, and holds Masks and masks"),
    (["Annotations/", "annotations/"], r"holds Annotations and annotations"),
    (["boxes.csv", "Boxes.csv"], r"one boxes.csv, and holds Boxes.csv and box"),
    (["labels.csv", "LABELS.CSV"], r"holds LABELS.CSV and labels.csv"),
    (["annotations.json", "Annotations.JSON"], r"one annotations.json, and"),
  ],
)
def test_two_folders_or_tables_of_a_kind_and_empty_splits_are_refused(
  tmp_path, names, message
):
  assert re.search(message, problem(touch(tmp_path, *BASE, *names)))


# Files that are ignored.


def test_ignored_files_are_counted_by_ending_once(tmp_path, caplog):
  touch(tmp_path, *BASE, "train/cat/a.heic", "train/cat/B.HEIC", "readme.txt")
  touch(tmp_path, "docs/a.txt", "val/dog/x", "masks/train/cat/0.npy")
  touch(tmp_path, "train/cat/Thumbs.db", "train/.DS_Store", "__MACOSX/a.jpg")
  touch(tmp_path, "boxes.csv", "train/cat/0.xml", "annotations/a.json")
  os.mkfifo(tmp_path / "train/cat/pipe.jpg")
  for _ in range(3):
    layout = read_layout(str(tmp_path))
  assert len(layout.labels) == len(BASE)
  (record,) = caplog.records
  assert record.getMessage() == (
    f"Ignored in {tmp_path}: 6 files (.heic 2, .txt 2, .npy 1, no ending "
    "1), 1 pipes or devices."
  )


# Labels in a table.


def labels(root, table, *names):
  names = names or ("a.jpg", "b.jpg", "c.jpg")
  touch(root, *(f"train/{name}" for name in names))
  path = root / "labels.csv"
  path.write_bytes(table if isinstance(table, bytes) else table.encode())
  return root


@pytest.mark.parametrize(
  "table",
  [
    "image,labels\na.jpg,cat;dog\nb.jpg,dog\nc.jpg,\n",
    'image;labels\na.jpg;"cat;dog"\nb.jpg;dog\nc.jpg;\n',
    "image\tlabels\na.jpg\tcat;dog\nb.jpg\tdog\nc.jpg\t\n".encode("utf-16"),
    "\ufeffImage,Labels\r\na.jpg, cat ; dog \r\nb.jpg,dog\r\nc.jpg,\r\n,\r\n",
    'image,labels\n"a.jpg","cat;dog"\n"b.jpg", "dog"\n"c.jpg",""\n',
    "image,labels\na.jpg,cat\na.jpg,dog\nb,dog\nTrain\\C.JPG,;\n",
    ",image,labels,note\n0,a.jpg,cat;dog,x\n1,b.jpg,dog,\n2,c.jpg,,\n",
  ],
)
def test_labels_are_read_however_the_table_is_saved(tmp_path, table):
  layout = read_layout(str(labels(tmp_path, table)))
  assert layout.class_names == ("cat", "dog") and layout.multi_label
  assert list(layout.labels.values()) == [[0, 1], [1], []]


TOP = "image,labels\n"


@pytest.mark.parametrize(
  ("table", "message"),
  [
    ("image,label\na.jpg,a\n", r"labels is missing from 'image,label'"),
    (TOP + "a.jpg,a,b\nb.jpg,a\nc.jpg\n", r"2 lines of .*\n.*line 2: a row mu"),
    # Well-formed, and a line is swallowed.
    (TOP + 'a.jpg,"a\nb.jpg,b"\n', r"a class must be one line.*'a.nb.jpg,b'"),
    (
      TOP + "0.jpg,a\n" * 99,
      r"99 lines .*\n.*no picture '0.jpg'(.|\n)*94 more",
    ),
    (TOP + "a.jpg,a\n", r"has none for 2 of 3, 'train/b.jpg' first"),
    (TOP + "a.jpg,a\nb.jpg,a\nc.jpg,\n", r"two classes, and shows 1 \(a\)"),
  ],
)
def test_unusable_lines_of_labels_are_refused(tmp_path, table, message):
  told = problem(labels(tmp_path, table))
  assert re.search(message, told), told


def test_labels_name_pictures_and_classes_in_either_form(tmp_path):
  table = f"a,{DECOMPOSED}\n{COMPOSED}.jpg,{COMPOSED}\nb.jpg,dog\n"
  root = labels(tmp_path, TOP + table, "a.jpg", "b.jpg", f"{DECOMPOSED}.jpg")
  layout = read_layout(str(root))
  assert layout.class_names == (COMPOSED, "dog")
  assert sorted(layout.labels.values()) == [[0], [0], [1]]
