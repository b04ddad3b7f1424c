"""Reads annotations in VOC's XML: one file a picture, and its objects.

The `part`s of an object (VOC's heads, hands and feet) are passed over.
"""

import codecs
import re
import xml.etree.ElementTree as ElementTree
import xml.parsers.expat
from typing import NamedTuple

from gc_jax.data.sets import tables
from gc_jax.data.sets.shapes import CORNERS, Box

_DECLARED = re.compile(rb"""<\?xml[^>]*\sencoding\s*=\s*["']([\w.:-]+)""")


class Object(NamedTuple):
  """An annotated object."""

  where: str  # what it is called in messages, "object 1"
  name: str  # of its class
  corners: Box  # as written: pixels counted from 1, both ends included
  difficult: bool  # VOC's mark for objects that are hard to see

  @property
  def box(self) -> Box:
    """The corners, counted from 0 and with exclusive ends."""
    xmin, ymin, xmax, ymax = self.corners
    return xmin - 1, ymin - 1, xmax, ymax


class Content(NamedTuple):
  """What a file says."""

  filename: str  # of the picture, as written; "" where it is not
  size: tuple[float, float] | None  # (width, height); None: not given, or 0 0
  objects: list[Object]  # those that can be used, in the file's order
  problems: list[str]  # what is wrong with each of the others


def read(data: bytes) -> Content:
  """Returns what a file says; a ValueError does not name the file."""
  root = _parse(_decoded(data))
  if root.tag != "annotation":
    raise ValueError(
      "it must be VOC's XML, with <annotation> around everything, and starts "
      f"with <{root.tag[:40]}>"
    )
  filename = (root.findtext("filename") or "").strip()
  content = Content(filename, _size(root.find("size")), [], [])
  for i, node in enumerate(root.iter("object"), 1):
    where = f"object {i}"
    try:
      content.objects.append(_object(node, where))
    except ValueError as error:
      content.problems.append(f"{where}: {error}")
  return content


def _parse(text: str) -> ElementTree.Element:
  try:
    # A few entities can stand for more text than fits into memory.
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
  # A declaration is often wrong where there is a byte order mark; and a file
  # whose declaration reads as ASCII is not UTF-16, whatever it declares.
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


def _size(node: ElementTree.Element | None) -> tuple[float, float] | None:
  if node is None:
    return None
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
