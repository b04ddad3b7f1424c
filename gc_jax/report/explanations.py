"""What `gc_jax.explain` leaves: overlays, raw maps and explanations.json."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from gc_jax.report import pictures
from gc_jax.runtime import files

FILENAME = "explanations.json"


@dataclasses.dataclass(frozen=True)
class Explanation:
  """One picture explained by one method: an object of explanations.json.

  Attributes:
    file: the picture, as it was named.
    size: (height, width) of the picture, upright.
    model: where the model is from.
    outputs: "softmax" where a picture shows one class, "sigmoid" where it may
      show several, as the model's file says, or the user.
    model_size: (height, width) at which the model saw the picture.
    method: a key of `METHODS`.
    target: id of the class explained.
    target_name: of the class; None where the model names none, as below.
    target_probability: what the model gives it: the softmax over the classes,
      or the class's own sigmoid, as `outputs` says.
    predicted: id of the class with the highest score.
    predicted_name: of that class.
    predicted_probability: as `target_probability`.
    map_shape: (height, width) of the map in cells.
    map_is_empty: whether the map has no mass: then nothing speaks for the
      class, and the overlay is the bare picture.
    overlay: name of the PNG in the same folder, of the picture's own size.
    map: name of the .npy in the same folder: the raw map, float32, >= 0.
  """

  file: str
  size: tuple[int, int]
  model: str
  outputs: str
  model_size: tuple[int, int]
  method: str
  target: int
  target_name: str | None
  target_probability: float
  predicted: int
  predicted_name: str | None
  predicted_probability: float
  map_shape: tuple[int, int]
  map_is_empty: bool
  overlay: str
  map: str


def output_names(
  paths: Sequence[Path], methods: Sequence[str]
) -> list[dict[str, tuple[str, str]]]:
  """Returns method -> (name of the overlay, of the map) for each picture.

  They carry the picture's name without its suffix; further pictures of that
  name get a number, in the order they came. File systems that ignore case are
  thought of.
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
  out: Path, names: Iterable[str], pictures: Iterable[Path], overwrite: bool
) -> list[dict[str, Any]]:
  """Checks that names can be written to a folder; returns what it explains.

  Args:
    out: the folder; need not exist.
    names: to be written there.
    pictures: that are read, and must stay.
    overwrite: whether a file of the same name may be replaced.

  Returns:
    The objects of the folder's explanations.json, none where there is none.

  Raises:
    ValueError: a file would be lost, or the folder is something else.
  """
  if out.exists() and not out.is_dir():
    raise ValueError(
      f"--out must be a folder. {str(out)!r} is a file. Choose another name."
    )
  existing = [name for name in names if (out / name).exists()]
  own = {picture.resolve() for picture in pictures}
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
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if not all("overlay" in explanation for explanation in earlier):
      raise ValueError("an object lacks 'overlay'")
  except (OSError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} must be a list of explanations, to be extended; it is not "
      f"({error}). Choose another --out, or move it away."
    ) from error
  return earlier


def write(
  out: Path,
  explanation: Explanation,
  image: UInt8[np.ndarray, "H W 3"],
  cam: Float32[np.ndarray, "h w"],
) -> None:
  """Writes the overlay and the raw map of one explanation."""
  shown = np.zeros_like(cam) if explanation.map_is_empty else cam
  picture = pictures.heat_overlay(image, shown)
  with files.replacing(out / explanation.overlay) as file:
    file.write(pictures.png_bytes(picture))
  with files.replacing(out / explanation.map) as file:
    np.save(file, cam)


def write_index(
  out: Path, earlier: list[dict[str, Any]], explanations: list[Explanation]
) -> Path:
  """Writes explanations.json: what was there and still is, and what is new."""
  replaced = {explanation.overlay for explanation in explanations}
  kept = [e for e in earlier if e["overlay"] not in replaced]
  entries = kept + [dataclasses.asdict(e) for e in explanations]
  lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
  files.write_text(out / FILENAME, f"[\n{lines}\n]\n")
  return out / FILENAME
