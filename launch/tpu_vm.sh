#!/usr/bin/env bash
# A Cloud TPU slice from nothing to a run, by a queued resource (v2 to v6e; Google fixes bugs of this API only):
#   launch/tpu_vm.sh create  --project=P --zone=Z --name=N --type=v6e-16 [--spot=yes]
#   launch/tpu_vm.sh status  --project=P --zone=Z --name=N      # ACTIVE when the slice is there
#   launch/tpu_vm.sh install --project=P --zone=Z --name=N [--mount=NFS_SERVER:/SHARE]   # at /mnt/runs
#   launch/tpu_vm.sh run     --project=P --zone=Z --name=N -- --config=xl256 --workdir=/mnt/runs/xl
#   launch/tpu_vm.sh logs    --project=P --zone=Z --name=N      # of the first worker
#   launch/tpu_vm.sh stop    --project=P --zone=Z --name=N      # saves and ends
#   launch/tpu_vm.sh delete  --project=P --zone=Z --name=N      # with all that is on its disks
# --dry-run prints each command and runs none. `install` sends what is committed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/commands.sh
source launch/commands.sh
type=''
parse_slice type "$@"

send() {
  run gcloud compute tpus tpu-vm scp "$1" "$name:" "${where[@]}" --worker=all
}

on() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

case "$action" in
  create)
    need type v6e-16
    # https://docs.cloud.google.com/tpu/docs/runtimes
    case "$type" in
      v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      *) refuse "--type=$type is not served by this API, expected v2-8 ..., v3-, v4-, v5litepod-, v5p- or v6e-; launch/gke.sh takes newer ones" ;;
    esac
    more=()
    [ -z "$spot" ] || more=(--spot)
    run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" \
      "--accelerator-type=$type" "--runtime-version=$runtime" ${more[@]+"${more[@]}"} ;;
  status)
    run gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)' ;;
  install) install_on_hosts "$name" "$mount" ;;
  run) train_on_hosts ;;
  logs) show_log ;;
  stop) stop_on_hosts ;;
  delete) run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet ;;
esac
