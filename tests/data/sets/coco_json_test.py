"""COCO's JSON as COCO writes it, as exports do, and as it must not be.

Broken and random files: tests/data/fuzz_test.py.
"""

import copy
import json
import re

import pytest

from gc_jax.data.sets import coco_json

DOCUMENT = {
  "image": [
    {"id": 7, "file_name": "cat/0.jpg", "width": 48, "height": 40},
    {"id": 8, "file_name": "cat/1.jpg"},
  ],
  "category": [{"id": 18, "name": "dog"}, {"id": 1, "name": "cat"}],
  "annotation": [
    {"id": 5, "image_id": 7, "category_id": 1, "bbox": [6, 4, 18, 16]},
    {
      "id": 6,
      "image_id": 8,
      "category_id": 18,
      "bbox": [0.5, 1, 2, 3],
      "segmentation": [[1, 1, 4, 1, 4, 4]],
      "iscrowd": 0,
    },
  ],
}


def written(document):
  plural = {"image": "images", "category": "categories"}
  named = {plural.get(k, "annotations"): v for k, v in document.items()}
  return json.dumps(named, ensure_ascii=False)


def read(text, encoding="utf-8"):
  return coco_json.read(text.encode(encoding), "a.json")


def changed(**fields):
  """Returns what is read if fields of the first or second entry are others.

  Args:
    fields: image_x, category_x, annotation_x, annotation2_x; ... takes one
      away.
  """
  document = copy.deepcopy(DOCUMENT)
  for name, value in fields.items():
    kind, _, field = name.partition("_")
    entry = document[kind.removesuffix("2")][kind.endswith("2")]
    entry[field] = value
    if value is ...:
      del entry[field]
  return read(written(document))


def test_a_file_is_read_as_it_is_written():
  content = read(written(DOCUMENT))
  first, second = content.images
  assert first == coco_json.Image(7, "cat/0.jpg", (48, 40))
  assert second.size is None
  assert content.categories == {1: "cat", 18: "dog"}
  assert content.problems == [] and content.num_left_out == 0
  one, two = content.annotations
  assert one == ("annotation 5", first, "cat", (6.0, 4.0, 24.0, 20.0), None)
  assert (two.image, two.label) == (second, "dog")
  assert two.box == (0.5, 1.0, 2.5, 4.0)
  assert two.segmentation == [[1, 1, 4, 1, 4, 4]]


@pytest.mark.parametrize(
  "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]
)
def test_a_byte_order_mark_decides_the_encoding(encoding):
  text = written(DOCUMENT).replace("dog", "café")
  assert read(text, encoding).categories[18] == "café"


@pytest.mark.parametrize(
  "fields",
  [
    {"annotation_segmentation": None},
    {"annotation_iscrowd": None, "annotation_area": "large"},
    {"annotation_id": 5.0, "annotation_image_id": 7.0, "image_id": 7.0},
    {"image_width": 48.0, "image_file_name": " cat/0.jpg "},
    {"annotation_bbox": [6.0, 4, 18, 16]},
  ],
)
def test_other_spellings_of_exports_are_the_same(fields):
  assert changed(**fields) == read(written(DOCUMENT))


@pytest.mark.parametrize("width, height", [(None,) * 2, (...,) * 2, (0, 0)])
def test_without_a_whole_size_it_is_not_known(width, height):
  content = changed(image_width=width, image_height=height)
  assert content.images[0].size is None
  assert not content.problems and len(content.annotations) == 2


@pytest.mark.parametrize(
  "bbox", [..., None, [6, 4, 0, 16], [6, 4, -3, 16], [0] * 4]
)
def test_a_box_without_extent_is_told_apart_from_none(bbox):
  content = changed(annotation_bbox=bbox)
  assert (content.annotations[0].box is None) == (bbox in (..., None))
  assert not content.problems


@pytest.mark.parametrize("number", [..., None])
def test_an_annotation_without_id_is_named_by_its_place(number):
  content = changed(annotation2_id=number)
  assert content.annotations[1].where == "annotations[1]"


BOX = "bbox must be four numbers, x y width height, and "
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("image_id", "7", "annotation 5: image_id .* is the text '7'"),
    ("image_id", True, "image_id .* is the word true"),
    ("image_id", 7.5, "image_id .* whole number, and is 7.5"),
    ("image_id", [7], r"image_id .* and is \[7\]"),
    ("image_id", ..., "image_id .* is missing or null"),
    ("image_id", 9, "image_id must be the id of one image of .* and is 9"),
    ("image_id", 10**400, "image_id must be the id of one image"),
    ("image_id", INF, "image_id must be a whole number, and is inf"),
    ("category_id", None, "category_id .* is missing or null"),
    ("category_id", 2, "category_id must be the id of one category .* is 2"),
    ("id", "5", r"annotations\[0\]: id .* is the text '5'"),
    ("id", 6, r"annotation 6: .*ions\[0\] and annotations"),
    ("bbox", [6, 4, 18], BOX + r"is \[6, 4, 18\]"),
    ("bbox", "6 4 18 16", BOX + "is the text '6 4 18 16'"),
    ("bbox", {"x": 6}, BOX + "is {'x': 6}"),
    ("bbox", [6, 4, "18", 16], BOX + "one of them is the text '18'"),
    ("bbox", [6, 4, None, 16], BOX + "one of them is missing or null"),
    ("bbox", [6, 4, True, 16], BOX + "one of them is the word true"),
    ("bbox", [6, 4, NAN, 16], BOX + "one of them is nan"),
    ("bbox", [6, 4, 10**400, 16], BOX + "one of them is 1000"),
  ],
)
def test_an_annotation_that_cannot_be_used_is_told_and_counted(
  field, value, message
):
  check_problems(changed(**{f"annotation_{field}": value}), 1, message)


def check_problems(content, num_left_out, message):
  told = "\n".join(content.problems)
  assert re.search(message, told), told
  assert all(line.startswith("a.json") for line in content.problems)
  assert content.num_left_out == num_left_out
  assert len(content.annotations) == 2 - num_left_out


TEXT = "must be a line of text, and is "


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("image_width", "48", r"images\[0\]: width .* is the text '48'"),
    ("image_height", -40, r"images\[0\]: height .* above 0, and is -40"),
    ("image_height", 40.5, "height must be a whole number"),
    ("image_width", 10**9, r"width x height must be at most 180,000,000"),
    ("image_id", "7", r"images\[0\]: id must .* is the text '7'"),
    ("image_file_name", None, f"file_name {TEXT}missing"),
    ("image_file_name", "", f"file_name {TEXT}the text ''"),
    ("image_file_name", "a\nb", f"file_name {TEXT}"),
    ("image_file_name", "a\0b", f"file_name {TEXT}"),
    ("image_file_name", 5, f"file_name {TEXT}5"),
    ("category_name", 3, rf"categories\[0\]: name {TEXT}3"),
    ("category_id", None, r"categories\[0\]: id must be a whole number"),
  ],
)
def test_an_entry_that_cannot_be_used_costs_its_annotation(
  field, value, message
):
  check_problems(changed(**{field: value}), 1, message)


def test_half_a_character_is_no_text():
  text = written(DOCUMENT).replace("cat/0", r"\ud800")
  check_problems(read(text), 1, f"file_name {TEXT}")


ONCE = "must name every {} once, and {} recurs: it is that of {}"


@pytest.mark.parametrize(
  ("field", "value", "cost", "message"),
  [
    ("image2_id", 7, 2, ("image id", "7", "'cat/0.jpg' and 'cat/1.jpg'")),
    (
      "image2_file_name",
      "./cat\\0.jpg",
      0,
      ("image file name", "'cat/0.jpg'", "id 7 and id 8"),
    ),
    ("category2_id", 18, 2, ("category id", "18", "'dog' and 'cat'")),
    (
      "category2_name",
      "dog ",
      0,
      ("category name", "'dog'", "id 18 and id 1"),
    ),
  ],
)
def test_an_id_or_name_that_stands_twice_is_told(field, value, cost, message):
  content = changed(**{field: value})
  check_problems(content, cost, ONCE.format(*message))


@pytest.mark.parametrize("entry", [None, 3, "annotation", [], True])
@pytest.mark.parametrize("kind", ["images", "categories", "annotations"])
def test_an_entry_that_is_no_object_is_told(kind, entry):
  document = json.loads(written(DOCUMENT))
  document[kind].append(entry)
  content = read(json.dumps(document))
  (problem,) = content.problems
  assert re.match(rf"a.json, {kind}\[2\]: it must be an object, and", problem)
  assert content.num_left_out == (kind == "annotations")


JSON = "must be JSON that can be read: "
COCO = "must be COCO's JSON, an object with .*; "


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (" \n", JSON + "it is empty"),
    ("{", JSON + "Expecting property name .* in line 1, column 2"),
    ('{"images": [],\n "categories"', JSON + ".* in line 2, column 14"),
    ("\0", JSON + "Expecting value in line 1, column 1"),
    ("[" * 100_000, JSON + ".* nested too deeply"),
    ('{"a": ' * 100_000, JSON + ".* nested too deeply"),
    ("[" + "9" * 5_000 + "]", JSON + "Exceeds the limit"),
    ('{"images": [], "images": []}', "'images' stands twice in one object"),
    ("[]", COCO + r"it is \[\]"),
    ("3", COCO + "it is 3"),
    ("null", COCO + "it is missing or null"),
    ('[{"image_id": 1, "bbox": [1, 2, 3, 4]}]', COCO + r"it is \["),
    ("{}", COCO + "its images are missing or null"),
    ('{"images": 1}', COCO + "its images are 1"),
    ('{"images": [], "categories": {}}', COCO + r"its categories are \{\}"),
    ('{"images": [], "categories": []}', COCO + "its annotations are missing"),
  ],
)
def test_a_file_that_is_not_cocos_is_refused_by_name(text, message):
  with pytest.raises(ValueError, match=message) as told:
    read(text)
  assert str(told.value).startswith("a.json must be ")
  assert len(str(told.value)) < 300


@pytest.mark.parametrize(
  "data", [b'{"a": "\xff"}', b"\xff\xfe\x00", b"\xff\xd8\xff\xe0JFIF\0"]
)
def test_bytes_that_are_no_text_are_refused_by_name(data):
  with pytest.raises(ValueError, match=r"^a.json must be JSON"):
    coco_json.read(data, "a.json")
