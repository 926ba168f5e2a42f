"""Errors that a user or the machine causes, in one line with the way on; and those that pass.

`told` knows them by their types; what it does not know is a fault of the program, whose traceback
helps. Texts of XLA, TensorStore and Orbax are recognised where these raise no type of their own.
"""

from collections.abc import Iterator
import errno
import re
import signal
import traceback

import jax

from diversedit_jax import types

_DISK = 'free space there, or give a folder on another disk'
_MAY_NOT = 'give yourself the right to it (chmod, chown), or give another path'
_WAYS = {
  errno.ENOSPC: _DISK,
  errno.EDQUOT: _DISK,
  errno.EFBIG: 'raise the limit (ulimit -f), or give a folder on another disk',
  errno.EACCES: _MAY_NOT,
  errno.EPERM: _MAY_NOT,
  errno.EROFS: 'give a folder on a disk that can be written',
  errno.EMFILE: 'raise the limit: ulimit -n 65536',
  errno.ENOMEM: 'take smaller batches, or a machine with more memory',
}
_OWN = (errno.EBADF, errno.EINVAL)  # Where no file is named, the program called it wrongly.
# What libraries say in errors of other types, with the number of the error.
_SAID = {
  'No space left on device': errno.ENOSPC,
  'Disk quota exceeded': errno.EDQUOT,
  'File too large': errno.EFBIG,
  'Permission denied': errno.EACCES,
  'Read-only file system': errno.EROFS,
  'Too many open files': errno.EMFILE,
}
# What a disk, a file server or a bucket says that cannot be reached just now: nothing is said about
# what lies there.
_PASSING = (
  *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR),
  *(errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ENODEV, errno.ENXIO, errno.EPIPE),
  *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN),
  *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
)
_SAID_PASSING = re.compile(
  r'UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|HTTP response code: (?:408|429|5\d\d)|'
  'timed out|Connection (?:reset|refused|aborted)|Could not resolve host|Stale file handle|'
  'Input/output error|Too many open files'
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAID_FULL = re.compile('No space left on device|Disk quota exceeded|File too large')
_DENIED = (errno.EACCES, errno.EPERM, errno.ENOMEM)  # To this user, or this machine.
_SAID_DENIED = re.compile(
  'PERMISSION_DENIED|UNAUTHENTICATED|HTTP response code: 40[13]|Permission denied|'
  'Operation not permitted|[Oo]ut of memory|Cannot allocate memory'
)
_OS_ERROR = re.compile(r"(?:OS error |os_error_code=')(\d+)")  # As TensorStore names it.
_SHARED_FULL = (
  '/dev/shm is full; enlarge it (docker run --shm-size=...), or set data.workers=0 and data.threads'
)
# Why a worker process may be gone, by its exit code.
_KILLED = {
  -signal.SIGBUS: _SHARED_FULL,
  -signal.SIGKILL: 'somebody killed it, most likely the system, for want of memory; lower '
  'data.workers or data.prefetch',
}
_EXTRAS = {
  'tensorflow': "pip install 'diversedit_jax[tfds]'",
  'torch': "pip install 'diversedit_jax[torch]'",
}

_PLATFORMS = (
  "set JAX_PLATFORMS to cpu, cuda or tpu, install its plugin (pip install 'diversedit_jax[cuda]' "
  "or 'diversedit_jax[tpu]'), or unset it to take what there is"
)


def told(error: BaseException) -> str | None:
  """An error in one line; None for a fault of the program."""
  lines = (line for one in _chain(error) if (line := _line(one)) is not None)
  return next((' '.join(line.split('\n')) for line in lines), None)


def passes(error: BaseException) -> bool:
  """Whether an error of reading may be gone at the next try, and says nothing of what was read."""
  return any(_is(one, _PASSING, _SAID_PASSING) for one in _chain(error))


def no_space(error: BaseException) -> bool:
  """Whether a disk or a quota is full, or a file may not grow."""
  return any(_is(one, _FULL, _SAID_FULL) for one in _chain(error))


def denied(error: BaseException) -> bool:
  """Whether this user may not read, or this machine cannot: no fault of what was read either."""
  return any(_is(one, _DENIED, _SAID_DENIED) for one in _chain(error))


def said(error: BaseException) -> str:
  """The cause of an error as it is, in at most 200 letters of one line."""
  *_, cause = _chain(error)
  return ' '.join(f'{type(cause).__name__}: {cause}'.split())[:200]


def _chain(error) -> Iterator[BaseException]:
  seen = []
  while error is not None and error not in seen:
    seen.append(error)
    yield error
    error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__


def _is(error, numbers, words):
  number = error.errno if isinstance(error, OSError) else _OS_ERROR.search(str(error))
  if number is None:
    return bool(words.search(f'{type(error).__name__}: {error}'))
  return int(number if isinstance(number, int) else number[1]) in numbers


def _line(error):
  said = ' '.join(str(error).split())
  if isinstance(error, types.UserError):
    return str(error)
  if isinstance(error, KeyboardInterrupt):
    return f'interrupted; {said}' if said else 'interrupted'
  if isinstance(error, OSError) and error.errno is not None:
    if error.errno == errno.ENOSPC and _raised_in(error, 'multiprocessing/synchronize.py'):
      return f'a semaphore for data.workers cannot be made: {_SHARED_FULL}'
    is_own = error.errno in _OWN and error.filename is None
    return None if is_own else _of_system(error.errno, error.filename, error.strerror)
  if isinstance(error, ModuleNotFoundError):
    return _missing(error.name)
  if isinstance(error, MemoryError):
    return f'the memory of this machine is full; take smaller batches{said and f" ({said})"}'
  if isinstance(error, AssertionError):
    return _no_platform(error)
  if isinstance(error, UnicodeEncodeError):
    return f'{error.object!r:.200} is no name in {error.encoding}; set PYTHONUTF8=1, or rename it'
  if isinstance(error, RuntimeError | ValueError):
    return _of_library(said)
  return None


def _of_system(number, file, words):
  way = f'; {_WAYS[number]}' if number in _WAYS else ''
  return f'{f"{file}: " if file else ""}{words}{way}'


def _missing(name):
  """A line for an optional package that is not installed; None for any other module."""
  package = (name or '').partition('.')[0]
  if package not in _EXTRAS:
    return None
  return f'this needs the package {package}, which is not installed: {_EXTRAS[package]}'


def _no_platform(error):
  """A line for JAX's assertion that it has a device; None for any other."""
  if not _raised_in(error, 'xla_bridge.py'):
    return None
  return f'JAX finds no device of JAX_PLATFORMS={jax.config.jax_platforms}; {_PLATFORMS}'


def _raised_in(error, file):
  frames = traceback.extract_tb(error.__traceback__)
  return bool(frames) and frames[-1].filename.endswith(file)


def _of_library(said):
  """A line for what JAX, TensorStore or Orbax say; None for what is not known."""
  for words, number in _SAID.items():
    if words in said:
      file = re.search(r'(?<![\w/])/[^\s"\'\]:]+', said)
      return _of_system(number, file and file[0], words)
  if "can't start new thread" in said:
    return 'no thread can be started; lower data.threads or --threads, or raise `ulimit -u`'
  killed = re.search(r'Worker process was terminated unexpectedly with exit code (-?\d+)', said)
  if killed:
    why = _KILLED.get(int(killed[1]), 'its own lines stand above')
    return f'a process of data.workers ended with {killed[1]}: {why}'
  if 'Unable to initialize backend' in said:
    found = re.search(r"backend '(\w+)': (.*?)(?: \(set JAX_PLATFORMS.*)?$", said)
    return f'JAX cannot use {found[1]}: {found[2].rstrip(".")}; {_PLATFORMS}' if found else None
  if re.match('(RESOURCE_EXHAUSTED|Resource exhausted)', said) or 'Out of memory' in said[:80]:
    return (
      f'the memory of a device is full: {said[:200]}; take a smaller train.batch_size, '
      'sample.batch_size or eval.batch_size, train.accumulate=2, model.remat=full, or mesh.fsdp '
      'over more devices (docs/memory.md)'
    )
  return None
