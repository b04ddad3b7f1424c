#!/usr/bin/env bash
# Trains, evaluates and reports on this machine, in an environment of its own.
#
#   launch/local.sh                     the quickstart, into runs/quickstart
#   launch/local.sh --config=... --workdir=...    as `python -m gc_jax.main`
#
# Run again, it continues where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
ensure_environment requirements.txt

if (($# == 0)); then
  set -- --config=configs/quickstart.py --workdir=runs/quickstart
fi
exec python -m gc_jax.main "$@"
