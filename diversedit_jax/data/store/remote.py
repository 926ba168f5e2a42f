"""Records of a store in a bucket, read by ranges of bytes: those that are asked for alone."""

from collections.abc import Iterator

import numpy as np

from diversedit_jax import types
from diversedit_jax.data.store import layout, local, places, ranges

_WAY = (
  'copy the store there once more from where it was made, as by `gcloud storage cp -r` or '
  '`aws s3 cp --recursive`'
)
_RUN = 8 * 2**20  # Bytes of neighbouring records that one request asks for.


class Records:
  """As `local.Records`, of a store in a bucket; the checksum of each record is checked."""

  def __init__(self, root: places.Place, plan: layout.Plan):
    self.root, self._plan = root, plan

  def read(self, column: str, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The bytes, uint8 [n, size], of records `rows` of the files of `shards`.

    A record whose checksum is wrong is read once more.

    Raises:
      local.BadRecord: a record is damaged; it and its file are named.
      UserError: a file cannot be read; it is named.
    """
    size = self._plan.columns[column].record_bytes
    found = self._chunks(column, shards, rows, size)
    again = np.flatnonzero(~ranges.sound(found, size))
    if again.size:
      found[again] = self._chunks(column, shards[again], rows[again], size)
      bad = again[~ranges.sound(found[again], size)]
      if bad.size:
        what = f'record {rows[bad[0]]} is damaged'
        raise local.BadRecord(self._reason(column, shards[bad[0]], what), _WAY)
    return ranges.records(found, size)

  def _chunks(self, column, shards, rows, size):
    """Chunks of records, not checked. All requests are under way at once."""
    order = np.lexsort((rows, shards))
    most = max(1, _RUN // size)
    runs = []
    for run in _runs(shards[order], rows[order], most):
      shard, first = (int(x[order[run.start]]) for x in (shards, rows))
      file = layout.shard_file(self.root, column, shard)
      reading = file.read(*ranges.span(size, first, len(run)))
      runs.append((order[run.start : run.stop], shard, first, reading))
    out = None
    for positions, shard, first, reading in runs:
      try:
        chunks = ranges.chunks(reading.result(), size, first, len(positions))
      except types.UserError:
        raise  # The bucket, not the file, cannot be read; it says so.
      except (ValueError, FileNotFoundError) as error:
        reason = self._reason(column, shard, getattr(error, 'strerror', None) or error)
        raise types.UserError(f'{reason}; {_WAY}') from error
      if out is None:
        out = np.empty((len(rows), chunks.shape[1]), np.uint8)
      out[positions] = chunks
    return np.empty((0, size), np.uint8) if out is None else out

  def _reason(self, column, shard, what):
    return f'{layout.shard_file(self.root, column, shard)} cannot be read: {what}'


def _runs(shards: np.ndarray, rows: np.ndarray, most: int) -> Iterator[range]:
  """Positions of neighbours in sorted records, at most `most` at a time."""
  breaks = np.flatnonzero((np.diff(shards) != 0) | (np.diff(rows) != 1)) + 1
  bounds = [0, *breaks.tolist(), len(rows)]
  for begin, end in zip(bounds, bounds[1:], strict=False):
    for start in range(begin, end, most):
      yield range(start, min(start + most, end))
