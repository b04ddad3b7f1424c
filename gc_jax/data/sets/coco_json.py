"""Reads annotations in COCO's JSON, from COCO and from everything like it.

One reader for the official files and for those of a folder of one's own. What
it yields is typed and refers to what there is; what it cannot use is told by
file and entry. Encodings are told by their byte order mark; a key that stands
twice in an object is an error, as json itself would keep the last in silence.

| field | as it must be | missing, null |
|---|---|---|
| `id` of an image, a category | a whole number, once | an error |
| `id` of an annotation | a whole number, once | named by its place |
| `file_name`, `name` | a text, once | an error |
| `width`, `height` | whole numbers above 0 | not known; nor if both are 0 |
| `image_id`, `category_id` | `id` of an entry | an error |
| `bbox` | four numbers, x y width height | there is none |
| `segmentation` | see `segmentation.clean` | there is none |

`iscrowd`, `area` and other fields are not looked at.
"""

import collections
import dataclasses
import json
import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeVar

from gc_jax.data.decode import MAX_PIXELS
from gc_jax.data.sets.boxes import Box, Fractions

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
  """A picture that annotations may refer to.

  Attributes:
    id: COCO's own number.
    file_name: as written.
    size: (width, height) as written; None: it is not.
  """

  id: int
  file_name: str
  size: tuple[int, int] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
  """One object.

  Attributes:
    where: what it is called in messages, "annotation 5".
    image: that it is in.
    label: name of its category.
    box: in pixels, as written, not clipped; None: there is none. It may lack
      an extent.
    segmentation: as written; None: there is none.
  """

  where: str
  image: Image
  label: str
  box: Box | None
  segmentation: Any


@dataclasses.dataclass(frozen=True)
class Content:
  """What a file says.

  Attributes:
    file: where it was read, for messages.
    images: in the file's order.
    categories: id to name.
    annotations: those that can be used, in the file's order.
    problems: what is wrong, each with the file and the entry.
    num_left_out: annotations that cannot be used: with `annotations` they are
      all of the file.
  """

  file: str
  images: list[Image]
  categories: Mapping[int, str]
  annotations: list[Annotation]
  problems: list[str]
  num_left_out: int


def read(data: bytes, file: str) -> Content:
  """Returns what a file says.

  Args:
    data: its bytes.
    file: what it is called in messages.

  Raises:
    ValueError: nothing in it can be used: it is no JSON, or none of COCO's.
      Names the file.
  """
  content = _parse(data, file)
  for name in ("images", "categories", "annotations"):
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list):
      what = f"its {name} are" if isinstance(content, dict) else "it is"
      raise ValueError(
        f"{file} must be COCO's JSON, an object with the lists images, "
        f"categories and annotations; {what} "
        f"{_said(found if isinstance(content, dict) else content)}."
      )
  problems: list[str] = []
  images = _sound(content["images"], _image, f"{file}, images", problems)
  categories = _sound(
    content["categories"], _category, f"{file}, categories", problems
  )
  image_of = _index(
    file, "image", [(i.id, _normal(i.file_name), i) for i in images], problems
  )
  name_of = _index(
    file, "category", [(i, name, name) for i, name in categories], problems
  )
  annotations, wrong = _annotations(
    file, content["annotations"], image_of, name_of
  )
  return Content(
    file=file,
    images=images,
    categories=name_of,
    annotations=annotations,
    problems=problems + wrong,
    num_left_out=len(content["annotations"]) - len(annotations),
  )


def _parse(data: bytes, file: str) -> Any:
  try:
    return json.loads(data, object_pairs_hook=_object)
  except json.JSONDecodeError as error:
    reason = (
      f"{error.msg} in line {error.lineno}, column {error.colno}"
      if data.strip()
      else "it is empty"
    )
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
    key = reprlib.repr(times.most_common(1)[0][0])
    raise ValueError(f"{key} stands twice in one object; keep one")
  return made


def _said(value: Any) -> str:
  """Returns a value of JSON in words, short."""
  if value is None:
    return "missing or null"
  if isinstance(value, bool):
    return f"the word {str(value).lower()}"
  if isinstance(value, str):
    return f"the text {reprlib.repr(value)}"
  return reprlib.repr(value)


def _sound(
  entries: list[Any],
  parse: Callable[[dict[str, Any]], _T],
  where: str,
  problems: list[str],
) -> list[_T]:
  """Returns the entries that can be used; adds to `problems` for the others."""
  found = []
  for i, entry in enumerate(entries):
    try:
      found.append(parse(_checked_object(entry)))
    except ValueError as error:
      problems.append(f"{where}[{i}]: {error}")
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
  if _is_whole(value):
    return int(value)
  raise ValueError(f"{field} must be a whole number, and is {_said(value)}")


def _is_whole(value: Any) -> bool:
  if isinstance(value, float):
    return value.is_integer()  # pandas makes floats of ids
  return isinstance(value, int) and not isinstance(value, bool)


def _text(entry: dict[str, Any], field: str) -> str:
  value = entry.get(field)
  text = value.strip() if isinstance(value, str) else ""
  # "\ud800" is half a character, which no file can be called.
  if not text or len(text.splitlines()) > 1 or not _is_unicode(text):
    raise ValueError(f"{field} must be a line of text, and is {_said(value)}")
  return text


def _is_unicode(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return "\0" not in text


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
  sides = [entry.get(field) for field in ("width", "height")]
  if sides == [0, 0]:
    return None
  for field, side in zip(("width", "height"), sides, strict=True):
    if side is not None and not (_is_whole(side) and side > 0):
      raise ValueError(
        f"{field} must be a whole number above 0, and is {_said(side)}"
      )
  if None in sides:
    return None
  width, height = map(int, sides)
  if width * height > MAX_PIXELS:
    raise ValueError(
      f"width x height must be at most {MAX_PIXELS:,} pixels, and is "
      f"{reprlib.repr(width)}x{reprlib.repr(height)}"
    )
  return width, height


def _normal(file_name: str) -> str:
  """Returns what two spellings of one file have in common."""
  return PurePosixPath(file_name.replace("\\", "/")).as_posix()


def _index(
  file: str,
  what: str,
  entries: list[tuple[int, str, _T]],
  problems: list[str],
) -> dict[int, _T]:
  """Returns id -> value of (id, name, value), of the ids that stand once.

  Adds to `problems` for ids and for names that stand twice.
  """
  by_id: dict[int, list[tuple[str, _T]]] = {}
  ids_of_name: dict[str, list[int]] = {}
  for number, name, value in entries:
    by_id.setdefault(number, []).append((name, value))
    ids_of_name.setdefault(name, []).append(number)
  for number, same in by_id.items():
    if len(same) > 1:
      problems.append(
        f"{file} must name every {what} id once, and {reprlib.repr(number)} "
        f"recurs: it is that of {_short(same[0][0])} and {_short(same[1][0])}"
      )
  field = {"image": "file name", "category": "name"}[what]
  for name, ids in ids_of_name.items():
    if len(set(ids)) > 1:
      first, second, *_ = dict.fromkeys(ids)
      problems.append(
        f"{file} must name every {what} {field} once, and {_short(name)} "
        f"recurs: it is that of the ids {reprlib.repr(first)} and "
        f"{reprlib.repr(second)}"
      )
  return {i: same[0][1] for i, same in by_id.items() if len(same) == 1}


def _short(text: str) -> str:
  return repr(text if len(text) <= 80 else f"{text[:38]}...{text[-38:]}")


def _annotations(
  file: str,
  entries: list[Any],
  image_of: Mapping[int, Image],
  name_of: Mapping[int, str],
) -> tuple[list[Annotation], list[str]]:
  """Returns those that can be used, and what is wrong with the others."""
  found, problems = [], []
  place_of: dict[int, int] = {}
  fractions = Fractions()
  for i, entry in enumerate(entries):
    where = f"annotations[{i}]"
    try:
      entry = _checked_object(entry)
      if entry.get("id") is not None:
        number = _id(entry, "id")
        where = f"annotation {reprlib.repr(number)}"
        first = place_of.setdefault(number, i)
        if first != i:
          raise ValueError(
            "the file must name every annotation id once, and this recurs: it "
            f"is that of annotations[{first}] and annotations[{i}]"
          )
      box = _box(entry.get("bbox"))
      annotation = Annotation(
        where=where,
        image=_referred(entry, "image_id", image_of, "image"),
        label=_referred(entry, "category_id", name_of, "category"),
        box=box,
        segmentation=entry.get("segmentation"),
      )
    except ValueError as error:
      problems.append(f"{file}, {where}: {error}")
      continue
    if box is not None:
      fractions.add(where, entry["bbox"], box)
    found.append(annotation)
  if wrong := str(fractions):
    return [], [f"{file}: {wrong}", *problems]
  return found, problems


def _box(value: Any) -> Box | None:
  if value is None:
    return None
  if not isinstance(value, list) or len(value) != 4:
    raise ValueError(
      f"bbox must be four numbers, x y width height, and is {_said(value)}"
    )
  for number in value:
    if not _is_finite(number):
      raise ValueError(
        "bbox must be four numbers, x y width height, and one of them is "
        f"{_said(number)}"
      )
  xmin, ymin, width, height = map(float, value)
  return xmin, ymin, xmin + width, ymin + height


def _is_finite(value: Any) -> bool:
  if not isinstance(value, int | float) or isinstance(value, bool):
    return False
  try:
    return math.isfinite(value)
  except OverflowError:  # a whole number of hundreds of digits
    return False


def _referred(entry, field: str, known: Mapping[int, _T], what: str) -> _T:
  number = _id(entry, field)
  if number not in known:
    raise ValueError(
      f"{field} must be the id of one {what} of the file that can be used, and "
      f"is {reprlib.repr(number)}"
    )
  return known[number]
