#!/usr/bin/env bash
# Trains a small DiverseDiT on handwritten digits, samples, scores and analyses it; a few minutes on two cores.
# WORKDIR chooses the run directory (default runs/digits); started again, it continues or just shows the results.
set -euo pipefail
trap 'exit 130' INT  # Training saves on Ctrl-C and exits 0; what comes after it shall not begin then.
start_dir="$PWD"
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
workdir="${WORKDIR:-$ROOT/runs/digits}"
case "$workdir" in /*) ;; *) workdir="$start_dir/$workdir" ;; esac
prepare_venv requirements-cpu.txt
export JAX_PLATFORMS=cpu

run() {
  .venv/bin/python -m diversedit_jax.main --config=configs/digits.py --workdir="$workdir" "$@"
}
run --mode=train
run --mode=sample
run --mode=eval
run --mode=analyze
run --mode=report

echo
echo "Made by this run:"
for file in samples/grid.png eval/digits.json analysis/sheet.png metrics.jsonl report/index.html; do
  echo "  $workdir/$file"
done
