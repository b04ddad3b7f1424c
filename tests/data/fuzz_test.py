"""Readers of what others wrote, given broken copies of it.

Whatever comes: a `ValueError` that names the file, or everything that went in
is read or counted. Never another exception, never a hang, never a silent drop.
Budgets are fixed, and examples the same every time.
"""

import collections
import copy
import functools
import io
import json
import logging
import time

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gc_jax.data import decode, geometry
from gc_jax.data.sets import (
  coco,
  coco_json,
  folder,
  folder_objects,
  imagenet_files,
  tables,
)
from gc_jax.data.sets.folder_layout import read_layout
from tests.data.archives import tar_of
from tests.data.photos import write

SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
BUDGET = settings(max_examples=150, suppress_health_check=SLOW)
MAX_SECS = 20  # of one file, on a busy machine: a hang, not a slow reader

# What breaks parsers: quotes, separators, line ends, byte order marks, numbers
# that are none, halves of characters, entities, nesting.
TOKENS = [
  *(b'"', b'""', b",", b";", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\\"),
  *(b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b"\x1a"),
  *(b"nan", b"-1", b"1e400", b"9" * 400, b"1,5", b"NULL", b"\xd9\xa3"),
  *(b"[", b"]", b"{", b"}", b"[" * 3000, b"null", b"true", b'\\ud800"'),
  *(b"<", b">", b"&", b"&lt;", b"<!--", b"]]>", b"</annotation>", b"<?xml"),
  *(b"../", b"/", b" ", b"=", b":", b"\x7f\xff\xff\xff", b"\x80\0\0\0"),
]


STEPS = st.tuples(
  st.sampled_from(("replace", "insert", "cut", "repeat", "flip")),
  st.floats(0, 1, exclude_max=True),
  st.integers(1, 40),
  st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=6)),
)


@st.composite
def mutations(draw):
  """What is done to a text or file: a function of its bytes."""
  steps = draw(st.lists(STEPS, min_size=1, max_size=4))

  def mutate(content):
    for kind, place, length, token in steps:
      at = int(place * len(content))
      end = at + length
      before, part, after = content[:at], content[at:end], content[end:]
      content = {
        "replace": before + token + content[at + len(token) :],
        "insert": before + token + part + after,
        "cut": before + after,
        "repeat": before + part + part + after,
        "flip": before + bytes(255 - byte for byte in part) + after,
      }[kind]
    return content

  return mutate


def outcome(path, read):
  """Returns what is read; None where it is refused by a path's name."""
  started = time.monotonic()
  found = None
  try:
    found = read()
  except ValueError as error:
    message = str(error)
    assert path.name in message, message
    assert len(message.splitlines()) <= 30, message
    assert len(message) < 10_000
  assert time.monotonic() - started < MAX_SECS
  return found


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
  """Logs say much of what is broken; a hostile header must not cost memory."""
  logging.disable(logging.WARNING)
  monkeypatch.setattr(decode, "MAX_PIXELS", 1_000_000)
  monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1_000_000)
  yield
  logging.disable(logging.NOTSET)


@functools.cache
def picture(kind="PNG", mode="RGB"):
  """Returns an encoded picture of 48 x 40 pixels."""
  pixels = np.indices((40, 48)).sum(0).astype(np.uint8) * 2
  image = PIL.Image.fromarray(np.stack([pixels] * 3, -1)).convert(mode)
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  buffer = io.BytesIO()
  options = {} if kind in ("GIF", "BMP", "PPM") else {"exif": exif}
  image.save(buffer, format=kind, **options)
  return buffer.getvalue()


@pytest.fixture
def root(tmp_path):
  """A folder of four pictures in two classes."""
  for name in ("train/cat/a", "train/cat/b", "train/dog/c", "val/dog/d"):
    write(tmp_path, f"root/{name}.png", picture())
  return tmp_path / "root"


# Tables.

TABLE = (
  b"image,label,xmin,ymin,xmax,ymax,difficult\r\n"
  b"train/cat/a.png,cat,1,2,30,20,0\r\n"
  b'"train/cat/b.png",cat,3,2,30,20,False\r\n'
  b"c.png,dog,1,2.5,30,20,\r\n"
)


@BUDGET
@given(mutations())
def test_a_broken_table_is_read_by_row_or_refused_by_name(tmp_path, mutate):
  path = tmp_path / "boxes.csv"
  path.write_bytes(mutate(TABLE))
  rows = outcome(
    path, lambda: list(tables.read(path, ("image", "label"), ("difficult",)))
  )
  lines = [line for line, _ in rows or ()]
  assert lines == sorted(set(lines))
  for line, row in rows or ():
    assert isinstance(row, dict | tables.Problem)
    if isinstance(row, tables.Problem):
      assert str(row).startswith(f"{path}, line {line}")


CELLS = st.sampled_from(
  ("cat", "1", "30", "", " x ", "a;b", "tab\t", "é", "12px", "True", "nan")
)
BAD_LINES = st.sampled_from(
  ('"open', 'a"b,c', '"a"b,c', "one", "a,b,c,d,e,f,g,h,i", ',"', '""",x')
)


@BUDGET
@given(st.lists(st.one_of(st.lists(CELLS, min_size=3, max_size=3), BAD_LINES)))
def test_of_a_table_every_row_is_read_or_counted(tmp_path, written):
  path = tmp_path / "t.csv"
  lines = [",".join(row) if isinstance(row, list) else row for row in written]
  path.write_text("a,b,c\n" + "\n".join(lines) + "\n", encoding="utf-8")
  rows = [row for _, row in tables.read(path, ("a", "b", "c"))]
  filled = [line for line in lines if line.strip(", \t")]
  assert len(rows) <= len(filled)
  if not any('"' in line for line in lines):
    assert len(rows) == len(filled)
  # Good rows are read, but for those that two quotation marks, in a row as
  # wide as it must be, put into one cell: there they still are.
  read = [list(row.values()) for row in rows if isinstance(row, dict)]
  cells = [cell for row in read for cell in row if "\n" in cell]
  for row, line in zip(written, lines, strict=True):
    if isinstance(row, list) and line in filled:
      stripped = [cell.strip() for cell in row]
      assert stripped in read or any(line.strip() in cell for cell in cells)


# Annotations of a folder: what went in is what is read and what is counted.


def load_folder(root, data_dir):
  """Returns the training split under both policies, where it can be read."""
  given = {"path": str(root), "data_dir": data_dir}
  loads = [
    functools.partial(folder.load, "train", **given, on_error=on_error)
    for on_error in ("raise", "skip")
  ]
  return [dataset for load in loads if (dataset := outcome(root, load))]


def check_masks(dataset):
  """Every object that is read has pixels."""
  for i in range(len(dataset.source)):
    record = dataset.source[i]
    header = decode.read_header(record["image"])
    for label in set(record.get("objects", {"label": ()})["label"]):
      for mask in geometry.object_masks(record, header, int(label)):
        assert np.asarray(mask).any()


def objects_of(root):
  found = folder_objects.read_objects(read_layout(str(root)))
  count = sum(len(o["label"]) for o in found.of_picture.values())
  for objects in found.of_picture.values():
    for box in objects["bbox"]:
      assert min(box) >= 0 and max(box) <= 1
      assert box[0] < box[2] and box[1] < box[3]
  return found, count


@BUDGET
@given(mutations())
def test_broken_labels_of_a_folder_are_refused_by_name(root, mutate):
  table = (
    b'image,labels\na.png,"cat;dog"\ntrain/cat/b.png,cat\n'
    b"train/dog/c.png,dog\nval/dog/d.png,dog\n"
  )
  (root / "labels.csv").write_bytes(mutate(table))
  layout = outcome(root, lambda: read_layout(str(root)))
  if layout:
    assert sorted(layout.labels) == sorted(
      ["train/cat/a.png", "train/cat/b.png", "train/dog/c.png", "val/dog/d.png"]
    )


def annotation(number, segmentation):
  """A box of 20 x 10 pixels in a picture of 48 x 40."""
  return {
    "id": number,
    "image_id": min(number, 2),
    "category_id": 4 + min(number, 2),
    "bbox": [1, 2, 20, 10.5],
    "segmentation": segmentation,
    "iscrowd": 0,
  }


COCO = {
  "images": [
    {"id": 1, "file_name": "train/cat/a.png", "width": 48, "height": 40},
    {"id": 2, "file_name": "c.png"},
  ],
  "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
  "annotations": [
    annotation(1, [[1, 2, 20, 2, 20, 12, 1, 12]]),
    annotation(2, {"size": [40, 48], "counts": [100, 20, 1800]}),
    annotation(3, {"size": [40, 48], "counts": "T3d0hh1"}),
  ],
}
VALUES = st.one_of(
  st.sampled_from(
    (
      *(None, True, False, "", "7", "cat", [], {}, [[]], [[1, 2]], -1, 0, 1),
      *(2**63, 10**400, 1e308, -0.0, 0.5, "\ud800", "a" * 500, [None] * 4),
      *([1, 2, 3, "4"], [0, 0, 0, 0], {"counts": "abc", "size": [40, 48]}),
      *({"counts": [-1, 1921], "size": [40, 48]}, [[9, 9, 9, 9, 9, 9]]),
      *([[float("nan")] * 6], [[1e9, 1e9, 2e9, 1e9, 2e9, 2e9]], "T3d0h1"),
      *({"counts": "T3d0hh1", "size": ["40", 48]}, {"counts": None}),
      *([float("inf"), 1, 2, 3], [[1, 2], [3, 4]], [[[1, 2, 3, 4, 5, 6]]]),
    )
  ),
  st.integers(-3, 50),
)


@st.composite
def changed_values(draw):
  """COCO's JSON with a few values others, gone, or twice."""
  content = copy.deepcopy(COCO)
  for _ in range(draw(st.integers(1, 3))):
    node = content
    while keys := list(node if isinstance(node, dict) else range(len(node))):
      key = draw(st.sampled_from(keys))
      below = node[key]
      if isinstance(below, dict | list) and below and draw(st.booleans()):
        node = below
        continue
      kind = draw(st.sampled_from(("value", "value", "gone", "twice")))
      if kind == "gone":
        del node[key]
      elif kind == "twice" and isinstance(node, list):
        node.append(below)
      else:
        node[key] = draw(VALUES)
      break
  return content


def check_coco(root, data):
  path = root / "annotations.json"
  path.write_bytes(data)
  content = outcome(path, lambda: coco_json.read(data, str(path)))
  if content:
    total = len(json.loads(data.decode("utf-8-sig"))["annotations"])
    assert len(content.annotations) + content.num_left_out == total
    assert bool(content.problems) >= bool(content.num_left_out)
  found = outcome(root, lambda: objects_of(root))
  if found and content:
    objects, count = found
    assert count + objects.num_left_out + objects.num_masked == total
  return content


@BUDGET
@given(changed_values())
def test_of_cocos_annotations_each_is_read_or_counted(root, tmp_path, content):
  data = json.dumps(content).encode()
  check_coco(root, data)
  for dataset in load_folder(root, tmp_path):
    check_masks(dataset)


@BUDGET
@given(mutations())
def test_broken_json_is_refused_by_name(root, mutate):
  data = mutate(json.dumps(COCO).encode())
  try:
    json.loads(data)
    sound = True
  except (ValueError, RecursionError):
    sound = False
  if sound and data.startswith(b"{"):
    check_coco(root, data)
    return
  (root / "annotations.json").write_bytes(data)
  outcome(root, lambda: objects_of(root))


@BUDGET
@given(changed_values())
def test_the_recipe_of_coco_reads_or_counts_each_annotation(
  tmp_path_factory, content
):
  path = tmp_path_factory.mktemp("coco")
  images = content.get("images") if isinstance(content, dict) else None
  write(path, "annotations/instances_train2014.json", json.dumps(content))
  (path / "train2014").mkdir()
  for image in images if isinstance(images, list) else []:
    name = image.get("file_name") if isinstance(image, dict) else None
    if isinstance(name, str) and name.endswith(".png") and len(name) < 99:
      write(path / "train2014", name, picture())
  dataset = outcome(
    path, lambda: coco.load("train", path=path, data_dir=path / "prepared")
  )
  if dataset is None:
    # What was not prepared is not taken for prepared the next time.
    assert not list(path.glob("prepared/coco2014/train/1.*"))
    return
  check_masks(dataset)
  for record in dataset.source:
    assert len(record["labels"]) >= len(record["objects"]["label"])


VOC = (
  b'<?xml version="1.0" encoding="utf-8"?>\n<annotation>'
  b"<filename>a.png</filename><size><width>48</width><height>40</height>"
  b"<depth>3</depth></size><object><name>cat</name><difficult>0</difficult>"
  b"<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>30</xmax><ymax>20</ymax>"
  b"</bndbox></object><object><name>cat</name><bndbox><xmin>5</xmin>"
  b"<ymin>3</ymin><xmax>30.0</xmax><ymax>40</ymax></bndbox></object>"
  b"</annotation>"
)


@pytest.mark.parametrize(
  ("name", "content"), [("boxes.csv", TABLE), ("train/cat/a.xml", VOC)]
)
@BUDGET
@given(mutations())
def test_broken_annotations_are_refused_or_counted(
  root, tmp_path, name, content, mutate
):
  (root / name).write_bytes(mutate(content))
  if found := outcome(root, lambda: objects_of(root)):
    objects, count = found
    assert bool(objects.problems) == bool(objects.num_left_out)
    assert count + objects.num_left_out <= 12
  load_folder(root, tmp_path)


# Pictures and masks.

KINDS = [
  *(("PNG", mode) for mode in ("RGB", "P", "LA", "1", "I;16")),
  *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
  *(("TIFF", mode) for mode in ("RGB", "L", "F", "I;16")),
  *(("WEBP", "RGBA"), ("GIF", "P"), ("BMP", "RGB"), ("PPM", "L")),
]


@pytest.mark.parametrize(("kind", "mode"), KINDS)
@settings(parent=BUDGET, max_examples=40)
@given(mutations(), st.sampled_from((60, 200, None)))
def test_a_broken_picture_is_told_by_every_reader_alike(
  kind, mode, mutate, reach
):
  content = picture(kind, mode)
  # The header is the smaller part, and the one that says sizes.
  content = mutate(content[:reach]) + (content[reach:] if reach else b"")

  def pixels(read):
    try:
      return read()
    except decode.DecodeError as error:
      return str(error)

  header = pixels(lambda: decode.read_header(content))
  if isinstance(header, str):
    return
  started = time.monotonic()
  whole = pixels(lambda: np.asarray(decode.whole(header)))
  mask = pixels(lambda: geometry.stored_mask(header, header))
  assert isinstance(mask, str) or mask.shape == header.stored_size[::-1]
  side = min(header.size)
  out = np.zeros((side, side, 3), np.uint8)
  crop = pixels(lambda: decode.crop(header, (0, 0, side, side), out))
  assert time.monotonic() - started < MAX_SECS
  # What one reader takes, all take, and see the same of it.
  assert isinstance(whole, str) == isinstance(crop, str)
  if not isinstance(whole, str):
    assert whole.shape == (*header.size[::-1], 3)
    np.testing.assert_array_equal(out, whole[:side, :side])


# Archives and lists.


@functools.cache
def archive():
  """Returns a tar of pictures, as ImageNet's classes come."""
  names = ("n1_1.JPEG", "n1_2.jpg", "n1_3.PNG")
  entries = [(name, picture("JPEG")) for name in names]
  return tar_of([*entries, ("notes.txt", b"notes")])


@BUDGET
@given(mutations())
def test_a_broken_archive_is_refused_by_name(tmp_path, mutate):
  path = tmp_path / "ILSVRC2012_img_val.tar"
  path.write_bytes(mutate(archive()))

  def read():
    members = imagenet_files.pictures(path, collections.Counter())
    return list(imagenet_files.read_members(path, members))

  outcome(path, read)


@BUDGET
@given(mutations())
def test_a_broken_list_of_synsets_is_refused_by_name(tmp_path, mutate):
  path = tmp_path / "synset_words.txt"
  path.write_bytes(
    mutate(b"n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
  )
  synsets = outcome(path, lambda: imagenet_files.load_synsets(tmp_path))
  assert not synsets or len(synsets.wnids) == len(set(synsets.names))
