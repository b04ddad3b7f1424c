#!/usr/bin/env bash
# Trains on a GKE cluster that has the JobSet controller, on TPUs or on GPUs.
#
#   launch/gke.sh --on=tpu --name=NAME --image=IMAGE \
#     --accelerator=tpu-v5-lite-podslice --topology=4x4 --chips-per-node=4 \
#     --config=... --workdir=gs://BUCKET/FOLDER         as gc_jax.main
#   launch/gke.sh --on=gpu --name=NAME --image=IMAGE \
#     --accelerator=nvidia-h100-80gb --nodes=2 --gpus-per-node=8 \
#     --config=... --workdir=gs://BUCKET/FOLDER
#
#     --on=tpu|gpu               the kind of --accelerator, a label of GKE
#     --topology=4x4             of the TPU slice, as its node pool has it
#     --chips-per-node=4         TPU chips of a node, as its node pool has it
#     --nodes=1                  GPU nodes; a TPU slice has its own number
#     --gpus-per-node=8
#     --spot                     on Spot nodes
#     --namespace=default
#     --service-account=default  of Kubernetes; it must reach the bucket
#     --max-restarts=10          after failures; preemptions do not count
#     --grace=120                seconds to save when a pod is stopped
#     --dry-run                  print the manifest instead of applying it
#
# The image: docker build -f launch/Dockerfile --build-arg JAX_BUILD=tpu (or
# cuda12, cuda13) -t IMAGE . && docker push IMAGE
# Then: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME
# A run of that name must be gone first: kubectl delete jobset NAME
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/arguments.sh
parse_arguments "on! name! image! accelerator! topology= chips-per-node=4 \
nodes= gpus-per-node= spot? namespace=default service-account=default \
max-restarts=10 grace=120" "$@"
label='[a-z0-9]([a-z0-9-]*[a-z0-9])?'
require_match on 'tpu|gpu' "tpu or gpu"
# Names of pods, NAME-worker-0-123, have 63 characters at most.
require_match name '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' \
  "1 to 40 small letters, digits and -, a letter first"
require_match image '[A-Za-z0-9][A-Za-z0-9./_:@-]*' "the name of an image"
require_match accelerator "$label" "a label, like tpu-v5-lite-podslice"
require_match namespace "$label" "the name of a namespace"
require_match service-account "[a-z0-9]([a-z0-9.-]*[a-z0-9])?" \
  "the name of a service account"
require_number max-restarts 0
require_number grace 1
require_bucket
require_shipped_config

if [[ "$on" == tpu ]]; then
  [[ -z "$nodes$gpus_per_node" ]] ||
    fail "--nodes and --gpus-per-node are for --on=gpu: a slice has the nodes" \
      "of its --topology; got '$nodes$gpus_per_node'. Leave them out."
  require_match topology '[1-9][0-9]*(x[1-9][0-9]*){1,2}' \
    "a topology, like 4x4 or 2x2x4"
  require_number chips-per-node 1
  chips=$((${topology//x/*}))
  # A slice smaller than a node is a node.
  ((chips % chips_per_node == 0)) ||
    fail "--topology=$topology, $chips chips, must fill whole nodes of" \
      "--chips-per-node=$chips_per_node. See the machine type of the pool:" \
      "ct5lp-hightpu-4t has 4."
  nodes=$((chips / chips_per_node))
else
  [[ -z "$topology" ]] ||
    fail "--topology is for --on=tpu; got '$topology'. Say --nodes instead."
  nodes=${nodes:-1} gpus_per_node=${gpus_per_node:-8}
  require_number nodes 1
  require_number gpus-per-node 1
fi

# A list of YAML in the words of JSON.
list() {
  local word text=""
  for word in "$@"; do
    [[ "$word" != *[[:cntrl:]]* ]] ||
      fail "Arguments must be of one line, without control characters; got" \
        "'$word'. Write it otherwise."
    word=${word//\\/\\\\}
    # A $(NAME) would be expanded by Kubernetes, a $$ made one $.
    word=${word//\$/\$\$}
    text+=", \"${word//\"/\\\"}\""
  done
  echo "[${text#, }]"
}

fill() {
  local text pair
  text=$(grep -v '^#' "launch/gke_$on.yaml")
  ((spot)) || text=$(grep -v '# only with --spot$' <<<"$text")
  for pair in "NAME=$name" "NAMESPACE=$namespace" "NODES=$nodes" \
    "IMAGE=$image" "ACCELERATOR=$accelerator" "TOPOLOGY=$topology" \
    "CHIPS=$chips_per_node" "GPUS=$gpus_per_node" "GRACE=$grace" \
    "MAX_RESTARTS=$max_restarts" "SERVICE_ACCOUNT=$service_account" \
    "ARGUMENTS=$arguments"; do
    text=${text//"\${${pair%%=*}}"/"${pair#*=}"}
  done
  echo "$text"
}

arguments=$(list "${training[@]}")
if ((dry_run)); then
  fill
  exit
fi
command -v kubectl >/dev/null ||
  fail "kubectl must be on the PATH; it is not. Install it, and connect it:" \
    "gcloud container clusters get-credentials CLUSTER"
# Not apply: most of a JobSet cannot be changed, and says so at length.
fill | kubectl create -f -
