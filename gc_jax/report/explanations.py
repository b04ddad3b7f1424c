"""What `gc_jax.explain` leaves: overlays, raw maps and explanations.json."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from gc_jax.report import pictures
from gc_jax.runtime import files
from gc_jax.runtime.messages import clipped, listed

FILENAME = "explanations.json"
SKIPPED = "skipped.json"


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

  return lambda path: path.name in written(path.parent)


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
      f"--out must not hold explanations of the same name: {out} has "
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


def write(
  out: Path,
  explanation: Explanation,
  image: UInt8[np.ndarray, "H W 3"],
  cam: Float32[np.ndarray, "h w"],
) -> None:
  """Writes the overlay and the raw map of one explanation."""
  picture = pictures.heat_overlay(image, cam, seen=explanation.model_size)
  with files.replacing(out / explanation.overlay) as file:
    file.write(pictures.png_bytes(picture))
  with files.replacing(out / explanation.map) as file:
    np.save(file, cam)


def write_index(
  out: Path,
  earlier: Sequence[Explanation],
  explanations: Sequence[Explanation],
  skipped: Sequence[Skipped] = (),
) -> Path:
  """Writes explanations.json: what was there and still is, and what is new.

  And skipped.json, if pictures were skipped now or earlier, and not explained
  since.
  """
  replaced = {explanation.overlay for explanation in explanations}
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
  return out / FILENAME


def _write_lines(path: Path, entries: Sequence[dict[str, Any]]) -> None:
  lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
  files.write_text(path, f"[\n{lines}\n]\n")


def _earlier_skipped(out: Path) -> list[Skipped]:
  try:
    entries = json.loads((out / SKIPPED).read_text(encoding="utf-8"))
    return [Skipped(each["file"], each["reason"]) for each in entries]
  except (OSError, TypeError, ValueError, LookupError):
    return []
