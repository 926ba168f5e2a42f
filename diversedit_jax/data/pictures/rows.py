"""Rows of a table of pictures and labels: CSV as spreadsheets, pandas and Kaggle write it."""

import codecs
from collections.abc import Iterator, Sequence
import csv
import io
import os
import pathlib
import re
import shlex

from absl import logging

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
  'predictionstring',  # In Kaggle's LOC_val_solution.csv: a WordNet id and boxes.
)
# Known names; words in other names; words that these must not have.
_ALIKE = {
  'path': (PATHS, ('path', 'file', 'image', 'img'), ('label', 'class', 'categor')),
  'label': (LABELS, ('label', 'class', 'categor'), ('path', 'file')),
}
_NUMBER = re.compile(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?')
_HEAD = 2**16  # Bytes that surely hold a header.
_MISSING = ('nan', '+nan', '-nan', '<na>', 'nat')
_MARKS = {
  codecs.BOM_UTF8: 'utf-8-sig',
  codecs.BOM_UTF16_LE: 'utf-16',
  codecs.BOM_UTF16_BE: 'utf-16',
}


def alike(names: Sequence[str], wanted: str) -> list[str]:
  """Those of columns or entries that may be the `wanted` one, 'path' or 'label'.

  The first of these that there are: the name itself, names that are known for it (`PATHS`,
  `LABELS`), names with such a word in them, as 'fine_label'.
  """
  known, words, others = _ALIKE[wanted]
  has = lambda name, words: any(word in _plain(name) for word in words)
  return (
    [name for name in names if name == wanted]
    or [name for name in names if _plain(name) in known]
    or [name for name in names if has(name, words) and not has(name, others)]
  )


def only(
  found: Sequence[str],
  where: str,
  wanted: str = 'label',
  *,
  what: str = 'columns',
  way: str | None = None,
) -> str | None:
  """The one of the columns or entries that `alike` found; None if there is none.

  A label that only has such a word in its name is logged.

  Args:
    found: their names. where, what: for messages. wanted: as `alike`.
    way: the way on if there are several; None is the flag that names one.

  Raises:
    UserError: there are several.
  """
  if len(set(found)) > 1:
    way = way or f'name one by --labels={shlex.quote(found[0])} (in a config: data.labels)'
    raise types.UserError(
      f'{where}: each of the {what} {", ".join(map(repr, found))} may be the {wanted}; {way}'
    )
  if found and wanted == 'label' and _plain(found[0]) not in LABELS:
    logging.warning('%s: %r is taken for the label because of its name', where, found[0])
  return found[0] if found else None


def is_table(path: str | os.PathLike[str]) -> bool:
  """Whether a file is a table: by its suffix, or, of a text, by a header that names paths."""
  suffix = pathlib.Path(path).suffix.lower()
  if suffix != '.txt':
    return suffix in ('.csv', '.tsv')
  try:
    with open(path, 'rb') as file:
      text = text_of(path, file.read(_HEAD).rpartition(b'\n')[0])
  except (OSError, types.UserError):
    return False
  names = next(csv.reader(text.splitlines(), delimiter=_delimiter(text)), [])
  return len(names) > 1 and any(_plain(name) in PATHS for name in names)


def label_of(value: object, where: str) -> str | int:
  """A label as it stands in a file: a whole number, also as '10.0', or the name of a class.

  Raises:
    UserError: it is missing, negative, no whole number, or neither a number nor a text.
  """
  text = str(value).strip() if isinstance(value, str | int | float) else ''
  if isinstance(value, bool) or not (text or isinstance(value, str)):
    raise types.UserError(
      f'{where}: the label {value!r:.60} is neither a number nor a name; name another '
      'by --labels (in a config: data.labels), or say --labels=none'
    )
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
  path: str | os.PathLike[str],
  column: str | None = None,
  *,
  labels: bool = True,
  collection: bool = True,
) -> Iterator[tuple[int, str, str | int | None]]:
  """Yields the line number, path and label of each row; a label of None without `labels`.

  Fields are separated by commas, semicolons, tabs or '|'. The column of paths is `path` or the only
  one that is named alike, see `alike`; that of labels is `column`, `label` or the only one alike.
  Other columns and empty lines are ignored. Messages name --labels=COLUMN where the table is the
  `collection`, not the labels of another.

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
        columns = [_column(names, 'path', None, where, False)]
        columns += [_column(names, 'label', column, where, collection)] if labels else []
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
  return max(',;\t|', key=header.count)


def _column(names: Sequence[str], wanted: str, given: str | None, where: str, by_flag: bool):
  """The position of a column, which --labels may name if `by_flag`."""
  way = None if by_flag else f'rename one to {wanted}'
  name = given or only(alike(names, wanted), where, wanted, way=way) or wanted
  if names.count(name) != 1:
    found = 'there twice' if name in names else f'missing{trees.did_you_mean(name, names)}'
    flag = ', or name it by --labels=COLUMN (in a config: data.labels), or say --labels=none'
    raise types.UserError(
      f'{where}: the column {name!r} is {found}; expected a header with path,label; rename the '
      f'column that is meant{flag if by_flag else ""}'
    )
  return names.index(name)


def _plain(name):
  return re.sub(r'[\s-]+', '_', name.strip().lower())


def _kind(label):
  return 'an integer' if isinstance(label, int) else 'a name'
