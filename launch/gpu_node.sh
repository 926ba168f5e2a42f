#!/usr/bin/env bash
# Runs `python -m diversedit_jax.main` on all GPUs of this node, with what overlaps communication and computation:
#   launch/gpu_node.sh --config=configs/xl256.py:data=store:imagenet256 --workdir=runs/xl
# On several nodes start it on each with --distributed (README). Flags in XLA_FLAGS come last, so they win.
set -euo pipefail
# XLA leaves it off; it matters from two GPUs on.
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
# JAX takes three quarters of the memory by itself.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = --dry-run ]; then  # Prints the command and runs none.
  shift
  set -- "XLA_FLAGS=$XLA_FLAGS" "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION" \
    "${PYTHON:-python3}" -m diversedit_jax.main "$@"
  printf 'env'; printf ' %q' "$@"; echo
  exit
fi
exec "${PYTHON:-python3}" -m diversedit_jax.main "$@"
