"""Locks between the processes that write one store; a lock ends with the process that holds it.

Holders remove their lock files, so a finished store has none. A process may thus lock a file that
has just lost its name; it then tries again with the file that has the name now.
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import os
import pathlib

from absl import logging

from diversedit_jax import types

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class Busy(Exception):
  """Another process holds the lock."""


@contextlib.contextmanager
def lock(path: pathlib.Path, *, wait: bool) -> Iterator[None]:
  """Makes a lock file, holds it during the block, and removes it.

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
  """Locks the files of the whole store; waits for other holders."""
  with lock(root / '.store.lock', wait=True):
    yield


@contextlib.contextmanager
def worker(root: pathlib.Path, index: int, count: int) -> Iterator[None]:
  """Locks the shards of worker `index` of `count`.

  Raises:
    UserError: another process is writing some of these shards.
  """
  name = '.worker-{}-of-{}.lock'
  own = root / name.format(index, count)
  with contextlib.ExitStack() as held:
    with store(root):
      for path in sorted(root.glob(name.format('*', '*'))):
        if path.name.endswith(f'-of-{count}.lock') and path != own:
          continue  # Another worker of the same count has other shards.
        if is_held(path):
          raise types.UserError(
            f'another process writes {root} ({path.name[1:-5]}); start each worker once, and all '
            'with the same n in --shard=i/n'
          )
      held.enter_context(lock(own, wait=False))
    try:
      yield
    finally:
      with store(root):
        held.close()


def remove_stale(root: pathlib.Path) -> None:
  """Removes the lock files of killed workers, and keeps those of running ones."""
  for path in root.glob('.worker-*.lock'):
    is_held(path)


def is_held(path: pathlib.Path) -> bool:
  """Whether a process holds this lock file; removes it if nobody does."""
  try:
    with lock(path, wait=False):
      return False
  except Busy:
    return True


def _locked(path, how):
  """Locks the file that has this name, and returns its descriptor."""
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
      if error.errno not in _NO_LOCKS:
        os.close(descriptor)
        raise
      logging.warning('%s: this file system has no locks; start no worker twice', path.parent)
      return descriptor
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(descriptor), os.stat(path)):
        return descriptor
    os.close(descriptor)
