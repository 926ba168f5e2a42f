"""The scripts in launch/ with a Python that only writes down what it is asked."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / 'launch').glob('*.sh')), ROOT / '.ci' / 'run']

# Installs itself where a virtual environment has its Python; ruff is the same program.
STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
echo "$XLA_FLAGS|$XLA_PYTHON_CLIENT_MEM_FRACTION|$LIBTPU_INIT_ARGS" > "$CALLS.flags"
case "$*" in
  '-c import sys'*) exit "${TOO_OLD:-0}" ;;
  --version) echo 'Python 3.9.1' ;;
  '-m venv --clear .venv')
    rm -rf .venv && mkdir -p .venv/bin
    cp "$STUB" .venv/bin/python && cp "$STUB" .venv/bin/ruff ;;
  '-m pip install'*) exit "${PIP_FAILS:-0}" ;;
esac
"""
VERSION = 'my-python -c import sys; sys.exit(sys.version_info < (3, 11))'
VENV = 'my-python -m venv --clear .venv'
PIP = 'python -m pip --version'
INSTALL = 'python -m pip install --quiet --disable-pip-version-check'


def installs(requirements):
  return [f'{INSTALL} -r {requirements}', f'{INSTALL} --no-deps --editable .']


class Copy:
  """A copy of what the scripts need, in a folder with a space in its name."""

  def __init__(self, folder):
    self.root, self._calls, stub = folder / 'the repo', folder / 'calls', folder / 'my-python'
    for name in ('launch', '.ci'):
      shutil.copytree(ROOT / name, self.root / name)
    for path in [*ROOT.glob('requirements-*.txt'), ROOT / 'setup.py']:
      shutil.copy(path, self.root)
    stub.write_text(STUB)
    stub.chmod(0o755)
    self._environment = {**os.environ, 'PYTHON': str(stub), 'STUB': str(stub)}
    self._environment |= {'CALLS': str(self._calls)}
    for name in (
      'WORKDIR',
      'TEST_WORKERS',
      'XLA_FLAGS',
      'XLA_PYTHON_CLIENT_MEM_FRACTION',
      'LIBTPU_INIT_ARGS',
    ):
      self._environment.pop(name, None)

  def run(self, script, *arguments, cwd='.', **environment):
    """The finished process, and what Python was asked."""
    self._calls.write_text('')
    done = subprocess.run(
      [self.root / script, *arguments],
      cwd=self.root / cwd,
      capture_output=True,
      text=True,
      env={**self._environment, **environment},
    )
    return done, self._calls.read_text().splitlines()

  def flags(self):
    """XLA_FLAGS, the share of memory and LIBTPU_INIT_ARGS that Python saw last."""
    return self._calls.with_name('calls.flags').read_text().strip().split('|')

  def stamps(self):
    return list(self.root.glob('.venv/.installed-*'))


@pytest.fixture
def copy(tmp_path):
  return Copy(tmp_path)


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda p: p.name)
def test_script_parses(path):
  done = subprocess.run(['bash', '-n', path], capture_output=True, text=True)
  assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize(
  'name',
  [
    'launch/demo.sh',
    'launch/test.sh',
    'launch/gpu_node.sh',
    'launch/tpu_host.sh',
    '.ci/run',
  ],
)
def test_script_can_be_executed(name):
  assert os.access(ROOT / name, os.X_OK)


def test_environment_is_made_once(copy):
  run_tests = [
    'ruff check .',
    'ruff format --check .',
    'python -m pytest -n 2 --dist loadfile tests -k skip',
  ]
  done, calls = copy.run('launch/test.sh', 'tests', '-k', 'skip')
  assert done.returncode == 0, done.stderr
  # No `pip --version`: there is no .venv/bin/python yet that could be asked.
  assert calls == [VERSION, VENV, *installs('requirements-test.txt'), *run_tests]
  done, calls = copy.run('launch/test.sh', 'tests', '-k', 'skip')
  assert done.returncode == 0 and calls == run_tests
  assert 'Installing' not in done.stdout


def test_interrupted_installation_is_finished_the_next_time(copy):
  done, calls = copy.run('launch/test.sh', PIP_FAILS='1')
  assert done.returncode != 0 and not copy.stamps()
  assert calls == [VERSION, VENV, installs('requirements-test.txt')[0]]
  done, calls = copy.run('launch/test.sh')
  assert done.returncode == 0 and len(copy.stamps()) == 1
  assert calls[:4] == [VERSION, PIP, *installs('requirements-test.txt')]


def test_environment_cut_short_is_made_again(copy):
  (copy.root / '.venv' / 'bin').mkdir(parents=True)
  (copy.root / '.venv' / 'left').touch()
  done, calls = copy.run('launch/test.sh')
  assert done.returncode == 0, done.stderr
  assert calls[:2] == [VERSION, VENV] and not (copy.root / '.venv' / 'left').exists()


@pytest.mark.parametrize('name', ['requirements-test.txt', 'requirements-cpu.txt', 'setup.py'])
def test_changed_requirements_are_installed(copy, name):
  copy.run('launch/test.sh')
  with (copy.root / name).open('a') as file:
    file.write('# changed\n')
  done, calls = copy.run('launch/test.sh')
  assert done.returncode == 0
  assert calls[:4] == [VERSION, PIP, *installs('requirements-test.txt')]


def test_old_python_is_refused_before_anything_is_made(copy):
  done, calls = copy.run('launch/test.sh', TOO_OLD='1')
  assert done.returncode == 1 and not (copy.root / '.venv').exists()
  assert 'needs Python 3.11 or newer' in done.stderr and 'is Python 3.9.1' in done.stderr
  assert 'PYTHON=' in done.stderr
  assert len(calls) == 2


@pytest.mark.parametrize('given', ['', 'my runs/a', '/absolute/b'])
def test_demo_uses_every_mode_on_one_workdir_from_any_directory(copy, given):
  (copy.root / 'elsewhere').mkdir()
  environment = {'WORKDIR': given} if given else {}
  done, calls = copy.run('launch/demo.sh', cwd='elsewhere', **environment)
  assert done.returncode == 0, done.stderr
  folder = {'': f'{copy.root}/runs/digits', 'my runs/a': f'{copy.root}/elsewhere/my runs/a'}
  workdir = folder.get(given, given)
  main = f'python -m diversedit_jax.main --config=configs/digits.py --workdir={workdir}'
  assert calls == [VERSION, VENV, *installs('requirements-cpu.txt')] + [
    f'{main} --mode={mode}' for mode in ('train', 'sample', 'eval', 'analyze')
  ]
  assert not (copy.root / 'elsewhere' / '.venv').exists()
  assert f'{workdir}/samples/grid.png' in done.stdout


def test_continuous_integration_runs_the_tests_from_any_directory(copy):
  (copy.root / 'elsewhere').mkdir()
  done, calls = copy.run('.ci/run', cwd='elsewhere', TEST_WORKERS='5')
  assert done.returncode == 0, done.stderr
  assert calls[-1] == 'python -m pytest -n 5 --dist loadfile'


@pytest.mark.parametrize(
  ('given', 'fraction'), [({}, '0.9'), ({'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.5'}, '0.5')]
)
def test_gpu_node_hides_latency_and_leaves_the_last_word_to_the_user(copy, given, fraction):
  own = '--xla_gpu_enable_latency_hiding_scheduler=false'
  done, calls = copy.run('launch/gpu_node.sh', '--config=a b', XLA_FLAGS=own, **given)
  assert done.returncode == 0, done.stderr
  assert calls == ['my-python -m diversedit_jax.main --config=a b']
  xla, found, _ = copy.flags()
  assert xla.split() == ['--xla_gpu_enable_latency_hiding_scheduler=true', own]
  assert found == fraction


def test_tpu_host_overlaps_when_it_is_asked(copy):
  done, calls = copy.run('launch/tpu_host.sh', '--workdir=w')
  assert done.returncode == 0, done.stderr
  assert calls == ['my-python -m diversedit_jax.main --distributed --workdir=w']
  assert copy.flags()[2] == ''
  copy.run('launch/tpu_host.sh', TPU_OVERLAP='1', LIBTPU_INIT_ARGS='--own=1')
  flags = copy.flags()[2].split()
  assert flags[-1] == '--own=1' and len(flags) == 7
  assert all(flag.startswith('--xla_') and '=' in flag for flag in flags[:-1])
