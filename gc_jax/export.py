"""Exports a run: python -m gc_jax.export --workdir=DIR --out=FILE|FOLDER."""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Sequence

from gc_jax import cli
from gc_jax.runtime import config as saved_config
from gc_jax.runtime import files, signals, speaking
from gc_jax.runtime.messages import unknown_name_message

# Format -> how --out ends.
_FILES = {"safetensors": ".safetensors", "pth": ".pth"}
_FOLDERS = {"folder": "", "stablehlo": ".stablehlo"}
FORMATS = _FILES | _FOLDERS

_DESCRIPTION = """\
Writes the last checkpoint of a run for use elsewhere. The name in --out says
how:

  FOLDER               model.safetensors, config.json and README.md (a model
                       card), as timm and the Hugging Face Hub take them
  FILE.safetensors     weights under torchvision's names, and what they are
  FILE.pth             the same as a state dict; what they are, in FILE.pth.json
  FOLDER.stablehlo     programs for JAX without gc_jax, on CPUs, GPUs and TPUs:
                       logits and maps of uint8 pictures

A file gets a card beside it, FILE.safetensors.md or FILE.pth.md. Only .pth
needs PyTorch. If the run is still training, its last checkpoint is exported.
"""
_EPILOG = """\
examples:
  python -m gc_jax.export --workdir=runs/gc --out=exported/gc --verify
  python -m gc_jax.export --workdir=runs/gc --out=exported/gc.stablehlo \\
    --method=layercam
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
    metavar="FILE|FOLDER",
    help="what to write; a name without a suffix is a folder",
  )
  add(
    "--format",
    default="",
    metavar="NAME",
    help=f"one of {', '.join(FORMATS)} (default: what --out ends in)",
  )
  add(
    "--method",
    default="",
    metavar="NAME",
    help="of stablehlo: whose maps its program makes, one of "
    f"{cli.names_in('gc_jax.attribution', 'METHODS')} (default: "
    "gradcam_elementwise)",
  )
  add(
    "--license",
    default="",
    metavar="ID",
    help="the licence you publish the weights under, as the Hub names it "
    "(mit, apache-2.0), for the card",
  )
  add(
    "--verify",
    action="store_true",
    help="load the export elsewhere and compare it with the run on its "
    "pictures: in PyTorch the logits and both Grad-CAM maps, and the logits by "
    "the card's own code where its library is installed; stablehlo in a "
    "process without gc_jax. Exits with 1 if they differ",
  )
  add("--overwrite", action="store_true", help="replace what is there")
  args = parser.parse_args(argv)
  return cli.exit_status(lambda: _export(args))


def _export(args: argparse.Namespace) -> bool:
  """Writes everything; returns False if others' results differ.

  Raises:
    ValueError: an argument, the run or the machine does not allow it; raised
      before anything is written.
    checkpoint.CheckpointError: the run has no readable checkpoint.
  """
  out, form = _target(args.out, args.format)
  if args.method and form != "stablehlo":
    raise ValueError(
      f"--method is of --format=stablehlo, whose programs make maps; {out} "
      f"holds weights ({form}), which know no method. Leave it out."
    )
  if not re.fullmatch(r"[a-z0-9.-]*", args.license):
    raise ValueError(
      "--license must be an identifier of Hugging Face's list, like mit or "
      f"cc-by-4.0; it is {args.license!r}. Leave it out if there is none, and "
      "write the terms into the card."
    )
  workdir = files.as_path(args.workdir)
  config = saved_config.read(workdir)
  _check_free(out, form, args.overwrite)
  with speaking.doing("importing jax"):
    from gc_jax.inference import exporting

  return exporting.export(
    workdir,
    config,
    out,
    form,
    method=args.method or "gradcam_elementwise",
    license=args.license,
    verify=args.verify,
  )


def _target(out: str, form: str) -> tuple[pathlib.Path, str]:
  """Returns the path to write, and its format."""
  if form and form not in FORMATS:
    raise ValueError(unknown_name_message("--format", form, FORMATS))
  path = files.as_path(out)
  if files.is_in_bucket(path):
    raise ValueError(
      f"--out must be on a disk; {path} is in a bucket. Export to a disk, and "
      "copy that: gcloud storage cp -r."
    )
  ends = {suffix: name for name, suffix in FORMATS.items()}
  if not form and path.suffix not in ends:
    raise ValueError(
      f"--out must end in {', '.join(filter(None, ends))}, or in nothing for a "
      f"folder; {str(path)!r} does not. Rename it, or say what it is: "
      "--format=folder."
    )
  form = form or ends[path.suffix]
  is_file = path.suffix in _FILES.values()
  if is_file and ends[path.suffix] != form:
    kind = "a folder" if form in _FOLDERS else f"a {FORMATS[form]} file"
    raise ValueError(
      f"--out must be {kind} for --format={form}; {str(path)!r} ends in "
      f"{path.suffix}. Change one of the two."
    )
  if form in _FILES and not is_file:
    path = path.with_name(path.name + FORMATS[form])
  return path, form


def _check_free(out: pathlib.Path, form: str, overwrite: bool) -> None:
  """Raises ValueError if something is there that may not be replaced."""
  if form in _FOLDERS:
    _check_folder(out, form, overwrite)
    return
  # A state dict has its metadata in a file of its own.
  beside = ["md", *["json"] * (form == "pth")]
  for path in (out, *(out.with_name(f"{out.name}.{end}") for end in beside)):
    if path.is_dir():
      raise ValueError(f"{path} is a folder, not a file. Choose another --out.")
    if path.exists() and not overwrite:
      raise ValueError(
        f"{path} exists, and nothing was written. Choose another --out, or "
        "give --overwrite."
      )


def _check_folder(out: pathlib.Path, form: str, overwrite: bool) -> None:
  if not out.exists():
    return
  if not out.is_dir():
    raise ValueError(f"{out} is a file, not a folder. Choose another --out.")
  # A new clone of a repository of the Hub has hidden files only.
  if all(path.name.startswith(".") for path in out.iterdir()):
    return
  try:
    found = json.loads((out / "config.json").read_text(encoding="utf-8"))
  except (OSError, ValueError):
    found = {}
  if not isinstance(found, dict) or found.get("exported_as") != form:
    raise ValueError(
      f"{out} holds files that are no earlier export as {form}, and nothing "
      "was written. Choose another --out."
    )
  if not overwrite:
    raise ValueError(
      f"{out} holds an earlier export, and nothing was written. Choose another "
      "--out, or give --overwrite."
    )


if __name__ == "__main__":
  with signals.ending_at_ctrl_c(
    "What was written is whole; the same command begins anew."
  ):
    sys.exit(main())
