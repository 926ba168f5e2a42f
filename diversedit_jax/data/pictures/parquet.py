"""Pictures in Parquet files, as datasets on Hugging Face's hub are stored.

A column holds the encoded pictures, as structs of `bytes` and `path` or as bytes alone; another
holds labels, whose names stand in the schema's metadata (a ClassLabel of the package `datasets`).
A picture is read with the row group that it lies in, some 100 pictures, of which a few are kept: in
order this is fast, in random order it is not. Make a store, or keep the pictures in memory.
"""

import collections
from collections.abc import Sequence
import json
import os
import threading
from typing import Any

from absl import logging
import numpy as np

from diversedit_jax import progress, types
from diversedit_jax.data.pictures import archives, base, naming, rows, several

_GROUPS = 4  # Row groups that are kept.
_PICTURES = ('image', 'img', 'picture', 'jpg', 'jpeg', 'png', 'webp')


class ParquetPictures(base.Pictures):
  """See `base.Pictures`; names are 'FILE/ROW'. The listing's sizes are means of row groups."""

  def __init__(
    self,
    name: str,
    listing: base.Listing,
    files: Sequence[archives.SharedFile],
    column: str,
    places: np.ndarray,
  ):
    """column: path of the leaf with bytes. places: (file, row group, row in it), int64 [n, 3]."""
    self.name, self.listing = name, listing
    self._files, self._column, self._places = files, column, places
    self._groups, self._lock = collections.OrderedDict(), threading.Lock()

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k not in ('_groups', '_lock')}

  def __setstate__(self, state: dict[str, Any]):
    self.__dict__.update(state, _groups=collections.OrderedDict(), _lock=threading.Lock())

  def read(self, index: int) -> bytes:
    """See `base.Pictures`."""
    file, group, row = self._places[index].tolist()
    data = self._group(file, group)[row].as_py()
    if data is None:
      raise base.BadPicture('its bytes are not in the file, at most its path')
    return data

  def _group(self, file, group):
    """The bytes of a row group's pictures."""
    with self._lock:
      if (file, group) not in self._groups:
        with self._files[file].opened() as opened:
          table = _open(opened).read_row_group(group, columns=[self._column])
        column = table.column(0).combine_chunks()
        self._groups[file, group] = column.field('bytes') if '.' in self._column else column
        if len(self._groups) > _GROUPS:
          self._groups.popitem(last=False)
      return self._groups[file, group]


def open_parquet(
  path: str | os.PathLike[str], classes: Sequence[str] | None = None, labels: str | None = None
) -> ParquetPictures:
  """The pictures of Parquet files; only labels are read to list them.

  Args:
    path: a file, or several as 'DIR', 'DIR/train-*.parquet', see `several.files`.
    classes: all classes in order; None takes the names in the schema.
    labels: name of the column of labels; 'none' or 'any': all pictures are of one class. None takes
      the column that is a ClassLabel, else the one that is named so, see `rows.alike`.

  Raises:
    UserError: no such files, damaged ones, or columns that are missing or not the only ones.
  """
  names = several.files(path, '.parquet') or [os.fspath(path)]
  if not os.path.isfile(names[0]):
    raise types.UserError(f'{path}: no such file; found nothing there')
  files = [archives.SharedFile(name, keep=False) for name in names]
  listing = progress.Progress(f'listing {path}', len(files), unit='files')
  found, places, schema = [], [], None
  for k, file in enumerate(files):
    listing.at(k)
    try:
      with file.opened() as opened:
        source = _open(opened)
        own = _Schema(source.schema_arrow, labels, file.path)
        schema = schema or own
        if (own.leaf, own.label, own.names) != (schema.leaf, schema.label, schema.names):
          raise types.UserError(
            f'{file.path} has other columns of pictures or labels, or other names of classes, than '
            f"{names[0]}; name files that go together, as in 'parquet:DIR/train-*.parquet'"
          )
        values = None if schema.label is None else source.read(columns=[schema.label]).column(0)
        metadata = source.metadata
    except types.UserError:
      raise
    except Exception as error:  # Arrow raises several, and KeyError for a missing column.
      raise types.UserError(
        f'{file.path}: no Parquet file, damaged, or without the columns of {names[0]}: '
        f'{" ".join(str(error).split())}'
      ) from error
    stem, row = os.path.basename(file.path).removesuffix('.parquet'), 0
    for group in range(metadata.num_row_groups):
      facts = metadata.row_group(group)
      size = schema.bytes_of(facts) // max(1, facts.num_rows)
      for i in range(facts.num_rows):
        said = naming.ALL if values is None else values[row].as_py()
        found.append((f'{stem}/{row:07d}', schema.meaning(said, f'{file.path}, row {row}'), size))
        places.append((k, group, i))
        row += 1
  if schema.label is None and labels is None:
    said = (
      f'{path}: none of its columns {", ".join(schema.columns)} is named as labels are; '
      '--labels=COLUMN (data.labels in a config) names one, --labels=none says that there is none'
    )
    if classes is not None:
      raise types.UserError(said)
    logging.warning('%s. Its %d pictures are of one class, %r', said, len(found), naming.ALL)
  if schema.names is not None and classes is not None:
    found = [(name, schema.names[label], size) for name, label, size in found]
  classes = None if labels == 'any' else schema.names if classes is None else classes
  listing, order = base.make_listing(found, (), classes, os.fspath(path))
  stem = os.path.basename(os.fspath(path).rstrip('/')).removesuffix('.parquet')
  places = np.array(places, np.int64)[order]
  return ParquetPictures(f'parquet/{stem}', listing, files, schema.leaf, places)


class _Schema:
  """Which columns hold pictures and labels, and what labels mean.

  columns: all. leaf: path of the bytes. label: name of the column, or None. names: of all classes,
    or None.
  """

  def __init__(self, schema, labels, where):
    self._where, features = where, _features(schema)
    types_of = {field.name: field.type for field in schema}
    self.columns, picture = tuple(types_of), self._one_picture(types_of, features)
    self.leaf = f'{picture}.bytes' if _is_struct(types_of[picture]) else picture
    self.label, self.names = self._label(types_of, features, labels), None
    if self.label in features and features[self.label].get('_type') == 'ClassLabel':
      self.names = tuple(features[self.label].get('names') or ()) or None

  def bytes_of(self, facts) -> int:
    """Bytes of a row group's pictures."""
    columns = (facts.column(i) for i in range(facts.num_columns))
    return next(c.total_uncompressed_size for c in columns if c.path_in_schema == self.leaf)

  def meaning(self, said, where):
    """The label that a value of the column stands for."""
    if said is None or (self.names is not None and said not in range(len(self.names))):
      raise types.UserError(
        f'{where}: the label is {"missing" if said is None else said}; take another split, or '
        '--labels=none (data.labels in a config) for pictures without classes'
      )
    if self.names is not None:
      return int(said)
    return said if said is naming.ALL else rows.label_of(said, where)

  def _one_picture(self, types_of, features):
    found = [
      [name for name in types_of if features.get(name, {}).get('_type') == 'Image'],
      [name for name, kind in types_of.items() if _is_struct(kind)],
      [name for name, kind in types_of.items() if str(kind) in ('binary', 'large_binary')],
    ]
    for names in filter(None, found):
      known = [name for name in names if name.lower() in _PICTURES]
      chosen = names if len(names) == 1 else known
      if len(chosen) == 1:
        return chosen[0]
      raise types.UserError(
        f'{self._where}: each of the columns {", ".join(names)} may hold the pictures; keep '
        "one and call it 'image'"
      )
    raise types.UserError(
      f'{self._where} has the columns {", ".join(types_of)}, and none holds encoded pictures: '
      'expected bytes, or structs of bytes and path as the package datasets writes them'
    )

  def _label(self, types_of, features, labels):
    if labels in ('none', 'any'):
      return None
    if labels is not None:
      if labels not in types_of:
        raise types.UserError(
          f'--labels={labels}: {self._where} has the columns {", ".join(types_of)}'
        )
      return labels
    named = [name for name in types_of if features.get(name, {}).get('_type') == 'ClassLabel']
    if len(named) == 1:
      return named[0]
    may = [n for n, kind in types_of.items() if n.lower() in rows.LABELS or _is_label(kind)]
    return rows.only(rows.alike(named, 'label') or named or rows.alike(may, 'label'), self._where)


def _features(schema):
  """Features by column, as the package datasets describes them in the schema's metadata."""
  try:
    found = json.loads((schema.metadata or {})[b'huggingface'])['info']['features']
    return {name: kind for name, kind in found.items() if isinstance(kind, dict)}
  except (KeyError, ValueError, TypeError, AttributeError):
    return {}


def _is_label(kind):
  from pyarrow import types as arrow  # Here, as in `_open`.

  kind = kind.value_type if arrow.is_dictionary(kind) else kind
  return arrow.is_integer(kind) or arrow.is_string(kind) or arrow.is_large_string(kind)


def _is_struct(kind):
  return hasattr(kind, 'get_field_index') and kind.get_field_index('bytes') >= 0


def _open(file):
  from pyarrow import parquet  # Here: its import takes a tenth of a second.

  return parquet.ParquetFile(file)
