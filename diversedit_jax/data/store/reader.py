"""A finished store, opened for random access in batches."""

from collections.abc import Sequence
import io
import pathlib

import numpy as np

from diversedit_jax import types
from diversedit_jax.data.store import copying, layout, local, places, remote


class Store:
  """The examples of a store by index, in the order of their keys.

  The checksum of every record is checked when it is read. Several threads may read, and a store can
  be pickled for other processes.

  root: folder of the store.
  manifest: manifest of the store.
  labels: labels of all examples, int32 [n].
  """

  def __init__(self, root: str | pathlib.Path):
    """Opens a finished store; if it is on a disk, every file of it.

    root: its folder, or a URL of one in a bucket.

    Raises:
      UserError: there is no store, it is unfinished, or a file is missing, damaged or foreign; the
        file is named.
    """
    self.root = places.root(root)
    self.manifest = layout.read_manifest(self.root)
    self._first = np.concatenate([[0], np.cumsum(self.manifest.counts)])
    self.labels = self._read_labels()
    if isinstance(self.root, places.Place):
      self._records = remote.Records(self.root, self.manifest.plan)
    else:
      self._records = local.Records(self.root, self.manifest, tuple(self.manifest.plan.columns))

  def __len__(self) -> int:
    return self.manifest.count

  def fetch(self, cache: pathlib.Path, columns: Sequence[layout.Column]) -> None:
    """Copies columns to a disk of this host, and reads records there from now on.

    Raises:
      UserError: see `copying.copy`.
    """
    copy = copying.copy(self.root, self.manifest, columns, cache)
    self._records = None  # Its files are closed first: a process may not open many.
    self._records = local.Records(copy, self.manifest, columns, is_copy=True)

  def key(self, index: int) -> str:
    """The key of an example."""
    shard = int(np.searchsorted(self._first, index, side='right')) - 1
    return layout.read_facts(self.root, shard).keys[index - int(self._first[shard])]

  def read(
    self, column: layout.Column, indices: np.ndarray, flips: np.ndarray | None = None
  ) -> np.ndarray:
    """Records [n, *shape] of a column in the dtype of the store, or their twins where `flips` [n].

    Raises:
      UserError: a shard cannot be read; its file is named.
    """
    facts = self.manifest.plan.columns[column]
    shards = np.searchsorted(self._first, indices, side='right') - 1
    rows = indices - self._first[shards]
    if facts.twins:
      rows = 2 * rows + (0 if flips is None else flips)
    found = np.ascontiguousarray(self._records.read(column, shards, rows))
    dtype = np.dtype(facts.dtype).newbyteorder('<')
    return found.view(dtype).astype(facts.dtype, copy=False).reshape(-1, *facts.shape)

  def _read_labels(self):
    path, expected = self.root / 'labels.npy', self.manifest.labels
    found = layout.digest(path)
    if found != expected:
      raise types.UserError(
        f'{path}: found SHA-256 {found[:16]}..., the manifest says {expected[:16]}...; remove '
        'manifest.json and prepare again with the same arguments to make the labels again'
      )
    labels = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    return labels.astype(np.int32, copy=False)
