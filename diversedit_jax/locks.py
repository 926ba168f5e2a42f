"""Locks between processes; a lock ends with the process that holds it, however that ends.

Holders remove their lock files. A process may thus lock a file that has just lost its name; it then
tries again with the file that has the name now.

Some file systems have no locks, or locks that other hosts do not see. The file of a `claim`
therefore says who holds it, and changes every few seconds. Whoever gets the lock of a file that
another host has written looks whether it changes: if so, that host is alive.

A bucket has no locks at all. There the file of a claim is an object that is only made, changed and
taken over while it is what was seen, so that one of several that try comes through.
"""

from collections.abc import Callable, Iterator
import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from typing import Any
import uuid

from absl import logging

from diversedit_jax import buckets, paths, types

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
_BEAT = 15.0  # Seconds between two changes of a claim's file.
_SILENCE = 50.0  # Seconds without a change after which its holder is taken for dead.


class Busy(Exception):
  """Another process holds the lock."""


class Held(types.UserError):
  """Another process holds a claim; it is named."""


@contextlib.contextmanager
def lock(path: pathlib.Path, *, wait: bool) -> Iterator[None]:
  """Makes a lock file, holds it during the block, and removes it.

  Raises:
    Busy: another process holds it, and `wait` is false.
    UserError: the file cannot be made.
  """
  descriptor, works, _ = _locked(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  if not works:
    logging.warning('%s: this file system has no locks; start no worker twice', path.parent)
  try:
    yield
  finally:
    path.unlink(missing_ok=True)
    os.close(descriptor)


def is_held(path: pathlib.Path) -> bool:
  """Whether a process holds this lock file; removes it if nobody does."""
  try:
    with lock(path, wait=False):
      return False
  except Busy:
    return True


@contextlib.contextmanager
def claim(path: pathlib.Path, what: str, way_on: str) -> Iterator[None]:
  """Holds a lock file that tells others who holds it, during the block.

  A holder that died on this host is known at once. One that died on another host is waited for,
  for less than a minute, where nothing else tells that it is dead.

  Args:
    path: lock file. what: is in use, for the message. way_on: ends the message.

  Raises:
    Held: another process holds it; host, process and since when are named.
    UserError: the file cannot be made.
  """
  busy = lambda held: Held(f'{what} by {_in_words(held or holder(path))}; {way_on}')
  taken = _taken_object if paths.is_bucket(path) else _taken_file
  ended, me = threading.Event(), _me()
  with taken(path, me, busy) as write:

    def beat():
      number = 0
      while not ended.wait(_BEAT):
        number += 1
        write({**me, 'beat': number})

    thread = threading.Thread(target=beat, name='claim', daemon=True)
    thread.start()
    try:
      yield
    finally:
      ended.set()
      thread.join()


@contextlib.contextmanager
def _taken_file(path, me, busy) -> Iterator[Callable[[dict], None]]:
  """Holds a claim's file, and removes it; yields what writes it anew."""
  try:
    descriptor, works, found = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except Busy as error:
    raise busy({}) from error
  try:
    if found and (alive := _sign_of_life(path, works)):
      raise busy(alive)
    _write(descriptor, me)
    try:
      yield lambda facts: _write(descriptor, facts)
    finally:
      path.unlink(missing_ok=True)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def _taken_object(path, me, busy) -> Iterator[Callable[[dict], None]]:
  """`_taken_file` in a bucket."""
  me['claim'] = uuid.uuid4().hex  # No two write the same.
  try:
    held = buckets.Object(str(path))
    seen = held.read()
    alive = seen.value is not None and _sign_of_life(path, works=False)
    generation = None if alive else held.write(_text(me), seen.generation)
  except (ValueError, RuntimeError) as error:
    text = ' '.join(str(error).split())[:300]
    raise types.UserError(f'{path.parent} cannot be written: {text}') from error
  if generation is None:
    raise busy(alive or {})

  def write(facts):
    nonlocal generation
    # The network may be there again at the next beat.
    with contextlib.suppress(ValueError, RuntimeError, OSError):
      written = held.write(_text(facts), generation)
      if written is None:  # Still ours after a beat whose answer got lost, or a removal by hand.
        now = held.read()
        ours = now.value is None or json.loads(now.value).get('claim') == me['claim']
        written = held.write(_text(facts), now.generation) if ours else None
      generation = written
    if generation is None:
      _lost(path)

  try:
    yield write
  finally:
    with contextlib.suppress(ValueError, RuntimeError, OSError):
      held.write(None, generation)


def _lost(path):
  """Ends the process, whose claim another has taken over after a silence, before both write."""
  logging.error(
    '%s: this process was not heard of for %.0f s, and %s has taken over; it ends here',
    path.parent,
    _SILENCE,
    _in_words(holder(path)),
  )
  os._exit(1)


def holder(path: pathlib.Path) -> dict[str, Any]:
  """Who a claim's file says holds it: 'host', 'pid', 'since', ...; {} if nobody."""
  try:
    if paths.is_bucket(path):
      return json.loads(buckets.Object(str(path)).read().value or b'')
    return json.loads(path.read_text())
  except (OSError, ValueError, RuntimeError):
    return {}


def _sign_of_life(path, works):
  """The process that holds a claim although its file could be locked, or {}.

  An empty file may be that of one that has made it just now.
  """
  found, host = holder(path), socket.gethostname()
  if found and found['host'] == host and (works or (_is_here(found) and not _runs(found['pid']))):
    return {}
  logging.info(
    '%s was left by %s; looking for %.0f s whether it is alive', path, _in_words(found), _SILENCE
  )
  until = time.monotonic() + _SILENCE
  while time.monotonic() < until:
    time.sleep(min(1.0, _SILENCE / 20))
    now = holder(path)
    if now and now != found:
      return now
  return {}


def _is_here(found):
  """Whether a process was of this machine since it was started; another may have its name."""
  return found.get('boot') == _boot()


def _boot():
  with contextlib.suppress(OSError):
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  return ''


def _runs(pid):
  """Whether a process of this host is alive."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True


def _me():
  now = datetime.datetime.now(datetime.UTC)
  job = os.environ.get('SLURM_JOB_ID')
  return {
    'host': socket.gethostname(),
    'pid': os.getpid(),
    'boot': _boot(),
    'since': now.strftime('%Y-%m-%d %H:%M:%S UTC'),
    **({'job': job} if job else {}),
  }


def _in_words(held):
  if not held:
    return 'another process'
  job = f' (SLURM job {held["job"]})' if 'job' in held else ''
  return f'process {held["pid"]} on {held["host"]}{job} since {held["since"]}'


def _text(facts):
  return json.dumps(facts).encode() + b'\n'


def _write(descriptor, facts):
  """Writes the file anew in its place, which takes no space of a full disk."""
  text = _text(facts)
  with contextlib.suppress(OSError):
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))
    os.fsync(descriptor)


def _locked(path, how):
  """Locks the file that has this name.

  Returns:
    Its descriptor, whether the file system has locks, and whether the file was there before.
  """
  while True:
    found, make = False, os.O_CREAT | os.O_RDWR
    try:
      try:  # Only one process makes a file, also where there are no locks.
        descriptor = os.open(path, make | os.O_EXCL, 0o666)
      except FileExistsError:
        found, descriptor = True, os.open(path, make, 0o666)
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
      return descriptor, False, found
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(descriptor), os.stat(path)):
        return descriptor, True, found
    os.close(descriptor)
