"""Locks between the processes that write one store; they die with the process that holds them.

Lock files remove themselves, so a finished store holds none. A file that is locked after its name
was taken away or given to another file is let go, and the lock asked for anew.
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import os
import pathlib

from absl import logging

from diversedit_jax import types

_WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class Busy(Exception):
  """Another process holds the lock."""


@contextlib.contextmanager
def lock(path: pathlib.Path, *, wait: bool) -> Iterator[None]:
  """Holds a lock file, which is made and removed.

  Raises:
    Busy: another process holds it, and `wait` is false.
    UserError: the file cannot be made.
  """
  descriptor = _locked(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  try:
    yield
  finally:
    path.unlink(missing_ok=True)
    os.close(descriptor)


@contextlib.contextmanager
def store(root: pathlib.Path) -> Iterator[None]:
  """For the files of the whole store; waits for others."""
  with lock(root / '.store.lock', wait=True):
    yield


@contextlib.contextmanager
def worker(root: pathlib.Path, index: int, count: int) -> Iterator[None]:
  """For the shards of one worker of `count`.

  Raises:
    UserError: another process is at work on some of these shards.
  """
  name = '.worker-{}-of-{}.lock'
  own = root / name.format(index, count)
  with contextlib.ExitStack() as held:
    with store(root):
      for path in sorted(root.glob(name.format('*', '*'))):
        if path.name.endswith(f'-of-{count}.lock') and path != own:
          continue  # Its shards are others.
        if is_held(path):
          raise types.UserError(
            f'another process writes {root} ({path.name[1:-5]}); each worker runs once, and all '
            'of them with the same n in --shard=i/n'
          )
      held.enter_context(lock(own, wait=False))
    try:
      yield
    finally:
      with store(root):
        held.close()


def remove_stale(root: pathlib.Path) -> None:
  """Removes what killed workers left; those at work keep theirs."""
  for path in root.glob('.worker-*.lock'):
    is_held(path)


def is_held(path: pathlib.Path) -> bool:
  """Whether a process holds this lock; a file that nobody holds is removed."""
  try:
    with lock(path, wait=False):
      return False
  except Busy:
    return True


def _locked(path, how):
  """A descriptor of the file that has this name while the lock is held."""
  while True:
    try:
      descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
      raise types.UserError(f'{path.parent} cannot be written: {error.strerror}') from error
    try:
      fcntl.flock(descriptor, how)
    except BlockingIOError as error:
      os.close(descriptor)
      raise Busy(path.name) from error
    except OSError as error:
      if error.errno not in _WITHOUT:
        os.close(descriptor)
        raise
      logging.warning('%s: this file system has no locks; start no worker twice', path.parent)
      return descriptor
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(descriptor), os.stat(path)):
        return descriptor
    os.close(descriptor)
