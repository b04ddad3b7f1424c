"""Writes a run's model for use elsewhere, and proves that it is the same."""

import hashlib
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from gc_jax import data, torch_io
from gc_jax.attribution import METHODS
from gc_jax.data.dataset import Reader
from gc_jax.data.pairs import Square
from gc_jax.inference import programs, trained
from gc_jax.report import artefact
from gc_jax.runtime import config as saved_config
from gc_jax.runtime import files, speaking
from gc_jax.runtime.messages import number_of, unknown_name_message
from gc_jax.torch_io import card, loading, proof

# How far others may be, relative to the largest value: float32 sums in another
# order, through a hundred layers.
TOLERANCE = 1e-4
_NUM_IMAGES = 8  # that the two sides are compared on
_README = "README.md"


def export(
  workdir: files.AnyPath,
  config: Mapping[str, Any],
  out: pathlib.Path,
  form: str,
  *,
  method: str,
  license: str,
  verify: bool,
) -> bool:
  """Writes a run's last checkpoint; returns False if others' results differ.

  Args:
    workdir: of the run.
    config: of the run, nested.
    out: the file or folder to write; what is there is replaced.
    form: "safetensors", "pth", "folder" or "stablehlo".
    method: of the programs' maps, a key of `METHODS`.
    license: see `card.Exported`.
    verify: whether to load it elsewhere, and compare.

  Raises:
    ValueError: the run or the machine does not allow it; raised before anything
      is written.
    checkpoint.CheckpointError: the run has no readable checkpoint.
  """
  if method not in METHODS:
    raise ValueError(unknown_name_message("--method", method, METHODS))
  is_program = form == "stablehlo"
  if verify and not is_program:
    torch_io.import_torch("To verify what is exported")
  elif form == "pth":
    torch_io.import_torch(f"To write {out}")
  loaded = trained.load_model(workdir)
  if verify and not is_program:
    proof.check_verifiable(loaded.model)
  if not is_program:
    torch_io.check_layout(out, loaded.model)
  # Before anything is written: the run's data may be gone.
  images = _evaluated_images(config) if verify else None
  text = json.dumps(config, sort_keys=True, separators=(",", ":"))
  described = card.Exported(
    name=out.name,
    metadata=torch_io.Metadata(
      architecture=loaded.name,
      class_names=loaded.class_names,
      multi_label=loaded.multi_label,
      image_size=loaded.image_size,
      config_digest=hashlib.sha256(text.encode()).hexdigest(),
    ),
    num_classes=len(loaded.class_names),
    run=artefact.load(workdir),
    grid=_grid(loaded.model, loaded.image_size),
    step=loaded.step,
    num_train=loaded.num_train,
    license=license,
  )
  if is_program:
    with speaking.doing(f"lowering the model and {method}"):
      made = programs.make(loaded.model, loaded.image_size, method)
    differences = _write_programs(out, made, described, loaded.model, images)
  else:
    differences = _write_weights(out, form, described, loaded.model, images)
  where = "without gc_jax" if is_program else "in PyTorch"
  count = "" if images is None else number_of(len(images), "image")
  for name, difference in differences.items():
    print(
      f"largest difference of {name} {where}, over {count}: "
      f"{difference:.1e} of the largest value"
    )
  wrong = [k for k, v in differences.items() if not v <= TOLERANCE]
  if wrong:
    print(
      f"error: what is computed {where} must be what {workdir} computes, to "
      f"{TOLERANCE:g} of the largest value; it is not, in {', '.join(wrong)}. "
      f"Do not use {out}.",
      file=sys.stderr,
    )
  return not wrong


def _grid(model: nnx.Module, size: int) -> tuple[int, int]:
  """Returns (h, w) of a model's features. Nothing is computed."""
  features = lambda model, image: model.features(model.normalize(image))
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
  return nnx.eval_shape(features, model, image).shape[1:3]


def _write_weights(
  out: pathlib.Path,
  form: str,
  described: card.Exported,
  model: nnx.Module,
  images: UInt8[np.ndarray, "B H W 3"] | None,
) -> dict[str, float]:
  """Writes weights and their card, and compares them if there are images."""
  weights, beside, block = out, out.with_name(f"{out.name}.md"), {}
  if form == "folder":
    weights, beside = out / loading.WEIGHTS, out / _README
    library = loading.library(described.metadata.architecture)
    tags = dict.fromkeys((library, loading.framework(library), "safetensors"))
    block = card.hub_metadata(described, library, *tags)
    _write_config(out, loading.timm_config(described), described, form)
  for path in torch_io.save_model(weights, model, described.metadata):
    _tell(path)
  section = loading.section(described, weights.name)
  files.write_text(beside, card.model_card(described, section, block))
  _tell(beside)
  if images is None:
    return {}
  with speaking.doing("comparing with PyTorch"):
    differences = proof.largest_differences(weights, model, images)
  for library, code in loading.codes(described, weights.name).items():
    with speaking.doing(f"running the card's code for {library}"):
      found = proof.difference_by_card(code, weights.parent, model, images)
    if isinstance(found, str):
      print(f"the card's code for {library} was not run: {found}", flush=True)
    else:
      differences[f"logits by the card's code for {library}"] = found
  return differences


def _write_programs(
  out: pathlib.Path,
  made: programs.Programs,
  described: card.Exported,
  model: nnx.Module,
  images: UInt8[np.ndarray, "B H W 3"] | None,
) -> dict[str, float]:
  """Writes programs and their card, and compares them if there are images."""
  if made.one_by_one:
    print(
      "note: the programs take one picture at a time, as the network or the "
      f"method must know how many there are ({made.one_by_one})"
    )
  _write_config(out, programs.contract(made, described), described, "stablehlo")
  for path in made.save(out):
    _tell(path)
  block = card.hub_metadata(described, "jax", "jax", "stablehlo")
  text = card.model_card(described, programs.section(made), block)
  files.write_text(out / _README, text)
  _tell(out / _README)
  if images is None:
    return {}
  with speaking.doing("running the programs without gc_jax"):
    return programs.differences_alone(made, out, model, images)


def _write_config(
  folder: pathlib.Path,
  value: dict[str, Any],
  described: card.Exported,
  form: str,
) -> None:
  """Writes config.json; by its last field the next export knows the folder."""
  own = {
    "config_digest": described.metadata.config_digest,
    "exported_by": "gc_jax",
    "exported_as": form,
  }
  text = json.dumps(value | own, indent=2, ensure_ascii=False)
  files.write_text(folder / loading.CONFIG, f"{text}\n")
  _tell(folder / loading.CONFIG)


def _tell(path: pathlib.Path) -> None:
  print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)", flush=True)


def _evaluated_images(
  config: Mapping[str, Any],
) -> UInt8[np.ndarray, "B H W 3"]:
  """Returns the first pictures of the run's evaluation split."""
  config = saved_config.completed(config)
  dataset = data.load(config.data, config.data.eval_split)
  square = Square(
    Reader(dataset, config.data.on_error),
    config.data.image_size,
    config.data.eval_resize_px,
    config.data.eval_squash,
  )
  count = min(_NUM_IMAGES, len(dataset.source))
  images = [square.image(index) for index in range(count)]
  blank = square.blank()["image"]  # in place of a picture passed over
  return np.stack([blank if image is None else image for image in images])
