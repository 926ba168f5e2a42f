"""CMMD, the kernel distance of CLIP's features (arXiv 2401.09603), the biased estimate.

  k(x, y) = exp(-|x - y|^2 / (2 sigma^2)),   sigma = 10                               (1)
  CMMD = 1000 (mean k(x_i, x_j) + mean k(y_i, y_j) - 2 mean k(x_i, y_j))              (2)

The means are over all pairs, those of a point with itself included, as in google-research/cmmd. For
features of length one k is within 0.02 of one, and of the means nearly all cancels: so k - 1 is
summed, in float32 over rows of blocks and in float64 over rows. No more than a block of pairs is
held.
"""

import functools

import jax
from jax import numpy as jnp
import numpy as np

from diversedit_jax.evaluation import checks, placement
from diversedit_jax.types import UserError

SIGMA, SCALE = 10.0, 1000.0
_ROWS, _COLUMNS = 2048, 4096  # Sides of a block of kernel values.


def cmmd(x_ND: np.ndarray, y_MD: np.ndarray, *, mesh: jax.sharding.Mesh | None = None) -> float:
  """The distance (2), in thousandths.

  Args:
    x_ND: features of samples.
    y_MD: features of reference pictures.
    mesh: devices that share the work; None is one device. In a mesh of several processes every
      process gives the same features.

  Raises:
    UserError: shapes that do not fit, or values that are not finite.
  """
  x_ND, y_MD = np.asarray(x_ND, np.float32), np.asarray(y_MD, np.float32)
  shapes = x_ND.shape, y_MD.shape
  if not len(shapes[0]) == len(shapes[1]) == 2 or shapes[0][1] != shapes[1][1]:
    raise UserError(f'CMMD needs features (N, D) and (M, D); got {shapes}')
  if not len(x_ND) or not len(y_MD):
    raise UserError(f'CMMD needs at least one point of each kind; got {shapes}')
  checks.check_finite('sample features', x_ND)
  checks.check_finite('reference features', y_MD)
  mean = functools.partial(_mean, mesh=mesh)
  return SCALE * (mean(x_ND, x_ND) + mean(y_MD, y_MD) - 2 * mean(x_ND, y_MD))


def _mean(x_ND, y_MD, mesh) -> float:
  """Mean of k - 1 over all pairs."""
  columns = min(_COLUMNS, len(y_MD))
  padded_MD = np.pad(y_MD, ((0, -len(y_MD) % columns), (0, 0)))
  y_BCD = jnp.asarray(padded_MD.reshape(-1, columns, y_MD.shape[1]))
  counted_BC = jnp.asarray((np.arange(len(padded_MD)) < len(y_MD)).reshape(-1, columns))
  sums, total = placement.jitted(_row_sums, mesh), 0.0
  for begin in range(0, len(x_ND), _ROWS):
    rows = x_ND[begin : begin + _ROWS]
    found_N = sums(placement.put_rows(rows, mesh), y_BCD, counted_BC)
    total += np.asarray(found_N, np.float64)[: len(rows)].sum()
  return total / (len(x_ND) * len(y_MD))


def _row_sums(x_ND, y_BCD, counted_BC):
  squares_N = jnp.sum(x_ND**2, axis=1)

  def block(_, its):
    y_CD, counted_C = its
    products_NC = jnp.matmul(x_ND, y_CD.T, precision=jax.lax.Precision.HIGHEST)
    squared_NC = squares_N[:, None] + jnp.sum(y_CD**2, axis=1)[None] - 2 * products_NC
    return None, jnp.where(counted_C[None], jnp.expm1(-squared_NC / (2 * SIGMA**2)), 0).sum(axis=1)

  _, sums_BN = jax.lax.scan(block, None, (y_BCD, counted_BC))
  return sums_BN.sum(axis=0)
