"""Configs as runs store and compare them: {'train.steps': 100, ...}, complete, in one form."""

from collections.abc import Mapping
import contextlib
import functools
import json
import pathlib
from typing import Any

from absl import logging
import ml_collections

from diversedit_jax import types
from diversedit_jax.data import files
from diversedit_jax.experiment import declarations
from diversedit_jax.methods import registry, repa
from diversedit_jax.models import sizes
from diversedit_jax.training import average

FILE = 'config.json'
WRITTEN_BY = 'diversedit_jax'
"""Entry of the file for the version that wrote it; 0.1 wrote none."""

Changed = Mapping[str, tuple[Any, Any]]
"""Stored and given value by whole key."""


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'train.steps': 100, ...}; tuples become lists, as JSON has them."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping | ml_collections.ConfigDict):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat


def of(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config, flat and complete."""
  return complete(flatten(config))


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """Keys of two flat configs that differ, with the stored and the given value."""
  missing = '(absent)'
  pairs = {k: (stored.get(k, missing), given.get(k, missing)) for k in sorted({*stored, *given})}
  return {k: pair for k, pair in pairs.items() if pair[0] != pair[1]}


def network(config: Mapping[str, Any]) -> dict[str, Any]:
  """The entries of a config under which weights mean something, 'method' aside, by whole key.

  Those that it lacks have their defaults.
  """
  return decisive(flatten(declarations.complete(config)))


def decisive(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The entries of a flat config under which weights mean something, 'method' aside."""
  declared = declarations.keys()
  return {k: v for k, v in flat.items() if k in declared and declared[k].decides_network}


def listed(changed: Changed) -> str:
  """Changes in words."""
  return ', '.join(f'{k}: stored {old!r}, given {new!r}' for k, (old, new) in changed.items())


def is_run(path: pathlib.Path) -> bool:
  """Whether a folder has the config of a run; other libraries have a config.json, too."""
  try:
    content = json.loads((path / FILE).read_bytes())
  except (OSError, ValueError):
    return False
  return isinstance(content, dict) and {'train', 'optimizer'} <= content.keys()


def stored(path: pathlib.Path) -> dict[str, Any] | None:
  """The config of the run in a directory, see `understood`; None if there is none."""
  file = path / FILE
  if not file.exists():
    return None
  return understood(file, files.read_json(file))


def understood(file: pathlib.Path, content: Mapping[str, Any]) -> dict[str, Any]:
  """A stored config in today's terms, flat and complete; what is not known is left out, and said.

  Args:
    file: for messages. content: nested, with the version that wrote it.

  Raises:
    UserError: its method is not here.
  """
  flat = flatten(content)
  blocks = flat.get('diversity.layers', '')
  if flat.pop(WRITTEN_BY, None) is None and blocks[:1].isdecimal():  # 0.1 counted from 0.
    flat['diversity.layers'] = ','.join(str(int(block) + 1) for block in blocks.split(','))
  if at := flat.pop('log.profile_at', 0):  # Until 0.3.
    flat['log.profile'] = f'{at}:{at + flat.get("log.profile_steps", 3) - 1}'
  flat.pop('log.profile_steps', None)
  if flat.pop('analysis.full', False):  # Until 0.3.
    flat['analysis.parts'] = ['all']
  return complete(_known(file, flat))


def _known(file, flat):
  """A stored config without keys that this version does not have, which is said.

  Raises:
    UserError: the run's method is not here.
  """
  for name in flat.get('method', 'flow').split('+'):
    if name not in registry.METHODS:
      raise types.UserError(
        f'{file}: this version has no method {name!r}, which the run was made by'
      )
  declared = declarations.keys()
  unknown = [key for key in flat if key not in declared]
  if unknown:
    _say_unknown(file, ', '.join(unknown))
  return {key: value for key, value in flat.items() if key in declared}


@functools.cache
def _say_unknown(file, keys):
  """Says it once, however often a command looks at the file."""
  logging.warning('%s: this version has no %s; left out', file, keys)


def complete(flat: Mapping[str, Any]) -> dict[str, Any]:
  """A flat config in one form: defaults for what it lacks, and one spelling of the same thing."""
  flat = flatten(declarations.defaults()) | flat
  size = flat.get('model.size')
  if size in sizes.SIZES:
    flat |= {f'model.{k}': v for k, v in vars(sizes.size(size)).items()} | {'model.size': ''}
  with contextlib.suppress(types.UserError):  # What names nothing is refused elsewhere.
    key = 'train.averages'
    flat[key] = sorted(str(average.parse(text, key)) for text in flat[key])
  if flat['repa.weight'] is None and (preset := repa.PRESETS.get(flat['repa.preset'])):
    flat['repa.weight'] = preset.weight  # It had a number until 0.3.
  with contextlib.suppress(types.UserError):  # A part that is not here is refused elsewhere.
    flat['method'] = '+'.join(registry.parse(flat['method']))
  return flat
