#!/usr/bin/env bash
# Lints and tests on the CPU. Arguments go to pytest: `launch/test.sh tests/models -k skip`, `launch/test.sh -m slow`.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
prepare_venv requirements-test.txt
export JAX_PLATFORMS=cpu
# Otherwise each of many processes compiles all files of the project again.
unset PYTHONDONTWRITEBYTECODE
# Most of the time is compilation: programs are kept for the other worker and for the next run.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$ROOT/.venv/programs}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Files in the order of their folders: by the number of tests, those of few and long ones came last.
exec .venv/bin/python -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder "$@"
