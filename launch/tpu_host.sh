#!/usr/bin/env bash
# What each host of a TPU slice runs; --distributed is added:
#   launch/tpu_host.sh --config=configs/xl256.py:data=store:imagenet256 --workdir=/mnt/runs/xl
# TPU_OVERLAP=1 adds flags that overlap collectives with computation, as Google's training stacks set them. They change
# with releases of libtpu, which stops at one that it does not know; not measured here.
set -euo pipefail
if [ "${TPU_OVERLAP:-0}" = 1 ]; then
  LIBTPU_INIT_ARGS="--xla_tpu_enable_async_collective_fusion=true \
--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true \
--xla_tpu_enable_async_collective_fusion_multiple_steps=true \
--xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true \
--xla_tpu_scoped_vmem_limit_kib=65536 ${LIBTPU_INIT_ARGS:-}"
  export LIBTPU_INIT_ARGS
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = --dry-run ]; then  # Prints the command and runs none.
  shift
  set -- "LIBTPU_INIT_ARGS=${LIBTPU_INIT_ARGS:-}" "${PYTHON:-python3}" -m diversedit_jax.main --distributed "$@"
  printf 'env'; printf ' %q' "$@"; echo
  exit
fi
exec "${PYTHON:-python3}" -m diversedit_jax.main --distributed "$@"
