"""A run's model handed over to PyTorch: its file, its card, the proof.

What `python -m gc_jax.export` does.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from gc_jax import data, torch_io
from gc_jax.data.dataset import Reader
from gc_jax.data.pairs import Square
from gc_jax.inference import trained
from gc_jax.report import artefact, describe
from gc_jax.runtime import config as saved_config
from gc_jax.runtime import files
from gc_jax.torch_io import card

# How far PyTorch may be, relative to the largest value: float32 sums in another
# order, through a hundred layers.
TOLERANCE = 1e-4

_NUM_IMAGES = 8  # that the two sides are compared on


class VerificationError(ValueError):
  """PyTorch computes something else of a file; says what."""


def export_run(
  workdir: str | Path, out: str | Path, verify: bool, overwrite: bool
) -> Iterator[str]:
  """Writes the last checkpoint of a run for PyTorch, and its model card.

  Args:
    workdir: of the run, finished or not.
    out: `.safetensors`, which a name without suffix gets, or `.pth`; the card
      is written beside it, as `.md`.
    verify: whether to run the file in PyTorch, on pictures of the run's
      evaluation split.
    overwrite: whether files of these names may be replaced.

  Yields:
    A line for each thing done.

  Raises:
    ValueError: an argument, the run or the machine does not allow it.
    VerificationError: PyTorch's results are others.
    checkpoint.CheckpointError: the run has no readable checkpoint.
  """
  workdir, out = files.as_path(workdir), torch_io.on_disk(out)
  if not out.suffix:
    out = out.with_name(f"{out.name}.safetensors")
  torch_io.check_suffix(out)
  if verify:
    torch_io.import_torch("To verify what is exported")
  beside = out.with_name(f"{out.name}.md")
  # A state dict has its metadata in a file of its own.
  described = [out.with_name(f"{out.name}.json")] * (out.suffix == ".pth")
  for path in (out, beside, *described):
    if path.exists() and not overwrite:
      raise ValueError(
        f"{path} exists, and nothing was written. Choose another --out, or "
        "give --overwrite."
      )
  loaded = trained.load_model(workdir)
  if verify:
    card.check_verifiable(loaded.model)
  run = artefact.load(workdir)
  config = saved_config.read(workdir)
  # Before anything is written: the run's data may be gone.
  images = _evaluated_images(config) if verify else None
  metadata = torch_io.Metadata(
    architecture=loaded.name,
    class_names=loaded.class_names,
    multi_label=loaded.multi_label,
    image_size=loaded.image_size,
    config_digest=_digest(config),
  )
  for path in torch_io.save_model(out, loaded.model, metadata):
    yield f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)"
  text = card.model_card(
    out,
    metadata,
    len(loaded.class_names),
    describe.training(run.about),
    run.results,
  )
  files.write_text(beside, text)
  yield f"wrote {beside}"

  if images is None:
    return
  differences = card.largest_differences(out, loaded.model, images)
  for name, difference in differences.items():
    yield (
      f"largest difference of {name} in PyTorch, over {len(images)} images: "
      f"{difference:.1e} of the largest value"
    )
  wrong = [k for k, v in differences.items() if not v <= TOLERANCE]
  if wrong:
    raise VerificationError(
      f"PyTorch must compute what {workdir} does, to {TOLERANCE:g} of the "
      f"largest value; it does not, in {', '.join(wrong)}. Do not use {out}."
    )


def _evaluated_images(config: dict) -> UInt8[np.ndarray, "B H W 3"]:
  """Returns the first pictures of the run's evaluation split."""
  config = ConfigDict(config)
  dataset = data.load(config.data, config.data.eval_split)
  square = Square(
    dataset,
    Reader(dataset, config.data.on_error),
    config.data.image_size,
    config.data.eval_resize_px,
    config.data.eval_squash,
  )
  count = min(_NUM_IMAGES, len(dataset.source))
  images = [square.image(index) for index in range(count)]
  blank = square.blank()["image"]  # in place of a picture passed over
  return np.stack([blank if image is None else image for image in images])


def _digest(config: dict) -> str:
  text = json.dumps(config, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()
