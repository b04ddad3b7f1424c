#!/usr/bin/env bash
# Trains on all GPUs of this machine: one process drives them, no other set-up.
#
#   launch/gpus.sh --config=... --workdir=...   as gc_jax.main
#     --gpus=N     the first N only
#     --dry-run    print the command instead
#
# Run again, it continues where it stopped. Compiler flags are left as they are
# in the environment, and none is added: none was timed with this training on
# several GPUs, and XLA ends the process at a flag that its version dropped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/arguments.sh
parse_arguments "gpus=all" "$@"
[[ "$gpus" == all ]] || require_number gpus 1

count=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)
if ((count == 0 && !dry_run)); then
  fail "An NVIDIA GPU is needed; nvidia-smi lists none. Install a driver, or" \
    "train on the CPU with launch/local.sh."
fi
environment=()
if [[ "$gpus" != all ]]; then
  if ((count > 0 && gpus > count)); then
    fail "--gpus must be at most the $count of this machine; got '$gpus'." \
      "Lower it, or leave it out for all."
  fi
  # Within what the user already chose.
  if [[ -n "${CUDA_VISIBLE_DEVICES:-}" ]]; then
    IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
  else
    visible=()
    for ((i = 0; i < gpus; i++)); do visible+=("$i"); done
  fi
  ((gpus <= ${#visible[@]})) ||
    fail "--gpus must be at most the ${#visible[@]} of" \
      "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES; got '$gpus'. Lower it."
  chosen=$(IFS=, && echo "${visible[*]:0:gpus}")
  environment=("CUDA_VISIBLE_DEVICES=$chosen")
fi
# Without it a broken CUDA installation would train on the CPU, unnoticed.
environment+=(
  "JAX_PLATFORMS=cuda,cpu"
  "$(compilation_cache)"
)

((dry_run)) || use_environment
run exec env "${environment[@]}" python -m gc_jax.main "${training[@]}"
