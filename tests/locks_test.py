"""Locks: nobody is let in twice, nobody who is dead keeps anybody out, and no files are left."""

import errno
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from diversedit_jax import locks, types


def claim(path):
  return locks.claim(path, 'the house is lived in', 'build another')


@pytest.fixture
def quick(monkeypatch):
  """Beats of 20 ms, and half a second of silence."""
  monkeypatch.setattr(locks, '_BEAT', 0.02)
  monkeypatch.setattr(locks, '_SILENCE', 0.5)


def left_by(path, host, pid=1 << 30, beat=0, boot=None):
  """A claim's file as another process left it."""
  boot = locks._boot() if boot is None else boot
  facts = {'host': host, 'pid': pid, 'boot': boot, 'since': '2026-01-01 00:00:00 UTC', 'beat': beat}
  path.write_text(json.dumps(facts))


CODE = """
import pathlib, sys, time
from diversedit_jax import locks
with locks.claim(pathlib.Path(sys.argv[1]), 'x', 'y'):
  print('held', flush=True)
  time.sleep(60)
"""


def test_a_claim_names_its_holder_and_ends_with_the_process(tmp_path, monkeypatch):
  path = tmp_path / '.lock'
  environment = {**os.environ, 'SLURM_JOB_ID': '77'}
  with subprocess.Popen(
    [sys.executable, '-c', CODE, path], stdout=subprocess.PIPE, env=environment
  ) as process:
    assert process.stdout.readline() == b'held\n'
    monkeypatch.setattr(time, 'sleep', None)  # Refused at once.
    with pytest.raises(types.UserError) as refused:
      claim(path).__enter__()
    held = locks.holder(path)
    assert str(refused.value) == (
      f'the house is lived in by process {process.pid} on {socket.gethostname()} (SLURM job 77) '
      f'since {held["since"]}; build another'
    )
    process.kill()
    process.wait()
  assert path.exists()
  with claim(path):  # At once, too: the kernel has released the lock.
    assert locks.holder(path)['pid'] == os.getpid()
  assert not path.exists()


@pytest.mark.parametrize('has_locks', [True, False])
def test_what_a_dead_host_left_keeps_nobody_out(tmp_path, monkeypatch, quick, has_locks, caplog):
  if not has_locks:
    monkeypatch.setattr(locks.fcntl, 'flock', lambda *_: raise_no_locks())
  left_by(tmp_path / 'lock', 'elsewhere')
  with claim(tmp_path / 'lock'):
    assert locks.holder(tmp_path / 'lock')['host'] == socket.gethostname()
  assert list(tmp_path.iterdir()) == []


def test_where_hosts_do_not_see_each_others_locks_a_living_holder_is_known_by_its_beat(
  tmp_path, monkeypatch, quick
):
  monkeypatch.setattr(locks.fcntl, 'flock', lambda *_: raise_no_locks())
  path = tmp_path / 'lock'
  with monkeypatch.context() as there:
    there.setattr(socket, 'gethostname', lambda: 'elsewhere')
    held = claim(path)
    held.__enter__()
  with pytest.raises(types.UserError, match='lived in by process .* on elsewhere since'):
    claim(path).__enter__()
  assert path.exists()
  held.__exit__(None, None, None)
  assert not path.exists()


def test_of_two_that_start_at_once_that_goes_on_which_made_the_file(tmp_path, monkeypatch, quick):
  monkeypatch.setattr(locks.fcntl, 'flock', lambda *_: raise_no_locks())
  path = tmp_path / 'lock'
  path.touch()
  monkeypatch.setattr(time, 'sleep', lambda _: left_by(path, 'elsewhere'))
  with pytest.raises(types.UserError, match='lived in by process .* on elsewhere since'):
    claim(path).__enter__()


def test_a_process_of_another_machine_of_this_name_is_not_taken_for_dead(
  tmp_path, monkeypatch, quick
):
  monkeypatch.setattr(locks.fcntl, 'flock', lambda *_: raise_no_locks())
  lock = tmp_path / 'lock'
  again = lambda _: left_by(lock, socket.gethostname(), beat=1, boot='another')
  left_by(lock, socket.gethostname(), boot='another')
  monkeypatch.setattr(time, 'sleep', again)
  with pytest.raises(locks.Held):
    claim(lock).__enter__()


def test_a_dead_process_of_this_host_is_known_without_locks(tmp_path, monkeypatch):
  monkeypatch.setattr(locks.fcntl, 'flock', lambda *_: raise_no_locks())
  monkeypatch.setattr(time, 'sleep', None)
  left_by(tmp_path / 'lock', socket.gethostname())
  with claim(tmp_path / 'lock'):
    pass


def raise_no_locks():
  raise OSError(errno.ENOLCK, 'no locks')


def test_a_lock_whose_name_was_taken_away_is_asked_for_anew(tmp_path, monkeypatch):
  """Between opening and locking, its holder has removed the file: the lock would be on nothing."""
  path, flock, calls = tmp_path / 'x.lock', locks.fcntl.flock, []

  def late(descriptor, how):
    if not calls:
      path.unlink()
    calls.append(how)
    flock(descriptor, how)

  monkeypatch.setattr(locks.fcntl, 'flock', late)
  with locks.lock(path, wait=False):
    assert path.exists() and len(calls) == 2
    assert locks.is_held(path)


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(locks.fcntl, 'flock', lambda *_: raise_no_locks())
  with locks.lock(tmp_path / 'x.lock', wait=False):
    pass
  assert list(tmp_path.iterdir()) == []
  assert 'this file system has no locks' in caplog.text
