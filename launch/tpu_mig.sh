#!/usr/bin/env bash
# A TPU slice from nothing to a run, as a managed instance group of Compute Engine (v5p and newer), which replaces the
# Cloud TPU API of tpu_vm.sh:
#   launch/tpu_mig.sh create  --project=P --zone=Z --name=N --machine=ct6e-standard-4t --topology=4x4 --hosts=4 [--spot=yes]
#   launch/tpu_mig.sh status  --project=P --zone=Z --name=N      # RUNNING when the hosts are there
#   launch/tpu_mig.sh install --project=P --zone=Z --name=N [--mount=NFS_SERVER:/SHARE]   # at /mnt/runs
#   launch/tpu_mig.sh run     --project=P --zone=Z --name=N -- --config=xl256 --workdir=/mnt/runs/xl
#   launch/tpu_mig.sh logs | stop | delete, each with --project, --zone and --name
# --family=IMAGE_FAMILY where the machine is neither ct5p nor ct6e. --dry-run prints each command and runs none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/commands.sh
source launch/commands.sh
machine='' topology='' hosts='' family=''
parse_slice 'machine topology hosts family' "$@"
region="${zone%-*}"
list=(gcloud compute instance-groups managed list-instances "$name" "${where[@]}")
instances=EACH_INSTANCE  # Stands for them in what --dry-run prints.

find_instances() {
  if [ -n "$DRY_RUN" ]; then
    run "${list[@]}" '--format=value(name)'
    return
  fi
  instances="$("${list[@]}" '--format=value(name)' | sort)"
  [ -n "$instances" ] || refuse "the group $name has no instances; \`status\` shows when it has"
}

send() {
  find_instances
  for instance in $instances; do
    run gcloud compute scp "$1" "$instance:" "${where[@]}"
  done
}

on() {
  find_instances
  [ "$1" = all ] || instances="${instances%%$'\n'*}"
  for instance in $instances; do
    run gcloud compute ssh "$instance" "${where[@]}" "--command=$2" < /dev/null
  done
}

case "$action" in
  create)
    need machine ct6e-standard-4t
    need topology 4x4
    need hosts 4
    case "$machine" in ct5p-* | ct6e-*) family="${family:-ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e}" ;; esac
    [ -n "$family" ] || refuse "--family is needed for --machine=$machine: an image family of ubuntu-os-accelerator-images"
    more=()
    [ -z "$spot" ] || more=(--provisioning-model=SPOT --instance-termination-action=STOP)
    run gcloud compute resource-policies create workload-policy "$name" "--project=$project" "--region=$region" \
      --type=HIGH_THROUGHPUT "--accelerator-topology=$topology" --accelerator-topology-mode=AUTO_CONNECT
    run gcloud compute instance-templates create "$name" "--project=$project" "--instance-template-region=$region" \
      "--machine-type=$machine" "--image-family=$family" --image-project=ubuntu-os-accelerator-images \
      --maintenance-policy=TERMINATE --boot-disk-size=200GB ${more[@]+"${more[@]}"}
    # The hosts of a slice are made together, or not at all.
    run gcloud compute instance-groups managed create "$name" "${where[@]}" --size=0 \
      "--template=projects/$project/regions/$region/instanceTemplates/$name" --target-size-policy-mode=bulk \
      "--workload-policy=projects/$project/regions/$region/resourcePolicies/$name" \
      --default-action-on-vm-failure=do-nothing
    run gcloud compute instance-groups managed resize "$name" "${where[@]}" "--size=$hosts" ;;
  status) run "${list[@]}" ;;
  install) install_on_hosts "$name" "$mount" ;;
  run) train_on_hosts ;;
  logs) show_log ;;
  stop) stop_on_hosts ;;
  delete)
    run gcloud compute instance-groups managed delete "$name" "${where[@]}" --quiet
    run gcloud compute instance-templates delete "$name" "--project=$project" "--region=$region" --quiet
    run gcloud compute resource-policies delete "$name" "--project=$project" "--region=$region" --quiet ;;
esac
