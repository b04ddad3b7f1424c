"""COCO's JSON as COCO writes it, as exports do, and as it must not be."""

import copy
import json
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from gc_jax.data.sets import coco_json

DOCUMENT = {
  "images": [
    {"id": 7, "file_name": "cat/0.jpg", "width": 48, "height": 40},
    {"id": 8, "file_name": "cat/1.jpg"},
  ],
  "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "cat"}],
  "annotations": [
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


def read(document, encoding="utf-8"):
  text = document if isinstance(document, str) else json.dumps(document)
  return coco_json.read(text.encode(encoding), "a.json")


def changed(**fields):
  """Returns the document with fields of the first image, ... replaced.

  Args:
    fields: image_x, category_x, annotation_x, annotation2_x; ... takes one
      away.
  """
  document = copy.deepcopy(DOCUMENT)
  for name, value in fields.items():
    entry, _, field = name.partition("_")
    kind, index = (entry[:-1], 1) if entry[-1] == "2" else (entry, 0)
    plural = {"image": "images", "category": "categories"}.get(
      kind, "annotations"
    )
    target = document[plural][index]
    if value is ...:
      del target[field]
    else:
      target[field] = value
  return document


def test_what_is_written_is_read():
  content = read(DOCUMENT)
  first, second = content.images
  assert first == coco_json.Image(7, "cat/0.jpg", (48, 40))
  assert second.size is None
  assert content.categories == {1: "cat", 18: "dog"}
  assert content.problems == [] and content.num_left_out == 0
  one, two = content.annotations
  assert one == coco_json.Annotation(
    "annotation 5", first, "cat", (6.0, 4.0, 24.0, 20.0), None
  )
  assert (two.image, two.label) == (second, "dog")
  assert two.box == (0.5, 1.0, 2.5, 4.0)
  assert two.segmentation == [[1, 1, 4, 1, 4, 4]]


@pytest.mark.parametrize(
  "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]
)
def test_encodings_are_told_by_their_mark(encoding):
  document = changed(category_name="café")
  text = json.dumps(document, ensure_ascii=False)
  content = read(text, encoding)
  assert content.categories[18] == "café"


@pytest.mark.parametrize(
  "fields",
  [
    {"annotation_segmentation": None},
    {"annotation_iscrowd": None, "annotation_area": "large"},
    {"annotation_id": 5.0, "annotation_image_id": 7.0},
    {"image_id": 7.0},
    {"image_width": 48.0},
    {"image_file_name": " cat/0.jpg "},
    {"annotation_bbox": [6.0, 4, 18, 16]},
  ],
)
def test_what_exports_write_otherwise_is_the_same(fields):
  content = read(changed(**fields))
  assert content == read(DOCUMENT)


@pytest.mark.parametrize(
  "size",
  [
    {"image_width": None, "image_height": None},
    {"image_width": ..., "image_height": ...},
    {"image_width": None},
    {"image_width": 0, "image_height": 0},
  ],
)
def test_without_a_whole_size_it_is_not_known(size):
  content = read(changed(**size))
  assert content.images[0].size is None
  assert not content.problems and len(content.annotations) == 2


@pytest.mark.parametrize("bbox", [..., None])
def test_without_a_box_there_is_none(bbox):
  content = read(changed(annotation_bbox=bbox))
  assert content.annotations[0].box is None and not content.problems


@pytest.mark.parametrize("bbox", [[6, 4, 0, 16], [6, 4, -3, 16], [0] * 4])
def test_a_box_without_extent_is_told_apart_from_none(bbox):
  content = read(changed(annotation_bbox=bbox))
  assert content.annotations[0].box is not None and not content.problems


@pytest.mark.parametrize("number", [..., None])
def test_an_annotation_without_id_is_named_by_its_place(number):
  content = read(changed(annotation2_id=number))
  assert content.annotations[1].where == "annotations[1]"


# Each with how many annotations it costs.
PROBLEMS = [
  (
    {"annotation_image_id": "7"},
    1,
    "annotation 5: image_id .* the text '7'",
  ),
  ({"annotation_image_id": True}, 1, "image_id .* is the word true"),
  ({"annotation_image_id": 7.5}, 1, "image_id .* whole number, and is 7.5"),
  ({"annotation_image_id": [7]}, 1, r"image_id .* and is \[7\]"),
  ({"annotation_image_id": {}}, 1, r"image_id .* and is \{\}"),
  ({"annotation_image_id": ...}, 1, "image_id .* is missing or null"),
  (
    {"annotation_image_id": 9},
    1,
    "one image of the file .* is 9",
  ),
  ({"annotation_image_id": 10**400}, 1, "image_id must be the id of one"),
  ({"annotation_image_id": 1e400}, 1, "image_id .* and is inf"),
  ({"annotation_category_id": None}, 1, "category_id .* is missing or null"),
  (
    {"annotation_category_id": 2},
    1,
    "one category of the .* is 2",
  ),
  ({"annotation_id": "5"}, 1, r"annotations\[0\]: id .* is the text '5'"),
  (
    {"annotation_id": 6},
    1,
    r"annotation 6: .*ions\[0\] and annotations",
  ),
  ({"annotation_bbox": [6, 4, 18]}, 1, r"four numbers, x y width height, and"),
  ({"annotation_bbox": "6 4 18 16"}, 1, "is the text '6 4 18 16'"),
  ({"annotation_bbox": {"x": 6}}, 1, "bbox must be four numbers"),
  ({"annotation_bbox": [6, 4, "18", 16]}, 1, "one of them is the text '18'"),
  ({"annotation_bbox": [6, 4, None, 16]}, 1, "one of them is missing or null"),
  ({"annotation_bbox": [6, 4, True, 16]}, 1, "one of them is the word true"),
  ({"annotation_bbox": [6, 4, float("nan"), 16]}, 1, "one of them is nan"),
  ({"annotation_bbox": [6, 4, 1e400, 16]}, 1, "one of them is inf"),
  ({"annotation_bbox": [6, 4, 10**400, 16]}, 1, "one of them is 1000"),
  ({"image_width": "48"}, 1, r"images\[0\]: width .* is the text '48'"),
  ({"image_height": -40}, 1, r"images\[0\]: height .* above 0, and is -40"),
  ({"image_height": 40.5}, 1, "height must be a whole number"),
  ({"image_width": 10**9}, 1, r"width x height must be at most 180,000,000"),
  ({"image_id": "7"}, 1, r"images\[0\]: id must .* is the text '7'"),
  ({"image_id": ...}, 1, r"images\[0\]: id must .* is missing or null"),
  ({"image_file_name": None}, 1, "file_name must be a line of text, and is mi"),
  ({"image_file_name": ""}, 1, "file_name must be a line of text"),
  ({"image_file_name": "a\nb"}, 1, r"file_name must be a line of text"),
  ({"image_file_name": "\ud800.jpg"}, 1, r"file_name must be a line of text"),
  ({"image_file_name": "a\0b"}, 1, r"file_name must be a line of text"),
  ({"image_file_name": 5}, 1, "file_name must be a line of text, and is 5"),
  (
    {"image2_id": 7},
    2,
    "every image id once, and 7 recurs: it is that of 'cat/0.jpg' and 'cat/1.",
  ),
  (
    {"image2_file_name": "./cat\\0.jpg"},
    0,
    "every image file name once, and 'cat/0.jpg' recurs: .* ids 7 and 8",
  ),
  (
    {"category2_id": 18},
    2,
    "every category id once, and 18 recurs: it is that of 'dog' and 'cat'",
  ),
  (
    {"category2_name": "dog "},
    0,
    "every category name once, and 'dog' recurs: .* of the ids 18 and 1",
  ),
  ({"category_name": 3}, 1, r"categories\[0\]: name must be a line of text"),
  ({"category_id": None}, 1, r"categories\[0\]: id must be a whole number"),
]


@pytest.mark.parametrize(("fields", "cost", "message"), PROBLEMS)
def test_an_entry_that_cannot_be_used_is_told_and_counted(
  fields, cost, message
):
  content = read(changed(**fields))
  told = "\n".join(content.problems)
  assert re.search(message, told), told
  assert all(line.startswith("a.json") for line in content.problems)
  assert content.num_left_out == cost
  assert len(content.annotations) == 2 - cost


@pytest.mark.parametrize("entry", [None, 3, "annotation", [], True])
@pytest.mark.parametrize("kind", ["images", "categories", "annotations"])
def test_an_entry_that_is_no_object_is_told(kind, entry):
  document = copy.deepcopy(DOCUMENT)
  document[kind].append(entry)
  content = read(document)
  (problem,) = content.problems
  assert re.match(rf"a.json, {kind}\[2\]: it must be an object, and", problem)
  assert content.num_left_out == (kind == "annotations")


def test_boxes_in_fractions_are_all_left_out_and_told_once():
  document = changed(
    annotation_bbox=[0.5, 0.5, 0.9, 0.7],  # of a centre: it sticks out
    annotation2_bbox=[0.1, 0.1, 0.5, 0.5],
  )
  content = read(document)
  (problem,) = content.problems
  assert problem.startswith("a.json: boxes must be in pixels, and all 2 boxes")
  assert "the first annotation 5, with 0.5, 0.5, 0.9, 0.7" in problem
  assert content.num_left_out == 2 and not content.annotations


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", r"must be JSON that can be read: it is empty"),
    (" \n", r"it is empty"),
    ("{", r"Expecting property name .* in line 1, column 2"),
    ('{"images": [],\n "categories"', r"delimiter in line 2, column 14"),
    ("\0", r"Expecting value in line 1, column 1"),
    ("[" * 100_000, r"nested too deeply"),
    ('{"a": ' * 100_000, r"nested too deeply"),
    ("[" + "9" * 5_000 + "]", r"JSON that can be read: Exceeds the limit"),
    ('{"images": [], "images": []}', r"'images' stands twice in one object"),
    ("[]", r"must be COCO's JSON, an object with .*; it is \[\]"),
    ("3", r"must be COCO's JSON, .*; it is 3"),
    ("null", r"must be COCO's JSON, .*; it is missing or null"),
    ('[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', r"; it is \["),
    ("{}", r"must be COCO's JSON, .*; its images are missing or null"),
    ('{"images": 1}', r"its images are 1"),
    ('{"images": [], "categories": {}}', r"its categories are \{\}"),
    (
      '{"images": [], "categories": []}',
      r"its annotations are missing or null",
    ),
  ],
)
def test_a_file_that_is_not_cocos_is_refused_by_name(text, message):
  with pytest.raises(ValueError, match=message) as told:
    read(text)
  assert str(told.value).startswith("a.json must be ")
  assert len(str(told.value)) < 300


def test_bytes_that_are_no_text_are_refused_by_name():
  for data in (b'{"a": "\xff"}', b"\xff\xfe\x00", b"\xff\xd8\xff\xe0JFIF\0"):
    with pytest.raises(ValueError, match=r"^a.json must be JSON"):
      coco_json.read(data, "a.json")


def test_a_repeated_key_within_an_entry_is_refused():
  text = json.dumps(DOCUMENT).replace('"bbox"', '"image_id": 8, "bbox"', 1)
  with pytest.raises(ValueError, match="'image_id' stands twice"):
    read(text)


def test_many_problems_are_told_one_a_line():
  document = copy.deepcopy(DOCUMENT)
  document["annotations"] = [
    {"id": i, "image_id": "7", "category_id": 1} for i in range(1_000)
  ]
  content = read(document)
  assert len(content.problems) == content.num_left_out == 1_000


FIELDS = (
  *("id", "file_name", "name", "width", "height", "image_id"),
  *("category_id", "bbox", "segmentation"),
)
VALUES = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-3, 30),
  st.floats(),
  st.text(max_size=3),
  st.sampled_from(["7", 10**400, 1e300, [], {}, [1, 2, 3, 4], [[1, 2]]]),
)


@hypothesis.settings(max_examples=300)
@hypothesis.given(
  st.lists(
    st.tuples(
      st.sampled_from(["images", "categories", "annotations"]),
      st.integers(0, 1),
      st.sampled_from(
        [
          "id",
          "file_name",
          "name",
          "width",
          "height",
          "image_id",
          "category_id",
          "bbox",
          "segmentation",
        ]
      ),
      VALUES,
    ),
    max_size=6,
  )
)
def test_every_annotation_is_read_or_counted_whatever_is_changed(changes):
  document = copy.deepcopy(DOCUMENT)
  for kind, index, field, value in changes:
    document[kind][index][field] = value
  content = read(document)
  number = len(document["annotations"])
  assert len(content.annotations) + content.num_left_out == number
  assert bool(content.num_left_out) <= bool(content.problems)
  assert all(problem.startswith("a.json") for problem in content.problems)


@hypothesis.settings(max_examples=300)
@hypothesis.given(st.data())
def test_bytes_that_are_changed_are_read_or_refused_by_name(data):
  content = bytearray(json.dumps(DOCUMENT).encode())
  for _ in range(data.draw(st.integers(1, 5))):
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
      content[at] = data.draw(st.integers(0, 255))
    else:
      del content[at : at + data.draw(st.integers(1, 20))]
  try:
    read_back = coco_json.read(bytes(content), "a.json")
  except ValueError as error:
    assert str(error).startswith("a.json must be ")
  else:
    assert all(line.startswith("a.json") for line in read_back.problems)
