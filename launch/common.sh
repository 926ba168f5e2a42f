# shellcheck shell=bash
# Shared by demo.sh and test.sh: `prepare_venv REQUIREMENTS` makes .venv in the repository root if it is missing,
# installs what REQUIREMENTS pins and the package itself, and leaves a stamp, so that the second time costs nothing and an
# interrupted first time is finished.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT" || exit

prepare_venv() {
  local requirements="$1" python="${PYTHON:-python3}" stamp
  stamp=".venv/.installed-$(cat "$requirements" requirements-cpu.txt setup.py | cksum | cut -d' ' -f1)"
  if [ ! -f "$stamp" ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "diversedit_jax needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON=..." >&2
      return 1
    }
    # A virtual environment cut short has no working pip: make it again.
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
    echo "Installing into .venv (about a minute) ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
    touch "$stamp"
  fi
}
