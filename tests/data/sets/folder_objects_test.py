"""Annotations of a folder as people have them: used, or told and counted."""

import json
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gc_jax.data import decode, geometry
from gc_jax.data.sets import folder, folder_layout, folder_objects
from tests.data import archives, photos
from tests.data.photos import write

WIDTH, HEIGHT = 48, 40
BOX = (6, 4, 24, 20)
NORMALISED = [4 / 40, 6 / 48, 20 / 40, 24 / 48]
HEADER = "image,label,xmin,ymin,xmax,ymax"
DIFFICULT = f"{HEADER},difficult"
SQUARE = [6, 4, 24, 4, 24, 20, 6, 20]
CAT = "train/cat/cat0.png"


@pytest.fixture
def root(tmp_path):
  """Two classes; several pictures are called same."""
  picture = photos.load("coffee.png", (WIDTH, HEIGHT))
  encoded = {kind: photos.encode(picture, kind) for kind in ("png", "jpeg")}
  for name in ("cat0", "cat1", "cat2", "same"):
    write(tmp_path / "mine", f"train/cat/{name}.png", encoded["png"])
  write(tmp_path / "mine", "train/cat/same.jpg", encoded["jpeg"])
  for name in ("train/dog/dog0", "train/dog/same", "val/cat/a", "val/dog/b"):
    write(tmp_path / "mine", f"{name}.png", encoded["png"])
  return tmp_path / "mine"


def load(root, on_error="raise"):
  data_dir = str(root.parent / "tfds")
  return folder.load(
    "train", path=str(root), data_dir=data_dir, on_error=on_error
  )


def read(root):
  """Returns what annotations say, and the number of used ones."""
  found = folder_objects.read_objects(folder_layout.read_layout(str(root)))
  return found, sum(len(o["label"]) for o in found.of_picture.values())


def refused(root):
  with pytest.raises(ValueError) as told:
    load(root)
  message = str(told.value)
  assert len(message.splitlines()) <= 30
  assert "--config.data.on_error=skip" in message
  return message


def boxes_of(dataset):
  return {
    record["name"]: record["objects"]["bbox"]
    for record in dataset.source
    if "objects" in record
  }


def mask_pixels(dataset):
  """Returns picture -> pixels of its first object's mask, as evaluated."""
  found = {}
  for record in dataset.source:
    for label in record.get("objects", {"label": ()})["label"][:1]:
      mask, *_ = geometry.decode_object_masks(record, label, HEIGHT)
      found[record["name"]] = int(mask.sum())
  return found


ONE_BOX = {CAT: [pytest.approx(NORMALISED)]}


def rectangle(inside=255):
  pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
  pixels[4:20, 6:24] = inside
  return pixels


BORDERED = rectangle(8) | np.eye(HEIGHT, WIDTH, dtype=np.uint8) * 255


def png(pixels):
  return photos.encode(pixels, "png")


def csv(*rows, header=HEADER):
  return "\n".join([header, *rows]) + "\n"


def xml(*corners, size=(WIDTH, HEIGHT), label="cat", filename="cat0.png"):
  return archives.xml(filename, size, [(label, box, 1) for box in corners])


VOC_BOX = (7, 5, 24, 20)  # counted from 1, both ends included


def coco(*annotations, images=None, **image):
  """Returns COCO's JSON of train/cat/cat0.png and a few annotations."""
  first = {"id": 7, "file_name": CAT}
  return json.dumps(
    {
      "images": images or [first | image],
      "categories": [{"id": 1, "name": "cat"}, {"id": 18, "name": "dog"}],
      "annotations": [
        {"id": i, "image_id": 7, "category_id": 1, "bbox": [6, 4, 18, 16]} | a
        for i, a in enumerate(annotations, 1)
      ],
    }
  )


ROW = "train/cat/cat0.png,cat,6,4,24,20"
# Column by column: 6 whole ones, then 4 off, 16 on, 20 off, 18 times.
RUNS = {
  "size": [HEIGHT, WIDTH],
  "counts": [6 * 40 + 4, *[16, 24] * 17, 16, 20 + 24 * 40],
}
BAD_RUNS = RUNS | {"counts": [6 * 40 + 4, 16, 9]}


# Every kind of annotation, under every name.


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("masks/train/cat/cat0.png", png(rectangle())),
    ("Masks/Train/Cat/cat0.Png", png(rectangle())),
    ("MASKS/train/cat/cat0.cat.PNG", png(rectangle())),
    ("boxes.csv", csv(ROW)),
    ("boxes.csv", csv(f"{ROW},Yes", header=DIFFICULT)),
    ("Boxes.CSV", csv(ROW).replace(",", ";").encode("utf-16")),
    ("boxes.csv", csv(ROW).replace(",", "\t").encode("utf-8-sig")),
    ("train/cat/cat0.xml", xml(VOC_BOX)),
    ("train/cat/cat0.XML", xml(VOC_BOX, filename="any/x.jpg")),
    ("train/cat/cat0.xml", xml(VOC_BOX, size=(0, 0), filename="")),
    ("train/cat/cat0.xml", xml(VOC_BOX, size=(48.0, 40.0))),
    ("annotations/train/cat/cat0.xml", xml(VOC_BOX, filename="CAT0.PNG")),
    ("Annotations/cat/cat0.Xml", xml(VOC_BOX)),
    ("annotations.json", coco({})),
    ("Annotations.JSON", coco({}, width=None, height=None)),
    ("annotations.json", coco({}).encode("utf-16")),
    ("Annotations/instances.Json", coco({"segmentation": [SQUARE]})),
    ("annotations.json", coco({"segmentation": SQUARE})),
    ("annotations.json", coco({"segmentation": RUNS})),
    # Without a box that of the mask counts.
    ("annotations.json", coco({"segmentation": [SQUARE], "bbox": None})),
    ("annotations.json", coco({"segmentation": RUNS, "bbox": [0, 0, 0, 0]})),
    ("annotations.json", coco({"segmentation": RUNS, "bbox": [4, 4, -9, 9]})),
  ],
)
def test_every_kind_of_annotation_says_the_same_object(root, name, content):
  write(root, name, content)
  top = name.split("/")[0] if "/" in name else "train"
  for junk in ("Thumbs.db", ".DS_Store", "desktop.ini", "cat/Thumbs.db"):
    write(root, f"{top}/{junk}", b"junk")
  dataset = load(root)
  assert dataset.num_dropped == 0
  assert boxes_of(dataset) == ONE_BOX
  objects = dataset.source[0]["objects"]
  assert objects["label"] == [0]
  is_difficult = ".xml" in name.lower() or "Yes" in str(content)
  assert objects["difficult"] == [is_difficult]
  has_mask = "masks" in name.lower() or "segmentation" in str(content)
  assert bool(objects["mask"][0]) == has_mask
  (mask,) = geometry.decode_object_masks(dataset.source[0], 0, HEIGHT)
  # The centre square: columns 4..43.
  np.testing.assert_array_equal(mask, rectangle()[:, 4:44] > 0)


# What cannot be used: told with its place, or left out and counted.

# What readers of one file refuse is in their own tests.
BAD_ROWS = [
  ("cat0.png,cat,6,4,50,20", r"within the 48x40 pixels of cat0.png, and is xm"),
  ("cat0.png,cat,-30,4,20,20", r"line 2: the box must lie within"),
  ("cat0.png,cat,24,4,6,20", r"xmin < xmax and ymin < ymax, and is xmin=24"),
  ("cat0.png,catt,6,4,24,20", r"Unknown class='catt'. .* Did you mean 'cat'"),
  ("cat7.png,cat,6,4,24,20", r"line 2: there is no picture 'cat7.png'"),
  ("same.png,cat,6,4,24,20", r"names 2 pictures, .*; write the path below"),
  ("cat0.png,cat,left,4,24,20", r"'left' must be a number such as 12 or 12"),
]
WHOLE = png(rectangle())
BAD_MASKS = [
  ("cat0.png", png(rectangle(0)), r"pixels inside of its object, .* none$"),
  ("cat0.png", png(rectangle().T), r"as its picture, 48x40 .* and is 40x48"),
  ("cat0.png", b"", r"masks/train/cat/cat0.png: it is empty \(0 bytes\)"),
  ("cat0.png", png(BORDERED), r"must have two levels, .* has 0, 8 and 255"),
  ("cat7.png", WHOLE, r"one picture, called train/cat/cat7 .* are 0: none"),
  ("same.png", WHOLE, r"are 2: train/cat/same\.\w+, train/cat/same"),
  ("cat0.jpg", b"", r"cat0.jpg: a mask must be a PNG file; others blur"),
]
BAD_XML = [
  ("<annotation>", r"cat0.xml: it must be XML that can be read.*: no element"),
  (xml(VOC_BOX, size=(40, 48)), r"of 40x48 pixels and .* stored with 48x40$"),
  (xml((24, 5, 7, 20)), r"object 1: the box must have xmin < xmax"),
  (xml((7, 5, "", 20)), r"object 1: <xmax>: '' must be a number"),
  (xml(VOC_BOX, label="cats"), r"cat0.xml, object 1: Unknown class='cats'"),
]
TWICE = [{"id": 7, "file_name": name} for name in ("a", "b")]
BAD_JSON = [
  ("{", r"annotations.json must be .* Expecting property"),
  (coco().replace("[]", "[3]"), r"tions\[0\]: it must be an object, and is 3"),
  (coco({}, images=TWICE), r"every image id once, and 7 recurs.*'a' and 'b'"),
]
PROBLEMS = [
  *(("boxes.csv", csv(row), message) for row, message in BAD_ROWS),
  ("boxes.csv", "image,xmin\n", r"label, ymin, xmax, ymax is missing from"),
  ("boxes.csv", csv(f"{ROW},2", header=DIFFICULT), r"2: '2' must be true, yes"),
  *((f"masks/train/cat/{name}", *bad) for name, *bad in BAD_MASKS),
  *(("train/cat/cat0.xml", *bad) for bad in BAD_XML),
  *(("annotations.json", *bad) for bad in BAD_JSON),
]


@pytest.mark.parametrize(("name", "content", "message"), PROBLEMS)
def test_an_unusable_annotation_is_refused_or_left_out(
  root, caplog, name, content, message
):
  write(root, name, content)
  told = refused(root)
  assert re.search(message, told, re.MULTILINE), told
  assert told.startswith("1 annotation of")
  dataset = load(root, "skip")
  assert dataset.num_dropped == 1 and not boxes_of(dataset)
  assert re.search(message, caplog.text, re.MULTILINE)


def test_the_first_five_of_many_problems_are_listed(root):
  write(root, "boxes.csv", csv(*(f"x{i}.png,cat,0,0,9,9" for i in range(20))))
  assert re.search(r"20 annotations[\s\S]*and 15 more", refused(root))


# COCO's JSON.


@pytest.mark.parametrize(
  "segmentation",
  [
    None,
    [[6, 4, 24, 20]],
    [[6, 4, 24, 4, 24]],
    [[600, 4, 624, 4, 624, 20]],
    {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
  ],
)
def test_a_good_box_is_used_whatever_its_polygons_are(root, segmentation):
  write(root, "annotations.json", coco({"segmentation": segmentation}))
  dataset = load(root)
  assert boxes_of(dataset) == ONE_BOX
  assert mask_pixels(dataset) == {CAT: 18 * 16}
  assert dataset.num_dropped == 0


def test_polygons_without_a_pixel_are_reported(root, caplog):
  bad = [[6, 4, 24, 20]]
  annotations = ({"segmentation": bad}, {"segmentation": [*bad, SQUARE, *bad]})
  write(root, "annotations.json", coco(*annotations, {}))
  masks = load(root).source[0]["objects"]["mask"]
  assert re.search(
    r"1 segmentations cover no pixel; their boxes are used \(the first: "
    r".*annotations.json, annotation 1\)",
    caplog.text,
  )
  assert "2 polygons that cover no pixel are left out of their" in caplog.text
  assert [bool(mask) for mask in masks] == [False, True, False]


@pytest.mark.parametrize(
  ("segmentation", "message"),
  [
    (BAD_RUNS, r"must add up to 1920, all pixels of 48x40, and make 269"),
    ("labels.csv", r"polygons or run lengths, and is 'labels.csv'"),
  ],
)
def test_a_box_can_be_used_in_place_of_a_wrong_segmentation(
  root, segmentation, message
):
  write(root, "annotations.json", coco({"segmentation": segmentation}, {}))
  told = refused(root)
  assert re.search(rf"annotations.json, annotation 1: .*{message}", told), told
  dataset = load(root, "skip")
  assert dataset.num_dropped == 0 and len(boxes_of(dataset)[CAT]) == 2


@pytest.mark.parametrize(
  "annotation",
  [
    {"bbox": None},
    {"bbox": None, "segmentation": [[1, 1, 2, 2]]},
    {"bbox": [6, 4, 0, 16]},
    {"bbox": [6, 4, -3, 16], "segmentation": "no"},
    {"bbox": [6, 4, 400, 16], "segmentation": [SQUARE]},
    {"bbox": [-9, 4, 9, 16]},
    {"image_id": 9},
    {"category_id": 5},
    # Run lengths of another picture.
    {"segmentation": RUNS | {"size": [WIDTH, HEIGHT]}},
  ],
)
def test_an_unusable_annotation_among_others_is_named_and_counted(
  root, annotation
):
  write(root, "annotations.json", coco({}, annotation, {}))
  assert re.search(r"annotations.json, annotation 2: ", refused(root))
  dataset = load(root, "skip")
  assert dataset.num_dropped == 1 and len(boxes_of(dataset)[CAT]) == 2


def test_the_size_of_an_upright_picture_is_recognised(root):
  image = photos.load("coffee.png", (WIDTH, HEIGHT))
  write(root, CAT, photos.with_orientation(image, 6, "png"))
  write(root, "annotations.json", coco({}, width=HEIGHT, height=WIDTH))
  assert re.search(
    r"of a picture of 40x48 pixels and .* is stored with 48x40 and turned by "
    r"its EXIF",
    refused(root),
  )


# Fractions in place of pixels.

FRACTION = (0.125, 0.1, 0.5, 0.5)
FIRST = "with 0.125, 0.1, 0.5, 0.5"
FRACTION_ROW = "cat0.png,cat,0.125,0.1,0.5,0.5"
COCO_FRACTION = {"bbox": [0.125, 0.1, 0.5, 0.5]}
FRACTIONS = [
  ("boxes.csv", csv(*[FRACTION_ROW] * 3), 3, f"the first line 2, {FIRST}"),
  ("train/cat/cat0.xml", xml(FRACTION), 1, f"the first object 1, {FIRST}"),
  ("annotations.json", coco(*[COCO_FRACTION] * 2), 2, f"annotation 1, {FIRST}"),
]


@pytest.mark.parametrize(("name", "content", "count", "first"), FRACTIONS)
def test_boxes_in_fractions_are_refused_and_all_counted(
  root, name, content, count, first
):
  write(root, name, content)
  message = refused(root)
  assert f"{root / name}: boxes must be in pixels" in message
  assert "Are they fractions of the picture?" in message
  assert first in message
  assert re.match(rf"{count} annotations? of {root} cannot be used", message)
  dataset = load(root, "skip")
  assert dataset.num_dropped == count and not boxes_of(dataset)


# Several pictures, files and kinds.


def test_the_file_name_inside_chooses_between_pictures_of_one_stem(root):
  write(root, "train/cat/same.xml", xml(VOC_BOX, filename="same.JPG"))
  assert list(boxes_of(load(root))) == ["train/cat/same.jpg"]
  write(root, "train/cat/same.xml", xml(VOC_BOX, filename="same"))
  assert "names 2 pictures" in refused(root)


def test_a_mask_takes_the_place_of_boxes_which_are_counted(root, caplog):
  write(root, "masks/train/cat/cat0.png", png(rectangle()))
  rows = (
    "cat0.png,cat,1,1,9,9",
    "cat0.png,cat,2,2,9,9",
    "cat1.png,cat,6,4,9,9",
  )
  write(root, "boxes.csv", csv(*rows))
  objects, used = read(root)
  assert (used, objects.num_masked, objects.num_left_out) == (2, 2, 0)
  assert boxes_of(load(root))[CAT] == ONE_BOX[CAT]
  assert "2 boxes are not used, as their pictures have masks" in caplog.text


def test_an_unusable_mask_does_not_cost_a_box(root):
  write(root, "masks/train/cat/cat0.png", png(rectangle(0)))
  write(root, "boxes.csv", csv(ROW))
  assert "pixels inside of its object" in refused(root)
  dataset = load(root, "skip")
  assert dataset.num_dropped == 1 and boxes_of(dataset) == ONE_BOX


def test_a_mask_that_cannot_be_opened_is_named(root):
  mask = write(root, "masks/train/cat/cat0.png", b"")
  mask.unlink()
  mask.symlink_to("nowhere.png")
  assert re.search(r"masks/train/cat/cat0.png: .*No such", refused(root))


def test_a_warning_counts_pictures_without_annotation(root, caplog):
  write(root, "boxes.csv", csv(ROW))
  load(root)
  assert re.search(
    r"6 of 7 pictures .* split train, have neither mask nor box of their "
    r"class, 'train/cat/cat1.png' first: they do not count",
    caplog.text,
  )
  assert "not theirs" not in caplog.text


def test_a_warning_counts_objects_of_a_class_that_a_picture_does_not_have(
  root, caplog
):
  rows = ("cat0.png,dog", "cat1.png,dog", "cat1.png,cat")
  write(root, "boxes.csv", csv(*(f"train/cat/{r},6,4,24,20" for r in rows)))
  assert load(root).num_located == 1
  assert re.search(
    r"2 of 7 pictures .* have a mask or box of a class that is not theirs, "
    r"'train/cat/cat0.png' first",
    caplog.text,
  )
  assert "6 of 7 pictures" in caplog.text  # which have none of their class


# The index.


def test_the_index_is_used_until_a_file_changes(root):
  write(root, "annotations.json", coco({"segmentation": [SQUARE]}, {"bbox": 3}))
  first = load(root, "skip")
  kept = (root.parent / "tfds").rglob("*.json")
  (index,) = (path for path in kept if "pictures" not in path.name)
  again = load(root, "skip")
  assert again.num_dropped == first.num_dropped == 1
  assert boxes_of(again) == boxes_of(first)
  assert mask_pixels(again) == mask_pixels(first) != {}
  assert refused(root)
  content = json.loads(index.read_text())
  content["of_picture"][CAT]["label"] = [1]
  index.write_text(json.dumps(content))
  assert load(root, "skip").source[0]["objects"]["label"] == [1]
  write(root, "annotations.json", coco({}, {}, {}))
  assert load(root).source[0]["objects"]["label"] == [0, 0, 0]


def test_an_index_that_cannot_be_kept_is_no_error(root, caplog):
  write(root, "boxes.csv", csv(ROW))
  write(root.parent, "tfds", b"in the way")
  assert boxes_of(load(root)) == ONE_BOX
  assert "is not kept" in caplog.text


# Whatever comes: an object, or counted.

VALUES = st.sampled_from(
  [0, 6, 24, -1, 0.5, 1e9, float("nan"), 10**400, None, True, "6", "", [], {}]
)
ANNOTATION = st.fixed_dictionaries(
  {},
  optional={
    "id": st.integers(1, 4) | VALUES,
    "image_id": st.sampled_from([7, 7.0, 8, "7", None]),
    "category_id": st.sampled_from([1, 18, 5, "1", None]),
    "bbox": st.lists(VALUES, min_size=3, max_size=5) | VALUES,
    "segmentation": st.sampled_from(
      [None, [], [SQUARE], SQUARE, [[6, 4] * 3], RUNS, RUNS | {"size": 3}, "x"]
    ),
  },
)
CELL = st.sampled_from(["6", "24", "4", "0.5", "-1", "1e9", "nan", "", "x"])
CORNERS = st.tuples(CELL, CELL, CELL, CELL)
ROWS = st.tuples(
  st.sampled_from(["cat0.png", "dog0.png", "cat9.png"]),
  st.sampled_from(["cat", "", "cow", "a,b", "a;b"]),
  CORNERS.map(",".join),
).map(",".join)


@hypothesis.settings(
  max_examples=60,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
  st.lists(ANNOTATION, max_size=5),
  st.lists(ROWS, max_size=4),
  st.lists(CORNERS, max_size=4),
  st.booleans(),
)
def test_every_annotation_is_used_or_counted(
  root, annotations, rows, corners, masked
):
  write(root, "annotations.json", coco(*annotations))
  write(root, "boxes.csv", csv(*rows))
  write(root, "train/cat/cat0.xml", xml(*corners))
  mask = png(rectangle(255 if masked else 0))
  write(root, "masks/train/cat/cat0.png", mask)
  objects, used = read(root)
  given = len(annotations) + len(rows) + len(corners) + 1
  assert used + objects.num_masked + objects.num_left_out == given
  assert bool(objects.num_left_out) <= bool(objects.problems)
  for problem in objects.problems:
    assert problem.startswith(str(root))


def test_a_corner_of_0_empties_a_box_of_xml_in_the_release_alone(root):
  write(root, "train/cat/cat0.xml", xml((0, 5, 24, 20), (1, 5, 24, 20)))
  (record,) = (r for r in load(root).source if r["name"] == CAT)
  header = decode.read_header(record["image"])
  counts = {
    border: [
      int((np.asarray(mask) > 0).sum())
      for mask in geometry.object_masks(record, header, 0, border)
    ]
    for border in ("release", "clipped")
  }
  assert counts == {"release": [0, 24 * 16], "clipped": [24 * 16, 24 * 16]}
