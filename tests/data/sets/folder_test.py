"""A folder of one's own as a data set: its records, batches and pictures."""

import logging
import os
import re
import shutil

import PIL.Image
import pytest

from gc_jax.data import decode, pipeline
from gc_jax.data.sets import folder
from gc_jax.runtime import speaking
from tests.data import photos
from tests.data.photos import write

PHOTO_OF = {"cat": "chelsea.png", "cup": "coffee.png", "moto": "moon.png"}


def fill(root, per_class, top):
  """Writes crops of a photograph for each class."""
  for name, photo in PHOTO_OF.items():
    image = photos.load(photo, (120, 90))
    for i in range(per_class):
      part = photos.encode(image.crop((i, 0, i + 96, 72)))
      write(root, f"{top}/{name}/{i:03}.jpg", part)


def load(root, split="train", **kwargs):
  data_dir = str(root.parent / "tfds")
  return folder.load(split, path=str(root), data_dir=data_dir, **kwargs)


def train_batches(dataset, **options):
  return pipeline.train_batches(
    dataset, seed=0, start_step=0, batch_size=6, image_size=48, **options
  )


@pytest.fixture
def root(tmp_path):
  """Two pictures a class to train on, one to validate."""
  fill(tmp_path / "mine", 2, "train")
  fill(tmp_path / "mine", 1, "val")
  return tmp_path / "mine"


# What is read.


def test_a_tree_is_read_as_it_lies(root):
  dataset = load(root)
  assert dataset.class_names == tuple(PHOTO_OF)
  assert not dataset.multi_label
  assert len(dataset.source) == 6
  for record, label in zip(dataset.source, [0, 0, 1, 1, 2, 2], strict=True):
    assert record["labels"] == [label]
    assert record["image"] == (root / record["name"]).read_bytes()
  assert dataset.names == [record["name"] for record in dataset.source]
  assert dataset.all_labels() == [[0], [0], [1], [1], [2], [2]]
  # No test folder: what is validated on is tested on.
  names = [[r["name"] for r in load(root, s).source] for s in folder.SPLITS[1:]]
  assert names[0] == names[1] == [f"val/{name}/000.jpg" for name in PHOTO_OF]


def test_its_digest_tells_whatever_was_changed_and_not_where_it_lies(
  root, tmp_path
):
  of = lambda folder: load(folder, "test").digest()
  known = {of(root)}
  moved = tmp_path / "elsewhere" / "mine"
  shutil.copytree(root, moved)
  for path in moved.rglob("*.jpg"):
    os.utime(path, (0, 0))
  assert of(moved) in known

  def is_new(folder):
    before = len(known)
    known.add(of(folder))
    return len(known) > before

  picture = "val/cat/000.jpg"
  boxes = "image,label,xmin,ymin,xmax,ymax\n{},cat,10,10,2{},20\n"
  write(root, picture, photos.encode(photos.load("moon.png", (96, 72))))
  assert is_new(root)  # another picture of that name
  write(root, "boxes.csv", boxes.format(picture, 0).encode())
  assert is_new(root)
  write(root, "boxes.csv", boxes.format(picture, 1).encode())
  assert is_new(root)  # as many bytes
  for number, side in enumerate((8, 40)):
    mask = PIL.Image.new("L", (96, 72))
    mask.paste(255, (0, 0, side, side))
    write(root, "masks/val/cup/000.png", photos.encode(mask, "png"))
    assert is_new(root), number
  write(root, "val/cup/001.jpg", photos.encode(photos.load("coffee.png")))
  assert is_new(root)
  (root / "val/cup/001.jpg").rename(root / "val/moto/001.jpg")
  assert is_new(root)
  # Pictures to train on are others.
  (root / "train/cat/000.jpg").unlink()
  assert not is_new(root)


def test_parts_of_splits_are_those_of_tfds(root):
  whole = [r["name"] for r in load(root).source]
  for part, names in (
    ("train[:2]", whole[:2]),
    ("train[2:5]", whole[2:5]),
    ("train[50%:]", whole[3:]),
    ("train[-1:]", whole[-1:]),
  ):
    dataset = load(root, part)
    assert [r["name"] for r in dataset.source] == names
    assert len(dataset.all_labels()) == len(names)


def test_pictures_of_other_kinds_and_deeper_folders_are_found(root):
  image = photos.load("coffee.png", (40, 30))
  for name in ("a.PNG", "b.gif", "c.webp"):
    encoded = photos.encode(image, name[2:].lower())
    write(root, f"train/cup/deeper/{name}", encoded)
  write(root, "train/cup/.hidden.jpg", b"")
  write(root, "train/cup/notes.txt", "not a picture")
  assert len(load(root).source) == 9


def test_a_folder_is_trained_on_as_any_other_set(root):
  batch = next(train_batches(load(root), bring=("distractors",)))
  assert sorted(batch["label"]) == [0, 0, 1, 1, 2, 2]
  assert batch["distractor_mask"].all()


def test_nothing_is_written_into_the_folder_and_no_picture_is_copied(root):
  row = "train/cat/000.jpg,cat,1,1,9,9\n"
  write(root, "boxes.csv", "image,label,xmin,ymin,xmax,ymax\n" + row)
  before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
  load(root)
  assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
  kept = [p for p in (root.parent / "tfds").rglob("*") if p.is_file()]
  assert [p.suffix for p in kept] == [".json"] * 2  # annotations, pictures


# Folders that are not what they should be.


def test_links_to_nothing_are_refused_before_training(root, tmp_path):
  for i in range(9):
    (root / f"train/cat/link{i}.jpg").symlink_to(tmp_path / "unmounted/a.jpg")
  (root / "val/cat/000.jpg").unlink()
  (root / "val/cat/000.jpg").symlink_to("gone.jpg")
  with pytest.raises(
    ValueError, match=r"9 of 15 pictures are links.*:[\s\S]*and 4 more"
  ) as told:
    load(root)
  assert "link0.jpg -> " in str(told.value)
  with pytest.raises(ValueError, match=r"1 of 3 .*[\s\S]*000.jpg -> gone.jpg"):
    load(root, "validation")
  assert len(load(root, on_error="skip").source) == 15


def test_a_split_without_pictures_is_refused(tmp_path):
  for name in ("a/1.jpg", "b/2.jpg"):
    write(tmp_path / "mine", name, b"")
  with pytest.raises(ValueError, match=r"'validation' of .* none of the 2"):
    load(tmp_path / "mine", "validation")


# Pictures that are not what they should be.

JPEG = photos.encode(photos.load("coffee.png", (96, 72)))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (JPEG[:1500], r"truncated"),
    (b"", r"it is empty \(0 bytes\)"),
    (b"this is not a picture", r"starts? with b'this is not '"),
  ],
)
def test_broken_pictures_of_all_splits_are_named_at_once(
  root, content, message
):
  write(root, "train/cup/001.jpg", content)
  write(root, "val/cup/000.jpg", content)
  for split in ("train", "validation"):
    with pytest.raises(ValueError, match=r"2 pictures of 9 in .*/mine") as told:
      load(root, split)
    for name in ("train/cup/001.jpg", "val/cup/000.jpg"):
      assert re.search(f"{name}: .*{message}", str(told.value))
    assert "--config.data.on_error=skip" in str(told.value)
  # Of a part without any, nothing stops.
  assert len(load(root, "train[:3]").source) == 3
  assert load(root, on_error="skip").broken == {3}


def test_only_pictures_that_changed_are_checked_again(root, monkeypatch):
  load(root)
  read = []
  check = decode.check
  monkeypatch.setattr(
    decode, "check", lambda header: read.append(header) or check(header)
  )
  load(root, "validation")
  assert read == []
  write(root, "train/cup/001.jpg", b"GIF8 and no more")
  with pytest.raises(ValueError, match=r"1 picture of 9 [\s\S]*cup/001.jpg"):
    load(root)
  write(root, "train/cup/001.jpg", JPEG)
  assert load(root).broken == frozenset() and len(read) == 1


def test_what_is_checked_is_told_with_how_many_are_done(root, capsys):
  said = []

  class Listened(speaking.Task):
    def __setattr__(self, name, value):
      super().__setattr__(name, value)
      said.append(value)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(speaking, "Task", Listened)
    load(root)
  assert capsys.readouterr().err == f"checking 9 pictures of {root}\n"
  assert "checking pictures, 9 of 9 done" in said


def test_a_picture_that_is_gone_is_named(root):
  dataset = load(root)
  (root / "train/cup/001.jpg").unlink()
  with pytest.raises(ValueError, match=r"No such file.*train/cup/001.jpg"):
    next(train_batches(dataset))


def test_an_unknown_split_is_refused_before_the_folder_is_read():
  with pytest.raises(ValueError, match=r"Unknown split='val'. Known: train"):
    folder.load("val", path="nowhere")


def test_a_good_folder_logs_nothing(root, caplog):
  with caplog.at_level(logging.WARNING):
    load(root)
  assert not caplog.records
