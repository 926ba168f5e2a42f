"""Pictures that a CSV file lists with their labels."""

from collections.abc import Iterator, Sequence
import csv
import io
import os
import pathlib
import re
import stat

from diversedit_jax import trees, types
from diversedit_jax.data.pictures import base, folders, naming

_COLUMNS = ('path', 'label')
_INTEGER = re.compile(r'[+-]?[0-9]+')


def open_table(
  path: str | os.PathLike[str], classes: Sequence[str] | None = None
) -> folders.FilePictures:
  """The pictures of a CSV file in UTF-8 with the columns 'path' and 'label'.

  Paths are absolute or relative to the folder of the table; files may have any suffix. Labels are
  either all integers, counted from 0, or all names of classes. Other columns and empty lines are
  ignored. A file that is missing, may not be read or has more than 1 GiB is skipped by name.

  Raises:
    UserError: naming the line: no CSV, a missing column or field, or labels of both kinds.
      Or as `base.make_listing`.
  """
  path = pathlib.Path(path)
  root = os.path.abspath(path.parent)
  found, skipped, first = [], [], None
  for number, file, label in _rows(path):
    first = first or (number, label)
    if type(label) is not type(first[1]):
      raise types.UserError(
        f'{path}:{number}: the label {label!r} is {_kind(label)}, but line {first[0]} has '
        f'{_kind(first[1])}, {first[1]!r}; labels are all integers or all names'
      )
    size, reason = _look(os.path.join(root, file))
    if reason:
      skipped.append(base.Skipped(file, f'line {number}: {reason}'))
    else:
      found.append((file, label, size))
  listing, _ = base.make_listing(found, skipped, classes, str(path))
  return folders.FilePictures(f'csv/{path.stem}', root, listing)


def _rows(path) -> Iterator[tuple[int, str, str | int]]:
  """Yields the line number, path and label of each row."""
  reader = csv.reader(io.StringIO(_text(path), newline=''), strict=True, skipinitialspace=True)
  columns = None
  try:
    for row in filter(None, reader):  # Empty lines are empty rows.
      where = f'{path}:{reader.line_num}'
      if columns is None:
        columns = _header([name.strip() for name in row], where)
        continue
      if len(row) != len(columns):
        raise types.UserError(
          f'{where}: {len(row)} fields, expected {len(columns)} as in the header; put a field that '
          'has a comma in double quotes'
        )
      file, label = (row[columns.index(name)] for name in _COLUMNS)
      for name, value in (('path', file), ('label', label.strip())):
        if not value:
          raise types.UserError(f'{where}: the {name} is empty')
      # PurePosixPath drops './' and doubled slashes, and changes nothing else.
      yield reader.line_num, str(pathlib.PurePosixPath(file)), _label(label.strip(), where)
  except csv.Error as error:
    raise types.UserError(f'{path}:{reader.line_num}: bad CSV: {error}') from error
  if columns is None:
    raise types.UserError(f'{path}: the table is empty, expected a header with path,label')


def _text(path):
  try:
    data = path.read_bytes()
    text = data.decode('utf-8-sig')
  except OSError as error:
    raise types.UserError(f'{path}: cannot be read: {error.strerror}') from error
  except UnicodeDecodeError as error:
    line = data.count(b'\n', 0, error.start) + 1
    raise types.UserError(f'{path}:{line}: not UTF-8: {error.reason}') from error
  before, nul, _ = text.partition('\0')
  if nul:
    line = before.count('\n') + 1
    raise types.UserError(f'{path}:{line}: a NUL byte, expected text in UTF-8')
  return text


def _header(names, where):
  for column in _COLUMNS:
    if names.count(column) != 1:
      found = 'there twice' if column in names else f'missing{trees.did_you_mean(column, names)}'
      raise types.UserError(
        f'{where}: the column {column!r} is {found}; expected a header with path,label'
      )
  return names


def _label(text, where):
  if not _INTEGER.fullmatch(text):
    return text
  if len(text) > 18 or int(text) < 0:
    raise types.UserError(f'{where}: the label {text} is out of range; labels are counted from 0')
  return int(text)


def _kind(label):
  return 'an integer' if isinstance(label, int) else 'a name'


def _look(path):
  """Size of a file in bytes, and why it cannot be used, or None."""
  status, reason = folders.look(path)
  if status is None:
    return 0, reason
  if not stat.S_ISREG(status.st_mode):
    return 0, 'not a file'
  return status.st_size, naming.too_large(status.st_size) or folders.refusal(path)
