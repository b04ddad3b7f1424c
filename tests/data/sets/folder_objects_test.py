"""Annotations of a folder as people have them: used, or told and counted."""

import json
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gc_jax.data import geometry
from gc_jax.data.sets import folder, folder_layout, folder_objects
from tests.data import photos

WIDTH, HEIGHT = 48, 40
BOX = (6, 4, 24, 20)
NORMALISED = [4 / 40, 6 / 48, 20 / 40, 24 / 48]
HEADER = "image,label,xmin,ymin,xmax,ymax"
SQUARE = [6, 4, 24, 4, 24, 20, 6, 20]


def write(root, name, content):
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def root(tmp_path):
  """Three pictures a class to train on."""
  picture = photos.encode(photos.load("coffee.png", (WIDTH, HEIGHT)), "png")
  for name in ("cat", "dog"):
    for i in range(3):
      write(tmp_path / "mine", f"train/{name}/{name}{i}.png", picture)
    write(tmp_path / "mine", f"val/{name}/val_{name}.png", picture)
  return tmp_path / "mine"


def load(root, on_error="raise"):
  return folder.load(
    "train",
    path=str(root),
    data_dir=str(root.parent / "tfds"),
    on_error=on_error,
  )


def read(root):
  return folder_objects.read_objects(folder_layout.read_layout(str(root)))


def refused(root):
  with pytest.raises(ValueError) as told:
    load(root)
  message = str(told.value)
  assert len(message.splitlines()) <= 30
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
    for _, mask in geometry.decode_object_masks(record, HEIGHT):
      found.setdefault(record["name"], int(mask.sum()))
  return found


def xml(*corners, size=(WIDTH, HEIGHT), label="cat", filename="cat0.png"):
  tags = ("xmin", "ymin", "xmax", "ymax")
  objects = "".join(
    f"<object><name>{label}</name><bndbox>"
    + "".join(f"<{t}>{v}</{t}>" for t, v in zip(tags, box, strict=True))
    + "</bndbox></object>"
    for box in corners
  )
  return (
    f"<annotation><filename>{filename}</filename><size><width>{size[0]}</width>"
    f"<height>{size[1]}</height></size>{objects}</annotation>"
  )


def coco(*annotations, images=None, **image):
  """Returns COCO's JSON of train/cat/cat0.png and a few annotations."""
  first = {"id": 7, "file_name": "train/cat/cat0.png"}
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


# COCO's JSON.


def test_two_pictures_of_one_id_are_told(root):
  images = [{"id": 7, "file_name": f"train/cat/cat{i}.png"} for i in range(2)]
  write(root, "annotations.json", coco({}, images=images))
  message = refused(root)
  assert "annotations.json must name every image id once, and 7 recurs" in (
    message
  )
  assert "'train/cat/cat0.png' and 'train/cat/cat1.png'" in message
  dataset = load(root, "skip")
  assert dataset.num_dropped == 1 and not boxes_of(dataset)


RUNS = {"size": [HEIGHT, WIDTH], "counts": [6 * 40 + 4, 16, 40 * 41 + 20]}


@pytest.mark.parametrize(
  "segmentation",
  [
    None,
    [],
    [[]],
    [[6, 4, 24, 20]],
    [[6, 4, 24, 4, 24]],
    [[6, 4] * 4],
    [[600, 4, 624, 4, 624, 20]],
    [[6, 4, 24, 4, float("nan"), 20]],
    [["6", "4", "24", "4", "24", "20"]],
    [[[6, 4], [24, 4], [24, 20]]],
    {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
  ],
)
def test_a_good_box_stands_whatever_its_polygons_are(root, segmentation):
  write(root, "annotations.json", coco({"segmentation": segmentation}))
  dataset = load(root)
  assert boxes_of(dataset) == {
    "train/cat/cat0.png": [pytest.approx(NORMALISED)]
  }
  # The centre square: columns 4 to 43.
  assert mask_pixels(dataset) == {"train/cat/cat0.png": 18 * 16}
  assert dataset.num_dropped == 0


def test_polygons_without_a_pixel_are_told(root, caplog):
  bad = [[6, 4, 24, 20]]
  write(
    root,
    "annotations.json",
    coco({"segmentation": bad}, {"segmentation": [*bad, SQUARE, *bad]}, {}),
  )
  dataset = load(root)
  assert re.search(
    r"1 segmentations cover no pixel; their boxes stand \(the first: "
    r".*annotations.json, annotation 1\)",
    caplog.text,
  )
  assert "2 polygons that cover no pixel are left out of their" in caplog.text
  assert dataset.source[0]["objects"]["mask"][0] == b""
  assert dataset.source[0]["objects"]["mask"][1] != b""


def test_one_polygon_outside_of_a_list_is_drawn(root):
  half = [6, 4, 15, 4, 15, 20, 6, 20]
  write(root, "annotations.json", coco({"segmentation": half}))
  assert mask_pixels(load(root)) == {"train/cat/cat0.png": 9 * 16}


@pytest.mark.parametrize(
  ("segmentation", "message"),
  [
    (RUNS, r"must add up to 1920, all pixels of 48x40, and make 1920"),
    (RUNS | {"counts": [9, 9]}, r"must add up to 1920, .* and make 18"),
    (RUNS | {"counts": [-1, 1921]}, r"must be from 0 to 1920"),
    (RUNS | {"counts": "0é"}, r"from character 2 on"),
    (RUNS | {"counts": "0"}, r"must add up to 1920"),
    ("labels.csv", r"polygons or run lengths, and is 'labels.csv'"),
    (True, r"must be polygons or run lengths, and is True"),
  ],
)
def test_run_lengths_that_cannot_be_are_told_and_the_box_stands_if_asked(
  root, segmentation, message
):
  if segmentation is RUNS:
    write(root, "annotations.json", coco({"segmentation": RUNS}))
    assert mask_pixels(load(root)) == {"train/cat/cat0.png": 16}
    return
  write(root, "annotations.json", coco({"segmentation": segmentation}, {}))
  told = refused(root)
  assert re.search(rf"annotations.json, annotation 1: .*{message}", told), told
  dataset = load(root, "skip")
  assert dataset.num_dropped == 0
  assert len(boxes_of(dataset)["train/cat/cat0.png"]) == 2


@pytest.mark.parametrize("size", [[48, 40], [400, 480], None])
def test_run_lengths_of_another_picture_cost_the_annotation(root, size):
  runs = RUNS | {"size": size}
  write(root, "annotations.json", coco({"segmentation": runs}, {}))
  assert re.search(
    r"annotation 1: its run lengths must be of the picture as it is stored, of "
    r"size \[40, 48\]",
    refused(root),
  )
  dataset = load(root, "skip")
  assert dataset.num_dropped == 1
  assert len(boxes_of(dataset)["train/cat/cat0.png"]) == 1


@pytest.mark.parametrize("box", [None, [0, 0, 0, 0], [24, 20, -18, -16]])
def test_without_a_box_that_of_the_mask_counts(root, box):
  annotation = {"segmentation": [SQUARE], "bbox": box}
  write(root, "annotations.json", coco(annotation))
  dataset = load(root)
  assert boxes_of(dataset) == {
    "train/cat/cat0.png": [pytest.approx(NORMALISED)]
  }


@pytest.mark.parametrize(
  "annotation",
  [
    {"bbox": None},
    {"bbox": None, "segmentation": [[1, 1, 2, 2]]},
    {"bbox": [6, 4, 0, 16]},
    {"bbox": [6, 4, -3, 16], "segmentation": "no"},
    {"bbox": [6, 4, 400, 16], "segmentation": [SQUARE]},
    {"bbox": [-9, 4, 9, 16]},
    {"bbox": ["6", 4, 18, 16]},
    {"image_id": "7"},
    {"category_id": 5},
    {"category_id": None},
  ],
)
def test_an_annotation_that_cannot_be_used_is_named_and_counted(
  root, annotation
):
  write(root, "annotations.json", coco({}, annotation, {}))
  assert re.search(r"annotations.json, annotation 2: ", refused(root))
  dataset = load(root, "skip")
  assert dataset.num_dropped == 1
  assert len(boxes_of(dataset)["train/cat/cat0.png"]) == 2


def test_ids_as_texts_are_told_as_such(root):
  write(root, "annotations.json", coco({"image_id": "7"}))
  message = (
    r"annotation 1: image_id must be a whole number, and is the text '7'"
  )
  assert re.search(message, refused(root))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_read(root, encoding):
  write(root, "annotations.json", coco({}).encode(encoding))
  assert boxes_of(load(root))


def test_a_size_of_null_is_none_and_one_as_text_is_told(root):
  write(root, "annotations.json", coco({}, width=None, height=None))
  assert boxes_of(load(root))
  write(root, "annotations.json", coco({}, width="48", height="40"))
  assert (
    "images[0]: width must be a whole number above 0, and is the text "
    in (refused(root))
  )


def test_a_size_of_the_upright_picture_is_told_as_such(root):
  image = photos.load("coffee.png", (WIDTH, HEIGHT))
  write(root, "train/cat/cat0.png", photos.with_orientation(image, 6, "png"))
  write(root, "annotations.json", coco({}, width=HEIGHT, height=WIDTH))
  assert re.search(
    r"of a picture of 40x48 pixels and .* is stored with 48x40 and turned by "
    r"its EXIF",
    refused(root),
  )


def test_annotations_of_several_files_are_all_counted(root):
  write(root, "annotations.json", "{")
  write(root, "annotations/a.json", coco({}, {"bbox": [1, 2]}))
  write(root, "annotations/b.JSON", coco({}, {"image_id": 9}))
  write(
    root, "boxes.csv", f"{HEADER}\ncat1.png,cat,6,4,24,20\ncat1.png,cat,x\n"
  )
  write(root, "train/dog/dog0.xml", xml(BOX, ("x", 1, 2, 3), label="dog"))
  objects = read(root)
  used = sum(len(found["label"]) for found in objects.of_picture.values())
  assert used == 4
  # A file that cannot be read, and one of each of four.
  assert objects.num_left_out == len(objects.problems) == 5
  assert load(root, "skip").num_dropped == 5


# Fractions in place of pixels.

FRACTION = (0.125, 0.1, 0.5, 0.5)
IN_FRACTIONS = {
  "csv": (
    "boxes.csv",
    f"{HEADER}\n"
    + "".join(f"cat{i}.png,cat,0.125,0.1,0.5,0.5\n" for i in range(3)),
    3,
    "the first line 2, with 0.125, 0.1, 0.5, 0.5",
  ),
  "csv of the whole picture": (
    "boxes.csv",
    f"{HEADER}\ncat0.png,cat,0,0,1,1\ncat1.png,cat,0,0,1,1\n",
    2,
    "all 2 boxes lie within 0 and 1",
  ),
  "one pixel": (
    "boxes.csv",
    f"{HEADER}\ncat0.png,cat,0,0,1,1\n",
    1,
    "the only box lies within 0 and 1",
  ),
  "a pixel each": (
    "boxes.csv",
    f"{HEADER}\ncat0.png,cat,5,7,6,8\ncat1.png,cat,9,7,9.5,7.5\n",
    2,
    "all 2 boxes lie within one pixel",
  ),
  "sticking out": (
    "boxes.csv",
    f"{HEADER}\ncat0.png,cat,-0.01,0.1,1.02,0.5\n",
    1,
    "the only box lies within",
  ),
  "voc": (
    "train/cat/cat0.xml",
    xml(FRACTION, FRACTION),
    2,
    "the first object 1, with 0.125, 0.1, 0.5, 0.5",
  ),
  "coco": (
    "annotations.json",
    coco({"bbox": [0.1, 0.1, 0.5, 0.5]}, {"bbox": [0, 0, 1, 1]}),
    2,
    "the first annotation 1, with 0.1, 0.1, 0.5, 0.5",
  ),
  "coco of centres": (
    "annotations.json",
    coco({"bbox": [0.9, 0.5, 0.8, 0.4]}),
    1,
    "the only box lies within 0 and 1",
  ),
}


@pytest.mark.parametrize("kind", IN_FRACTIONS)
def test_boxes_in_fractions_are_told_and_all_counted(root, kind):
  name, content, number, first = IN_FRACTIONS[kind]
  write(root, name, content)
  message = refused(root)
  assert f"{root / name}: boxes must be in pixels" in message
  assert "Are they fractions of the picture?" in message
  assert first in message
  assert message.startswith(f"{number} annotations of {root} cannot be used")
  dataset = load(root, "skip")
  assert dataset.num_dropped == number
  assert not boxes_of(dataset)


def test_one_small_object_among_others_is_no_fraction(root):
  rows = "cat0.png,cat,0.2,0.2,0.9,0.9\ncat0.png,cat,6,4,24,20\n"
  write(root, "boxes.csv", f"{HEADER}\n{rows}")
  assert len(boxes_of(load(root))["train/cat/cat0.png"]) == 2


# VOC.


@pytest.mark.parametrize(
  "name",
  [
    "train/cat/cat0.xml",
    "train/cat/cat0.XML",
    "annotations/train/cat/cat0.xml",
    "Annotations/cat/cat0.xml",
    "ANNOTATIONS/cat0.Xml",
  ],
)
@pytest.mark.parametrize("filename", ["cat0.png", "CAT0.PNG", "x.jpg", ""])
def test_an_xml_file_belongs_to_the_picture_of_its_name(root, name, filename):
  write(root, name, xml((7, 5, 24, 20), filename=filename))
  dataset = load(root)
  assert boxes_of(dataset) == {
    "train/cat/cat0.png": [pytest.approx(NORMALISED)]
  }


def test_of_pictures_of_one_stem_the_file_name_says_which(root):
  jpeg = photos.encode(photos.load("coffee.png", (WIDTH, HEIGHT)))
  write(root, "train/cat/cat0.jpg", jpeg)
  write(root, "train/cat/cat0.xml", xml((7, 5, 24, 20), filename="cat0.JPG"))
  assert list(boxes_of(load(root))) == ["train/cat/cat0.jpg"]
  write(root, "train/cat/cat0.xml", xml((7, 5, 24, 20), filename="cat0"))
  assert "names 2 pictures" in refused(root)


@pytest.mark.parametrize("size", [(0, 0), (48.0, 40.0)])
def test_a_size_of_zero_is_none(root, size):
  write(root, "train/cat/cat0.xml", xml((7, 5, 24, 20), size=size))
  assert boxes_of(load(root))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("<annotation>", "must be XML that can be read"),
    ("", "must be XML that can be read"),
    ("<annotations><image/></annotations>", "must be VOC's XML"),
    (xml((7, 5, 24, 20), size=(40, 48)), "of a picture of 40x48 pixels"),
    (xml((7, 5, 24, 20), size=("a", 48)), "<width>: 'a' must be a number"),
    (xml((24, 5, 7, 20)), "object 1: the box must have xmin < xmax"),
    (xml((7, 5, "", 20)), "object 1: <xmax>: '' must be a number"),
    (xml((7, 5, 24, 20), label="cats"), "object 1: Unknown class='cats'"),
    (xml((7, 5, 24, 20), label=""), "object 1: its name must be that of a cl"),
    (
      f'<!DOCTYPE a [<!ENTITY a "b">]>{xml((7, 5, 24, 20))}',
      "must not define entities",
    ),
  ],
)
def test_an_xml_file_that_cannot_be_used_is_named(root, content, message):
  write(root, "train/cat/cat0.xml", content)
  assert re.search(rf"train/cat/cat0.xml(:|,) .*{message}", refused(root))
  dataset = load(root, "skip")
  assert dataset.num_dropped == 1 and not boxes_of(dataset)


def test_one_object_that_cannot_be_used_leaves_the_others(root):
  write(root, "train/cat/cat0.xml", xml((7, 5, 24, 20), (7, 5, "?", 20)))
  assert "cat0.xml, object 2: <xmax>: '?' must be a number" in refused(root)
  dataset = load(root, "skip")
  assert dataset.num_dropped == 1
  assert len(boxes_of(dataset)["train/cat/cat0.png"]) == 1


# Masks.


def rectangle(inside=255):
  pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
  pixels[4:20, 6:24] = inside
  return pixels


@pytest.mark.parametrize(
  "name",
  [
    "masks/train/cat/cat0.PNG",
    "Masks/train/cat/cat0.png",
    "MASKS/train/cat/cat0.cat.Png",
  ],
)
def test_a_mask_is_known_in_any_case_and_what_systems_leave_is_not_one(
  root, name
):
  write(root, name, photos.encode(rectangle(), "png"))
  top = name.split("/")[0]
  for junk in ("Thumbs.db", ".DS_Store", "desktop.ini", "train/Thumbs.db"):
    write(root, f"{top}/{junk}", b"junk")
  dataset = load(root)
  assert dataset.num_dropped == 0
  assert boxes_of(dataset) == {
    "train/cat/cat0.png": [pytest.approx(NORMALISED)]
  }
  assert mask_pixels(dataset) == {"train/cat/cat0.png": 16 * 18}


def test_a_mask_that_is_no_png_is_told(root):
  write(root, "masks/train/cat/cat0.jpg", photos.encode(rectangle()))
  assert "cat0.jpg: a mask must be a PNG file; others blur" in refused(root)


def test_an_index_mask_with_a_border_is_told_before_training(root):
  pixels = rectangle(8)
  pixels[4, 6:24] = 255
  write(root, "masks/train/cat/cat0.png", photos.encode(pixels, "png"))
  message = refused(root)
  assert "masks/train/cat/cat0.png: a mask must have two levels" in message
  assert "has 0, 8 and 255" in message


def test_boxes_of_a_picture_with_masks_are_counted(root, caplog):
  write(root, "masks/train/cat/cat0.png", photos.encode(rectangle(), "png"))
  rows = "cat0.png,cat,1,1,9,9\ncat0.png,cat,2,2,9,9\ncat1.png,cat,6,4,24,20\n"
  write(root, "boxes.csv", f"{HEADER}\n{rows}")
  objects = read(root)
  used = sum(len(found["label"]) for found in objects.of_picture.values())
  assert (used, objects.num_masked, objects.num_left_out) == (2, 2, 0)
  load(root)
  assert "2 boxes are not used, as their pictures have masks" in caplog.text


def test_a_mask_that_cannot_be_used_does_not_cost_a_box(root):
  write(root, "masks/train/cat/cat0.png", photos.encode(rectangle(0), "png"))
  write(root, "boxes.csv", f"{HEADER}\ncat0.png,cat,6,4,24,20\n")
  assert "pixels inside of its object" in refused(root)
  dataset = load(root, "skip")
  assert dataset.num_dropped == 1
  assert boxes_of(dataset) == {
    "train/cat/cat0.png": [pytest.approx(NORMALISED)]
  }


def test_what_is_kept_is_what_was_read(root):
  write(root, "annotations.json", coco({"segmentation": [SQUARE]}, {"bbox": 3}))
  first = load(root, "skip")
  (index,) = (root.parent / "tfds").rglob("*.json")
  written = index.stat().st_mtime_ns
  again = load(root, "skip")
  assert index.stat().st_mtime_ns == written
  assert again.num_dropped == first.num_dropped == 1
  assert boxes_of(again) == boxes_of(first)
  assert mask_pixels(again) == mask_pixels(first) != {}
  assert refused(root)


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
ROW = st.tuples(
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
  st.lists(ROW, max_size=4),
  st.lists(CORNERS, max_size=4),
  st.booleans(),
)
def test_every_annotation_is_used_or_counted(
  root, annotations, rows, corners, masked
):
  write(root, "annotations.json", coco(*annotations))
  write(root, "boxes.csv", "\n".join([HEADER, *rows]))
  write(root, "train/cat/cat0.xml", xml(*corners))
  mask = photos.encode(rectangle(255 if masked else 0), "png")
  write(root, "masks/train/cat/cat0.png", mask)
  objects = read(root)
  used = sum(len(found["label"]) for found in objects.of_picture.values())
  given = len(annotations) + len(rows) + len(corners) + 1
  assert used + objects.num_masked + objects.num_left_out == given
  assert bool(objects.num_left_out) <= bool(objects.problems)
  for problem in objects.problems:
    assert problem.startswith(str(root))
