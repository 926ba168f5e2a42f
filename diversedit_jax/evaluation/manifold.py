"""Improved precision and recall (arXiv 1904.06991), in blocks that never make a whole matrix.

The radius of a point is its squared distance to its k-th nearest other point of the same set:
entry k of the sorted row that holds the zero distance to itself. Precision is the share of samples
within (<=) the radius of at least one reference point; recall the share of reference points within
the radius of at least one sample.

  d(u, v) = max(|u|^2 - 2 u.v + |v|^2, 0)                                              (1)

ADM's evaluator computes (1) in float16 in blocks of 10,000 x 10,000, and a block in float32 if one
of its values is not finite. `arithmetic='float16'` does the same; products are summed in float32
and then rounded, as a GPU does. Its values move by about 1e-3, so state which one was used.
"""

from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np

from diversedit_jax import trees
from diversedit_jax.evaluation import checks, placement
from diversedit_jax.types import UserError

ARITHMETIC = ('float32', 'float16')
BLOCK = 10_000
NEIGHBOURS = 3


class PrecisionRecall(NamedTuple):
  """Shares in [0, 1]."""

  precision: float
  recall: float


def precision_recall(
  reference_ND: np.ndarray,
  samples_MD: np.ndarray,
  *,
  k: int = NEIGHBOURS,
  arithmetic: str = 'float32',
  block: int = BLOCK,
  mesh: jax.sharding.Mesh | None = None,
) -> PrecisionRecall:
  """Improved precision and recall of samples.

  Args:
    reference_ND: features of reference images, ADM's protocol: 10,000 pool features.
    samples_MD: features of samples.
    k: neighbours.
    arithmetic: 'float32', or 'float16' for the arithmetic of ADM's evaluator.
    block: points of each side whose distances are held at once, block^2 * 4 bytes several times
      over. With 'float16' it decides what a value out of range costs; ADM's is 10,000.
    mesh: devices that share the rows of a block; None is one device. In a mesh of several
      processes every process gives the same features.

  Raises:
    UserError: for shapes that do not fit, k >= N or M, values that are not finite, or unknown
      arithmetic.
  """
  reference_ND, samples_MD = (np.asarray(x, np.float32) for x in (reference_ND, samples_MD))
  _check(reference_ND, samples_MD, k, arithmetic, block)
  half, origin_D = arithmetic == 'float16', _origin(reference_ND, arithmetic)
  radii_N = _radii(reference_ND, origin_D, k, half, block, mesh)
  radii_M = _radii(samples_MD, origin_D, k, half, block, mesh)
  reference_in, sample_in = np.zeros(len(radii_N), bool), np.zeros(len(radii_M), bool)
  compare = placement.jitted(_compare_half if half else _compare, mesh)
  for rows in _blocks(len(radii_N), block):
    u_ND = placement.put_rows(reference_ND[rows], mesh)
    # Rows that only fill the devices get a radius that contains nothing.
    radii = np.pad(radii_N[rows], (0, len(u_ND) - len(radii_N[rows])), constant_values=-1)
    for columns in _blocks(len(radii_M), block):
      rows_in, columns_in = compare(u_ND, samples_MD[columns], origin_D, radii, radii_M[columns])
      reference_in[rows] |= np.asarray(rows_in)[: len(radii_N[rows])]
      sample_in[columns] |= np.asarray(columns_in)
  return PrecisionRecall(float(sample_in.mean()), float(reference_in.mean()))


def _origin(reference_ND, arithmetic):
  """What is subtracted from all points before (1), block by block so that none is held twice.

  Nearer the origin (1) cancels less. Whole numbers, so that the shift itself rounds little.
  """
  if arithmetic == 'float16':  # ADM's has none.
    return np.zeros_like(reference_ND[0])
  return np.rint(reference_ND.mean(axis=0, dtype=np.float64)).astype(np.float32)


def _radii(x_ND, origin_D, k, half, block, mesh):
  found = np.empty(len(x_ND), np.float32)
  smallest = placement.jitted(_smallest_half if half else _smallest, mesh)
  for rows in _blocks(len(x_ND), block):
    u_ND = placement.put_rows(x_ND[rows], mesh)
    least = np.full((len(u_ND), k + 1), np.inf, np.float32)
    for columns in _blocks(len(x_ND), block):
      least = smallest(u_ND, x_ND[columns], origin_D, least)
    found[rows] = np.asarray(least)[: len(x_ND[rows]), k]
  return found


def _smallest(u_ND, v_MD, origin_D, least_NK):
  """The K smallest among those of before and the distances to v, ascending."""
  return _merge_smallest(_distances(u_ND - origin_D[None], v_MD - origin_D[None]), least_NK)


def _smallest_half(u_ND, v_MD, origin_D, least_NK):
  del origin_D
  return _merge_smallest(_half_distances(u_ND, v_MD), least_NK)


def _merge_smallest(d_NM, least_NK):
  k = least_NK.shape[1]
  new_NK = -jax.lax.top_k(-d_NM, min(k, d_NM.shape[1]))[0]
  return jnp.sort(jnp.concatenate([least_NK, new_NK], axis=1), axis=1)[:, :k]


def _compare(u_ND, v_MD, origin_D, radii_N, radii_M):
  """Which rows lie within a ball of the columns [N], and which columns in one of the rows [M]."""
  distances_NM = _distances(u_ND - origin_D[None], v_MD - origin_D[None])
  return _contained(distances_NM, radii_N, radii_M)


def _compare_half(u_ND, v_MD, origin_D, radii_N, radii_M):
  del origin_D
  return _contained(_half_distances(u_ND, v_MD), radii_N, radii_M)


def _contained(d_NM, radii_N, radii_M):
  return (d_NM <= radii_M[None]).any(axis=1), (d_NM <= radii_N[:, None]).any(axis=0)


def _distances(u_ND, v_MD):
  """Equation (1) in float32."""
  uv_NM = jnp.matmul(u_ND, v_MD.T, precision=jax.lax.Precision.HIGHEST)
  squares = lambda x: jnp.square(x).sum(axis=1)
  return jnp.maximum(squares(u_ND)[:, None] - 2 * uv_NM + squares(v_MD)[None], 0)


def _half_distances(u_ND, v_MD):
  """Equation (1) rounded to float16 after each operation; all in float32 if a value is lost."""
  u, v = _half(u_ND), _half(v_MD)
  uv_NM = _half(jnp.matmul(u, v.T, precision=jax.lax.Precision.HIGHEST))
  squares = lambda x: _half(_half(jnp.square(x)).sum(axis=1))
  gap_NM = _half(squares(u)[:, None] - _half(2 * uv_NM))
  d_NM = jnp.maximum(_half(gap_NM + squares(v)[None]), 0)
  return jax.lax.cond(jnp.isfinite(d_NM).all(), lambda: d_NM, lambda: _distances(u_ND, v_MD))


def _half(x):
  """Float32 rounded to the nearest float16, ties to even, kept in float32.

  Spelled out, because compilers may drop a pair of conversions and keep the excess precision.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  # 13 bits of the mantissa go. Adding just under half of them carries, or half if the next is odd.
  bits = (bits + 0xFFF + ((bits >> 13) & 1)) & jnp.uint32(0xFFFFE000)
  normal = jax.lax.bitcast_convert_type(bits, jnp.float32)
  # Below 2^-14 float16 has steps of 2^-24.
  small = jnp.round(x * 2.0**24) * 2.0**-24
  rounded = jnp.where(jnp.abs(x) < 2.0**-14, small, normal)
  lost = jnp.where(jnp.isnan(x), jnp.nan, jnp.copysign(jnp.inf, x))
  return jnp.where(jnp.abs(rounded) <= 65504, rounded, lost)


def _blocks(count, size):
  return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def _check(reference_ND, samples_MD, k, arithmetic, block):
  trees.check_known('arithmetic', arithmetic, ARITHMETIC)
  shapes = reference_ND.shape, samples_MD.shape
  if not len(shapes[0]) == len(shapes[1]) == 2 or shapes[0][1] != shapes[1][1]:
    raise UserError(f'precision and recall need features (N, D) and (M, D); got {shapes}')
  if not 1 <= k < min(shapes[0][0], shapes[1][0]):
    raise UserError(f'{k=} neighbours need more than {k} points of each kind; got {shapes}')
  if block < 1:
    raise UserError(f'{block=} must be at least 1')
  checks.check_finite('reference features', reference_ND)
  checks.check_finite('sample features', samples_MD)
