"""Names of all classes in their order, from a text file or those of ILSVRC-2012."""

import importlib.util
import os
import pathlib

from diversedit_jax import paths, types

_IMAGENET = 'datasets/imagenet2012/labels.txt'


def read_classes(spec: str | os.PathLike[str]) -> tuple[str, ...]:
  """The names of the classes; label k is the k-th.

  Args:
    spec: path of a UTF-8 text file with one name per line, or 'imagenet' for the 1,000 sorted
      WordNet ids of ILSVRC-2012, read from the package tensorflow-datasets. Write './imagenet' for
      a file of that name.

  Raises:
    UserError: no such file, not UTF-8, no names, an empty line, or a name twice.
  """
  if spec == 'imagenet':
    return _imagenet()
  try:
    text = paths.path(spec).read_bytes().decode('utf-8-sig')
  except OSError as error:
    raise types.UserError(
      f'classes {str(spec)!r}: cannot be read: {error.strerror}; expected a text file with one '
      "class per line, or 'imagenet'"
    ) from error
  except UnicodeDecodeError as error:
    raise types.UserError(f'classes {str(spec)!r}: not UTF-8 text: {error}') from error
  names = [line.strip() for line in text.split('\n')]
  if names and not names[-1]:
    names.pop()  # The last line ends with a newline.
  if not names:
    raise types.UserError(f'classes {str(spec)!r}: the file is empty; expected one class per line')
  first = {}
  for number, name in enumerate(names, 1):
    if not name:
      raise types.UserError(f'{spec}:{number}: the line is empty, expected the name of a class')
    if first.setdefault(name, number) != number:
      raise types.UserError(
        f'{spec}:{number}: {name!r} is there twice, first in line {first[name]}'
      )
  return tuple(names)


def _imagenet():
  # Found without importing the package, which takes a third of a second.
  package = importlib.util.find_spec('tensorflow_datasets')
  if package is None or package.origin is None:
    raise types.UserError(
      "classes 'imagenet' are read from the package tensorflow-datasets, which is not installed"
    )
  path = pathlib.Path(package.origin).parent / _IMAGENET
  try:
    names = tuple(path.read_text(encoding='utf-8').split())
  except OSError as error:
    raise types.UserError(
      f"classes 'imagenet': {path} cannot be read: {error.strerror}; give a text file with the "
      '1,000 WordNet ids instead'
    ) from error
  if len(names) != 1000 or list(names) != sorted(set(names)):
    raise types.UserError(f"classes 'imagenet': {path} has not 1,000 different names in order")
  return names
