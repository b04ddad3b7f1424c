"""Exports a run: python -m gc_jax.export --workdir=DIR --out=FILE."""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from gc_jax import cli
from gc_jax.runtime import config as saved_config
from gc_jax.runtime import files, signals, speaking
from gc_jax.runtime.messages import number_of

# How far PyTorch may be, relative to the largest value: float32 sums in another
# order, through a hundred layers.
TOLERANCE = 1e-4
_NUM_IMAGES = 8  # that the two sides are compared on

_DESCRIPTION = """\
Writes the last checkpoint of a run as a file that PyTorch loads, under
torchvision's names: load_state_dict(..., strict=True) takes it.

  FILE.safetensors     weights, and what they are; needs no PyTorch to write
  FILE.pth             the same as a state dict; what they are, in FILE.pth.json
  FILE.safetensors.md  the model card: how to load it, what it scores

A run that trains on is exported as far as it has come.
"""
_EPILOG = """\
example:
  python -m gc_jax.export --workdir=runs/gc --out=gc.safetensors --verify
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m gc_jax.export",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", required=True, metavar="DIR", help="folder of the run")
  add(
    "--out",
    required=True,
    metavar="FILE",
    help=".safetensors (added if there is no suffix) or .pth",
  )
  add(
    "--verify",
    action="store_true",
    help="load the file in PyTorch and compare logits and both Grad-CAM maps "
    "on pictures of the run; exits with 1 if they differ",
  )
  add("--overwrite", action="store_true", help="replace what is there")
  args = parser.parse_args(argv)
  return cli.exit_status(
    lambda: _export(args.workdir, args.out, args.verify, args.overwrite)
  )


def _export(workdir: str, out: str, verify: bool, overwrite: bool) -> bool:
  """Writes the file and its card; returns False if PyTorch's results differ.

  Raises:
    ValueError: an argument, the run or the machine does not allow it; raised
      before anything is written.
    checkpoint.CheckpointError: the run has no readable checkpoint.
  """
  workdir = files.as_path(workdir)
  config = saved_config.read(workdir)
  with speaking.doing("importing jax"):
    from gc_jax import torch_io
    from gc_jax.inference import trained
    from gc_jax.report import artefact, describe
    from gc_jax.torch_io import card

  out = torch_io.on_disk(out)
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
  # Before anything is written: the run's data may be gone.
  images = _evaluated_images(config) if verify else None
  text = json.dumps(config, sort_keys=True, separators=(",", ":"))
  metadata = torch_io.Metadata(
    architecture=loaded.name,
    class_names=loaded.class_names,
    multi_label=loaded.multi_label,
    image_size=loaded.image_size,
    config_digest=hashlib.sha256(text.encode()).hexdigest(),
  )
  for path in torch_io.save_model(out, loaded.model, metadata):
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)", flush=True)
  text = card.model_card(
    out,
    metadata,
    len(loaded.class_names),
    describe.training(run.about),
    run.results,
  )
  files.write_text(beside, text)
  print(f"wrote {beside}", flush=True)

  if images is None:
    return True
  differences = card.largest_differences(out, loaded.model, images)
  count = number_of(len(images), "image")
  for name, difference in differences.items():
    print(
      f"largest difference of {name} in PyTorch, over {count}: "
      f"{difference:.1e} of the largest value"
    )
  wrong = [k for k, v in differences.items() if not v <= TOLERANCE]
  if wrong:
    print(
      f"error: PyTorch must compute what {workdir} does, to {TOLERANCE:g} of "
      f"the largest value; it does not, in {', '.join(wrong)}. Do not use "
      f"{out}.",
      file=sys.stderr,
    )
  return not wrong


def _evaluated_images(config: dict) -> UInt8[np.ndarray, "B H W 3"]:
  """Returns the first pictures of the run's evaluation split."""
  from gc_jax import data
  from gc_jax.data.dataset import Reader
  from gc_jax.data.pairs import Square

  config = ConfigDict(config)
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


if __name__ == "__main__":
  with signals.ending_at_ctrl_c(
    "What was written is whole; the same command begins anew."
  ):
    sys.exit(main())
