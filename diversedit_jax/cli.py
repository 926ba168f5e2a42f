"""What every command line does with flags, configs, logs and errors of the user."""

from collections.abc import Callable
import logging as python_logging
import re
import sys
import traceback

from absl import app, flags, logging
import ml_collections

from diversedit_jax import types


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


def _worth_reading(record: python_logging.LogRecord) -> bool:
  """Leaves out Orbax's dozens of lines a checkpoint; its warnings stay."""
  return record.levelno >= python_logging.WARNING or 'orbax' not in record.pathname
