"""Modules, mains and benchmarks can be imported, and imports take no more than they must."""

import importlib.util
import pathlib
import pkgutil
import subprocess
import sys

import configs
import diversedit_jax

ROOT = pathlib.Path(__file__).parents[1]
LATE = (
  'tensorflow',
  'scipy',
  'sklearn',
  'matplotlib',
  'tensorboard',
  'tensorflow_datasets',
  'torch',
)


def test_modules_import():
  for package in (diversedit_jax, configs):
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
      importlib.import_module(info.name)


def test_scripts_import(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')  # As when one of them is run.
  for path in sorted((ROOT / 'benchmarks').glob('*.py')):
    spec = importlib.util.spec_from_file_location(f'script_{path.stem}', path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_main_imports_nothing_that_most_runs_do_not_need():
  code = f'import sys, diversedit_jax.main; print(*(set({LATE}) & set(sys.modules)))'
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == []
