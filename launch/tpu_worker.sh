#!/usr/bin/env bash
# Run by launch/tpu_pod.sh on every worker of a TPU, where it was copied to.
#
#   launch/tpu_worker.sh install              make the environment
#   launch/tpu_worker.sh train ID --config=... --workdir=...   as gc_jax.main
#   launch/tpu_worker.sh stop                 save and end
#
# train starts the attempt ID apart from this session, which may break, and
# shows its output; called again, it shows how the attempt goes on. The last
# line is "worker exited: STATUS", the status that of launch/worker.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# The second, so that a TPU that does not start is an error, not a CPU.
export JAX_BUILD=tpu JAX_PLATFORMS=tpu,cpu

install() {
  source launch/environment.sh
  if ! find_python >/dev/null 2>&1; then
    # The images of TPU VMs bring Ubuntu 22.04's Python 3.10.
    echo "Installing Python 3.12 ..." >&2
    python3 -m pip install --user --quiet uv
    python3 -m uv python install --quiet 3.12
    PYTHON=$(python3 -m uv python find --no-project 3.12)
    export PYTHON
  fi
  ensure_environment requirements.txt
  ensure_environment launch/requirements.txt
}

# What an earlier attempt left running: it holds the TPU.
stop() {
  local group
  group=$(cat attempt.group 2>/dev/null || true)
  if [[ -n "$group" ]] && kill -0 "$group" 2>/dev/null; then
    kill -TERM "$(cat attempt.pid)" 2>/dev/null || true
    timeout "${GRACE:-120}" tail -s 0.2 --pid="$group" -f /dev/null ||
      kill -KILL -- "-$group" 2>/dev/null || true
  fi
  rm -f attempt.group attempt.pid
}

train() {
  local log=attempt.$1.log result=attempt.$1.status lines=20 status
  shift
  if [[ ! -e "$log" ]]; then
    lines=+1
    stop
    : >"$log"
    # A group of its own, so that it can be killed as a whole.
    # shellcheck disable=SC2016
    setsid bash -c '
      result=$1
      launch/worker.sh "${@:2}" &
      echo "$!" >attempt.pid
      wait "$!"
      echo "$?" >"$result"
    ' attempt "$result" "$@" </dev/null >"$log" 2>&1 &
    echo "$!" >attempt.group
  fi
  tail -s 0.2 -n "$lines" -f --pid="$(cat attempt.group)" "$log"
  # Without a status it was killed, perhaps with the machine.
  status=$(cat "$result" 2>/dev/null || echo 137)
  echo "worker exited: $status"
  exit "$status"
}

case "${1:-}" in
  install) install ;;
  stop) stop ;;
  train) train "${@:2}" ;;
  *)
    echo "tpu_worker.sh takes install, train or stop; got '${1:-}'." >&2
    exit 2
    ;;
esac
