#!/usr/bin/env bash
# Builds the site of docs/ into build/site, or serves it while pages change (`launch/docs.sh serve`). PYTHON names a
# Python with requirements-docs.txt; without it .venv-docs is made.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=.venv-docs/bin/python
  if ! cmp -s requirements-docs.txt .venv-docs/installed; then
    python3 -m venv --clear .venv-docs
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
    cp requirements-docs.txt .venv-docs/installed
  fi
fi
case "${1:-build}" in
  build) "$PYTHON" -m mkdocs build --strict ;;
  *) "$PYTHON" -m mkdocs "$@" ;;
esac
