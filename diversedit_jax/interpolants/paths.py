"""Paths between data and noise: the interpolants of SiT (arXiv 2401.08740, REPA's clock).

Time t runs from 0 (data) to 1 (noise). With data x and noise e ~ N(0, I),

  (1)  x_t = alpha_t x + sigma_t e
  (2)  v_t = dx_t/dt = alpha'_t x + sigma'_t e

  path    alpha              sigma            alpha'             sigma'
  linear  1 - t              t                -1                 1
  cosine  cos(pi t/2)        sin(pi t/2)      -pi/2 sin(pi t/2)  pi/2 cos(pi t/2)
  vp      exp(-b t^2 - c t)  sqrt(1-alpha^2)  -(2 b t + c) alpha -alpha alpha'/sigma

with b = (20 - 0.1)/4 and c = 0.1/2, the variance preserving diffusion with noise rate from 0.1 to
20. SiT's own clock runs the other way: t_SiT = 1 - t, v_SiT = -v.

A path has only these functions; conversions between predictions are in `convert`.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Function = Callable[[Any], Any]

_VP_B = (20 - 0.1) / 4
_VP_C = 0.1 / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Path:
  """Coefficients of (1) and (2) as functions of t with any shape; NumPy in, NumPy out.

  time_of_ratio: function from a value of sigma/alpha in (0, inf) to the t that has it.
  epsilon: least distance of t from 0 and 1 at which the coefficients are finite in float32.
  """

  name: str
  alpha: Function
  sigma: Function
  d_alpha: Function
  d_sigma: Function
  time_of_ratio: Function
  epsilon: float = 0.0


def linear() -> Path:
  """Straight lines; the path of the paper, and the default of SiT and REPA."""
  return Path(
    name='linear',
    alpha=lambda t: 1 - t,
    sigma=lambda t: 1 * t,
    d_alpha=lambda t: -_numpy_of(t).ones_like(t),
    d_sigma=lambda t: _numpy_of(t).ones_like(t),
    time_of_ratio=lambda ratio: ratio / (1 + ratio),
  )


def cosine() -> Path:
  """Quarter circles (generalised variance preserving, GVP)."""
  half_pi = np.pi / 2
  return Path(
    name='cosine',
    alpha=lambda t: _numpy_of(t).cos(half_pi * t),
    sigma=lambda t: _numpy_of(t).sin(half_pi * t),
    d_alpha=lambda t: -half_pi * _numpy_of(t).sin(half_pi * t),
    d_sigma=lambda t: half_pi * _numpy_of(t).cos(half_pi * t),
    time_of_ratio=lambda ratio: _numpy_of(ratio).arctan(ratio) / half_pi,
  )


def vp() -> Path:
  """Variance preserving diffusion; sigma' is infinite at t = 0, hence `epsilon`."""

  def alpha(t):
    return _numpy_of(t).exp(vp_log_alpha(t))

  def sigma(t):
    return _numpy_of(t).sqrt(-_numpy_of(t).expm1(2 * vp_log_alpha(t)))

  def d_alpha(t):
    return -(2 * _VP_B * t + _VP_C) * alpha(t)

  def time_of_ratio(ratio):
    # -log alpha = log(1 + ratio^2) / 2, a quadratic in t.
    xp = _numpy_of(ratio)
    y = xp.log1p(xp.square(ratio)) / 2
    return 2 * y / (_VP_C + xp.sqrt(_VP_C**2 + 4 * _VP_B * y))

  return Path(
    name='vp',
    alpha=alpha,
    sigma=sigma,
    d_alpha=d_alpha,
    d_sigma=lambda t: -alpha(t) * d_alpha(t) / sigma(t),
    time_of_ratio=time_of_ratio,
    epsilon=1e-5,
  )


def vp_log_alpha(t: Any) -> Any:
  """The log alpha of the vp path, any shape; NumPy in, NumPy out."""
  return -(_VP_B * t + _VP_C) * t


PATHS = {'linear': linear(), 'cosine': cosine(), 'vp': vp()}


def interpolate(path: Path, x: jax.Array, eps: jax.Array, t_N: jax.Array) -> jax.Array:
  """The noisy x_t of (1).

  Args:
    path: one of `PATHS`.
    x: data [N, ...], float32 or better.
    eps: noise, same shape.
    t_N: one time per example, in [0, 1].
  """
  return per_example(path.alpha(t_N), x) * x + per_example(path.sigma(t_N), x) * eps


def velocity_target(path: Path, x: jax.Array, eps: jax.Array, t_N: jax.Array) -> jax.Array:
  """The velocity of (2), which a network regresses; arguments as for `interpolate`."""
  return per_example(path.d_alpha(t_N), x) * x + per_example(path.d_sigma(t_N), x) * eps


def per_example(a_N: jax.Array, like: jax.Array) -> jax.Array:
  """Shapes one number per example so that it multiplies an array [N, ...]."""
  return a_N.reshape(a_N.shape + (1,) * (like.ndim - a_N.ndim))


def _numpy_of(t: Any) -> Any:
  """NumPy for NumPy arrays, so that time grids can be float64 constants; else jax.numpy."""
  return np if isinstance(t, np.ndarray | np.generic) else jnp
