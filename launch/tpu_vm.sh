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
source launch/commands.sh
action="${1:-}"
[ $# -eq 0 ] || shift
project='' zone='' name='' type='' spot='' mount=''
parse 'project zone name type spot mount' "$@"
case "$action" in
  create | status | install | run | logs | stop | delete) ;;
  *) refuse "unknown action '$action', expected create, status, install, run, logs, stop or delete" ;;
esac
need project PROJECT
need zone us-east5-b
need name NAME
where=("--project=$project" "--zone=$zone")

# `on WORKER COMMAND` runs a shell's command on a worker, or on all.
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
  install)
    archive="${TMPDIR:-/tmp}/diversedit_jax-$name.tar.gz"
    run git archive --format=tar.gz --output="$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$name:diversedit_jax.tar.gz" "${where[@]}" --worker=all
    # The images have Python 3.10; uv brings the version that the pins are for.
    on all 'set -e; mkdir -p diversedit_jax; tar -xzf diversedit_jax.tar.gz -C diversedit_jax; cd diversedit_jax
python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --clear --python 3.11
~/.local/bin/uv pip install --quiet --constraint requirements-cpu.txt --editable ".[tpu]"'
    if [ -n "$mount" ]; then
      on all "set -e; sudo apt-get install --yes --quiet nfs-common; sudo mkdir -p /mnt/runs
mountpoint -q /mnt/runs || sudo mount -t nfs $(quoted "$mount") /mnt/runs"
    fi ;;
  run)
    need_training
    on all "cd diversedit_jax; PYTHON=.venv/bin/python nohup launch/tpu_host.sh $(quoted "${ARGUMENTS[@]}") \
&>> train.log < /dev/null & echo \$! > train.pid" ;;
  logs) on 0 'tail -n 100 -f diversedit_jax/train.log' ;;
  stop) on all "kill -TERM \$(cat diversedit_jax/train.pid)" ;;
  delete) run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet ;;
esac
