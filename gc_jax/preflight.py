r"""Does a recipe fit? Its train step, compiled for devices that are not here.

  launch/preflight.sh --config=configs/imagenet.py:resnet50-gmp_gc \
    --topology=v5e:16x16 --per_chip_batch=auto

The script runs `python -m gc_jax.preflight` in an environment of its own, with
the TPU's compiler, libtpu. No TPU is needed, and no data is read. The step is
compiled, not executed: the command prints the memory of each device against its
limit, FLOPs, collectives, and whether pictures would travel between devices.
`--topology=local` compiles for the devices of this machine.

Exits with 1 if the batch that was asked for does not fit, and with "auto" if
none does.
"""

import json

from absl import flags

from gc_jax import cli
from gc_jax.runtime import files, signals, speaking

_CONFIG = cli.define_config(
  None, "File of the recipe, with an optional :variant."
)
_TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "What to compile for: local, or a TPU slice, "
  f"{cli.names_in('gc_jax.pods.compiler', 'TOPOLOGIES')}.",
)
_PER_CHIP_BATCH = flags.DEFINE_string(
  "per_chip_batch",
  "",
  "Images on each device; auto searches for the largest number that fits. "
  "Default: the batch of the configuration, divided.",
)
_NUM_CLASSES = flags.DEFINE_integer(
  "num_classes", 0, "Number of classes, if only the data would tell it."
)
_FAST = flags.DEFINE_bool(
  "fast", False, "Compile with few optimizations; memory may differ."
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")


def main(argv: list[str]) -> int:
  """Runs what the flags say; returns its exit status."""
  cli.start(argv)
  return cli.exit_status(_fits)


def _fits() -> bool:
  out = None
  if _OUT.value is not None:
    out = files.as_path(_OUT.value)
    if out.is_dir():
      raise ValueError(f"--out={out} must be a file to write, not a folder.")
    # Before anything takes time.
    out.parent.mkdir(parents=True, exist_ok=True)
  with speaking.doing("importing jax"):
    from gc_jax.training import checks
  checks.validate(_CONFIG.value)
  with speaking.doing("importing what compiling needs"):
    from gc_jax.pods import check
    from gc_jax.report import formats

  with speaking.doing(f"compiling for {_TOPOLOGY.value}"):
    found = check.preflight(
      _CONFIG.value,
      _TOPOLOGY.value,
      per_device=check.read_per_device(_PER_CHIP_BATCH.value),
      num_classes=_NUM_CLASSES.value,
      fast=_FAST.value,
    )
  print(formats.render("preflight.txt", **found), end="")
  if out is not None:
    files.write_text(out, json.dumps(found, indent=2) + "\n")
    print(f"wrote {out}")
  verdict = found["largest"] if "largest" in found else found["asked"]
  return bool(verdict and verdict["fits"])


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "topology"])
  with signals.ending_at_ctrl_c("Nothing was written."):
    cli.run(main, _CONFIG)
