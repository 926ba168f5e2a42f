"""An installed wheel is whole: its configs are found by name, and by those who write their own."""

import os
import pathlib
import shutil
import subprocess
import sys

from helpers import recorded_runs
import pytest

ROOT = pathlib.Path(__file__).parents[2]
OWN = """
from configs import digits

def get_config(arg=None):
  return digits.get_config(arg)
"""


@pytest.mark.slow
def test_an_installed_wheel_finds_its_configs_from_any_folder(tmp_path):
  """Asks the package index for the tool that builds it."""
  source, site, here = (tmp_path / name for name in ('source', 'site', 'here'))
  for name in ('diversedit_jax', 'configs'):
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / name, source / name, ignore=ignored)
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
  subprocess.run([*pip, 'wheel', '--no-deps', f'--wheel-dir={tmp_path}', source], check=True)
  (wheel,) = tmp_path.glob('*.whl')
  subprocess.run([*pip, 'install', '--no-deps', f'--target={site}', wheel], check=True)
  (here / 'configs').mkdir(parents=True)  # A foreign package of the same name.
  (here / 'configs' / '__init__.py').write_text('')
  (here / 'own.py').write_text(OWN)
  env = {**os.environ, 'PYTHONPATH': str(site), 'JAX_PLATFORMS': 'cpu'}
  for config in (
    'xl256:method=flow',
    'configs/digits.py',
    'paper:table1/SiT-B',
    'own.py:method=flow',
  ):
    command = [sys.executable, '-m', 'diversedit_jax.main', f'--config={config}', '--mode=plan']
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and 'images/s' in done.stdout, done.stderr
    assert config == 'own.py:method=flow' or f'config {site}' in done.stderr
  recorded_runs.write(tmp_path / 'run')  # Its page has a style and a script, which are no Python.
  command = [sys.executable, '-m', 'diversedit_jax.main', '--mode=report', '../run']
  done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  written = (tmp_path / 'run' / 'report' / 'index.html').read_text()
  assert 'prefers-color-scheme' in written and "'use strict'" in written
