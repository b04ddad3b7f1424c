#!/usr/bin/env bash
# Tries the path of several hosts on one machine: two processes of four virtual
# CPU devices each, which train together over the loopback.
#
#   launch/two_processes.sh --config=... --workdir=...   as gc_jax.main
#     --grace=90   seconds that a process may take to stop before it is killed
#     --dry-run    print the commands instead
#
# Lines are preceded by the number of their process. SIGTERM and Ctrl-C (SIGINT)
# are passed on as SIGTERM: both save at the same step and exit; the status is 0
# then, and 130 after Ctrl-C. When one process fails, the other is stopped, and
# the status is that of the first to fail.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/arguments.sh
parse_arguments "grace=90" "$@"
require_number grace 1

# A port nobody answers at: a connection is refused.
find_port() {
  local port attempt
  for ((attempt = 0; attempt < 100; attempt++)); do
    port=$((20000 + RANDOM % 12000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return
    fi
  done
  fail "A port between 20000 and 32000 must be free; none of 100 tried was." \
    "End what listens on them."
}

port=$(find_port)
environment=(
  JAX_PLATFORMS=cpu
  # After the user's flags: of a flag given twice the last counts.
  "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=4"
  "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port"
  JAX_NUM_PROCESSES=2
)
command=(python -m gc_jax.main "${training[@]}" --multihost)
if ((dry_run)); then
  for i in 0 1; do
    show env "${environment[@]}" "JAX_PROCESS_ID=$i" "${command[@]}"
  done
  exit
fi
use_environment

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
pids=() printers=() statuses=("" "") first="" deadline="" interrupted=0

stop() {
  local i
  for i in 0 1; do
    if [[ -z "${statuses[i]}" ]]; then
      kill -TERM "${pids[i]}" 2>/dev/null || true
    fi
  done
  deadline=${deadline:-$((SECONDS + grace))}
}

for i in 0 1; do
  mkfifo "$folder/$i"
  # The printers outlive a signal to the whole group: last words are read.
  (trap '' TERM INT && exec sed -u "s/^/[$i] /") <"$folder/$i" &
  printers+=($!)
done
for i in 0 1; do
  env "${environment[@]}" "JAX_PROCESS_ID=$i" "${command[@]}" \
    >"$folder/$i" 2>&1 &
  pids+=($!)
done
trap stop TERM
trap 'stop; interrupted=130' INT

while [[ -z "${statuses[0]}" || -z "${statuses[1]}" ]]; do
  for i in 0 1; do
    if [[ -n "${statuses[i]}" ]] || kill -0 "${pids[i]}" 2>/dev/null; then
      continue
    fi
    status=0
    wait "${pids[i]}" || status=$?
    statuses[i]=$status
    if ((status != 0)) && [[ -z "$first" ]]; then
      first=$status
      echo "Process $i failed with status $status; stopping the other." >&2
      stop
    fi
  done
  if [[ -n "$deadline" ]] && ((SECONDS >= deadline)); then
    for i in 0 1; do
      [[ -z "${statuses[i]}" ]] || continue
      echo "Process $i did not end within $grace s; killing it." >&2
      kill -KILL "${pids[i]}" 2>/dev/null || true
    done
  fi
  sleep 0.1
done
wait "${printers[@]}" || true
exit "${first:-$interrupted}"
