"""Errors that a user or the machine causes are one line; faults of the program are none."""

import errno
import os
import subprocess
import sys

import pytest

from diversedit_jax import cli, faults, types


def raised(error, cause=None):
  try:
    raise error from cause
  except BaseException as caught:
    return caught


TOLD = [
  (types.UserError('train.steps\nis odd'), 'train.steps is odd'),
  (
    PermissionError(errno.EACCES, 'Permission denied', '/x/y'),
    '/x/y: Permission denied; give your',
  ),
  (OSError(errno.ENOSPC, 'No space left on device'), 'No space left on device; free space'),
  (OSError(errno.EROFS, 'Read-only file system', '/x'), '/x: Read-only file system; give a folder'),
  (OSError(errno.EMFILE, 'Too many open files', '/x'), '/x: Too many open files; raise the limit'),
  (
    raised(RuntimeError('saving failed'), OSError(errno.EDQUOT, 'Disk quota exceeded')),
    'Disk quota',
  ),
  (ExceptionGroup('two', [OSError(errno.EIO, 'Input/output error', '/x')]), '/x: Input/output'),
  (
    ValueError(
      'RESOURCE_EXHAUSTED: Error writing "/w/1/d": [OS error 28: No space left on device]'
    ),
    '/w/1/d: No space left on device; free space',
  ),
  (MemoryError(), 'the memory of this machine is full; take smaller batches'),
  (RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.'), 'the memory of a device'),
  (
    RuntimeError(
      "Unable to initialize backend 'tpu': INTERNAL: Failed to open libtpu.so (set JAX_PLATFORMS='"
      "' to automatically choose an available backend)"
    ),
    'JAX cannot use tpu: INTERNAL: Failed to open libtpu.so; set JAX_PLATFORMS',
  ),
  (
    RuntimeError('Worker process was terminated unexpectedly with exit code -7. Search the logs'),
    'a process of data.workers ended with -7: /dev/shm is full; enlarge it',
  ),
  (
    RuntimeError('Worker process was terminated unexpectedly with exit code -9.'),
    'a process of data.workers ended with -9: somebody killed it',
  ),
  (ModuleNotFoundError(name='torch.nn'), "torch, which is not installed: pip install 'diversedit_"),
  (KeyboardInterrupt(), 'interrupted'),
]


@pytest.mark.parametrize(('error', 'words'), TOLD)
def test_an_error_of_the_surroundings_is_one_line(error, words):
  line = faults.told(error)
  assert words in line and '\n' not in line


@pytest.mark.parametrize(
  'error',
  [
    KeyError('a'),
    ValueError('operands could not be broadcast'),
    AssertionError('x'),
    RuntimeError('x'),
    OSError(errno.EBADF, 'Bad file descriptor'),
    ModuleNotFoundError(name='diversedit_jax.nothing'),
    raised(KeyError('a'), ValueError('b')),
  ],
)
def test_a_fault_of_the_program_is_not_told(error):
  assert faults.told(raised(error)) is None


def test_the_exit_status_says_who_is_to_blame(capsys):
  def fail(error):
    raise error

  assert cli.status(lambda: 0) == 0 and cli.status(lambda: 1) == 1
  assert cli.status(lambda: fail(types.UserError('no')), 'prepare') == 2
  assert capsys.readouterr().err == 'prepare: no\n'
  assert cli.status(lambda: fail(KeyboardInterrupt())) == 130
  with pytest.raises(ZeroDivisionError):
    cli.status(lambda: 1 // 0)


PRINTS = """
import sys
from diversedit_jax import cli
sys.exit(cli.status(lambda: print(*(['caf\\u00e9 \\udcff', 1][:1] * 200_000), sep='\\n')))
"""


def test_output_that_nobody_reads_and_names_in_no_encoding_are_no_faults():
  """The command is piped into `head`, or its console is not UTF-8."""
  env = {**os.environ, 'PYTHONIOENCODING': 'ascii'}
  with subprocess.Popen(
    [sys.executable, '-c', PRINTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
  ) as process:
    assert process.stdout.readline() == b'caf\\xe9 \\udcff\n'
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait() == 141
