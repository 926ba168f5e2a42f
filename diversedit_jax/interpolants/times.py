"""Laws of the training time t, one draw per example; t = 0 is data, t = 1 is noise.

  uniform       t ~ U(0, 1)                           SiT (arXiv 2401.08740), REPA, DiverseDiT
  logit_normal  t = sigmoid(mean + std n)             SD3 (2403.03206), MeanFlow (2505.13447)
  lognormal     sigma_t / alpha_t = exp(mean + std n) REPA (2410.06940); depends on the path
  stratified    one uniform draw in each of N equal strata, in random order

with n ~ N(0, 1). Each is then shifted, towards noise if a > 1, because data of more dimensions need
more noise to be hidden (SD3, 2403.03206, Eq. 23; RAE, 2510.11690, with base = 4096),

  t <- a t / (1 + (a - 1) t),   a = sqrt(dimension / base),

which makes sigma / alpha of the linear path a times as large, and then keeps `epsilon` away from
both ends: t <- epsilon + (1 - 2 epsilon) t, as paths with infinite coefficients at an end need it
(`Path.epsilon`). Before the shift, a law may be that of times up to `latest` alone, as RAE's up to
0.999: uniform in [0, latest], or n cut off where t = latest.
"""

import dataclasses
import math
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.interpolants import paths

SHIFT_BASE = 4096
"""Dimension without a shift: latents of 32 x 32 x 4."""


def shift_of(dimension: int) -> float:
  """The factor a for data of so many numbers each."""
  return math.sqrt(dimension / SHIFT_BASE)


def shifted(t: Any, a: float) -> Any:
  """Times t in [0, 1] of any shape, shifted by a; both ends stay, and 1 / a undoes it."""
  return a * t / (a * t + (1 - t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
  """t ~ U(epsilon, 1 - epsilon), shifted."""

  epsilon: float = 0.0
  shift: float = 1.0
  latest: float = 1.0

  def __post_init__(self):
    if not 0 <= self.epsilon < 0.5:
      raise types.UserError(f'epsilon={self.epsilon}, expected 0 <= epsilon < 0.5')
    if not 0 < self.shift < math.inf:
      raise types.UserError(f'shift={self.shift}, expected a positive number')
    if not 0 < self.latest <= 1:
      raise types.UserError(f'latest={self.latest}, expected a time in (0, 1]')

  def __call__(self, key: jax.Array, n: int) -> jax.Array:
    """n independent times [N], float32."""
    return self.from_uniform(jax.random.uniform(key, (n,), jnp.float32))

  def from_uniform(self, u: jax.Array) -> jax.Array:
    """The times whose share of earlier ones is u, any shape."""
    return self._inside(u if self.latest == 1 else self.latest * u)

  def _inside(self, t: jax.Array) -> jax.Array:
    t = t if self.shift == 1 else shifted(t, self.shift)
    return self.epsilon + (1 - 2 * self.epsilon) * t


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stratified(Uniform):
  """Uniform, with exactly one of the n times in each interval [i/n, (i+1)/n]."""

  def __call__(self, key: jax.Array, n: int) -> jax.Array:
    """n times [N], float32; each is uniform, and together they are evenly spread."""
    order, place = jax.random.split(key)
    strata_N = jax.random.permutation(order, n).astype(jnp.float32)
    return self.from_uniform((strata_N + jax.random.uniform(place, (n,), jnp.float32)) / n)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal(Uniform):
  """t = sigmoid(mean + std n); MeanFlow uses mean -0.4, std 1."""

  mean: float = 0.0
  std: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    if not self.std > 0:
      raise types.UserError(f'std={self.std}, expected a positive standard deviation')

  def from_normal(self, n_N: jax.Array) -> jax.Array:
    """The times for standard normal draws, any shape."""
    return self._inside(jax.nn.sigmoid(self.mean + self.std * n_N))

  def __call__(self, key: jax.Array, n: int) -> jax.Array:
    """n independent times [N], float32."""
    if self.latest == 1:
      return self.from_normal(jax.random.normal(key, (n,), jnp.float32))
    return super().__call__(key, n)

  def from_uniform(self, u: jax.Array) -> jax.Array:
    """See `Uniform`."""
    largest = (math.log(self._ratio(self.latest)) - self.mean) / self.std
    share = statistics.NormalDist().cdf(largest)
    return self.from_normal(jax.scipy.special.ndtri(share * u))

  def _ratio(self, t):
    """What is log-normal at time t."""
    return t / (1 - t) if t < 1 else math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormal(LogitNormal):
  """t with sigma_t/alpha_t = exp(mean + std n) on a path; REPA uses mean 0, std 1.

  On the linear path this is logit_normal. On the vp path, whose ratio ends at 152, t is at most 1.
  """

  path: str = 'linear'

  def __post_init__(self):
    super().__post_init__()
    trees.check_known('path', self.path, paths.PATHS)

  def from_normal(self, n_N: jax.Array) -> jax.Array:
    """The times for standard normal draws, any shape."""
    ratio_N = jnp.exp(self.mean + self.std * n_N)
    return self._inside(jnp.minimum(paths.PATHS[self.path].time_of_ratio(ratio_N), 1))

  def _ratio(self, t):
    path, t = paths.PATHS[self.path], np.float64(t)  # NumPy, also where a step is traced.
    return float(path.sigma(t) / path.alpha(t)) if t < 1 else math.inf


TIME_LAWS = {
  'uniform': Uniform,
  'logit_normal': LogitNormal,
  'lognormal': LogNormal,
  'stratified': Stratified,
}
