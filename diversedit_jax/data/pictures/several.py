"""Several files that are one collection, by one name: a folder, a pattern, or shards in braces."""

import glob
import os
import re
import shlex

from diversedit_jax import types
from diversedit_jax.data.pictures import system

SPLITS = frozenset(('train', 'training', 'val', 'valid', 'validation', 'test', 'testing'))
"""Usual names of splits."""

_RANGE = re.compile(r'\{(\d+)\.\.(\d+)\}')
_CHOICE = re.compile(r'\{([^{}]*,[^{}]*)\}')
_MOST = 100_000


def files(path: str | os.PathLike[str], suffix: str) -> list[str] | None:
  """The files that a name stands for, sorted; None if it names one file, or a path that goes on.

    DIR                   all files of the suffix in the folder, else in its folder `data`
    DIR/train-*.tar       a pattern of the shell
    DIR/{0000..0146}.tar  numbers, as WebDataset writes them; {a,b} is either

  Raises:
    UserError: there are none, one is missing, or they are of several splits.
  """
  path = os.fspath(path)
  if os.path.isdir(path):
    found = _in_folder(path, suffix) or _in_folder(os.path.join(path, 'data'), suffix)
    if not found:
      raise types.UserError(f'{path}: no such file; found a folder without any {suffix} file there')
  elif os.path.lexists(path):
    return None
  elif _RANGE.search(path) or _CHOICE.search(path):
    found = _expanded(path)
    if missing := [name for name in found if not os.path.isfile(name)]:
      raise types.UserError(
        f'{path} names {len(found)} files, but {len(missing)} of them are missing, first '
        f'{missing[0]}; download them, or name those that are there as in '
        f'{shlex.quote(os.path.join(os.path.dirname(path), "*" + suffix))}'
      )
  elif glob.has_magic(path):
    found = sorted(name for name in glob.glob(path) if os.path.isfile(name))
    if not found:
      return None
  else:
    return None
  _check_one_split(path, found, suffix)
  return found


def _in_folder(folder, suffix):
  try:
    names = sorted(os.listdir(folder))
  except FileNotFoundError:
    return []
  except OSError as error:
    raise types.UserError(f'{folder}: cannot be read: {error.strerror}') from error
  return [
    os.path.join(folder, name)
    for name in names
    if name.lower().endswith(suffix) and not system.foreign(name)
  ]


def _expanded(pattern):
  """All names of a pattern with braces, in order."""
  if match := _RANGE.search(pattern):
    low, high = match.groups()
    parts = [f'{n:0{len(low)}d}' for n in range(int(low), min(int(high), _MOST) + 1)]
  elif match := _CHOICE.search(pattern):
    parts = match[1].split(',')
  else:
    return [pattern]
  start, end = pattern[: match.start()], pattern[match.end() :]
  return [name for part in parts for name in _expanded(f'{start}{part}{end}')]


def _check_one_split(path, found, suffix):
  """Refuses files of several splits, by the words in their names."""
  words = lambda name: set(re.split(r'[^a-z]+', os.path.basename(name).lower()))
  splits = sorted({word for name in found for word in words(name) & SPLITS})
  if len(splits) > 1:
    first = next(name for name in found if splits[0] in words(name))
    folder = os.path.dirname(first)
    raise types.UserError(
      f'{path} holds files of the splits {", ".join(splits)}; name one, as in '
      f'{shlex.quote(os.path.join(folder, splits[0] + "*" + suffix))}'
    )
