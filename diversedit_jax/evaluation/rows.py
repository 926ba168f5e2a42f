"""Rows of samples by global index, such as features or digests, held once."""

import os
import pathlib
from typing import Self

import jax
import numpy as np

from diversedit_jax.evaluation import placement
from diversedit_jax.types import UserError

_CHUNK = 1024  # Rows exchanged at once.


class Rows:
  """Rows of known number by global index, held once, in memory or in a file."""

  def __init__(
    self,
    count: int,
    shape: tuple[int, ...],
    dtype: np.typing.DTypeLike = np.float32,
    path: str | os.PathLike[str] | None = None,
  ):
    """Allocates [count, *shape]; with a path, a `.npy` file mapped into memory."""
    if path is None:
      self.values = np.zeros((count, *shape), dtype)
    else:
      pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
      self.values = np.lib.format.open_memmap(path, 'w+', dtype, (count, *shape))
    self.seen_N = np.zeros(count, bool)

  def add(self, rows: np.ndarray, indices_N: np.ndarray) -> None:
    """Writes rows to their places.

    Raises:
      UserError: for an index out of range or added before.
    """
    indices_N = np.asarray(indices_N)
    if len(indices_N) and not 0 <= indices_N.min() <= indices_N.max() < len(self.seen_N):
      raise UserError(f'sample index {indices_N.max()} is beyond the {len(self.seen_N)} samples')
    again = indices_N[self.seen_N[indices_N]]
    if again.size or len(np.unique(indices_N)) < len(indices_N):
      values, counts = np.unique(indices_N, return_counts=True)
      first = again[0] if again.size else values[counts > 1][0]
      raise UserError(f'sample {first} was added twice')
    self.values[indices_N] = rows
    self.seen_N[indices_N] = True

  def merge(self, other: Self) -> None:
    """Adds the rows of another."""
    indices_N = np.flatnonzero(other.seen_N)
    self.add(other.values[indices_N], indices_N)

  def across_processes(self) -> None:
    """Adds the rows of the other processes, some at a time; called by all of them."""
    mine = np.flatnonzero(self.seen_N)
    longest = int(placement.gather(np.int64(len(mine))).max())
    for begin in range(0, longest, _CHUNK):
      part = mine[begin : begin + _CHUNK]
      indices = np.full(_CHUNK, -1)
      indices[: len(part)] = part
      rows = np.zeros((_CHUNK, *self.values.shape[1:]), self.values.dtype)
      rows[: len(part)] = self.values[part]
      gathered = zip(placement.gather(indices), placement.gather(rows), strict=True)
      for process, (places, values) in enumerate(gathered):
        if process != jax.process_index():
          self.add(values[places >= 0], places[places >= 0])
