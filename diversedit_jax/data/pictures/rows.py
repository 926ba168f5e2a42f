"""Rows of a table of pictures and labels: CSV as spreadsheets, pandas and Kaggle write it."""

import codecs
from collections.abc import Iterator, Sequence
import csv
import io
import os
import pathlib
import re

from diversedit_jax import trees, types

PATHS = (
  *(
    'path',
    'file',
    'filename',
    'file_name',
    'filepath',
    'file_path',
    'name',
    'image',
    'image_path',
  ),
  *('image_name', 'image_id', 'imageid', 'img', 'img_path'),
)
LABELS = (
  *('label', 'labels', 'class', 'class_id', 'class_idx', 'class_index', 'class_name', 'classname'),
  *('category', 'category_id', 'category_name', 'cls', 'target', 'wnid', 'synset', 'y'),
  'predictionstring',  # Of Kaggle's LOC_val_solution.csv: a WordNet id and boxes.
)
_NUMBER = re.compile(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?')
_MISSING = ('nan', '+nan', '-nan', '<na>', 'nat')
_MARKS = {
  codecs.BOM_UTF8: 'utf-8-sig',
  codecs.BOM_UTF16_LE: 'utf-16',
  codecs.BOM_UTF16_BE: 'utf-16',
}


def label_of(value: object, where: str) -> str | int:
  """A label as it stands in a file: a whole number, also as '10.0', or the name of a class.

  Raises:
    UserError: it is missing, negative, no whole number, or neither a number nor a text.
  """
  text = str(value).strip() if isinstance(value, str | int | float) else ''
  if isinstance(value, bool) or not (text or isinstance(value, str)):
    raise types.UserError(f'{where}: the label {value!r} is neither a number nor a name')
  if not text or text.lower() in _MISSING:
    raise types.UserError(
      f'{where}: the label is {"empty" if not text else f"missing ({text})"}; give it one, or '
      'remove the row'
    )
  if not _NUMBER.fullmatch(text):
    return text
  number = float(text)
  if not number.is_integer():
    raise types.UserError(
      f'{where}: the label {text} is a number, but not a whole one; give whole numbers counted '
      'from 0, or names that are no numbers'
    )
  if not 0 <= number < 2**53:
    raise types.UserError(f'{where}: the label {text} is out of range; labels are counted from 0')
  return int(number)


def read(
  path: str | os.PathLike[str], column: str | None = None, *, labels: bool = True
) -> Iterator[tuple[int, str, str | int | None]]:
  """Yields the line number, path and label of each row; a label of None without `labels`.

  Fields are separated by commas, semicolons or tabs. The column of paths is `path` or the only one
  of `PATHS`; that of labels is `column`, `label` or the only one of `LABELS`. Other columns and
  empty lines are ignored.

  Raises:
    UserError: naming the line: no CSV, a missing column or field, or labels of both kinds.
  """
  path, first = pathlib.Path(path), None
  text = _text(path)
  reader = csv.reader(
    io.StringIO(text, newline=''), strict=True, skipinitialspace=True, delimiter=_delimiter(text)
  )
  columns = None
  try:
    for row in filter(None, reader):  # Empty lines are empty rows.
      where = f'{path}:{reader.line_num}'
      if columns is None:
        names = [name.strip() for name in row]
        columns = [_column(names, 'path', PATHS, None, where)]
        columns += [_column(names, 'label', LABELS, column, where)] if labels else []
        width, boxes = len(names), labels and names[columns[1]].lower() == 'predictionstring'
        continue
      if len(row) != width:
        raise types.UserError(
          f'{where}: {len(row)} fields, expected {width} as in the header; put a field that has a '
          'comma in double quotes'
        )
      if not row[columns[0]]:
        raise types.UserError(f'{where}: the path is empty')
      # PurePosixPath drops './' and doubled slashes, and changes nothing else.
      file, label = str(pathlib.PurePosixPath(row[columns[0]])), None
      if labels:
        value = row[columns[1]]
        label = label_of(value.split()[0] if boxes and value.strip() else value, where)
        first = first or (reader.line_num, label)
        if type(label) is not type(first[1]):
          raise types.UserError(
            f'{where}: the label {label!r} is {_kind(label)}, but line {first[0]} has '
            f'{_kind(first[1])}, {first[1]!r}; labels are all integers or all names'
          )
      yield reader.line_num, file, label
  except csv.Error as error:
    raise types.UserError(f'{path}:{reader.line_num}: bad CSV: {error}') from error
  if columns is None:
    raise types.UserError(f'{path}: the table is empty, expected a header with path,label')


def text_of(path: str | os.PathLike[str], data: bytes) -> str:
  """The text of a file in UTF-8, or in UTF-16 with a byte order mark.

  Raises:
    UserError: naming the line that is no text.
  """
  encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), 'utf-8')
  try:
    text = data.decode(encoding)
  except UnicodeDecodeError as error:
    line = data.count(b'\n', 0, error.start) + 1
    raise types.UserError(
      f'{path}:{line}: not UTF-8: {error.reason}; convert it, for example by `iconv -f latin1 '
      '-t utf-8`'
    ) from error
  before, nul, _ = text.partition('\0')
  if nul:
    line = before.count('\n') + 1
    raise types.UserError(f'{path}:{line}: a NUL byte, expected text in UTF-8')
  return text


def _text(path):
  try:
    return text_of(path, path.read_bytes())
  except OSError as error:
    raise types.UserError(f'{path}: cannot be read: {error.strerror}') from error


def _delimiter(text):
  header = next((line for line in text.splitlines() if line.strip()), '')
  return max(',;\t', key=header.count)


def _column(names: Sequence[str], wanted: str, others: Sequence[str], given: str | None, where):
  """The position of a column."""
  expected = 'expected a header with path,label; rename the column that is meant'
  if given is None and wanted not in names:
    found = [name for name in names if name.lower().replace(' ', '_') in others]
    if len(found) == 1:
      return names.index(found[0])
    if found:
      way = ' (in a config: data.labels)' if wanted == 'label' else ''
      way = f'name one by --labels={found[0]}{way}' if way else f'rename one to {wanted}'
      raise types.UserError(
        f'{where}: each of the columns {", ".join(map(repr, found))} may be the {wanted}; {way}'
      )
  name = wanted if given is None else given
  if names.count(name) != 1:
    found = 'there twice' if name in names else f'missing{trees.did_you_mean(name, names)}'
    raise types.UserError(f'{where}: the column {name!r} is {found}; {expected}')
  return names.index(name)


def _kind(label):
  return 'an integer' if isinstance(label, int) else 'a name'
