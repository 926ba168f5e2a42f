#!/usr/bin/env bash
# A run on a node pool of GKE with JobSet, on TPUs of any generation or on GPUs:
#   launch/gke.sh build  --image=REGISTRY/IMAGE:TAG --extra=tpu        # or cuda; builds and pushes
#   launch/gke.sh run    --context=KUBECTL_CONTEXT --name=xl --pool=POOL --image=REGISTRY/IMAGE:TAG --claim=RWX_CLAIM \
#     --hosts=4 --chips=4 --tpu=tpu-v6e-slice --topology=4x4 -- --config=xl256 --workdir=/mnt/runs/xl
#   launch/gke.sh run    ... --hosts=2 --chips=8 -- ...                # GPUs: no --tpu
#   launch/gke.sh logs   --context=KUBECTL_CONTEXT --name=xl           # of the first host
#   launch/gke.sh delete --context=KUBECTL_CONTEXT --name=xl           # stop: training saves; `run` continues
#   launch/gke.sh run    ... --slices=2 --hosts=4 --chips=4 --tpu=... --topology=... -- ...   # several slices: no --pool
# --hosts are those of one slice, --chips those of one host. Several slices are as many node pools of that --tpu and
# --topology, which JobSet finds, one for each; JAX hears from GKE which slice a host is in (MEGASCALE_*). The claim
# (ReadWriteMany, as of Filestore) is at /mnt/runs. --restarts=N: how often the pods are made anew (100). --dry-run prints
# each command and the JobSet, and runs none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/commands.sh
source launch/commands.sh
action="${1:-}"
[ $# -eq 0 ] || shift
# shellcheck disable=SC2034  # `jobset` reads them by their names.
context='' name='' pool='' image='' claim='' slices=1 hosts='' chips='' tpu='' topology='' extra='' restarts=100
parse 'context name pool image claim slices hosts chips tpu topology extra restarts' "$@"
case "$action" in
  build | run | logs | delete) ;;
  *) refuse "unknown action '$action', expected build, run, logs or delete" ;;
esac
if [ "$action" = build ]; then
  need image us-docker.pkg.dev/PROJECT/REPOSITORY/diversedit_jax:1
  need extra tpu
  run docker build --file=launch/Dockerfile "--build-arg=EXTRA=$extra" "--tag=$image" .
  run docker push "$image"
  exit
fi
need context gke_PROJECT_REGION_CLUSTER
need name xl
kubectl=(kubectl "--context=$context")

# The flags of training as a list of JSON's strings.
json() {
  local separator='' word
  printf '['
  for word in "$@"; do
    word="${word//\\/\\\\}"
    printf '%s"%s"' "$separator" "${word//\"/\\\"}"
    separator=', '
  done
  printf ']'
}

jobset() {
  local other=tpu text key
  [ -z "$tpu" ] || other=gpu
  text="$(grep -v "# $other\$" launch/gke_jobset.yaml)"
  [ -n "$pool" ] || text="$(grep -v '# pool$' <<< "$text")"
  for key in name pool image claim slices hosts chips tpu topology restarts args; do
    text="${text//"\${$key}"/"${!key}"}"
  done
  echo "$text"
}

case "$action" in
  run)
    need image us-docker.pkg.dev/PROJECT/REPOSITORY/diversedit_jax:1
    need claim CLAIM
    need hosts 4
    need chips 4
    [ -z "$tpu" ] || need topology 4x4
    for count in slices hosts chips restarts; do
      case "${!count}" in '' | *[!0-9]*) refuse "--$count=${!count} is no whole number" ;; esac
    done
    if [ "$slices" -lt 2 ]; then
      [ "$slices" -eq 1 ] || refuse "--slices=$slices, expected at least 1"
      need pool POOL
    else
      [ -n "$tpu" ] || refuse "--slices=$slices is for TPUs, with --tpu; for GPUs give --hosts"
      [ -z "$pool" ] || refuse "--slices=$slices with --pool=$pool: a node pool is one slice; leave --pool out"
    fi
    need_training
    # shellcheck disable=SC2034
    args="$(json --stopped_status=75 "${ARGUMENTS[@]}")"
    if [ -n "$DRY_RUN" ]; then
      quoted "${kubectl[@]}" apply --filename=-
      jobset
    else
      jobset | "${kubectl[@]}" apply --filename=-
    fi ;;
  logs)
    run "${kubectl[@]}" logs --follow --selector="jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0" ;;
  delete) run "${kubectl[@]}" delete jobset "$name" ;;
esac
