"""What all command lines share: flags, configs, logs, errors a user makes, caches, processes."""

from collections.abc import Callable
import contextlib
import ctypes
import importlib.util
import logging as python_logging
import os
import pathlib
import sys
import traceback

from absl import app, flags, logging
import jax
import ml_collections

from diversedit_jax import types

# M_ARENA_MAX, M_MMAP_MAX and M_TRIM_THRESHOLD of glibc's mallopt: one arena, no mapping of its own
# for a large piece of memory, and nothing is given back.
_MALLOC = {-8: 1, -4: 0, -1: 2**31 - 1}
_ACCELERATORS = ('jax_plugins', 'libtpu')  # One of these packages is installed for a GPU or a TPU.
_CACHE_BYTES = 4 * 2**30  # A run keeps 2 MB (digits on a CPU) to some 100 MB of programs.
_PACKAGE = str(pathlib.Path(__file__).parent)


def run(main: Callable[[list[str]], None]) -> None:
  """Runs an absl main; a UserError ends it with one message on stderr and exit code 1."""
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_worth_reading)
  try:
    app.run(main, flags_parser=parse)
  except types.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(1)


def parse(argv: list[str]) -> list[str]:
  """Parses flags and config overrides; returns the remaining arguments.

  Raises:
    UserError: for an unknown flag, config key or meta-argument, and for a value of another type.
  """
  try:
    return flags.FLAGS(argv)
  except (KeyError, AttributeError) as error:
    if any(frame.name == 'get_config' for frame in traceback.extract_tb(error.__traceback__)):
      raise  # A fault inside a config file: its traceback is what helps.
    # ml_collections names the key in escaped quotes; a second line has the one that may be meant.
    text = str(error.args[0]).replace('\\n', '\n').replace('\\', '').strip('\'"')
    key, *hint = text.splitlines()
    raise types.UserError('. '.join(['unknown config key: ' + key.strip('\'"'), *hint])) from error
  except TypeError as error:
    if not any(frame.name == 'get_type' for frame in traceback.extract_tb(error.__traceback__)):
      raise
    text = 'a --config.SECTION.KEY override names a key below a value that has no keys'
    raise types.UserError(f'{text}; --mode=keys lists every key') from error
  except flags.Error as error:
    # A UserError of get_config arrives as text at the end of a printed traceback.
    raise types.UserError(str(error).split('UserError: ')[-1].strip()) from error


def load(holder: flags.FlagHolder) -> ml_collections.ConfigDict:
  """Returns the config of a config-file flag.

  Raises:
    UserError: if the file could not be loaded; ml_collections tells that only when it is used.
  """
  config = holder.value
  try:
    list(config)
  except OSError as error:
    raise types.UserError(f'cannot load the config: {" ".join(str(error).split())}') from error
  return config


def stay_on_cpu() -> None:
  """Keeps JAX off accelerators: for programs that are compiled for a device that is not here.

  Otherwise JAX does not find a compiler for NVIDIA GPUs that is installed without their driver.
  """
  jax.config.update('jax_platforms', 'cpu')


def keep_programs() -> None:
  """Keeps compiled programs between starts, in $JAX_COMPILATION_CACHE_DIR or below ~/.cache.

  A restart is quicker, and a GPU's programs are tuned once: tuned again, they could round otherwise
  in the middle of a run. Below ~/.cache, what was not used for longest is deleted beyond 4 GiB.
  """
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    folder = pathlib.Path.home() / '.cache' / 'diversedit_jax' / 'xla'
    trim(folder, _CACHE_BYTES)
    jax.config.update('jax_compilation_cache_dir', str(folder))


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


def join_processes() -> None:
  """Joins the other processes of a run.

  JAX itself recognises TPU slices, SLURM, Open MPI and Kubernetes; elsewhere the environment
  gives JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
  """
  count, index = os.environ.get('JAX_NUM_PROCESSES'), os.environ.get('JAX_PROCESS_ID')
  if count is None or index is None:
    jax.distributed.initialize()
  else:
    jax.distributed.initialize(num_processes=int(count), process_id=int(index))


def let_first_process_log() -> None:
  """Logs only warnings on every process but the first."""
  if jax.process_index() != 0:
    logging.set_verbosity(logging.WARNING)


def _worth_reading(record: python_logging.LogRecord) -> bool:
  """Whether it is our own or a warning; Orbax alone logs dozens of lines for each checkpoint."""
  return record.levelno >= python_logging.WARNING or _PACKAGE in record.pathname
