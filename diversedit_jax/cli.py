"""What all command lines share: flags, logs, errors that a user makes, caches, memory."""

import argparse
from collections.abc import Callable, Sequence
import contextlib
import ctypes
import importlib.util
import logging as python_logging
import os
import pathlib
import re
import select
import signal
import sys
import traceback
from typing import NoReturn

from absl import app, flags, logging
import jax

from diversedit_jax import faults, paths, trees, types

# M_ARENA_MAX, M_MMAP_MAX and M_TRIM_THRESHOLD of glibc's mallopt: one arena, no mapping of its own
# for a large piece of memory, and nothing is given back.
_MALLOC = {-8: 1, -4: 0, -1: 2**31 - 1}
_ACCELERATORS = ('jax_plugins', 'libtpu')  # One of these packages is installed for a GPU or a TPU.
_CACHE_BYTES = 4 * 2**30  # A run keeps 2 MB (digits on a CPU) to some 100 MB of programs.
_PACKAGE = str(pathlib.Path(__file__).parent)


def run(main: Callable[[list[str]], None], flags_parser: Callable | None = None) -> None:
  """Runs an absl main and ends the program, see `status`. flags_parser: instead of `parse`."""
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_worth_reading)
  sys.excepthook = _print_fault
  sys.unraisablehook = _print_unraisable
  sys.exit(status(lambda: app.run(main, flags_parser=flags_parser or parse)))


def status(action: Callable[[], int | None], name: str = 'error') -> int:
  """Exit status of an action, which may print.

  What a user or the machine causes is told in one line, which begins with `name`: 2, or 130 when
  the user interrupts, or 141 when nobody reads the output any more. A fault of the program keeps
  its traceback.
  """
  if hasattr(sys.stdout, 'reconfigure'):  # A name in no encoding, or another than the console's.
    sys.stdout.reconfigure(errors='backslashreplace')
  try:
    try:
      return action() or 0
    finally:
      if sys.stdout is not None:  # It is closed, as by `>&-`.
        sys.stdout.flush()
  except (Exception, KeyboardInterrupt) as error:
    if isinstance(error, BrokenPipeError) and _unread(sys.stdout):
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # For the flush at exit.
      return 128 + signal.SIGPIPE
    line = faults.told(error)
    if line is None:
      raise
    logging.debug('what was raised:', exc_info=error)  # For --verbosity=1.
    print(f'{name}: {line}', file=sys.stderr)
    return 130 if isinstance(error, KeyboardInterrupt) else 2


def parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; returns the remaining arguments.

  Raises:
    UserError: for an unknown flag or choice, with the nearest, or a value of another type.
  """
  try:
    return flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    name, known = f'--{error.flagname}', [f'--{name}' for name in flags.FLAGS]
    raise types.UserError(f'unknown flag {name}{_hint(name, known)}') from error
  except flags.Error as error:
    said = ' '.join(str(error).split())
    choice = re.fullmatch(r'flag (--\w+)=(.*): value should be one of <(.*)>', said)
    if choice is not None:
      hint = trees.did_you_mean(choice[2], choice[3].split('|'))
      raise types.UserError(f'unknown {choice[1]} {choice[2]!r}{hint}') from error
    missing = re.match(r'flag (--\w+)=None', said)
    said = f'{missing[1]} is needed' if missing else said
    raise types.UserError(f'{said}; --help lists all flags') from error


def _hint(name, known):
  hint = trees.did_you_mean(name, known)
  return hint if 'did you mean' in hint else '; --help lists all flags'


class Parser(argparse.ArgumentParser):
  """Argparse whose errors are UserErrors, in one line like all others."""

  def error(self, message: str) -> NoReturn:
    cause = getattr(sys.exception(), '__context__', None)
    if isinstance(cause, types.UserError):  # A value's own, which argparse hides.
      raise cause
    unknown = re.match(r'unrecognized arguments: (--\w+)', message)
    if unknown:
      hint = _hint(unknown[1], self._option_string_actions)
      raise types.UserError(f'unknown flag {unknown[1]}{hint}')
    raise types.UserError(f'{message}; --help says more')


def _unread(stream):
  """Whether the reader of a pipe is gone."""
  with contextlib.suppress(OSError, ValueError, AttributeError):
    poll = select.poll()
    poll.register(stream, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
  return False


def stay_on_cpu() -> None:
  """Keeps JAX off accelerators: for programs that are compiled for a device that is not here.

  Otherwise JAX does not find a compiler for NVIDIA GPUs that is installed without their driver.
  """
  jax.config.update('jax_platforms', 'cpu')


def keep_programs() -> None:
  """Keeps compiled programs between starts, in $JAX_COMPILATION_CACHE_DIR or below ~/.cache.

  A restart is quicker, and a GPU's programs are tuned once: tuned again, they could round otherwise
  in the middle of a run. Below ~/.cache, what was not used for longest is deleted beyond 4 GiB.
  Nobody else may write there, since JAX runs what it finds.
  """
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  given = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  cache = pathlib.Path(given) if given else paths.user_cache()
  folder = cache and (cache if given else cache / 'diversedit_jax' / 'xla')
  why = ''
  if folder is None:
    why = 'there is no home folder'
  elif not ('://' in str(given) or _can_write(folder)):
    why = f'{folder} cannot be written'
  elif not (given or _made_private(folder)):
    why = f'{folder} or the folder above belongs to another user'
  if why:
    logging.warning(
      'compiled programs are not kept: %s; set JAX_COMPILATION_CACHE_DIR to a folder that is yours',
      why,
    )
    jax.config.update('jax_enable_compilation_cache', False)
  elif not given:
    trim(folder, _CACHE_BYTES)
    jax.config.update('jax_compilation_cache_dir', str(folder))


def _can_write(folder):
  """Whether a folder can be written, or made where it is not there."""
  # Not Path.exists, which raises where a folder above may not be entered, as /root in a container.
  there = next(filter(os.path.exists, (folder, *folder.absolute().parents)))
  return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _made_private(folder):
  """Makes a folder and the one above for this user alone; whether they belong to this user."""
  for path in (folder.parent, folder):
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = path.stat()
    if facts.st_uid != os.getuid():
      return False
    if facts.st_mode & 0o077:
      path.chmod(0o700)
  return True


def trim(folder: pathlib.Path, limit: int) -> None:
  """Deletes the files of a folder that were not used for longest, until `limit` bytes are left.

  JAX's own limit (`jax_compilation_cache_max_size`) would need another package, and takes a lock
  for every program, which the hosts of a cluster share.
  """
  used = {}
  for path in folder.glob('*'):
    with contextlib.suppress(OSError):  # Another process may trim at the same time.
      facts = path.stat()
      used[path] = (max(facts.st_atime, facts.st_mtime), facts.st_size)
  for path, (_, size) in sorted(used.items(), key=lambda item: item[1], reverse=True):
    limit -= size
    if limit < 0:
      with contextlib.suppress(OSError):
        path.unlink()


def keep_memory() -> None:
  """Keeps freed memory in the process, on a CPU and where the C library is glibc.

  Call it before JAX is used, because a thread settles how it gets memory when it begins. Variables
  of the environment (MALLOC_ARENA_MAX, ...) would have to be set before Python starts.

  XLA allocates the memory of a step anew at every step. If it goes back to the system in between,
  each page is cleared and mapped again; benchmarks/NOTES.md has what that costs.
  """
  platforms = jax.config.jax_platforms
  if platforms and platforms != 'cpu':
    return
  if not platforms and any(map(importlib.util.find_spec, _ACCELERATORS)):
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return  # Another C library.
  for option, value in _MALLOC.items():
    mallopt(option, value)


def let_first_process_log() -> None:
  """Logs only warnings on every process but the first."""
  if jax.process_index() != 0:
    logging.set_verbosity(logging.WARNING)


def _print_fault(kind, error, trace) -> None:
  """Prints a traceback, but for what TensorStore says when a checkpoint could not be written.

  Its threads then speak to the event loop of Orbax, which is gone; the cause is raised elsewhere.
  """
  if not _is_of_closed_loop(error, trace):
    sys.__excepthook__(kind, error, trace)


def _print_unraisable(unraisable) -> None:
  """As `_print_fault`, for what no one can catch."""
  if not _is_of_closed_loop(unraisable.exc_value, unraisable.exc_traceback):
    sys.__unraisablehook__(unraisable)


def _is_of_closed_loop(error, trace) -> bool:
  # The program's own errors come through `status`.
  own = any(frame.f_code is status.__code__ for frame, _ in traceback.walk_tb(trace))
  return not own and isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'


def _worth_reading(record: python_logging.LogRecord) -> bool:
  """Whether it is our own or a warning; Orbax alone logs dozens of lines for each checkpoint.

  What fails in Orbax' threads it logs with tracebacks, several times, and raises in ours again.
  """
  if record.exc_info and ('/orbax/' in record.pathname or record.name == 'asyncio'):
    return False
  return record.levelno >= python_logging.WARNING or _PACKAGE in record.pathname
