#!/usr/bin/env bash
# Trains on a TPU of Google Cloud, of one worker or of many (a pod slice).
#
#   launch/tpu_pod.sh --name=NAME --zone=ZONE --accelerator=v5litepod-16 \
#     --config=... --workdir=gs://BUCKET/FOLDER         as gc_jax.main
#     --runtime=VERSION    the image of the workers; of the accelerator's
#                          generation unless given
#     --project=PROJECT    gcloud's default unless given
#     --spot               cheaper, and may be preempted
#     --reserved           from a reservation of the project
#     --max-restarts=100   after preemptions and lost connections
#     --poll=30            seconds between looks at the TPU's state
#     --keep               leave the TPU running at the end, which goes on
#                          costing, and on Ctrl-C the training on it, too
#     --dry-run            print the commands instead
#
# Asks for a queued resource, waits for it, copies the source, installs, and
# trains on all workers. A preempted TPU is deleted and asked for again, and
# training goes on from its last checkpoint. When training fails on a sound TPU,
# the script ends. At its end, and on Ctrl-C (after saving), it deletes the TPU,
# unless --keep. Run again, it takes over a TPU of that name.
#
# Needs gcloud, logged in. The workers' service account must be able to write to
# the bucket; data (--config.data...) must lie where every worker reads it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/arguments.sh
parse_arguments "name! zone! accelerator! runtime= project= spot? reserved? \
max-restarts=100 poll=30 keep?" "$@"
require_match name '[a-z]([a-z0-9-]{0,60}[a-z0-9])?' \
  "small letters, digits and -, a letter first"
require_match zone '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone, like us-west4-a"
require_match accelerator 'v[0-9]+[a-z]*-[0-9]+' \
  "a generation and a size, like v4-32, v5litepod-16, v5p-32 or v6e-16"
require_match project '([a-z][a-z0-9.:-]*[a-z0-9])?' "the id of a project"
require_match runtime '([a-z0-9.-]+)?' "a TPU software version"
require_number max-restarts 0
require_number poll 1
require_bucket
require_shipped_config
((!(spot && reserved))) ||
  fail "--spot and --reserved exclude one another; leave one out."
if [[ -z "$runtime" ]]; then
  case "$accelerator" in
    v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *)
      fail "--runtime must be given for --accelerator=$accelerator: its" \
        "generation is not known here. See 'gcloud compute tpus versions" \
        "list --zone=$zone'."
      ;;
  esac
fi
tier=()
((!spot)) || tier+=(--spot)
((!reserved)) || tier+=(--reserved)
where=("--zone=$zone")
[[ -z "$project" ]] || where+=("--project=$project")
queue=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
# To all at once; of a --batch-size only gcloud alpha knows.
ssh=("${vm[@]}" ssh "$name" "${where[@]}" --worker=all --quiet)

say() {
  echo "tpu_pod.sh: $*" >&2
}

create() {
  run "${queue[@]}" create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" \
    ${tier[@]+"${tier[@]}"}
}

delete() {
  run "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
}

# Prints the state of the queued resource; nothing if there is none.
state() {
  run "${queue[@]}" describe "$name" "${where[@]}" \
    --format='value(state.state)'
}

# Prints the state of the TPU itself: READY, or PREEMPTED, TERMINATED ...
node_state() {
  run "${vm[@]}" describe "$name" "${where[@]}" --format='value(state)'
}

on_all_workers() {
  run "${ssh[@]}" --command="$1"
}

copy_source() {
  local archive=$folder/gc_jax.tar.gz
  # macOS's tar would add files of its own.
  COPYFILE_DISABLE=1 run tar -czf "$archive" --exclude=__pycache__ \
    configs gc_jax launch requirements.txt &&
    run "${vm[@]}" scp "$archive" "$name:gc_jax.tar.gz" "${where[@]}" \
      --worker=all --quiet &&
    on_all_workers "mkdir -p gc_jax && tar -xzf gc_jax.tar.gz -C gc_jax \
&& gc_jax/launch/tpu_worker.sh install"
}

# Prints what each worker does to train; the argument is the attempt.
worker_command() {
  echo "gc_jax/launch/tpu_worker.sh train $1 $(show "${training[@]}")"
}

# Waits until the queued resource is ACTIVE, asking for one if there is none.
acquire() {
  local now before="" unknown=0
  now=$(state 2>/dev/null) || now=""
  case "$now" in
    SUSPENDING | SUSPENDED | FAILED) wait_gone && create ;;
    "") create ;;
    *) say "Taking over $name, which is $now." ;;
  esac
  while true; do
    now=$(state) || now=""
    if [[ "$now" != "$before" ]]; then
      say "$name is ${now:-not to be seen}."
      before=$now
    fi
    case "$now" in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        # What was had before can be had again; else the request is wrong.
        if [[ "$now" == FAILED ]] && ((!trained)); then
          fail "$name cannot be had; 'gcloud compute tpus queued-resources" \
            "describe $name ${where[*]}' says why. Check --zone," \
            "--accelerator, --runtime and the project's quota."
        fi
        say "Lost ($now) before it was used; asking again."
        wait_gone
        ((restarts++ < max_restarts)) || out_of_restarts
        create
        ;;
      "")
        ((unknown++ < 20)) || fail "$name must be visible to gcloud; it was" \
          "not, 20 times. Check the messages of gcloud above."
        ;;
      *) unknown=0 ;;
    esac
    pause
  done
}

wait_gone() {
  # A resource that is being suspended refuses to be deleted for a while.
  local attempt
  for ((attempt = 0; attempt < 20; attempt++)); do
    if delete; then
      return
    fi
    pause
  done
  fail "$name must be deleted before it is asked for again, and gcloud did" \
    "not, 20 times. Delete it, and run this again."
}

# In the background, so that a signal is answered at once.
pause() {
  sleep "$poll" &
  wait $!
}

out_of_restarts() {
  say "Not finished after --max-restarts=$max_restarts restarts." \
    "Run the same command to go on."
  exit 75
}

finish() {
  local status=$?
  trap - EXIT
  trap '' INT TERM
  rm -rf "$folder"
  if ((keep)); then
    say "Keeping $name, which goes on costing. Delete it:" \
      "$(dry_run=1 delete)"
  elif ((acquired)); then
    if ((training_runs)); then
      say "Saving and deleting $name ..."
      on_all_workers "gc_jax/launch/tpu_worker.sh stop" >&2 || true
    fi
    delete >&2 || say "$name may still exist, and cost: check it."
  fi
  # What shows the training, which goes on by itself with --keep.
  # Without the printer, gcloud's own ssh ends at its next line.
  [[ -z "$trainer" ]] || kill "$trainer" "$printer" 2>/dev/null || true
  exit "$status"
}

if ((dry_run)); then
  folder=/tmp/FOLDER
  create
  state
  copy_source
  on_all_workers "$(worker_command 1)"
  ((keep)) || delete
  exit
fi
command -v gcloud >/dev/null ||
  fail "gcloud must be on the PATH; it is not. Install the Google Cloud SDK."

folder=$(mktemp -d)
restarts=0 acquired=0 training_runs=0 attempt=$(date +%s) copied=0 copies=0
trained=0 trainer=""
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
while true; do
  acquired=1
  acquire
  if ((!copied)); then
    # Workers take a while to let one in; a preemption shows in the states.
    if copy_source; then
      copied=1 copies=0
    else
      say "Copying or installing failed."
      copies=$((copies + 1))
    fi
  fi
  status=1 statuses=""
  if ((copied)); then
    training_runs=1 trained=1
    mkfifo "$folder/output"
    tee "$folder/log" <"$folder/output" &
    printer=$!
    (exec "${ssh[@]}" --command="$(worker_command "$attempt")") \
      >"$folder/output" 2>&1 &
    trainer=$!
    status=0
    wait "$trainer" || status=$?
    wait "$printer"
    trainer=""
    rm "$folder/output"
    statuses=$(sed -n 's/.*worker exited: \([0-9]*\).*/\1/p' "$folder/log")
  fi
  # Without any, there is an empty line, which is no 0 either.
  if ((status == 0)) && ! grep -qv '^0$' <<<"$statuses"; then
    training_runs=0
    say "Training is finished: $workdir"
    exit 0
  fi

  # Its state tells a preemption from a failure, with some delay.
  pause
  now=$(state) || now=""
  node=$(node_state) || node=""
  failed=$(grep -v -e '^0$' -e '^75$' <<<"$statuses" | head -n 1 || true)
  if [[ "$now" == ACTIVE && "$node" == READY ]]; then
    if [[ -n "$failed" ]]; then
      training_runs=0
      say "Training failed with status $failed on a TPU that is sound;" \
        "see above."
      exit "$failed"
    elif ((copies == 5)); then
      fail "The source must be copied and installed on every worker; that" \
        "failed 5 times. See above what gcloud said."
    elif ((!copied)); then
      continue
    fi
  fi
  ((restarts++ < max_restarts)) || out_of_restarts
  if [[ "$now" != ACTIVE || "$node" != READY ]]; then
    say "Preempted (${now:-unknown}, ${node:-unknown}): asking for another;" \
      "restart $restarts of $max_restarts."
    training_runs=0 copied=0
    wait_gone
    attempt=$((attempt + 1))
  elif grep -q '^75$' <<<"$statuses"; then
    say "Stopped before the end; restart $restarts of $max_restarts."
    attempt=$((attempt + 1))
  else
    say "The connection was lost; taking it up again."
  fi
done
