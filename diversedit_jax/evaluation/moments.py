"""Mean and covariance of features that arrive in batches and are not kept."""

from typing import Self

import jax
import numpy as np

from diversedit_jax.evaluation import checks, placement
from diversedit_jax.types import UserError

_ROWS = 256  # Of a matrix D x D that are made at once, so that no second one is held.
CHUNK = 1024
"""Rows gathered before they are summed: one product of matrices instead of many thin ones."""


class Moments:
  """Count, mean and scatter sum (x - mean)(x - mean)' of features [N, D], in float64 on the host.

  Each chunk of 1024 rows is centred at its own mean, so that a large common offset cancels, and
  joined to the sums before it (Chan et al.):

    scatter = A + B + (b - a)(b - a)' n_a n_b / (n_a + n_b),  a, b the means of the two parts  (1)

  Why not float32 on the device: its rounding moves distances of 1% of the variance by 1e-6 with
  many samples, and by 1e-5 where there are fewer samples than dimensions, since the root of an
  error in an empty direction is large. In float64, 1024 rows of width 2048 take 0.15 s of a core.
  Chunks do not depend on the batches, so neither does the result, to the last bit.
  """

  def __init__(self):
    self._count, self._mean, self._scatter = 0, None, None
    self._chunk, self._waiting = None, 0

  @property
  def count(self) -> int:
    return self._count + self._waiting

  def add(
    self,
    x_ND: np.ndarray | jax.Array,
    mask_N: np.ndarray | None = None,
    indices_N: np.ndarray | None = None,
  ) -> None:
    """Adds the rows where the mask is true.

    Args:
      x_ND: features. A numpy array holds rows of this process; of a jax.Array that is split over
        the devices of several processes, each takes its part, as `placement.own_rows` does.
      mask_N: which rows count; None means all. The others may hold anything.
      indices_N: global indices of the rows, for messages.

    Raises:
      UserError: for another shape or width than before, or values that are not finite.
    """
    if np.ndim(x_ND) != 2 or (self._chunk is not None and x_ND.shape[1] != self._chunk.shape[1]):
      width = 'D' if self._chunk is None else self._chunk.shape[1]
      raise UserError(f'features have shape {np.shape(x_ND)}, expected (N, {width})')
    x_MD, places_M = placement.own_rows(x_ND, mask_N)
    checks.check_finite('features', x_MD, places_M if indices_N is None else indices_N[places_M])
    if self._chunk is None:
      self._chunk = np.empty((CHUNK, x_MD.shape[1]))
    while len(x_MD):
      taken = x_MD[: len(self._chunk) - self._waiting]
      self._chunk[self._waiting : self._waiting + len(taken)] = taken
      self._waiting += len(taken)
      x_MD = x_MD[len(taken) :]
      if self._waiting == len(self._chunk):
        self._flush()

  def _flush(self):
    if self._waiting:
      x_MD = self._chunk[: self._waiting]
      mean_D = x_MD.mean(axis=0)
      x_MD -= mean_D[None]
      count, self._waiting = self._waiting, 0
      self._join(count, mean_D, x_MD.T @ x_MD)

  def _join(self, count, mean_D, scatter_DD):
    """Equation (1); takes the arrays over."""
    if not self._count:
      self._count, self._mean, self._scatter = count, mean_D, scatter_DD
      return
    total = self._count + count
    gap_D = mean_D - self._mean
    self._scatter += scatter_DD
    for begin in range(0, len(gap_D), _ROWS):  # The outer product whole is another matrix.
      rows = slice(begin, begin + _ROWS)
      self._scatter[rows] += np.outer(gap_D[rows], gap_D * (self._count * count / total))
    self._mean = self._mean + gap_D * (count / total)
    self._count = total

  def merge(self, other: Self) -> None:
    """Adds what another has seen, which is left as it is.

    Raises:
      UserError: if the two have features of different widths.
    """
    self._flush()
    other._flush()
    if other._count:
      if self._count and len(self._mean) != len(other._mean):
        raise UserError(f'cannot merge features of widths {len(self._mean)}, {len(other._mean)}')
      self._join(other._count, other._mean, other._scatter.copy())

  def across_processes(self) -> None:
    """Adds what the other processes have seen; called by all of them, once."""
    self._flush()
    d = int(placement.gather(np.int64(0 if self._mean is None else len(self._mean))).max())
    if jax.process_count() == 1 or not d:
      return
    mean_D = np.zeros(d) if self._mean is None else self._mean
    scatter_DD = np.zeros((d, d)) if self._mean is None else self._scatter
    counts_P, means_PD = placement.gather(np.int64(self._count)), placement.gather(mean_D)
    total_D = counts_P @ means_PD / counts_P.sum()
    # By blocks of rows, so that no process holds one matrix per process.
    for begin in range(0, d, _ROWS):
      part = slice(begin, begin + _ROWS)
      scatter_DD[part] = placement.gather(scatter_DD[part]).sum(axis=0)
    gaps_PD = means_PD - total_D[None]
    self._scatter = scatter_DD + gaps_PD.T @ (gaps_PD * counts_P[:, None])
    self._count, self._mean = int(counts_P.sum()), total_D

  def statistics(self) -> tuple[int, np.ndarray, np.ndarray]:
    """Count, mean [D] and covariance [D, D] (divisor N - 1), float64.

    Raises:
      UserError: for fewer than two rows.
    """
    self._flush()
    if self._count < 2:
      raise UserError(f'a covariance needs at least 2 samples; got {self._count}')
    return self._count, self._mean.copy(), self._scatter / (self._count - 1)
