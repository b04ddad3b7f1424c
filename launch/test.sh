#!/usr/bin/env bash
# Lints and tests, in an environment of its own.
#
#   launch/test.sh                 everything that must pass
#   launch/test.sh tests/cam_test.py -k closed    as `pytest`, without the lint
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
ensure_environment tests/requirements.txt

if (($# == 0)); then
  ruff check
  ruff format --check
  # Two processes: most of the time, one core compiles. Whole files, so that
  # what the tests of a file share is made once, and the slow ones first. What
  # repeats others at length is left to `launch/test.sh tests -m large`.
  set -- tests -n 2 --dist loadfile --no-loadscope-reorder --durations=15 \
    -m "not large"
fi
# The tests make their own devices, on any machine.
export JAX_PLATFORMS=cpu
exec python -m pytest -c tests/pytest.ini "$@"
