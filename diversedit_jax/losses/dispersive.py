"""Dispersive Loss (arXiv 2506.09027): spreads the features of a batch, without positives.

z_i are the features of example i, flattened to n = T D numbers; means run over all pairs (i, j) of
a group of B examples, the diagonal i = j included.

  infonce_l2       log mean_ij exp(-D_ij / tau)      D_ij = |z_i - z_j|^2 / n
  infonce_cosine   log mean_ij exp(-D_ij / tau)      D_ij = -cos(z_i, z_j)
  hinge            mean_ij max(0, margin - D_ij)^2   D_ij = |z_i - z_j|^2 / n
  covariance       sum_{k != l} Cov_kl^2             Cov over the group of z_i / |z_i|, ddof 1

The released code has only infonce_l2, with tau = 1, divides by n, and includes the diagonal, whose
D_ii = 0 bounds the loss below by -log B. The paper gives the other kinds in a line each: it leaves
the margin of the hinge open, and whether the diagonal counts. Here it counts everywhere, so that
the hinge has a constant margin^2 / B. The normalisation and diagonal of the covariance follow
third-party code.

A vector shorter than 1e-12 counts as zero: its cosines are 0 and it receives no gradient from the
kinds that normalise. Everything is computed in float32 or better.
"""

import jax
import jax.numpy as jnp

from diversedit_jax import types
from diversedit_jax.losses import diversity

KINDS = ('infonce_l2', 'infonce_cosine', 'hinge', 'covariance')


def dispersive_loss(
  f_NTD: jax.Array,
  *,
  kind: str = 'infonce_l2',
  temperature: float = 0.5,
  margin: float = 1.0,
  groups: int = 1,
) -> jax.Array:
  """Loss of one block's features; couples the examples of a group.

  Args:
    f_NTD: block output, any float type.
    kind: one of `KINDS`.
    temperature: tau of the InfoNCE kinds; the paper's experiments have 0.5, the released code 1.
    margin: of the hinge, in units of the mean squared difference per feature.
    groups: the batch is cut into this many consecutive groups of equal size, and the losses of the
      groups are averaged: what data parallel training computes when every device uses its own
      examples only, as the released code does.

  Returns:
    The loss, a scalar in float32 (float64 for float64 features).

  Raises:
    UserError: for an unknown kind, a temperature or margin that is not positive, and groups that do
      not divide the batch or hold a single example.
    ValueError: if f_NTD is not of rank 3.
  """
  types.check('f_NTD', f_NTD, 'N T D')
  check_options(kind, temperature, margin)
  batch = f_NTD.shape[0]
  diversity.check_groups(groups, batch)
  if batch == groups:
    raise types.UserError(
      f'{groups=} of a batch of {batch} hold one example each, expected at least two'
    )
  f_GBX = diversity.at_least_float32(f_NTD).reshape(groups, batch // groups, -1)

  def loss(f_BX):
    if kind == 'infonce_l2':
      return _log_mean_exp(-squared_distances(f_BX) / temperature)
    if kind == 'infonce_cosine':
      return _log_mean_exp(_gram(diversity.unit(f_BX)) / temperature)
    if kind == 'hinge':
      return jnp.mean(jnp.square(jnp.maximum(0, margin - squared_distances(f_BX))))
    return _covariances(diversity.unit(f_BX))

  return jnp.mean(jax.vmap(loss)(f_GBX))


def squared_distances(f_BX: jax.Array) -> jax.Array:
  """|a - b|^2 / X for every two rows, at least 0 and exactly 0 on the diagonal; [B, B]."""
  # What all examples share cancels in a difference, but not in the rounding of |a|^2 + |b|^2 - 2ab.
  gram_BB = _gram(f_BX - jnp.mean(f_BX, axis=0, keepdims=True))
  squares_B = jnp.diagonal(gram_BB)  # Not sums of their own, so that the diagonal cancels.
  d_BB = squares_B[:, None] + squares_B[None, :] - 2 * gram_BB
  return jnp.maximum(d_BB, 0) / f_BX.shape[1]


def check_options(kind: str, temperature: float, margin: float) -> None:
  """Refuses an unknown kind and numbers that are not positive, with a UserError."""
  if kind not in KINDS:
    raise types.UserError(f'kind is {kind!r}, expected one of {KINDS}')
  for name, value in (('temperature', temperature), ('margin', margin)):
    if not value > 0:
      raise types.UserError(f'{name} is {value}, expected a positive number')


def _covariances(u_BX: jax.Array) -> jax.Array:
  """Sum of the squared covariances between different columns of u.

  The X x X matrix of covariances is never made: |C^T C|^2 = |C C^T|^2 for the centred C.
  """
  c_BX = u_BX - jnp.mean(u_BX, axis=0, keepdims=True)
  freedom = len(u_BX) - 1
  variances_X = jnp.sum(jnp.square(c_BX), axis=0) / freedom
  return jnp.sum(jnp.square(_gram(c_BX) / freedom)) - jnp.sum(jnp.square(variances_X))


def _gram(f_BX: jax.Array) -> jax.Array:
  return jnp.matmul(f_BX, f_BX.T, precision=jax.lax.Precision.HIGHEST)


def _log_mean_exp(x_BB: jax.Array) -> jax.Array:
  return jax.nn.logsumexp(x_BB) - jnp.log(x_BB.size)
