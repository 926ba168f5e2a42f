"""What every command line does with flags, configs, logs and errors of the user."""

from collections.abc import Callable
import ctypes
import importlib.util
import logging as python_logging
import os
import pathlib
import re
import sys
import traceback

from absl import app, flags, logging
import jax
import ml_collections

from diversedit_jax import types

# Options of glibc's mallopt: one arena, no mapping of its own for large pieces, nothing given back.
_MALLOC = {-8: 1, -4: 0, -1: 2**31 - 1}
_ACCELERATORS = ('jax_plugins', 'libtpu')  # Packages, of which one is there for a GPU or a TPU.
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
    UserError: for what the flags, the config or its meta-arguments do not know.
  """
  try:
    return flags.FLAGS(argv)
  except (KeyError, AttributeError) as error:
    if 'ml_collections' not in traceback.extract_tb(error.__traceback__)[-1].filename:
      raise  # A fault inside a config file: its traceback is what helps.
    words = re.findall(r"'(\w+)'|\"(\w+)\" instead", str(error.args[0]).replace('\\', ''))
    wrong, hint = words[0][0], ''.join(f'; did you mean {w!r}?' for _, w in words if w)
    raise types.UserError(f'unknown config key {wrong!r}{hint}') from error
  except flags.Error as error:
    # A UserError of get_config arrives as text at the end of a printed traceback.
    raise types.UserError(str(error).split('UserError: ')[-1].strip()) from error


def load(holder: flags.FlagHolder) -> ml_collections.ConfigDict:
  """The config of a config-file flag.

  Raises:
    UserError: if the file could not be loaded; that shows only at the first look at the config.
  """
  config = holder.value
  try:
    list(config)
  except OSError as error:
    raise types.UserError(f'cannot load the config: {" ".join(str(error).split())}') from error
  return config


def stay_on_cpu() -> None:
  """Keeps JAX off accelerators: for programs that are compiled for a device that is not here.

  A compiler for NVIDIA's GPUs that is installed without a driver is not found otherwise.
  """
  jax.config.update('jax_platforms', 'cpu')


def keep_programs() -> None:
  """Keeps compiled programs between starts, in $JAX_COMPILATION_CACHE_DIR or below ~/.cache.

  A restart is quicker, and a GPU's tuning cannot come out otherwise in the middle of a store.
  """
  cache = pathlib.Path.home() / '.cache' / 'diversedit_jax' / 'xla'
  jax.config.update(
    'jax_compilation_cache_dir', os.environ.get('JAX_COMPILATION_CACHE_DIR', str(cache))
  )
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def keep_memory() -> None:
  """On a CPU, keeps freed memory in the process, where the C library is glibc.

  Call it before JAX is used, because its threads settle how they get memory when they begin.

  XLA asks for the memory of a step anew at every step. Given back to the system in between, each of
  its pages is cleared and mapped again; what that costs is in benchmarks/NOTES.md.
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

  TPU slices, SLURM, Open MPI and Kubernetes are recognised by JAX itself; elsewhere the environment
  names JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
  """
  count, index = os.environ.get('JAX_NUM_PROCESSES'), os.environ.get('JAX_PROCESS_ID')
  if count is None or index is None:
    jax.distributed.initialize()
  else:
    jax.distributed.initialize(num_processes=int(count), process_id=int(index))


def _worth_reading(record: python_logging.LogRecord) -> bool:
  """Our own lines and everybody's warnings; Orbax alone logs dozens of lines a checkpoint."""
  return record.levelno >= python_logging.WARNING or _PACKAGE in record.pathname
