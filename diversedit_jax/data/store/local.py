"""Records of a store on a disk, read by ArrayRecord, which checks the checksum of each."""

from collections.abc import Sequence
import errno
import functools
import os
import pathlib

import numpy as np

from diversedit_jax import types
from diversedit_jax.data.store import layout

# No reading ahead and no threads: the examples of a batch lie far apart in a file.
_OPTIONS = 'readahead_buffer_size:16384,max_parallelism:0'


class BadRecord(types.UserError):
  """A record that is not what was written. reason: its file, number and fault; way: on."""

  def __init__(self, reason: str, way: str):
    super().__init__(f'{reason}; {way}')
    self.reason, self.way = reason, way


class Records:
  """Opens the files of some columns. Several threads may read, and it can be pickled."""

  def __init__(
    self,
    root: pathlib.Path,
    manifest: layout.Manifest,
    columns: Sequence[str],
    *,
    is_copy: bool = False,
  ):
    """Opens every file of the columns.

    is_copy: whether they are copies, which the next start makes anew where they are missing.

    Raises:
      UserError: a file is missing, damaged or foreign; it is named.
    """
    self.root, self._manifest, self._is_copy = root, manifest, is_copy
    for column in columns:
      for shard in range(manifest.plan.shards):
        self._check(column, shard)

  def __getstate__(self):
    return {name: value for name, value in self.__dict__.items() if name != '_readers'}

  def read(self, column: str, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The bytes, uint8 [n, size], of records `rows` of the files of `shards`.

    Raises:
      BadRecord: a record is damaged; it and its file are named.
      UserError: a file cannot be opened; it is named.
    """
    size = self._manifest.plan.columns[column].record_bytes
    out = np.empty((len(rows), size), np.uint8)
    # Sorted by shard and by position in the shard, so that the disk is read in one direction.
    order = np.lexsort((rows, shards))
    places = zip(order.tolist(), shards[order].tolist(), rows[order].tolist(), strict=True)
    way = f'`python -m diversedit_jax.prepare --verify --output={self.root}` checks the whole store'
    way = 'remove it, and the next start copies it again' if self._is_copy else way
    bad = lambda what: BadRecord(
      f'{layout.shard_file(self.root, column, shard)} cannot be read: record {row} {what}', way
    )
    try:
      for place, shard, row in places:
        # Ranges of one: a list of rows takes ArrayRecord three times as long (benchmarks/data.py).
        record = self._reader(column, shard).read(row, row + 1)[0]
        if len(record) != size:
          raise bad(f'has {len(record)} bytes, expected {size}')
        out[place] = np.frombuffer(record, np.uint8)
    except (RuntimeError, IndexError) as error:
      raise bad(f'is damaged: {error}') from error
    return out

  def _reader(self, column, shard):
    if (column, shard) not in self._readers:
      # Imported where it is used: a machine that opens no store does not need it.
      from array_record.python import array_record_module

      path = layout.shard_file(self.root, column, shard)
      self._check_opens(path)
      self._readers[column, shard] = array_record_module.ArrayRecordReader(str(path), _OPTIONS)
    return self._readers[column, shard]

  @functools.cached_property
  def _readers(self):
    return {}

  @staticmethod
  def _check_opens(path):
    """Refuses a file that cannot be opened, which ArrayRecord would report as damaged."""
    try:
      os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
      advice = {
        errno.ENOENT: '; prepare again with the same arguments to make what is missing',
        errno.EMFILE: '; the store keeps all its files open, raise the limit by `ulimit -n`',
      }.get(error.errno, '')
      raise types.UserError(f'{path} cannot be read: {error.strerror}{advice}') from error

  def _check(self, column, shard):
    path = layout.shard_file(self.root, column, shard)
    twins = self._manifest.plan.columns[column].twins
    expected = self._manifest.counts[shard] * (2 if twins else 1)
    if expected == 0:
      return
    reader = self._reader(column, shard)
    if not reader.ok() or reader.num_records() != expected:
      found = f'{reader.num_records()} records' if reader.ok() else 'a damaged file'
      way = "remove it and the store's manifest.json and prepare again with the same arguments to "
      way = (
        'remove it, and the next start copies it again'
        if self._is_copy
        else f'{way}make what is missing'
      )
      raise types.UserError(f'{path}: found {found}, expected {expected} records; {way}')
