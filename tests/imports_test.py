"""Every module can be imported, mains included; the import leaves TensorFlow alone."""

import importlib.util
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import configs
import diversedit_jax

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(
  info.name
  for package in (diversedit_jax, configs)
  for info in pkgutil.walk_packages(package.__path__, package.__name__ + '.')
)
SCRIPTS = sorted((ROOT / 'benchmarks').glob('*.py'))


@pytest.mark.parametrize('name', MODULES)
def test_module_imports(name):
  importlib.import_module(name)


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda p: p.name)
def test_script_imports(path, monkeypatch):
  monkeypatch.syspath_prepend(path.parent)  # As when it is run.
  spec = importlib.util.spec_from_file_location(f'script_{path.stem}', path)
  spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_main_does_not_import_tensorflow():
  """It costs six seconds and half a gigabyte; only the thread that writes events needs it."""
  code = 'import sys, diversedit_jax.main; sys.exit("tensorflow" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
