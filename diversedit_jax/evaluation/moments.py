"""Mean and covariance of features that arrive in batches and are not kept."""

from typing import Self

import jax
from jax import numpy as jnp
import numpy as np

from diversedit_jax.evaluation import checks, placement
from diversedit_jax.types import UserError

CHUNK = 1024
"""Rows summed in float32 before float64 takes over."""

EXACT_ROWS = 4
"""Rows per feature that are summed in float64 from the start."""


class Moments:
  """Count, mean and scatter sum (x - mean)(x - mean)' of features [N, D] that are not kept.

  The host sums the first 4 D rows in float64. Devices sum the rest, up to 1024 rows at a time, in
  float32 relative to the mean so far, so that a large common offset cancels before it can round.
  (A covariance of few samples has directions without variance, and the root of a float32 rounding
  error there is 1e-4: the Fréchet distance would show it. With 4 D samples there are none.) Sums
  are joined in float64 (Chan et al.):

    scatter = A + B + (b - a)(b - a)' n_a n_b / (n_a + n_b),  a, b the means of the two parts  (1)
  """

  def __init__(self, mesh: jax.sharding.Mesh | None = None):
    """With a mesh, batches are split over it and the sums of all its devices are taken."""
    self._mesh = mesh
    self._count, self._mean, self._scatter = 0, None, None
    self._shift, self._partial, self._partial_rows = None, None, 0

  @property
  def count(self) -> int:
    return self._count + self._partial_rows

  def add(
    self,
    x_ND: np.ndarray | jax.Array,
    mask_N: np.ndarray | None = None,
    indices_N: np.ndarray | None = None,
  ) -> None:
    """Adds the rows where the mask is true.

    Args:
      x_ND: features, used as float32. A numpy array in a mesh of several processes is the whole
        batch, the same on each; a jax.Array may be split over the mesh in any way.
      mask_N: which rows count; None means all. The others may hold anything.
      indices_N: global indices of the rows, for messages.

    Raises:
      UserError: for another shape or width than before, or values that are not finite.
    """
    if np.ndim(x_ND) != 2 or (self._mean is not None and x_ND.shape[1] != len(self._mean)):
      width = 'D' if self._mean is None else len(self._mean)
      raise UserError(f'features have shape {np.shape(x_ND)}, expected (N, {width})')
    mask_N = np.ones(len(x_ND), bool) if mask_N is None else np.asarray(mask_N, bool)
    indices_N = np.arange(len(x_ND)) if indices_N is None else np.asarray(indices_N)
    if len(x_ND) <= CHUNK:
      self._add_chunk(x_ND, mask_N, indices_N)
      return
    for begin in range(0, len(x_ND), CHUNK):
      part = slice(begin, begin + CHUNK)
      self._add_chunk(x_ND[part], mask_N[part], indices_N[part])

  def _add_chunk(self, x_ND, mask_N, indices_N):
    rows = int(np.count_nonzero(mask_N))
    if self.count < EXACT_ROWS * x_ND.shape[1]:
      x_MD = placement.to_host(x_ND, self._mesh)[mask_N]
      checks.check_finite('features', x_MD, indices_N[mask_N])
      if rows:
        x_MD = x_MD.astype(np.float64)
        mean_D = x_MD.mean(axis=0)
        x_MD -= mean_D[None]
        self._join(rows, mean_D, x_MD.T @ x_MD)
      return
    if not isinstance(x_ND, jax.Array):
      x_ND = placement.put_rows(np.asarray(x_ND, np.float32), self._mesh)
      mask_N = np.pad(mask_N, (0, len(x_ND) - len(mask_N)))
    if self._partial_rows + rows > CHUNK:
      self._flush()
    if self._partial is None:
      d = x_ND.shape[1]
      self._shift = self._mean.astype(np.float32)
      self._partial = jnp.zeros((d,), jnp.float32), jnp.zeros((d, d), jnp.float32)
    add = placement.jitted(_add, self._mesh, donate=(0,))
    self._partial, bad_N = add(self._partial, x_ND, mask_N, self._shift)
    self._partial_rows += rows
    bad = np.flatnonzero(np.asarray(bad_N))
    if bad.size:
      checks.refuse_not_finite('features', bad.size, indices_N[bad[0]])

  def _flush(self):
    if self._partial_rows:
      n = self._partial_rows
      sum_D, products_DD = (np.asarray(x, np.float64) for x in self._partial)
      scatter = products_DD - np.outer(sum_D, sum_D / n)
      self._partial, self._partial_rows = None, 0
      self._join(n, self._shift + sum_D / n, scatter)

  def _join(self, count, mean_D, scatter_DD):
    """Equation (1)."""
    if not self._count:
      self._count, self._mean, self._scatter = count, mean_D, scatter_DD
      return
    total = self._count + count
    gap = mean_D - self._mean
    self._scatter += scatter_DD + np.outer(gap, gap * (self._count * count / total))
    self._mean = self._mean + gap * (count / total)
    self._count = total

  def merge(self, other: Self) -> None:
    """Adds what another has seen, which is left as it is apart from rounding."""
    other._flush()
    self._flush()
    if other._count:
      if self._count and len(self._mean) != len(other._mean):
        raise UserError(f'cannot merge features of widths {len(self._mean)}, {len(other._mean)}')
      self._join(other._count, other._mean, other._scatter.copy())

  def across_processes(self) -> None:
    """Adds what the other processes have seen; called by all of them.

    Does nothing on a mesh of several processes, whose sums are those of all already.
    """
    self._flush()
    if placement.spans_processes(self._mesh) or jax.process_count() == 1:
      return
    d = int(placement.gather(np.int64(0 if self._mean is None else len(self._mean))).max())
    if not d:
      return
    mean = np.zeros(d) if self._mean is None else self._mean
    scatter = np.zeros((d, d)) if self._mean is None else self._scatter
    counts, means = placement.gather(np.int64(self._count)), placement.gather(mean)
    total = counts @ means / counts.sum()
    # By blocks of rows, so that no process holds one matrix per process.
    for begin in range(0, d, 256):
      part = slice(begin, begin + 256)
      scatter[part] = placement.gather(scatter[part]).sum(axis=0)
    gaps = means - total[None]
    self._scatter = scatter + gaps.T @ (gaps * counts[:, None])
    self._count, self._mean = int(counts.sum()), total

  def statistics(self) -> tuple[int, np.ndarray, np.ndarray]:
    """Count, mean [D] and covariance [D, D] (divisor N - 1), float64.

    Raises:
      UserError: for fewer than two rows.
    """
    self._flush()
    if self._count < 2:
      raise UserError(f'a covariance needs at least 2 samples; got {self._count}')
    return self._count, self._mean, self._scatter / (self._count - 1)


def _add(totals, x_ND, mask_N, shift_D):
  """Sums and products of the counted rows relative to the shift, on top of the totals.

  Also returns which of the counted rows are not finite.
  """
  x_ND = jnp.where(mask_N[:, None], x_ND.astype(jnp.float32) - shift_D[None], 0)
  products_DD = jnp.matmul(x_ND.T, x_ND, precision=jax.lax.Precision.HIGHEST)
  return (totals[0] + x_ND.sum(axis=0), totals[1] + products_DD), ~jnp.isfinite(x_ND).all(axis=1)
