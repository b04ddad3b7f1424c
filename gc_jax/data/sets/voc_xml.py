"""Reads annotations in VOC's XML: one file a picture, and its objects.

What it yields is typed, and as written: corners are pixels counted from 1,
both included. `part`s of an object (VOC's heads, hands and feet) are not
looked at.
"""

import codecs
import dataclasses
import re
import xml.etree.ElementTree as ElementTree
import xml.parsers.expat

from gc_jax.data.sets import tables

CORNERS = ("xmin", "ymin", "xmax", "ymax")
_DECLARED = re.compile(rb"""<\?xml[^>]*\sencoding\s*=\s*["']([\w.:-]+)""")


@dataclasses.dataclass(frozen=True, slots=True)
class Object:
  """An annotated object.

  Attributes:
    where: what it is called in messages, "object 1".
    name: of its class.
    corners: xmin ymin xmax ymax, as written.
    difficult: as VOC marks objects that are hard to see.
  """

  where: str
  name: str
  corners: tuple[float, float, float, float]
  difficult: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
  """What a file says.

  Attributes:
    filename: of the picture, as written; "" where it is not.
    size: (width, height) as written; None: it is not, or both are 0.
    objects: those that can be used, in the file's order.
    problems: what is wrong with each of the others; says which.
  """

  filename: str
  size: tuple[float, float] | None
  objects: list[Object]
  problems: list[str]


def read(data: bytes) -> Content:
  """Returns what a file says.

  Raises:
    ValueError: nothing in it can be used: it is no XML, or not VOC's. Does
      not name the file.
  """
  root = _parse(data)
  if root.tag != "annotation":
    raise ValueError(
      "it must be VOC's XML, with <annotation> around everything, and starts "
      f"with <{root.tag[:40]}>"
    )
  size = root.find("size")
  content = Content(
    filename=(root.findtext("filename") or "").strip(),
    size=None if size is None else _size(size),
    objects=[],
    problems=[],
  )
  for i, node in enumerate(root.iter("object"), 1):
    where = f"object {i}"
    try:
      content.objects.append(_object(node, where))
    except ValueError as error:
      content.problems.append(f"{where}: {error}")
  return content


def _parse(data: bytes) -> ElementTree.Element:
  text = _decoded(data)
  try:
    # A few of them can stand for more text than fits into memory.
    first = xml.parsers.expat.ParserCreate()
    first.EntityDeclHandler = _refuse_entities
    first.Parse(text, True)
    return ElementTree.fromstring(text)
  except (xml.parsers.expat.ExpatError, ElementTree.ParseError) as error:
    raise ValueError(f"it must be XML that can be read: {error}") from error


def _refuse_entities(name: str, *_) -> None:
  raise ValueError(
    f"it must not define entities, and defines {name[:40]!r}: remove its "
    "<!DOCTYPE ...>"
  )


def _decoded(data: bytes) -> str:
  """Returns the text, by its byte order mark, or by what it says itself.

  What it says is often wrong where there is a mark; and where it can be read
  as ASCII, it is not UTF-16, whatever it says.
  """
  encoding = "utf-8-sig"
  if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    encoding = "utf-16"
  elif data[:2] in (b"<\0", b"\0<"):
    encoding = "utf-16-le" if data.startswith(b"<") else "utf-16-be"
  elif said := _DECLARED.match(data):
    name = said[1].decode().lower()
    encoding = encoding if name.startswith("utf") else name
  try:
    return data.decode(encoding)
  except (LookupError, ValueError) as error:
    raise ValueError(
      f"it must be text in UTF-8, or in the encoding that its first line "
      f"declares: {error}"
    ) from error


def _size(node: ElementTree.Element) -> tuple[float, float] | None:
  width, height = (_number(node, side) for side in ("width", "height"))
  if width == height == 0:
    return None
  if min(width, height) <= 0:
    raise ValueError(f"its size must be positive, and is {width:g}x{height:g}")
  return width, height


def _object(node: ElementTree.Element, where: str) -> Object:
  name = (_only(node, "name").text or "").strip()
  if not name:
    raise ValueError("its name must be that of a class, and is empty")
  box = _only(node, "bndbox")
  xmin, ymin, xmax, ymax = (_number(box, corner) for corner in CORNERS)
  try:
    difficult = tables.boolean(node.findtext("difficult") or "")
  except ValueError as error:
    raise ValueError(f"difficult: {error}") from error
  return Object(where, name, (xmin, ymin, xmax, ymax), difficult)


def _only(node: ElementTree.Element, tag: str) -> ElementTree.Element:
  found = node.findall(tag)
  if len(found) != 1:
    raise ValueError(
      f"<{node.tag}> must have one <{tag}>, and has {len(found) or 'none'}"
    )
  return found[0]


def _number(node: ElementTree.Element, tag: str) -> float:
  try:
    return tables.number(_only(node, tag).text or "")
  except ValueError as error:
    raise ValueError(f"<{tag}>: {error}") from error
