"""Kernel distance of features, called KID on Inception features (arXiv 1801.01401), unbiased.

  k(x, y) = (x.y / D + 1)^3                                                            (1)
  MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j)   (2)

Adding a constant to k leaves (2) as it is. So the kernel of the two means is subtracted first, and
the float32 sums of large values that cancel in (2) lose nothing.
"""

from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np

from diversedit_jax.evaluation import checks, placement
from diversedit_jax.types import UserError


class KernelDistance(NamedTuple):
  """Mean of (2) over the subsets, and its standard deviation over them (divisor: subsets)."""

  mean: float
  std: float


def kernel_distance(
  x_ND: np.ndarray,
  y_MD: np.ndarray,
  *,
  subsets: int = 100,
  size: int = 1000,
  seed: int = 0,
  mesh: jax.sharding.Mesh | None = None,
) -> KernelDistance:
  """Unbiased kernel distance, averaged over random subsets.

  Args:
    x_ND: features of samples.
    y_MD: features of reference images.
    subsets: number of pairs of subsets.
    size: points of each subset, drawn without replacement.
    seed: seed of the draws.
    mesh: devices that share the work; None is one device. In a mesh of several processes every
      process gives the same features.

  Raises:
    UserError: shapes that do not fit, subsets larger than the sets, or values that are not finite.
  """
  x_ND, y_MD, offset = _checked(x_ND, y_MD)
  if not 2 <= size <= min(len(x_ND), len(y_MD)) or subsets < 1:
    raise UserError(
      f'{subsets} subsets of {size} points need at least one subset, of 2 points or more, from '
      f'sets as large; got sets of {len(x_ND)} and {len(y_MD)}'
    )
  draw, found = np.random.default_rng(seed), []
  for _ in range(subsets):
    x = x_ND[draw.choice(len(x_ND), size, replace=False)]
    y = y_MD[draw.choice(len(y_MD), size, replace=False)]
    found.append(_mmd(x, y, offset, mesh))
  return KernelDistance(float(np.mean(found)), float(np.std(found)))


def _mmd(x_ND, y_MD, offset, mesh):
  n, m = len(x_ND), len(y_MD)
  xx = _sum(x_ND, x_ND, offset, mesh, same=True) / (n * (n - 1))
  yy = _sum(y_MD, y_MD, offset, mesh, same=True) / (m * (m - 1))
  return xx + yy - 2 * _sum(x_ND, y_MD, offset, mesh, same=False) / (n * m)


def _sum(x_ND, y_MD, offset, mesh, same):
  """Sum of k - offset over all pairs, without those of a point with itself."""
  x = placement.put_rows(x_ND, mesh)
  # The column of each row that is the same point; -1 is none.
  own_N = np.arange(len(x)) if same else np.full(len(x), -1)
  sums_N = placement.jitted(_row_sums, mesh)(x, y_MD, np.float32(offset), own_N.astype(np.int32))
  return np.asarray(sums_N, np.float64)[: len(x_ND)].sum()


def _row_sums(x_ND, y_MD, offset, own_N):
  products_NM = jnp.matmul(x_ND, y_MD.T, precision=jax.lax.Precision.HIGHEST)
  k_NM = (products_NM / x_ND.shape[1] + 1) ** 3 - offset
  return jnp.where(jnp.arange(len(y_MD))[None] == own_N[:, None], 0, k_NM).sum(axis=1)


def _checked(x_ND, y_MD):
  x_ND, y_MD = np.asarray(x_ND, np.float32), np.asarray(y_MD, np.float32)
  shapes = x_ND.shape, y_MD.shape
  if not len(shapes[0]) == len(shapes[1]) == 2 or shapes[0][1] != shapes[1][1]:
    raise UserError(f'a kernel distance needs features (N, D) and (M, D); got {shapes}')
  if min(shapes[0][0], shapes[1][0]) < 2:
    raise UserError(f'a kernel distance needs at least 2 points of each kind; got {shapes}')
  checks.check_finite('sample features', x_ND)
  checks.check_finite('reference features', y_MD)
  means = x_ND.mean(axis=0, dtype=np.float64), y_MD.mean(axis=0, dtype=np.float64)
  return x_ND, y_MD, (means[0] @ means[1] / shapes[0][1] + 1) ** 3
