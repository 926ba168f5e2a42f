"""A finished store, opened for random access in batches."""

import errno
import functools
import os
import pathlib

import numpy as np

from diversedit_jax import types
from diversedit_jax.data.store import layout

# No reading ahead and no threads: the examples of a batch lie far apart in a file.
_OPTIONS = 'readahead_buffer_size:16384,max_parallelism:0'


class Store:
  """The examples of a store by index, in the order of their keys.

  The checksum of every record is checked when it is read. Several threads may read, and a store can
  be pickled for other processes.

  manifest: manifest of the store.
  labels: labels of all examples, int32 [n].
  """

  def __init__(self, root: str | pathlib.Path):
    """Opens every shard of a finished store.

    Raises:
      UserError: there is no store, it is unfinished, or a file is missing, damaged or foreign; the
        file is named.
    """
    self.root = pathlib.Path(root)
    self.manifest = layout.read_manifest(self.root)
    self._first = np.concatenate([[0], np.cumsum(self.manifest.counts)])
    self.labels = self._read_labels()
    for column in self.manifest.plan.columns:
      for shard in range(self.manifest.plan.shards):
        self._check(column, shard)

  def __len__(self) -> int:
    return self.manifest.count

  def __getstate__(self):
    return {name: value for name, value in self.__dict__.items() if name != '_readers'}

  def read(
    self, column: layout.Column, indices: np.ndarray, flips: np.ndarray | None = None
  ) -> np.ndarray:
    """Records [n, *shape] of a column in the dtype of the store, or their twins where `flips` [n].

    Raises:
      UserError: a shard cannot be read; its file is named.
    """
    facts = self.manifest.plan.columns[column]
    size = facts.record_bytes
    shards = np.searchsorted(self._first, indices, side='right') - 1
    rows = indices - self._first[shards]
    if facts.twins:
      rows = 2 * rows + (0 if flips is None else flips)
    out = np.empty((len(indices), size), np.uint8)
    # Sorted by shard and by position in the shard, so that the disk is read in one direction.
    order = np.lexsort((rows, shards))
    places = zip(order.tolist(), shards[order].tolist(), rows[order].tolist(), strict=True)
    try:
      for place, shard, row in places:
        # Ranges of one: a list of rows takes ArrayRecord three times as long (benchmarks/data.py).
        record = self._reader(column, shard).read(row, row + 1)[0]
        if len(record) != size:
          raise types.UserError(
            f'{layout.shard_file(self.root, column, shard)}: a record has {len(record)} bytes, '
            f'expected {size}'
          )
        out[place] = np.frombuffer(record, np.uint8)
    except (RuntimeError, IndexError) as error:
      raise types.UserError(
        f'{layout.shard_file(self.root, column, shard)} cannot be read: {error}; '
        f'`python -m diversedit_jax.prepare --verify --output={self.root}` checks the whole store'
      ) from error
    dtype = np.dtype(facts.dtype).newbyteorder('<')
    return out.view(dtype).astype(facts.dtype, copy=False).reshape(-1, *facts.shape)

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
    twins = self.manifest.plan.columns[column].twins
    expected = self.manifest.counts[shard] * (2 if twins else 1)
    if expected == 0:
      return
    reader = self._reader(column, shard)
    if not reader.ok() or reader.num_records() != expected:
      found = f'{reader.num_records()} records' if reader.ok() else 'a damaged file'
      raise types.UserError(
        f"{path}: found {found}, expected {expected} records; remove it and the store's "
        'manifest.json and prepare again with the same arguments to make what is missing'
      )

  def _read_labels(self):
    path, expected = self.root / 'labels.npy', self.manifest.labels
    found = layout.digest(path)
    if found != expected:
      raise types.UserError(
        f'{path}: found SHA-256 {found[:16]}..., the manifest says {expected[:16]}...; remove '
        'manifest.json and prepare again with the same arguments to make the labels again'
      )
    return np.load(path, allow_pickle=False).astype(np.int32, copy=False)
