"""What `gc_jax.explain` leaves: overlays, raw maps, an index and a page."""

import collections
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from gc_jax.attribution import title_of
from gc_jax.report import formats, pictures, plots
from gc_jax.runtime import files
from gc_jax.runtime.messages import clipped, listed

FILENAME = "explanations.json"
SKIPPED = "skipped.json"
PAGE = "index.html"
_OF_PAGE = "index_files"  # folder of its pictures


class ClassScore(NamedTuple):
  """A class and what the model gives it."""

  id: int
  name: str | None
  probability: float


class Skipped(NamedTuple):
  """A picture that could not be read: an object of skipped.json."""

  file: str  # as the user named it
  reason: str


@dataclasses.dataclass(frozen=True)
class Explanation:
  """One picture explained by one method: an object of explanations.json.

  Sizes and shapes are (height, width). A name is None where the model does not
  know its classes.
  """

  file: str  # the picture, as the user named it
  size: tuple[int, int]  # of the picture, upright
  model: str  # where it is from
  outputs: str  # "softmax": one class a picture; "sigmoid": several
  model_size: tuple[int, int]  # at which the model saw the picture
  method: str  # a key of `METHODS`
  target: int  # the class explained
  target_name: str | None
  target_probability: float  # by the softmax or sigmoid, as `outputs` says
  predicted: int  # the class with the highest score
  predicted_name: str | None
  predicted_probability: float
  map_shape: tuple[int, int]  # in cells
  map_is_empty: bool  # no mass: nothing speaks for the class
  overlay: str  # a PNG in the same folder, of the picture's own size
  map: str  # an .npy in the same folder: the raw map, float32, >= 0
  # What older ones do not have.
  top: tuple[ClassScore, ...] = ()  # the first few classes, the highest first
  true: int | None = None  # the class whose name a folder of the picture has
  true_name: str | None = None
  true_probability: float | None = None
  # The picture and the map alone, as index.html shows them.
  page_image: str = ""
  page_map: str = ""

  @property
  def target_title(self) -> str:
    """The class explained, in words."""
    return _title(self.target, self.target_name)

  @property
  def is_right(self) -> bool | None:
    """Whether the class of its folder scored highest; None if that is open.

    It is where no folder tells, and where several classes may show and another
    scored higher.
    """
    if self.true == self.predicted:
      return True
    is_open = self.true is None or self.outputs == "sigmoid"
    return None if is_open else False

  @classmethod
  def from_json(cls, entry: Any) -> "Explanation":
    """Returns what an object of explanations.json says.

    Raises:
      ValueError: it is no such object.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    if not isinstance(entry, dict):
      raise ValueError(f"{clipped(json.dumps(entry))} is no object")
    lacking = [
      name
      for name, field in known.items()
      if name not in entry and field.default is dataclasses.MISSING
    ]
    if lacking:
      raise ValueError(f"an object lacks {listed(lacking)}")
    entry = {name: entry[name] for name in known if name in entry}
    entry["top"] = tuple(ClassScore(**each) for each in entry.get("top", ()))
    for name in ("size", "model_size", "map_shape"):
      entry[name] = tuple(entry[name])
    return cls(**entry)

  def to_json(self) -> dict[str, Any]:
    """Returns the object of explanations.json."""
    top = [each._asdict() for each in self.top]
    return {**dataclasses.asdict(self), "top": top}


def results() -> Callable[[Path], bool]:
  """Returns a function that knows the pictures that explanations wrote.

  It looks into each folder once.
  """

  @functools.cache
  def written(folder: Path) -> frozenset[str]:
    try:
      entries = json.loads((folder / FILENAME).read_text(encoding="utf-8"))
      return frozenset(entry["overlay"] for entry in entries)
    except (OSError, TypeError, ValueError, LookupError):
      return frozenset()

  def is_result(path: Path) -> bool:
    if path.parent.name == _OF_PAGE:
      return bool(written(path.parent.parent))
    return path.name in written(path.parent)

  return is_result


def output_names(
  paths: Sequence[Path], methods: Sequence[str]
) -> list[dict[str, tuple[str, str]]]:
  """Returns method -> (name of the overlay, of the map) for each picture.

  They carry the picture's name without its suffix; further pictures of that
  name, whatever its case, get a number in the order they came.
  """
  taken = {path.stem.casefold() for path in paths}
  seen: set[str] = set()
  names = []
  for path in paths:
    stem, number = path.stem, 2
    if stem.casefold() in seen:
      while f"{path.stem}-{number}".casefold() in taken:
        number += 1
      stem = f"{path.stem}-{number}"
      taken.add(stem.casefold())
    seen.add(stem.casefold())
    names.append({m: (f"{stem}.{m}.png", f"{stem}.{m}.npy") for m in methods})
  return names


def open_folder(
  out: Path, names: Iterable[str], read: Iterable[Path], overwrite: bool
) -> list[Explanation]:
  """Checks that names can be written to a folder, which need not exist.

  Args:
    out: the folder.
    names: to be written there.
    read: pictures that must stay.
    overwrite: whether a file of the same name may be replaced.

  Returns:
    What the folder's explanations.json holds, if there is one.

  Raises:
    ValueError: a file would be lost, or the folder is something else.
  """
  if out.exists() and not out.is_dir():
    raise ValueError(
      f"--out must be a folder. {str(out)!r} is a file. Choose another name."
    )
  if not (out / FILENAME).exists():  # what else is called as ours is not ours
    names = [*names, PAGE, SKIPPED]
  existing = [name for name in names if (out / name).exists()]
  own = {picture.resolve() for picture in read}
  for name in existing:
    if (out / name).resolve() in own:
      raise ValueError(
        f"An explanation must not replace a picture it explains: {out / name}. "
        "Choose another --out."
      )
  if existing and not overwrite:
    more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
    raise ValueError(
      f"--out must not hold files of the same name: {out} has "
      f"{existing[0]}{more}. Choose another folder, or replace them with "
      "--overwrite."
    )
  path = out / FILENAME
  if not path.exists():
    return []
  try:
    entries = json.loads(path.read_text(encoding="utf-8"))
    return [Explanation.from_json(entry) for entry in entries]
  except (OSError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} must be a list of explanations, to be extended; it is not "
      f"({error}). Choose another --out, or move it away."
    ) from error


def write_image(out: Path, stem: str, image: UInt8[np.ndarray, "H W 3"]) -> str:
  """Writes a picture as the page shows it; returns its name below the folder.

  The name holds a digest: of another picture called so, it is another.
  """
  layer = pictures.image_layer(image)
  digest = hashlib.sha256(layer.content).hexdigest()[:8]
  ending = layer.kind.replace("jpeg", "jpg")
  name = f"{_OF_PAGE}/{stem}-{digest}.{ending}"
  if not (out / name).exists():
    with files.replacing(out / name) as file:
      file.write(layer.content)
  return name


def write(
  out: Path,
  explanation: Explanation,
  image: UInt8[np.ndarray, "H W 3"],
  cam: Float32[np.ndarray, "h w"],
) -> Explanation:
  """Writes the overlay and the maps of one explanation.

  Returns it with the name of the map that the page shows.
  """
  seen = explanation.model_size
  with files.replacing(out / explanation.map) as file:
    np.save(file, cam)
  if not explanation.map_is_empty:
    name = f"{_OF_PAGE}/{explanation.overlay}"
    with files.replacing(out / name) as file:
      file.write(pictures.heat_layer(cam, image.shape[:2], seen).content)
    explanation = dataclasses.replace(explanation, page_map=name)
  # Last: a picture that no index names would be taken for one to explain.
  picture = pictures.heat_overlay(image, cam, seen=seen)
  with files.replacing(out / explanation.overlay) as file:
    file.write(plots.png_bytes(picture))
  return explanation


def write_index(
  out: Path,
  earlier: Sequence[Explanation],
  explanations: Sequence[Explanation],
  skipped: Sequence[Skipped] = (),
) -> Path:
  """Writes explanations.json: what was there and still is, and what is new.

  And the page; and skipped.json, if pictures were skipped now or earlier, and
  not explained since.
  """
  replaced = {e.overlay for e in explanations}
  kept = [e for e in earlier if e.overlay not in replaced]
  entries = [*kept, *explanations]
  _write_lines(out / FILENAME, [e.to_json() for e in entries])
  left_out = {each.file: each for each in [*_earlier_skipped(out), *skipped]}
  for explanation in explanations:
    left_out.pop(explanation.file, None)
  if left_out:
    lines = [each._asdict() for each in left_out.values()]
    _write_lines(out / SKIPPED, lines)
  else:
    (out / SKIPPED).unlink(missing_ok=True)
  page = _page(out.resolve().name, entries, list(left_out.values()))
  files.write_text(out / PAGE, page)
  shown = {e.page_image for e in entries}
  for name in {e.page_image for e in earlier} - shown - {""}:
    (out / name).unlink(missing_ok=True)
  return out / FILENAME


class _Card(NamedTuple):
  """A picture on the page, by one model."""

  name: str  # of its file, with folders where others are called so
  first: Explanation
  explanations: Sequence[Explanation]
  classes: Sequence[int]  # to find it by, of those that the page offers
  is_enlarged: bool


def _page(
  name: str, entries: Sequence[Explanation], skipped: Sequence[Skipped]
) -> str:
  """Returns index.html."""
  by_picture = collections.defaultdict(list)
  for e in entries:
    by_picture[e.file, e.model, e.page_image].append(e)
  titles = {}  # of all classes, each to what is written of it
  for e in entries:
    for i, class_name in (
      (e.target, e.target_name),
      (e.predicted, e.predicted_name),
      (e.true, e.true_name),
    ):
      if i is not None:
        titles[e.model, i] = _title(i, class_name)
  classes = sorted(set(titles.values()), key=_natural)
  names = _short_names({e.file for e in entries})
  cards = []
  for group in by_picture.values():
    ids = {i for e in group for i in (e.target, e.predicted, e.true)} - {None}
    cards.append(
      _Card(
        names[group[0].file],
        group[0],
        group,
        sorted({classes.index(titles[group[0].model, i]) for i in ids}),
        pictures.display_scale(*group[0].size) > 1,
      )
    )
  methods = {e.method: title_of(e.method) for e in entries}
  return formats.render(
    "explanations.html",
    name=name,
    cards=cards,
    models=_models(cards),
    methods=list(methods.items()),
    classes=classes,
    num_empty=sum(e.map_is_empty for e in entries),
    num_maps=len(entries),
    skipped=skipped,
    outputs=sorted({e.outputs for e in entries}),
    color_bar=pictures.color_bar(),
    scaling=pictures.SCALING,
    title_of_class=_title,
    title_of_method=title_of,
  )


def _short_names(paths: Collection[str]) -> dict[str, str]:
  """Returns path -> the shortest end of it that no other has."""
  found, depth = {}, 1
  while left := [path for path in paths if path not in found]:
    ends = {p: PurePath(*PurePath(p).parts[-depth:]).as_posix() for p in left}
    counts = collections.Counter(ends.values())
    is_whole = lambda path, depth=depth: len(PurePath(path).parts) <= depth
    found |= {p: e for p, e in ends.items() if counts[e] == 1 or is_whole(p)}
    depth += 1
  return found


class _Model(NamedTuple):
  """A model on the page: how many pictures it saw, and got right."""

  name: str
  count: int
  judged: int  # pictures whose folder tells their class
  right: int


def _models(cards: Sequence[_Card]) -> list[_Model]:
  found = []
  for name in dict.fromkeys(card.first.model for card in cards):
    own = [card.first for card in cards if card.first.model == name]
    judged = [e for e in own if e.true is not None]
    right = sum(e.is_right is True for e in judged)
    found.append(_Model(name, len(own), len(judged), right))
  return found


def _title(i: int, name: str | None) -> str:
  return f"class {i}" if name is None else name


def _natural(title: str) -> list[tuple[bool, int, str]]:
  """Returns a key that sorts "class 9" before "class 10"."""
  parts = re.split(r"(\d+)", title)
  return [(p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts]


def _write_lines(path: Path, entries: Sequence[dict[str, Any]]) -> None:
  lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
  files.write_text(path, f"[\n{lines}\n]\n")


def _earlier_skipped(out: Path) -> list[Skipped]:
  try:
    entries = json.loads((out / SKIPPED).read_text(encoding="utf-8"))
    return [Skipped(each["file"], each["reason"]) for each in entries]
  except (OSError, TypeError, ValueError, LookupError):
    return []
