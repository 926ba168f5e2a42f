"""What a user's mistake looks like at the command line: one line, exit code 2, nothing written.

These are real processes, one for each place that refuses; all that a config or a workdir may have
wrong is in tests/experiment.
"""

import ctypes
import os
import pathlib
import subprocess
import sys

from helpers import command_server
import pytest

from diversedit_jax import cli, types
from diversedit_jax.modes import command

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = '--config=configs/digits.py'


def start(folder, *arguments):
  """Runs main with the workdir FOLDER/run; its compilation cache is in the folder too."""
  arguments = [text.replace('FOLDER', str(folder)) for text in arguments]
  return subprocess.run(
    [sys.executable, '-m', 'diversedit_jax.main', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(folder / 'xla')},
  )


# Arguments and the whole message; FOLDER is the test's own. All else is in tests/mistakes_test.py.
MISTAKES = {
  'misspelt key': (
    [DIGITS, '--config.optimizer.learning_rat=1', '--workdir=FOLDER/run'],
    "unknown config key 'optimizer.learning_rat'; did you mean 'optimizer.learning_rate'?",
  ),
  'unwritable workdir': (
    [DIGITS, '--workdir=FOLDER/file/run'],
    'workdir FOLDER/file/run cannot be written: Not a directory',
  ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistake_is_told_in_one_line_and_nothing_is_written(tmp_path, name):
  arguments, message = MISTAKES[name]
  (tmp_path / 'file').write_text('precious')
  done = start(tmp_path, *arguments)
  lines = done.stderr.strip().splitlines()
  expected = 'error: ' + message.replace('FOLDER', str(tmp_path))
  assert lines[-1] == expected and done.returncode == 2
  assert [line for line in lines if line.startswith('error:')] == lines[-1:]
  assert 'Traceback' not in done.stderr and done.stdout == ''
  # An empty compilation cache: not even the smallest program was compiled.
  left = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()]
  assert left == ['file'] and not (tmp_path / 'run').exists()


def test_forgotten_dashes_are_refused():
  with pytest.raises(types.UserError, match='unexpected arguments: mode=sample workdir=x'):
    command.Command(mode='train', words=['mode=sample', 'workdir=x'])


def test_results_of_a_run_that_is_only_read_go_where_output_says(tmp_path):
  checkpoint = tmp_path / 'checkpoints' / '5'
  checkpoint.mkdir(parents=True)
  run, other = str(tmp_path), str(tmp_path / 'other')
  for given, expected in (
    ({'workdir': run}, (run, None)),
    ({'workdir': run, 'output': other}, (other, str(checkpoint))),
    ({'checkpoint': 'x', 'output': other}, (other, 'x')),
    ({'checkpoint': 'x', 'workdir': other}, (other, 'x')),
  ):
    assert command.Command(mode='eval', **given).places() == expected
  both = command.Command(mode='eval', checkpoint='x', workdir=run, output=other)
  with pytest.raises(types.UserError, match='same: give one'):
    both.places()


@pytest.mark.parametrize(
  ('mode', 'flag', 'value'),
  [('train', 'output', ''), ('stats', 'checkpoint', '5'), ('eval', 'continue_from', 0)],
)
def test_a_flag_that_a_mode_has_no_use_for_is_refused(mode, flag, value):
  with pytest.raises(types.UserError, match=f'--{flag} is not for --mode={mode}, but for '):
    command.Command(mode=mode, **{flag: value})


def test_plan_needs_no_workdir_and_obeys_overrides_and_meta_arguments(tmp_path):
  arguments = [
    '--config=configs/digits.py:method=flow,skips=False',
    '--mode=plan',
    '--config.model.depth=3',
    '--config.diversity.layers=1,3',
    '--config.train.steps=77',
  ]
  done = command_server.main(arguments, JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'xla'))
  assert done.returncode == 0, done.stderr
  lines = dict(line.split('  ', 1) for line in done.stdout.splitlines())
  assert lines['time'].endswith('for 77 steps')
  assert 'trained' in lines['parameters']
  # An odd depth is only possible because skips=False was read.
  assert [p for p in tmp_path.rglob('*') if p.is_file()] == []


def test_the_cache_of_programs_keeps_what_was_used_last(tmp_path):
  for used, name in enumerate(('oldest', 'read again', 'newer', 'newest')):
    (tmp_path / name).write_bytes(bytes(100))
    os.utime(tmp_path / name, (10 if name == 'read again' else used, used))
  cli.trim(tmp_path / 'absent', 0)
  cli.trim(tmp_path, 299)
  assert {path.name for path in tmp_path.iterdir()} == {'read again', 'newest'}


def test_a_cache_below_a_home_that_may_not_be_entered_cannot_be_written(tmp_path):
  """The home may be /root in a container that is not run as root."""
  (tmp_path / 'home').mkdir(mode=0)
  is_root = os.getuid() == 0
  if is_root:
    os.setresuid(65534, 65534, 0)
  try:
    assert not cli._can_write(tmp_path / 'home' / '.cache' / 'xla')
  finally:
    if is_root:
      os.setresuid(0, 0, 0)


FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from diversedit_jax import cli
if sys.argv[1] == 'keep':
  cli.keep_memory()
# Its temporaries, 16 MiB, are asked for anew by every call.
f = jax.jit(lambda x: jnp.sort(x * 2)[::-1].sum())
x = jnp.arange(2.0**21)
for _ in range(4):  # Threads and pieces of memory settle.
  f(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
  f(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'mallopt'), reason='not glibc')
def test_memory_of_a_program_stays_in_the_process():
  def faults(word):
    done = subprocess.run(
      [sys.executable, '-c', FAULTS, word],
      cwd=ROOT,
      check=True,
      capture_output=True,
      text=True,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': '', 'XLA_FLAGS': ''},
    )
    return int(done.stdout)

  given_back = faults('')
  assert given_back > 10_000
  assert faults('keep') < given_back / 2
