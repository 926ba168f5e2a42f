"""Conversions between the four predictions of a denoiser (SiT, arXiv 2401.08740, sec. 2).

Data x0, noise e, velocity v and the state x_t are linear in (x0, e):

  (1)  q = p x0 + r e,   x0: (1, 0),   epsilon: (0, 1),   velocity: (alpha', sigma'),
  (2)  x_t = alpha x0 + sigma e,
  (3)  score s = grad_x log p(x_t) = -e / sigma.

From x_t and one value q the other two follow with the determinant D = alpha r - sigma p:

  (4)  x0 = (r x_t - sigma q) / D,   e = (alpha q - p x_t) / D.

For a velocity, D is alpha sigma' - alpha' sigma: 1 for linear and pi/2 for cosine at every t, even
at t = 0 of the cosine path, where REPA's quotient alpha/alpha' is infinite. For a noise, which says
nothing about x0 at t = 1, D is alpha; for x0, which says nothing about e at t = 0, it is -sigma.
Near such an end the divisor is kept at `clamp` in size: results stay finite, and are right wherever
the divisor is larger. JiT (2511.13720) clamps the velocity of predicted data on purpose,

  (5)  v = (sigma' x_t - (alpha sigma' - alpha' sigma) x0) / max(sigma, clamp),

on the linear path (x_t - x0) / max(t, clamp). Data are at t = 0, noise is at t = 1.
"""

import jax
import jax.numpy as jnp

from diversedit_jax import trees
from diversedit_jax.interpolants import paths

SMALLEST = 1e-6  # A few float32 roundings of coefficients that are of order one.

_ROWS = {  # The coefficients (p, r) of (1), as functions of path and time.
  'x0': lambda path, t: (jnp.ones_like(t), jnp.zeros_like(t)),
  'epsilon': lambda path, t: (jnp.zeros_like(t), jnp.ones_like(t)),
  'velocity': lambda path, t: (path.d_alpha(t), path.d_sigma(t)),
}
KINDS = (*_ROWS, 'score')


def convert(
  value: jax.Array,
  x_t: jax.Array,
  t_N: jax.Array,
  path: paths.Path,
  *,
  source: str,
  target: str,
  clamp: float = SMALLEST,
) -> jax.Array:
  """Converts a prediction of the `source` kind to the `target` kind.

  Args:
    value: prediction [N, ...], float32 or better.
    x_t: the state that it was made for, same shape.
    t_N: time per example, in [0, 1].
    path: one of `paths.PATHS`.
    source: the kind of `value`: 'x0', 'epsilon', 'velocity' or 'score'.
    target: the kind to return, one of the same names.
    clamp: least size of a divisor.

  Raises:
    UserError: a kind is unknown.
  """
  for kind in (source, target):
    trees.check_known('prediction', kind, KINDS)
  if source == target:
    return value
  t = paths.per_example(t_N, x_t)
  alpha, sigma = path.alpha(t), path.sigma(t)
  if source == 'score':
    source, value = 'epsilon', -sigma * value  # (3)

  p, r = _ROWS[source](path, t)
  least = -clamp if source == 'x0' else clamp  # The sign of D, which a zero does not have.
  determinant = _away_from_zero(alpha * r - sigma * p, least)
  x0 = (r * x_t - sigma * value) / determinant  # (4)
  e = (alpha * value - p * x_t) / determinant

  if target == 'score':
    return -e / _away_from_zero(sigma, clamp)
  p, r = _ROWS[target](path, t)
  return p * x0 + r * e


def _away_from_zero(divisor: jax.Array, least: float) -> jax.Array:
  return jnp.where(jnp.abs(divisor) < abs(least), least, divisor)
