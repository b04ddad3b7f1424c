"""A folder of one's own: arranged in every way it may be, and in many not."""

import itertools
import json
import logging
import os
import re

import numpy as np
import PIL.Image
import pytest

from gc_jax.data import geometry, pipeline
from gc_jax.data.dataset import Dataset
from gc_jax.data.sets import folder
from tests.data import evaluated, photos

CLASSES = ("cat", "cup", "moto")
OF_CLASS = dict(
  zip(
    CLASSES, ("chelsea.png", "coffee.png", "motorcycle_left.png"), strict=True
  )
)


def write(root, name, content):
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def fill(root, per_class, top=""):
  """Writes crops of a photograph for each class; returns their names."""
  names = []
  for name, photo in OF_CLASS.items():
    image = photos.load(photo, (120, 90))
    for i in range(per_class):
      part = image.crop((i % 20, i // 20, i % 20 + 96, i // 20 + 72))
      names.append(f"{top}{name}/{i:03}.jpg")
      write(root, names[-1], photos.encode(part))
  return names


def load(root, split="train", tmp=None, **kwargs) -> Dataset:
  index = tmp or root.parent / "tfds"
  return folder.load(split, path=str(root), data_dir=str(index), **kwargs)


@pytest.fixture
def root(tmp_path):
  """Two pictures a class to train on, one to validate."""
  fill(tmp_path / "mine", 2, "train/")
  fill(tmp_path / "mine", 1, "val/")
  return tmp_path / "mine"


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
  root = tmp_path_factory.mktemp("flat") / "mine"
  return root, fill(root, 40)


# What is read.


def test_a_tree_is_read_as_it_lies(root):
  dataset = load(root)
  assert dataset.class_names == CLASSES
  assert not dataset.multi_label
  assert len(dataset.source) == 6
  for record, label in zip(dataset.source, [0, 0, 1, 1, 2, 2], strict=True):
    assert record["labels"] == [label]
    assert record["image"] == (root / record["name"]).read_bytes()
  assert dataset.all_labels() == [[0], [0], [1], [1], [2], [2]]
  # No test folder: what is validated on is tested on.
  names = [[r["name"] for r in load(root, s).source] for s in folder.SPLITS[1:]]
  assert names[0] == names[1] == [f"val/{name}/000.jpg" for name in CLASSES]


def test_a_test_folder_is_the_test_split(root):
  fill(root, 3, "test/")
  assert len(load(root, "test").source) == 9
  assert len(load(root, "validation").source) == 3


def test_training_is_known_as_train(root):
  (root / "train").rename(root / "Training")
  assert load(root).class_names == CLASSES


@pytest.mark.parametrize("spelling", ["val", "validation", "Valid"])
def test_both_spellings_of_validation_are_known(root, spelling):
  (root / "val").rename(root / spelling)
  assert len(load(root, "validation").source) == 3


def test_classes_alone_are_divided_by_a_hash_of_the_path(flat):
  root, names = flat
  splits = {
    split: [r["name"] for r in load(root, split).source]
    for split in folder.SPLITS
  }
  assert sorted(itertools.chain(*splits.values())) == names
  # Of 120: a tenth each, within four standard deviations.
  for split in ("validation", "test"):
    assert abs(len(splits[split]) - 12) <= 4 * np.sqrt(120 * 0.1 * 0.9)
  # What is held out does not depend on what else there is.
  gone = splits["train"][0]
  (root / gone).rename(root / "moved")
  try:
    assert [r["name"] for r in load(root, "test").source] == splits["test"]
  finally:
    (root / "moved").rename(root / gone)


def test_of_a_train_folder_alone_a_tenth_is_held_out(tmp_path):
  names = fill(tmp_path / "mine", 20, "train/")
  train, validation, test = (
    [r["name"] for r in load(tmp_path / "mine", split).source]
    for split in folder.SPLITS
  )
  assert validation == test and 0 < len(validation) < 16
  assert sorted(train + validation) == names


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
  for name, encoding in (
    ("a.PNG", "png"),
    ("b.gif", "gif"),
    ("c.webp", "webp"),
  ):
    write(root, f"train/cup/deeper/{name}", photos.encode(image, encoding))
  write(root, "train/cup/.hidden.jpg", b"")
  write(root, "train/cup/notes.txt", "not a picture")
  assert len(load(root).source) == 9


def test_a_folder_is_trained_on_as_any_other_set(root):
  batch = next(
    pipeline.train_batches(
      load(root),
      seed=0,
      start_step=0,
      batch_size=6,
      image_size=48,
      crop="random_resized",
      flip=True,
      bring=("distractors",),
    )
  )
  assert sorted(batch["label"]) == [0, 0, 1, 1, 2, 2]
  assert batch["distractor_mask"].all()


def test_nothing_is_written_into_the_folder_and_no_picture_is_copied(root):
  write(root, "boxes.csv", HEADER + "000.jpg,cat,1,1,9,9\n")
  os.rename(root / "train/cat/000.jpg", root / "train/cat/only.jpg")
  write(root, "boxes.csv", HEADER + "only.jpg,cat,1,1,9,9\n")
  before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
  load(root)
  assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
  kept = [p for p in (root.parent / "tfds").rglob("*") if p.is_file()]
  assert [p.suffix for p in kept] == [".json"]


# Several classes a picture.


def test_a_table_names_several_classes(tmp_path):
  root = tmp_path / "mine"
  photo = photos.encode(photos.load("coffee.png", (40, 30)))
  for i in range(4):
    write(root, f"train/{i}.jpg", photo)
  write(root, "val/9.jpg", photo)
  write(
    root,
    "labels.csv",
    "image,labels\n0.jpg,cup;spoon\ntrain/1.jpg,spoon\n2.jpg,\n3.jpg,cup\n"
    "3.jpg,cup; table\n9.jpg,table\n",
  )
  dataset = load(root)
  assert dataset.multi_label
  assert dataset.class_names == ("cup", "spoon", "table")
  assert dataset.all_labels() == [[0, 1], [1], [], [0, 0, 2]]
  assert load(root, "validation").all_labels() == [[2]]


@pytest.mark.parametrize(
  ("table", "message"),
  [
    ("image,labels\n0.jpg,a\n", r"none for 1 of 2, 'train/1.jpg' first"),
    ("image,labels\n7.jpg,a\n", r"line 2: there is no picture '7.jpg'"),
    ("image,label\n0.jpg,a\n", r"labels is missing from 'image,label'"),
    ("", r"image, labels is missing from 'an empty file'"),
    ("image,labels\n0.jpg,a\n1.jpg,a\n", r"two classes, and shows 1 \(a\)"),
  ],
)
def test_a_table_that_does_not_fit_is_told_by_line(tmp_path, table, message):
  root = tmp_path / "mine"
  for i in range(2):
    write(root, f"train/{i}.jpg", b"")
  write(root, "labels.csv", table)
  with pytest.raises(ValueError, match=message):
    load(root)


# Objects.

HEADER = "image,label,xmin,ymin,xmax,ymax\n"
# Rows 8..31, columns 24..71 of the 96x72 pixels of a picture.
BOX = (24, 8, 72, 32)
NORMALISED = (8 / 72, 24 / 96, 32 / 72, 72 / 96)


def rectangle():
  pixels = np.zeros((72, 96), np.uint8)
  pixels[8:32, 24:72] = 255
  return pixels


def voc(name, box=BOX, size=(96, 72), label="cat"):
  xmin, ymin, xmax, ymax = box
  return (
    f"<annotation><filename>{name}</filename><size><width>{size[0]}</width>"
    f"<height>{size[1]}</height><depth>3</depth></size><object><name>{label}"
    f"</name><difficult>1</difficult><bndbox><xmin>{xmin + 1}</xmin><ymin>"
    f"{ymin + 1}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>"
    "</object></annotation>"
  )


def coco(segmentation=None, **wrong):
  xmin, ymin, xmax, ymax = BOX
  annotation = {
    "id": 5,
    "image_id": 1,
    "category_id": 7,
    "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
    "segmentation": segmentation or [],
  }
  return json.dumps(
    {
      "images": [
        {"id": 1, "file_name": "cat/000.jpg", "width": 96, "height": 72}
      ],
      "categories": [{"id": 7, "name": "cat"}],
      "annotations": [annotation | wrong],
    }
  )


ANNOTATIONS = {
  "a mask": ("masks/train/cat/000.png", photos.encode(rectangle(), "png")),
  "a mask of a class": (
    "masks/train/cat/000.cat.png",
    photos.encode(rectangle(), "png"),
  ),
  "csv": ("boxes.csv", f"{HEADER}train/cat/000.jpg,cat,24,8,72,32\n"),
  "xml beside": ("train/cat/000.xml", voc("000.jpg")),
  "xml mirrored": ("annotations/train/cat/000.xml", voc("any/000.jpg")),
  "coco boxes": ("annotations.json", coco()),
  "coco polygon": (
    "annotations/instances.json",
    coco([[24, 8, 72, 8, 72, 32, 24, 32]]),
  ),
  "coco run lengths": (
    "annotations.json",
    # Column by column: 24 whole ones, then 8 off, 24 on, 40 off, 48 times.
    coco(
      {
        "size": [72, 96],
        "counts": [24 * 72 + 8, *[24, 48] * 47, 24, 40 + 24 * 72],
      }
    ),
  ),
}


@pytest.fixture
def without_val(root):
  """One picture is called cat/000.jpg."""
  (root / "val/cat/000.jpg").rename(root / "val/cat/other.jpg")
  return root


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_every_kind_of_annotation_says_the_same_object(without_val, kind):
  write(without_val, *ANNOTATIONS[kind])
  dataset = load(without_val)
  with_objects = [r["name"] for r in dataset.source if "objects" in r]
  assert with_objects == ["train/cat/000.jpg"]
  objects = dataset.source[0]["objects"]
  assert objects["label"] == [0]
  assert objects["difficult"] == ["xml" in kind]
  assert np.allclose(objects["bbox"], [NORMALISED])
  assert bool(objects["mask"][0]) == ("mask" in kind or kind[5:] in WITH_MASKS)
  ((label, mask),) = geometry.decode_object_masks(dataset.source[0], 72)
  assert label == 0
  # The centre square: columns 12..83.
  np.testing.assert_array_equal(mask, rectangle()[:, 12:84] > 0)


WITH_MASKS = ("polygon", "run lengths")


def test_a_mask_takes_the_place_of_boxes(without_val):
  write(without_val, "masks/train/cat/000.png", ANNOTATIONS["a mask"][1])
  write(without_val, "boxes.csv", f"{HEADER}cat/000.jpg,cat,0,0,96,72\n")
  assert load(without_val).source[0]["objects"]["label"] == [0]


def test_what_annotations_say_is_kept_until_a_file_changes(
  without_val, tmp_path
):
  write(without_val, *ANNOTATIONS["csv"])
  first = load(without_val).source[0]["objects"]
  (index,) = (tmp_path / "tfds").rglob("*.json")
  content = json.loads(index.read_text())
  content["of_picture"]["train/cat/000.jpg"]["label"] = [2]
  index.write_text(json.dumps(content))
  assert load(without_val).source[0]["objects"]["label"] == [2]
  write(without_val, "boxes.csv", f"{ANNOTATIONS['csv'][1]}\n")
  assert load(without_val).source[0]["objects"]["label"] == first["label"]


def test_pictures_without_annotation_are_counted_aloud(without_val, caplog):
  write(without_val, *ANNOTATIONS["csv"])
  load(without_val)
  assert re.search(
    r"5 of 6 pictures .* split train, have neither mask nor box, "
    r"'train/cat/001.jpg' first: they do not count",
    caplog.text,
  )


PROBLEMS = [
  (
    "boxes.csv",
    f"{HEADER}cat/000.jpg,cat,24,8,98,32\n",
    r"boxes.csv, line 2: the box must lie within the 96x72 pixels of "
    r"cat/000.jpg, and is xmin=24 ymin=8 xmax=98 ymax=32",
  ),
  (
    "boxes.csv",
    f"{HEADER}cat/000.jpg,cat,-30,8,20,32\n",
    r"line 2: the box must lie within",
  ),
  (
    "boxes.csv",
    f"{HEADER}cat/000.jpg,cat,72,8,24,32\n",
    r"line 2: the box must have xmin < xmax and ymin < ymax, and is xmin=72",
  ),
  (
    "boxes.csv",
    f"{HEADER}cat/000.jpg,catt,24,8,72,32\n",
    r"Unknown class='catt'. Known: cat, cup, moto. Did you mean 'cat'\?",
  ),
  (
    "boxes.csv",
    f"{HEADER}cat/007.jpg,cat,24,8,72,32\n",
    r"line 2: there is no picture 'cat/007.jpg'",
  ),
  (
    "boxes.csv",
    f"{HEADER}001.jpg,cat,24,8,72,32\n",
    r"'001.jpg' names 3 pictures, 'train/cat/001.jpg' and 'train/cup/001.jpg' "
    r"among them; write the path below the folder",
  ),
  (
    "boxes.csv",
    f"{HEADER}cat/000.jpg,cat,left,8,72,32\n",
    r"line 2: 'left' must be a number such as 12 or 12\.5",
  ),
  ("boxes.csv", "image,xmin\n", r"label, ymin, xmax, ymax is missing from"),
  (
    "masks/train/cat/000.png",
    photos.encode(np.zeros((72, 96), np.uint8), "png"),
    r"must have pixels inside of its object, .* and has none$",
  ),
  (
    "masks/train/cat/000.png",
    photos.encode(np.full((96, 72), 255, np.uint8), "png"),
    r"as large as its picture, 96x72 pixels, and is 72x96",
  ),
  (
    "masks/train/cat/007.png",
    photos.encode(rectangle(), "png"),
    r"must belong to one picture, called train/cat/007 .* are 0: none",
  ),
  ("masks/train/cat/000.png", b"", r"000.png: it is empty \(0 bytes\)"),
  ("masks/train/cat/000.jpg", b"", r"a mask must be a PNG file"),
  ("train/cat/000.xml", "<annotation>", r"000.xml: .*: no element found"),
  (
    "train/cat/000.xml",
    voc("000.jpg", size=(72, 96)),
    r"of a picture of 72x96 pixels and .* is stored with 96x72",
  ),
  (
    "train/cat/000.xml",
    "<annotation><object><name>cat</name></object></annotation>",
    r"000.xml, object 1: <object> must have one <bndbox>, and has none",
  ),
  (
    "train/cat/000.xml",
    "<annotation><size/></annotation>",
    r"000.xml: <width>: <size> must have one <width>, and has none",
  ),
  (
    "annotations.json",
    "{}",
    r"annotations.json must be COCO's .* its images a",
  ),
  ("annotations.json", "{", r"annotations.json must be .* Expecting property"),
  (
    "annotations.json",
    coco(category_id=8),
    r"annotations.json, annotation 5: category_id must be .*, and is 8",
  ),
  (
    "annotations.json",
    coco(bbox=None),
    r"annotation 5: it must have a bbox, or a segmentation that covers pixels",
  ),
  (
    "annotations.json",
    coco(bbox=[1, 2, None, 4]),
    r"annotation 5: bbox must be four numbers, .* one of them is missing or n",
  ),
  (
    "annotations.json",
    json.dumps({"images": [], "categories": [], "annotations": [3]}),
    r"annotations.json, annotations\[0\]: it must be an object, and is 3",
  ),
]


@pytest.mark.parametrize(("name", "content", "message"), PROBLEMS)
def test_an_annotation_that_cannot_be_used_is_told_or_left_out(
  without_val, caplog, name, content, message
):
  write(without_val, name, content)
  with pytest.raises(
    ValueError, match=r"1 annotations .*cannot be used"
  ) as told:
    load(without_val)
  assert re.search(message, str(told.value), re.MULTILINE), told.value
  assert "--config.data.on_error=skip" in str(told.value)
  dataset = load(without_val, on_error="skip")
  assert dataset.num_dropped == 1
  assert not any("objects" in record for record in dataset.source)
  assert re.search(message, caplog.text, re.MULTILINE)


def test_a_mask_that_cannot_be_opened_is_told(without_val):
  path = write(without_val, *ANNOTATIONS["a mask"])
  path.unlink()
  path.symlink_to("nowhere.png")
  with pytest.raises(ValueError, match=r"masks/train/cat/000.png: .*No such"):
    load(without_val)


def test_two_pictures_of_one_stem_cannot_share_a_mask(without_val):
  write(without_val, "train/cat/000.png", b"")
  write(without_val, *ANNOTATIONS["a mask"])
  with pytest.raises(
    ValueError, match=r"are 2: train/cat/000.jpg, train/cat/0"
  ):
    load(without_val)


def test_of_many_problems_five_are_told(without_val):
  lines = "".join(f"cat/{i}.jpg,cat,0,0,9,9\n" for i in range(10, 30))
  write(without_val, "boxes.csv", HEADER + lines)
  with pytest.raises(ValueError, match=r"20 annotations[\s\S]*and 15 more"):
    load(without_val)


@pytest.mark.parametrize(
  ("written", "difficult"),
  [
    ("False", False),
    ("FALSE", False),
    ("no", False),
    ("0.0", False),
    ("", False),
    ("True", True),
    ("yes", True),
    ("1.0", True),
  ],
)
def test_difficult_is_read_however_it_is_written(
  without_val, written, difficult
):
  header = HEADER.replace("\n", ",difficult\n")
  row = f"cat/000.jpg,cat,24,8,72,32,{written}\n"
  write(without_val, "boxes.csv", header + row)
  assert load(without_val).source[0]["objects"]["difficult"] == [difficult]


@pytest.mark.parametrize("written", ["2", "maybe", "nan", "0,5"])
def test_difficult_that_is_neither_yes_nor_no_is_told(without_val, written):
  header = HEADER.replace("\n", ",difficult\n")
  row = f'cat/000.jpg,cat,24,8,72,32,"{written}"\n'
  write(without_val, "boxes.csv", header + row)
  with pytest.raises(
    ValueError, match=rf"line 2: '{written}' must be true, ye"
  ):
    load(without_val)


BOX_OF = "cat/{},cat,24,8,72,32"


@pytest.mark.parametrize(
  ("lines", "dropped"),
  [
    (['cat/000.jpg,"cat,24,8,72,32', BOX_OF.format("001.jpg")], [2]),
    ([BOX_OF.format("001.jpg"), '"cat/000.jpg,cat,24,8,72,32'], [3]),
    (['cat/000.jpg,"cat"s,24,8,72,32', BOX_OF.format("001.jpg")], [2]),
    (["cat/000.jpg,cat,24,8,72", BOX_OF.format("001.jpg"), "x"], [2, 4]),
    (['cat/000.jpg,cat,"24,5",8,72,32', BOX_OF.format("001.jpg")], [2]),
    ([",,,,,", BOX_OF.format("001.jpg"), "cat/9.jpg,cat,1,2,3,4"], [4]),
  ],
)
def test_a_row_that_is_skipped_is_counted_and_costs_no_other(
  without_val, caplog, lines, dropped
):
  write(without_val, "boxes.csv", HEADER + "\n".join(lines))
  dataset = load(without_val, on_error="skip")
  assert dataset.num_dropped == len(dropped)
  assert [r["name"] for r in dataset.source if "objects" in r] == [
    "train/cat/001.jpg"
  ]
  told = re.findall(r"boxes.csv, line (\d+):", caplog.text)
  assert list(map(int, told)) == dropped


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_table_of_a_spreadsheet_is_read(without_val, separator, encoding):
  table = ANNOTATIONS["csv"][1].replace(",", separator).replace("\n", "\r\n")
  write(without_val, "Boxes.CSV", table.encode(encoding))
  objects = load(without_val).source[0]["objects"]
  assert np.allclose(objects["bbox"], [NORMALISED])


@pytest.mark.parametrize("written", ["cafe\u0301", "caf\u00e9"])
@pytest.mark.parametrize("stored", ["cafe\u0301", "caf\u00e9"])
def test_names_are_one_however_an_accent_is_stored(root, stored, written):
  for split in ("train", "val"):
    (root / split / "cat").rename(root / split / stored)
  (root / f"train/{stored}/000.jpg").rename(
    root / f"train/{stored}/{stored}.jpg"
  )
  write(root, "boxes.csv", f"{HEADER}{written}.jpg,{written},24,8,72,32\n")
  mask = photos.encode(rectangle(), "png")
  write(root, f"masks/train/{written}/001.png", mask)
  records = [r for r in load(root).source if "objects" in r]
  assert len(records) == 2
  for record in records:
    assert np.allclose(record["objects"]["bbox"], [NORMALISED])


@pytest.mark.parametrize(
  "name", ["masks/train/cat/000.PNG", "Masks/Train/Cat/000.Png"]
)
def test_masks_are_known_in_any_case(without_val, name):
  write(without_val, name, ANNOTATIONS["a mask"][1])
  write(without_val, "masks/Thumbs.db".replace("masks", name[:5]), b"\0")
  objects = load(without_val).source[0]["objects"]
  assert np.allclose(objects["bbox"], [NORMALISED])


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("xml beside", "train/cat/000.XML"),
    ("xml mirrored", "Annotations/train/cat/000.Xml"),
    ("coco boxes", "Annotations.JSON"),
    ("coco boxes", "Annotations/instances.Json"),
  ],
)
def test_annotations_are_known_in_any_case(without_val, kind, name):
  write(without_val, name, ANNOTATIONS[kind][1])
  assert load(without_val).source[0]["objects"]["label"] == [0]


# Folders that are not what they should be.


def test_links_that_lead_nowhere_are_told_before_training(root, tmp_path):
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


def test_wrong_classes_of_many_are_told_in_a_few_lines(tmp_path):
  root = tmp_path / "mine"
  picture = photos.encode(np.zeros((8, 8, 3), np.uint8), "png")
  for i in range(300):
    write(root, f"train/class_number_{i:04}/a.png", picture)
    write(root, f"val/class_number_{i:04}/a.png", picture)
  lines = "".join(
    f"train/class_number_{i:04}/a.png,Class{i},1,1,5,5\n" for i in range(9)
  )
  write(root, "boxes.csv", HEADER + lines)
  with pytest.raises(ValueError, match=r"and 4 more") as told:
    load(root)
  assert "Unknown class='Class3'. Known: class_number_0003, " in str(told.value)
  assert len(str(told.value)) < 3_000


def test_a_class_with_one_picture_is_told(root, caplog):
  (root / "train/cup/001.jpg").unlink()
  dataset = load(root)
  assert "1 class has one training picture, 'cup' first" in caplog.text
  assert len(dataset.source) == 5


def test_a_class_with_one_picture_trains_on_it_however_its_hash_falls(tmp_path):
  for i in range(30):
    root = tmp_path / str(i)
    for name in ("a/1.jpg", "a/2.jpg", f"b/{i}.jpg"):
      write(root, name, b"")
    assert 1 in {k for row in load(root).all_labels() for k in row}


def problem(tmp_path, prepare):
  root = tmp_path / "mine"
  root.mkdir()
  prepare(root)
  with pytest.raises(ValueError) as told:
    load(root)
  return str(told.value)


def test_a_folder_that_is_not_there_is_told(tmp_path):
  with pytest.raises(ValueError, match=r"must be a folder, and does not exist"):
    load(tmp_path / "none")
  with pytest.raises(ValueError, match=r"must be a folder, and is a file"):
    load(write(tmp_path, "file", b""))


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ([], r"must hold pictures .*; none is among its 0 files"),
    (["a/x.txt"], r"none is among its 1 file "),
    (["a/1.jpg", "a/2.jpg"], r"at least two classes, and shows 1 \(a\)"),
    (["1.jpg", "a/2.jpg"], r"mine/1.jpg must lie in the folder of its class"),
    (
      ["train/a/1.jpg", "train/2.jpg"],
      r"must lie in the folder of its class, as .*mine/train/CLASS/2.jpg",
    ),
    (
      ["train/a/1.jpg", "train/b/1.jpg", "extra/a/1.jpg"],
      r"mine/extra stands beside .*mine/train and must be called val, validat",
    ),
    (
      ["train/cat/1.jpg", "train/b/1.jpg", "val/cats/1.jpg"],
      r"mine/val/cats/1.jpg shows a class that no training picture shows. "
      r"Unknown class='cats'. Known: b, cat. Did you mean 'cat'\?",
    ),
  ],
)
def test_a_folder_arranged_otherwise_is_told_where(tmp_path, names, message):
  def prepare(root):
    for name in names:
      write(root, name, b"")

  assert re.search(message, problem(tmp_path, prepare))


def test_a_split_without_pictures_is_told(tmp_path):
  for name in ("a/1.jpg", "b/2.jpg"):
    write(tmp_path / "mine", name, b"")
  with pytest.raises(ValueError, match=r"'validation' of .* none of the 2"):
    load(tmp_path / "mine", "validation")


def test_a_folder_that_cannot_be_read_is_told(root, monkeypatch):
  """The user of a test may be root, who reads everything."""
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith("cup"):
      raise PermissionError(13, "Permission denied", str(path))
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(
    ValueError, match=r"train/cup must be readable \(Permission denied\)"
  ):
    load(root)


def test_an_index_that_cannot_be_kept_is_no_error(
  without_val, tmp_path, caplog
):
  write(without_val, *ANNOTATIONS["csv"])
  blocker = write(tmp_path, "blocker", b"")
  assert "objects" in load(without_val, tmp=blocker).source[0]
  assert "is not kept" in caplog.text


# Pictures that are not what they should be: by name, or passed over.

BROKEN = {
  "truncated": (
    photos.encode(photos.load("coffee.png", (96, 72)))[:1500],
    "truncated",
  ),
  "empty": (b"", r"it is empty \(0 bytes\)"),
  "text": (b"this is not a picture", r"starts? with b'this is not '"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_is_named(root, kind):
  content, message = BROKEN[kind]
  write(root, "train/cup/001.jpg", content)
  write(root, "val/cup/000.jpg", content)
  sizes = {"batch_size": 6, "image_size": 48}
  with pytest.raises(
    ValueError,
    match=rf"Example 3 of folder/mine, train/cup/001.jpg, .*{message}",
  ):
    next(pipeline.train_batches(load(root), seed=0, start_step=0, **sizes))
  with pytest.raises(
    ValueError,
    match=rf"Example 1 of folder/mine, val/cup/000.jpg, .*{message}",
  ):
    evaluated.batch(load(root, "validation"), 48)


def test_a_picture_that_is_gone_is_named(root):
  dataset = load(root)
  (root / "train/cup/001.jpg").unlink()
  with pytest.raises(ValueError, match=r"No such file.*train/cup/001.jpg"):
    next(
      pipeline.train_batches(
        dataset, seed=0, start_step=0, batch_size=6, image_size=48
      )
    )


def test_turned_pictures_are_trained_on_upright(root):
  image = photos.load("coffee.png", (96, 72))
  write(root, "train/cup/000.jpg", photos.with_orientation(image, 6))
  record = load(root).source[2]
  upright = geometry.decode_image(record["image"], 72)
  turned = image.transpose(PIL.Image.Transpose.ROTATE_270)
  plain = geometry.decode_image(photos.encode(turned), 72)
  # Coded in other blocks: levels apart, not pictures.
  assert np.abs(upright.astype(int) - plain).mean() < 4


def test_an_unknown_split_is_told_before_the_folder_is_looked_at():
  with pytest.raises(ValueError, match=r"Unknown split='val'. Known: train"):
    folder.load("val", path="nowhere")


def test_what_is_logged_is_no_error(root, caplog):
  with caplog.at_level(logging.WARNING):
    load(root)
  assert not caplog.records


def test_splits_without_one_to_train_on_are_no_classes(tmp_path):
  for top in ("Val/", "test/"):
    fill(tmp_path / "mine", 3, top=top)
  with pytest.raises(ValueError, match=r"must hold `train`; .* Val, test"):
    load(tmp_path / "mine")


def test_what_is_transparent_is_outside_of_a_mask(without_val):
  inside = np.zeros((72, 96), np.uint8)
  inside[10:30, 20:50] = 255
  white = np.full((72, 96, 3), 255, np.uint8)
  pixels = np.concatenate([white, inside[..., None]], -1)
  write(without_val, "masks/train/cat/000.png", photos.encode(pixels, "png"))
  dataset = load(without_val)
  record = next(
    r for r in dataset.source if str(r["name"]).endswith("cat/000.jpg")
  )
  box = [10 / 72, 20 / 96, 30 / 72, 50 / 96]
  np.testing.assert_allclose(record["objects"]["bbox"][0], box, atol=1e-6)


@pytest.mark.parametrize("text", ["[]", "3", '{"images": 1}'])
def test_a_json_of_another_kind_is_told_by_name(without_val, text):
  write(without_val, "annotations.json", text)
  with pytest.raises(ValueError, match=r"annotations\.json"):
    load(without_val)
