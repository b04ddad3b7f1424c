"""Reads annotations in COCO's JSON, from COCO and from everything like it.

What `read` returns is typed and refers only to entries that exist; a message
names the file and the entry of everything else. A byte order mark decides the
encoding. A key that stands twice in an object is an error.

| field | as it must be | missing, null |
|---|---|---|
| `id` of an image, a category | a whole number, once | an error |
| `id` of an annotation | a whole number, once | named by its place |
| `file_name`, `name` | a text, once | an error |
| `width`, `height` | whole numbers above 0 | not known; nor if both are 0 |
| `image_id`, `category_id` | `id` of an entry | an error |
| `bbox` | four numbers, x y width height | there is none |
| `segmentation` | see `shapes.clean` | there is none |

`iscrowd`, `area` and other fields are ignored.
"""

import collections
import json
import math
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from reprlib import repr as short
from typing import Any, NamedTuple, TypeVar

from gc_jax.data.decode import MAX_PIXELS
from gc_jax.data.sets.shapes import Box, Fractions, is_number, is_whole

_T = TypeVar("_T")


class Image(NamedTuple):
  """A picture that annotations may refer to."""

  id: int  # COCO's own number
  file_name: str  # as written
  size: tuple[int, int] | None  # (width, height) as written; None: it is not


class Annotation(NamedTuple):
  """One object."""

  where: str  # what it is called in messages, "annotation 5"
  image: Image
  label: str  # name of its category
  box: Box | None  # in pixels, not clipped; it may have no extent
  segmentation: Any  # as written


class Content(NamedTuple):
  """What a file says, in its order."""

  file: str  # what it is called in messages
  images: list[Image]
  categories: Mapping[int, str]  # id -> name
  annotations: list[Annotation]  # those that can be used
  problems: list[str]  # what is wrong, each with the file and the entry
  num_left_out: int  # annotations that cannot be used


def read(data: bytes, file: str) -> Content:
  """Returns what a file says; a ValueError names it if it is not COCO's."""
  content = _parse(data, file)
  is_object = isinstance(content, dict)
  for name in ("images", "categories", "annotations"):
    found = content.get(name) if is_object else None
    if not isinstance(found, list):
      what = f"its {name} are {_said(found)}"
      if not is_object:
        what = f"it is {_said(content)}"
      raise ValueError(
        f"{file} must be COCO's JSON, an object with the lists images, "
        f"categories and annotations; {what}."
      )
  entries = _Entries(file, content)
  images = entries.sound("images", _image)
  categories = entries.sound("categories", _category)
  named = [(image.id, _normal(image.file_name), image) for image in images]
  image_of = entries.by_id("image", "file name", named)
  named = [(number, name, name) for number, name in categories]
  name_of = entries.by_id("category", "name", named)
  found = entries.annotations(image_of, name_of)
  num_left_out = len(content["annotations"]) - len(found)
  return Content(file, images, name_of, found, entries.problems, num_left_out)


def _parse(data: bytes, file: str) -> Any:
  try:
    return json.loads(data, object_pairs_hook=_object)
  except json.JSONDecodeError as error:
    reason = f"{error.msg} in line {error.lineno}, column {error.colno}"
    if not data.strip():
      reason = "it is empty"
  except UnicodeDecodeError as error:
    reason = f"byte {error.start:,} is no {error.encoding}; save it as UTF-8"
  except RecursionError:
    reason = "its lists and objects are nested too deeply"
  except ValueError as error:  # of `_object`, or a number of 5,000 digits
    reason = str(error)
  raise ValueError(f"{file} must be JSON that can be read: {reason}.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  made = dict(pairs)
  if len(made) < len(pairs):
    times = collections.Counter(key for key, _ in pairs)
    key = times.most_common(1)[0][0]
    raise ValueError(f"{short(key)} stands twice in one object; keep one")
  return made


def _said(value: Any) -> str:
  """Returns a value of JSON in words."""
  if value is None:
    return "missing or null"
  if isinstance(value, bool):
    return f"the word {str(value).lower()}"
  return f"the text {short(value)}" if isinstance(value, str) else short(value)


class _Entries:
  """The lists of a file; what is wrong with them is added to `problems`."""

  def __init__(self, file: str, content: dict[str, Any]):
    self._file, self._content = file, content
    self.problems: list[str] = []

  def sound(self, name: str, parse: Callable[[dict[str, Any]], _T]) -> list[_T]:
    """Returns the entries that can be used."""
    found = []
    for i, entry in enumerate(self._content[name]):
      try:
        found.append(parse(_checked_object(entry)))
      except ValueError as error:
        self.problems.append(f"{self._file}, {name}[{i}]: {error}")
    return found

  def by_id(
    self, what: str, field: str, entries: list[tuple[int, str, _T]]
  ) -> dict[int, _T]:
    """Returns id -> value of (id, name, value), where the id stands once."""
    of_id, ids_of = collections.defaultdict(list), collections.defaultdict(dict)
    for number, name, value in entries:
      of_id[number].append((name, value))
      ids_of[name][f"id {short(number)}"] = None
    owners = [
      ("id", short(number), [_clipped(name) for name, _ in same])
      for number, same in of_id.items()
    ]
    owners += [(field, _clipped(name), list(ids_of[name])) for name in ids_of]
    self.problems += [
      f"{self._file} must name every {what} {key} once, and {value} recurs: it "
      f"is that of {of[0]} and {of[1]}"
      for key, value, of in owners
      if len(of) > 1
    ]
    return {i: same[0][1] for i, same in of_id.items() if len(same) == 1}

  def annotations(
    self, image_of: Mapping[int, Image], name_of: Mapping[int, str]
  ) -> list[Annotation]:
    """Returns those that can be used."""
    found, wrong = [], []
    place_of: dict[int, int] = {}
    fractions = Fractions()
    for i, entry in enumerate(self._content["annotations"]):
      where = f"annotations[{i}]"
      try:
        entry = _checked_object(entry)
        if entry.get("id") is not None:
          number = _id(entry, "id")
          where = f"annotation {short(number)}"
          first = place_of.setdefault(number, i)
          if first != i:
            raise ValueError(
              "the file must name every annotation id once, and this recurs: "
              f"it is that of annotations[{first}] and annotations[{i}]"
            )
        box = _box(entry.get("bbox"))
        image = _referred(entry, "image_id", image_of, "image")
        label = _referred(entry, "category_id", name_of, "category")
      except ValueError as error:
        wrong.append(f"{self._file}, {where}: {error}")
        continue
      if box is not None:
        fractions.add(where, entry["bbox"], box)
      segmentation = entry.get("segmentation")
      found.append(Annotation(where, image, label, box, segmentation))
    if all_wrong := str(fractions):
      found, wrong = [], [f"{self._file}: {all_wrong}", *wrong]
    self.problems += wrong
    return found


def _checked_object(entry: Any) -> dict[str, Any]:
  if not isinstance(entry, dict):
    raise ValueError(f"it must be an object, and is {_said(entry)}")
  return entry


def _image(entry: dict[str, Any]) -> Image:
  return Image(_id(entry, "id"), _text(entry, "file_name"), _size(entry))


def _category(entry: dict[str, Any]) -> tuple[int, str]:
  return _id(entry, "id"), _text(entry, "name")


def _id(entry: dict[str, Any], field: str) -> int:
  value = entry.get(field)
  if is_whole(value):  # also a float: pandas makes floats of ids
    return int(value)
  raise ValueError(f"{field} must be a whole number, and is {_said(value)}")


def _text(entry: dict[str, Any], field: str) -> str:
  value = entry.get(field)
  text = value.strip() if isinstance(value, str) else ""
  try:
    text.encode()
  except UnicodeEncodeError:  # "\ud800" is half a character
    text = ""
  if len(text.splitlines()) != 1 or "\0" in text:
    raise ValueError(f"{field} must be a line of text, and is {_said(value)}")
  return text


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
  sides = {field: entry.get(field) for field in ("width", "height")}
  if list(sides.values()) == [0, 0]:
    return None
  for field, side in sides.items():
    if side is not None and not (is_whole(side) and side > 0):
      raise ValueError(
        f"{field} must be a whole number above 0, and is {_said(side)}"
      )
  if None in sides.values():
    return None
  width, height = map(int, sides.values())
  if width * height > MAX_PIXELS:
    raise ValueError(
      f"width x height must be at most {MAX_PIXELS:,} pixels, and is "
      f"{short(width)}x{short(height)}"
    )
  return width, height


def _normal(file_name: str) -> str:
  """Returns the form that two spellings of one file have in common."""
  return PurePosixPath(file_name.replace("\\", "/")).as_posix()


def _clipped(text: str) -> str:
  return repr(text if len(text) <= 80 else f"{text[:38]}...{text[-38:]}")


def _box(value: Any) -> Box | None:
  if value is None:
    return None
  must = "bbox must be four numbers, x y width height, and"
  if not isinstance(value, list) or len(value) != 4:
    raise ValueError(f"{must} is {_said(value)}")
  for number in value:
    if not _is_finite(number):
      raise ValueError(f"{must} one of them is {_said(number)}")
  xmin, ymin, width, height = map(float, value)
  return xmin, ymin, xmin + width, ymin + height


def _is_finite(value: Any) -> bool:
  try:
    return is_number(value) and math.isfinite(value)
  except OverflowError:  # a whole number of hundreds of digits
    return False


def _referred(
  entry: dict[str, Any], field: str, known: Mapping[int, _T], what: str
) -> _T:
  number = _id(entry, field)
  if number not in known:
    raise ValueError(
      f"{field} must be the id of one {what} of the file that can be used, and "
      f"is {short(number)}"
    )
  return known[number]
