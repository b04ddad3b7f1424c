#!/usr/bin/env bash
# Says whether a recipe fits on TPUs that you do not have.
#
#   launch/preflight.sh --config=configs/imagenet.py:resnet50-gmp_gc \
#     --topology=v6e:8x8 ...      as `python -m gc_jax.preflight`
#     --dry-run    print the command instead
#
# Runs in .venv-tpu, an environment of its own with the TPU's compiler, libtpu.
# (In .venv, libtpu would look for a TPU whenever you train, and print errors if
# there is none.) --topology=local asks about this machine, and runs in .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/arguments.sh
source launch/environment.sh

dry_run=0 folder=.venv-tpu config="" topology=""
arguments=()
for argument in "$@"; do
  case "$argument" in
    --help | -h)
      print_help "$0"
      exit 0
      ;;
    --dry-run) dry_run=1 && continue ;;
    --config=*) config=${argument#*=} ;;
    --topology=*) topology=${argument#*=} ;;
  esac
  arguments+=("$argument")
done
# Before an installation that takes minutes.
[[ -n "$config" ]] ||
  fail "--config=FILE must say which recipe, for example" \
    "--config=configs/imagenet.py:resnet50-gc; none came. Add it, or see --help."
[[ -n "$topology" ]] ||
  fail "--topology=GENERATION:SIZE must say which slice, for example" \
    "--topology=v5e:4x4; none came. Add it, or see --help."

if [[ "$topology" == local ]]; then
  ((dry_run)) || use_environment
  run exec python -m gc_jax.preflight "${arguments[@]}"
else
  export JAX_BUILD=tpu
  ((dry_run)) || ensure_environment requirements.txt "$folder"
  run exec "$folder/bin/python" -m gc_jax.preflight "${arguments[@]}"
fi
