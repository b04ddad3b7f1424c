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
) -> list[dict[str, Any]]:
  """Checks that names can be written to a folder, which need not exist.

  Args:
    out: the folder.
    names: to be written there.
    read: pictures that must stay.
    overwrite: whether a file of the same name may be replaced.

  Returns:
    The objects of the folder's explanations.json, if there is one.

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
  picture = pictures.heat_overlay(image, shown, seen=explanation.model_size)
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
