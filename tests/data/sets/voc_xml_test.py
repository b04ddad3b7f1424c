"""VOC's XML as VOC writes it, as other tools do, and as it must not be."""

import re
import time

import pytest

from gc_jax.data.sets import voc_xml

BOX = (
  "<bndbox><xmin>25</xmin><ymin>9</ymin><xmax>72</xmax><ymax>32</ymax></bndbox>"
)
OBJECT = f"<object><name>cat</name>{BOX}</object>"
SIZE = "<size><width>96</width><height>72</height><depth>3</depth></size>"


def xml(*inside, head=""):
  return f"{head}<annotation>{''.join(inside)}</annotation>"


def read(*inside, encoding="utf-8", **kwargs):
  return voc_xml.read(xml(*inside, **kwargs).encode(encoding))


def test_what_is_written_is_read():
  hard = OBJECT.replace("<bnd", "<difficult>True</difficult><bnd")
  content = read("<filename>a/000.jpg</filename>", SIZE, OBJECT, hard)
  assert content.filename == "a/000.jpg"
  assert content.size == (96, 72)
  assert content.problems == []
  assert [found.where for found in content.objects] == ["object 1", "object 2"]
  first = content.objects[0]
  assert first.name == "cat"
  assert [found.difficult for found in content.objects] == [False, True]
  assert first.corners == (25, 9, 72, 32)


def test_parts_of_an_object_are_none():
  """VOC marks heads, hands and feet of persons."""
  part = f"<part><name>head</name>{BOX.replace('72', '40')}</part>"
  person = f"<object>{part}<name>person</name>{BOX}{part}</object>"
  (found,) = read(person).objects
  assert (found.name, found.corners) == ("person", (25, 9, 72, 32))


def test_a_size_that_is_not_written_is_not_known():
  assert read(OBJECT).size is None
  zero = SIZE.replace("96", "0").replace("72", "0")
  assert read(zero, OBJECT).size is None


@pytest.mark.parametrize(
  ("declared", "stored"),
  [
    (None, "utf-8"),
    (None, "utf-8-sig"),
    ("UTF-8", "utf-8-sig"),
    ("utf-8", "utf-16"),  # as some tools save what they were given
    ("utf-16", "utf-16"),
    ("utf-16", "utf-8"),
    ("utf-16", "utf-16-le"),
    (None, "utf-16-be"),
    ("windows-1252", "cp1252"),
    ("Shift_JIS", "shift_jis"),
  ],
)
def test_encodings_are_told_by_the_file(declared, stored):
  name = "猫" if declared == "Shift_JIS" else "café"
  head = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
  content = read(OBJECT.replace("cat", name), head=head, encoding=stored)
  assert content.objects[0].name == name


def test_a_document_type_without_entities_is_passed_over():
  head = '<!DOCTYPE annotation SYSTEM "voc.dtd">'
  assert len(read(OBJECT, head=head).objects) == 1


DECLARED = b'<?xml version="1.0" encoding="%s"?><a/>'
LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "it must be XML that can be read: no element found"),
    (b"<annotation><a></b></annotation>", "mismatched tag: line 1, column"),
    (b"\x00" * 20, "not well-formed"),
    (b"\xff\xd8\xff\xe0JFIF", "must be text in UTF-8"),
    (xml("café").encode("latin-1"), "must be text in UTF-8, or in the encod"),
    (DECLARED % b"klingon", "unknown encoding: kl"),
    (DECLARED % b"base64", "not a text encoding"),
    (b"<html><body>please log in</body></html>", "starts with <html>"),
    (xml("&cat;").encode(), "undefined entity"),
  ],
)
def test_a_file_that_cannot_be_used_is_refused(data, message):
  with pytest.raises(ValueError, match=message):
    voc_xml.read(data)


@pytest.mark.parametrize(
  "entity", ['cat "cat">', 'x SYSTEM "/etc/passwd">', f'l0 "lol">{LAUGHS}']
)
def test_entities_are_refused(entity):
  message = f"must not define entities, and defines '{entity.split()[0]}'"
  with pytest.raises(ValueError, match=message):
    read("&l9;", head=f"<!DOCTYPE a [<!ENTITY {entity}]>")


@pytest.mark.parametrize(
  ("size", "message"),
  [
    (SIZE.replace("height", "h"), "<height>: <size> must have one <height>"),
    (SIZE.replace("96", "-9"), "its size must be positive, and is -9x72"),
    (SIZE.replace("96", "wide"), "<width>: 'wide' must be a number"),
  ],
)
def test_a_size_that_cannot_be_is_refused(size, message):
  with pytest.raises(ValueError, match=message):
    read(size)


@pytest.mark.parametrize(
  ("node", "message"),
  [
    ("<object/>", "<object> must have one <name>, and has none"),
    (f"<object>{BOX}</object>", "must have one <name>, and has none"),
    (f"<object><name> </name>{BOX}</object>", "name must be .*, and is empty"),
    ("<object><name>cat</name></object>", "one <bndbox>, and has none"),
    (OBJECT.replace(BOX, BOX + BOX), "one <bndbox>, and has 2"),
    (OBJECT.replace("<xmin>25</xmin>", ""), "one <xmin>, and has none"),
    (OBJECT.replace("25", ""), "<xmin>: '' must be a number"),
    (OBJECT.replace("25", "left"), "<xmin>: 'left' must be a number"),
    (
      OBJECT.replace("<bnd", "<difficult>perhaps</difficult><bnd"),
      "difficult: 'perhaps' must be true",
    ),
  ],
)
def test_one_object_that_cannot_be_used_leaves_the_others(node, message):
  content = read(OBJECT, node, OBJECT)
  assert [found.where for found in content.objects] == ["object 1", "object 3"]
  (problem,) = content.problems
  assert re.match(f"object 2: .*{message}", problem)


def test_depth_and_length_are_no_trouble():
  start = time.monotonic()
  deep = "<a>" * 100_000 + OBJECT + "</a>" * 100_000
  assert len(read(deep).objects) == 1
  assert len(read(OBJECT * 10_000).objects) == 10_000
  assert time.monotonic() - start < 20
