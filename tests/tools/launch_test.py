"""The scripts in launch/, with a Python that only writes down what it is asked to do."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Copies itself to where a virtual environment has its Python and ruff.
STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
echo "$XLA_FLAGS|$XLA_PYTHON_CLIENT_MEM_FRACTION|$LIBTPU_INIT_ARGS" > "$CALLS.flags"
case "$*" in
  '-c import sys'*) exit "${TOO_OLD:-0}" ;;
  '-m venv --clear .venv')
    rm -rf .venv && mkdir -p .venv/bin
    cp "$STUB" .venv/bin/python && cp "$STUB" .venv/bin/ruff ;;
  '-m pip install'*) exit "${PIP_FAILS:-0}" ;;
esac
"""


class Copy:
  """A copy of what the scripts need, in a folder with a space in its name."""

  def __init__(self, folder):
    self.root, self._calls, stub = folder / 'the repo', folder / 'calls', folder / 'my-python'
    for name in ('launch', '.ci'):
      shutil.copytree(ROOT / name, self.root / name)
    for path in [*ROOT.glob('requirements-*.txt'), ROOT / 'setup.py']:
      shutil.copy(path, self.root)
    (self.root / 'elsewhere').mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    ours = {'PYTHON': str(stub), 'STUB': str(stub), 'CALLS': str(self._calls)}
    theirs = {'WORKDIR', 'TEST_WORKERS', 'XLA_FLAGS', 'XLA_PYTHON_CLIENT_MEM_FRACTION'}
    theirs |= {'LIBTPU_INIT_ARGS'}
    self._environment = {k: v for k, v in os.environ.items() if k not in theirs} | ours

  def run(self, script, *arguments, **environment):
    """Runs a script in another folder; returns the process and what Python was asked to do."""
    self._calls.write_text('')
    done = subprocess.run(
      [self.root / script, *arguments],
      cwd=self.root / 'elsewhere',
      capture_output=True,
      text=True,
      env={**self._environment, **environment},
    )
    return done, self._calls.read_text().splitlines()

  def flags(self):
    """XLA_FLAGS, the share of memory and LIBTPU_INIT_ARGS that Python saw last."""
    return self._calls.with_name('calls.flags').read_text().strip().split('|')


@pytest.fixture
def copy(tmp_path):
  return Copy(tmp_path)


def test_an_environment_is_made_once_and_finished_if_interrupted(copy):
  install = 'python -m pip install --quiet --disable-pip-version-check'
  installs = [f'{install} -r requirements-test.txt', f'{install} --no-deps --editable .']
  run_tests = ['ruff check .', 'ruff format --check .', 'python -m pytest -n 2 --dist loadfile a b']
  done, calls = copy.run('launch/test.sh', 'a', 'b', PIP_FAILS='1')
  assert done.returncode != 0 and calls[-2:] == ['my-python -m venv --clear .venv', installs[0]]
  done, calls = copy.run('launch/test.sh', 'a', 'b')
  assert done.returncode == 0, done.stderr
  assert calls[-5:] == [*installs, *run_tests]
  assert copy.run('.ci/run', TEST_WORKERS='5')[1][-1] == 'python -m pytest -n 5 --dist loadfile'
  assert copy.run('launch/test.sh', 'a', 'b')[1] == run_tests
  for name in ('requirements-test.txt', 'requirements-cpu.txt', 'setup.py'):
    with (copy.root / name).open('a') as file:
      file.write('# changed\n')
    assert copy.run('launch/test.sh', 'a', 'b')[1][-5:] == [*installs, *run_tests]


def test_an_old_python_is_refused_before_anything_is_made(copy):
  done, _ = copy.run('launch/test.sh', TOO_OLD='1')
  assert done.returncode == 1 and not (copy.root / '.venv').exists()
  assert 'needs Python 3.11 or newer' in done.stderr and 'PYTHON=' in done.stderr


@pytest.mark.parametrize('given', ['', 'my runs/a', '/absolute/b'])
def test_the_demo_uses_every_mode_on_one_workdir(copy, given):
  done, calls = copy.run('launch/demo.sh', **({'WORKDIR': given} if given else {}))
  assert done.returncode == 0, done.stderr
  folder = {'': f'{copy.root}/runs/digits', 'my runs/a': f'{copy.root}/elsewhere/my runs/a'}
  workdir = folder.get(given, given)
  main = f'python -m diversedit_jax.main --config=configs/digits.py --workdir={workdir}'
  assert calls[-4:] == [f'{main} --mode={mode}' for mode in ('train', 'sample', 'eval', 'analyze')]
  assert f'{workdir}/samples/grid.png' in done.stdout


def test_a_gpu_node_hides_latency_and_a_users_flags_come_last(copy):
  own = '--xla_gpu_enable_latency_hiding_scheduler=false'
  done, calls = copy.run('launch/gpu_node.sh', '--config=a b', XLA_FLAGS=own)
  assert done.returncode == 0, done.stderr
  assert calls == ['my-python -m diversedit_jax.main --config=a b']
  xla, share, _ = copy.flags()
  assert xla.split() == ['--xla_gpu_enable_latency_hiding_scheduler=true', own] and share == '0.9'
  copy.run('launch/gpu_node.sh', XLA_PYTHON_CLIENT_MEM_FRACTION='0.5')
  assert copy.flags()[1] == '0.5'


def test_a_tpu_host_joins_the_others_and_overlaps_when_it_is_asked(copy):
  done, calls = copy.run('launch/tpu_host.sh', '--workdir=w')
  assert done.returncode == 0, done.stderr
  assert calls == ['my-python -m diversedit_jax.main --distributed --workdir=w']
  assert copy.flags()[2] == ''
  copy.run('launch/tpu_host.sh', TPU_OVERLAP='1', LIBTPU_INIT_ARGS='--own=1')
  *flags, last = copy.flags()[2].split()
  assert last == '--own=1' and len(flags) == 6
  assert all(flag.startswith('--xla_') and '=' in flag for flag in flags)
