#!/usr/bin/env bash
# One of the processes that train together; the other scripts start it.
#
#   launch/worker.sh --config=... --workdir=...   as gc_jax.main --multihost
#
# Exits as gc_jax.main does, but with 75 when SIGTERM stopped it: gc_jax.main
# saves and exits with 0 then, and a scheduler that took it for the end would
# never start it again. Ctrl-C (SIGINT) is passed on as SIGTERM, and is 130.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/arguments.sh
parse_arguments "" "$@"
((dry_run)) || use_environment

command=(
  env "$(compilation_cache)"
  python -m gc_jax.main "${training[@]}" --multihost
)
if ((dry_run)); then
  show "${command[@]}"
  exit
fi
stopped=0 interrupted=0
"${command[@]}" &
pid=$!
trap 'stopped=75 interrupted=1; kill -TERM "$pid" 2>/dev/null || true' TERM
# What a script starts in the background hears no Ctrl-C.
trap 'stopped=130 interrupted=1; kill -TERM "$pid" 2>/dev/null || true' INT
while true; do
  interrupted=0 status=0
  wait "$pid" || status=$?
  # A signal ends the waiting, not the process.
  ((interrupted)) || break
done
if ((status == 0)); then
  status=$stopped
fi
exit "$status"
