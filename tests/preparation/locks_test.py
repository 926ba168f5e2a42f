"""Two processes never write the same shards, and locks leave no files."""

import contextlib
import subprocess
import sys

import pytest

from diversedit_jax import types
from diversedit_jax.preparation import locks


def test_a_second_worker_of_the_same_number_is_refused_and_others_are_not(tmp_path):
  with locks.worker(tmp_path, 0, 2):
    with locks.worker(tmp_path, 1, 2):
      pass
    with pytest.raises(types.UserError, match='another process writes .*worker-0-of-2'):
      locks.worker(tmp_path, 0, 2).__enter__()
    with pytest.raises(types.UserError, match='with the same n in'):
      locks.worker(tmp_path, 2, 3).__enter__()  # Its shards overlap.
    (tmp_path / '.worker-1-of-2.lock').write_text('')  # That of a killed worker.
    locks.remove_stale(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['.worker-0-of-2.lock']
  assert list(tmp_path.iterdir()) == []
  with pytest.raises(types.UserError, match='cannot be written: No such file'):
    locks.worker(tmp_path / 'nowhere', 0, 1).__enter__()


def test_a_lock_dies_with_its_process(tmp_path):
  code = (
    'import pathlib, sys, time\n'
    'from diversedit_jax.preparation import locks\n'
    'with locks.worker(pathlib.Path(sys.argv[1]), 0, 1):\n'
    '  print("held", flush=True)\n'
    '  time.sleep(60)\n'
  )
  process = subprocess.Popen([sys.executable, '-c', code, tmp_path], stdout=subprocess.PIPE)
  with contextlib.closing(process.stdout) as out:
    assert out.readline() == b'held\n'
    with pytest.raises(types.UserError), locks.worker(tmp_path, 0, 1):
      pass
    process.kill()
    process.wait()
  assert [path.name for path in tmp_path.iterdir()] == ['.worker-0-of-1.lock']
  with locks.worker(tmp_path, 1, 2):  # The dead one's number of workers does not bind.
    pass
  assert list(tmp_path.iterdir()) == []
