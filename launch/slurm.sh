#!/usr/bin/env bash
# Trains on a SLURM cluster: one task per GPU, over any number of nodes.
#
#   launch/slurm.sh --gpus-per-node=N --config=... --workdir=...
#                          as gc_jax.main
#     --nodes=1
#     --time=24:00:00      of one job; an unfinished one is queued again
#     --partition=NAME     the cluster's default unless given
#     --account=NAME       the user's default unless given
#     --cpus-per-task=8    for the decoding of pictures
#     --name=gc_jax        of the job
#     --max-restarts=100   how often it may be queued again
#     --dry-run            print the job instead of submitting it
#
# Run it on a login node. This folder and the workdir must be on a disk that all
# nodes see. Two minutes before the time is up, and when SLURM preempts the job,
# the tasks save; the job goes on from there. Output: slurm-NAME-JOB.log, here.
# With JAX_BUILD=cuda12 (or cuda13) in the environment the packages are
# installed on the login node, for clusters whose GPU nodes are offline.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/arguments.sh
parse_arguments "gpus-per-node! nodes=1 time=24:00:00 partition= account= \
cpus-per-task=8 name=gc_jax max-restarts=100" "$@"
for option in gpus-per-node nodes cpus-per-task; do
  require_number "$option" 1
done
require_number max-restarts 0
require_match time '([0-9]+-)?[0-9]+(:[0-5][0-9]){0,2}' \
  "a time as SLURM writes it, like 90 (minutes), 24:00:00 or 2-12:00:00"
word='[A-Za-z0-9][A-Za-z0-9_.-]*'
require_match name "$word" "letters, digits and . _ -"
require_match partition "($word(,$word)*)?" "the name of a partition"
require_match account "($word)?" "the name of an account"

job() {
  local environment=""
  if [[ -n "${VIRTUAL_ENV:-}" ]]; then
    environment="export VIRTUAL_ENV=$(quote "$VIRTUAL_ENV")
PATH=\$VIRTUAL_ENV/bin:\$PATH"
  elif [[ -n "${JAX_BUILD:-}" ]]; then
    environment="export JAX_BUILD=$(quote "$JAX_BUILD")"
  fi
  cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus_per_node
#SBATCH --gpus-per-node=$gpus_per_node
#SBATCH --cpus-per-task=$cpus_per_task
#SBATCH --time=$time
${partition:+#SBATCH --partition=$partition
}${account:+#SBATCH --account=$account
}#SBATCH --output=slurm-$name-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# To the tasks, not to this script.
#SBATCH --signal=TERM@120
set -uo pipefail
cd $(quote "$PWD") || exit 1
${environment:+$environment
}# Once, before the tasks of all nodes look for it. In a shell of its own: in
# this one, what is left of an || would go on after an error.
bash -euo pipefail -c 'source launch/arguments.sh; use_environment' || exit 1
# A GPU that does not start is an error, not a CPU.
export JAX_PLATFORMS=cuda,cpu

# A task that has saved must not end those that still save.
srun --cpus-per-task=$cpus_per_task --kill-on-bad-exit=0 \\
  $(show launch/worker.sh "${training[@]}")
status=\$?
if ((status == 75)); then
  if ((\${SLURM_RESTART_COUNT:-0} < $max_restarts)); then
    echo "Stopped before the end; queueing the job again."
    scontrol requeue "\$SLURM_JOB_ID"
    exit
  fi
  echo "Stopped before the end, and queued again $max_restarts times before." \\
    "Submit it once more to go on, or raise --max-restarts." >&2
fi
exit \$status
JOB
}

quote() {
  echo "'${1//\'/\'\\\'\'}'"
}

if ((dry_run)); then
  job
  exit
fi
if [[ -n "${JAX_BUILD:-}" ]]; then
  use_environment
fi
command -v sbatch >/dev/null ||
  fail "sbatch must be on the PATH; it is not. Run this on a login node."
job | sbatch
