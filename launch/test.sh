#!/usr/bin/env bash
# Lints and tests on the CPU. Arguments go to pytest: `launch/test.sh tests/models -k skip`, `launch/test.sh -m slow`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
prepare_venv requirements-test.txt
export JAX_PLATFORMS=cpu
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile "$@"
