"""Laws of the training time t, one draw per example; t = 0 is data, t = 1 is noise.

  uniform       t ~ U(0, 1)                           SiT (arXiv 2401.08740), REPA, DiverseDiT
  logit_normal  t = sigmoid(mean + std n)             SD3 (2403.03206), MeanFlow (2505.13447)
  lognormal     sigma_t / alpha_t = exp(mean + std n) REPA (2410.06940); depends on the path
  stratified    one uniform draw in each of N equal strata, in random order

with n ~ N(0, 1). Each then keeps `epsilon` away from both ends: t <- epsilon + (1 - 2 epsilon) t,
which paths with infinite coefficients at an end need (`Path.epsilon`).
"""

import dataclasses

import jax
import jax.numpy as jnp

from diversedit_jax import trees, types
from diversedit_jax.interpolants import paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
  """t ~ U(epsilon, 1 - epsilon)."""

  epsilon: float = 0.0

  def __post_init__(self):
    _check_epsilon(self.epsilon)

  def __call__(self, key: jax.Array, n: int) -> jax.Array:
    """n independent times [N], float32."""
    return _inside(jax.random.uniform(key, (n,), jnp.float32), self.epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal:
  """t = sigmoid(mean + std n); MeanFlow uses mean -0.4, std 1."""

  mean: float = 0.0
  std: float = 1.0
  epsilon: float = 0.0

  def __post_init__(self):
    _check_epsilon(self.epsilon)
    _check_std(self.std)

  def from_normal(self, n_N: jax.Array) -> jax.Array:
    """The times that belong to standard normal draws, any shape."""
    return _inside(jax.nn.sigmoid(self.mean + self.std * n_N), self.epsilon)

  def __call__(self, key: jax.Array, n: int) -> jax.Array:
    """n independent times [N], float32."""
    return self.from_normal(jax.random.normal(key, (n,), jnp.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormal:
  """t with sigma_t/alpha_t = exp(mean + std n) on a path; REPA uses mean 0, std 1.

  On the linear path this is logit_normal. On the vp path, whose ratio ends at 152, t is at most 1.
  """

  path: str = 'linear'
  mean: float = 0.0
  std: float = 1.0
  epsilon: float = 0.0

  def __post_init__(self):
    _check_epsilon(self.epsilon)
    _check_std(self.std)
    if self.path not in paths.PATHS:
      raise types.UserError(
        f'no path is called {self.path!r}{trees.did_you_mean(self.path, paths.PATHS)}'
      )

  def from_normal(self, n_N: jax.Array) -> jax.Array:
    """The times that belong to standard normal draws, any shape."""
    ratio_N = jnp.exp(self.mean + self.std * n_N)
    return _inside(jnp.minimum(paths.PATHS[self.path].time_of_ratio(ratio_N), 1), self.epsilon)

  def __call__(self, key: jax.Array, n: int) -> jax.Array:
    """n independent times [N], float32."""
    return self.from_normal(jax.random.normal(key, (n,), jnp.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stratified:
  """Uniform, with exactly one of the n times in each interval [i/n, (i+1)/n]."""

  epsilon: float = 0.0

  def __post_init__(self):
    _check_epsilon(self.epsilon)

  def __call__(self, key: jax.Array, n: int) -> jax.Array:
    """n times [N], float32; each uniform, together evenly spread."""
    order, place = jax.random.split(key)
    strata_N = jax.random.permutation(order, n).astype(jnp.float32)
    t_N = (strata_N + jax.random.uniform(place, (n,), jnp.float32)) / n
    return _inside(t_N, self.epsilon)


TIME_LAWS = {
  'uniform': Uniform,
  'logit_normal': LogitNormal,
  'lognormal': LogNormal,
  'stratified': Stratified,
}


def _inside(t: jax.Array, epsilon: float) -> jax.Array:
  return epsilon + (1 - 2 * epsilon) * t


def _check_epsilon(epsilon: float) -> None:
  if not 0 <= epsilon < 0.5:
    raise types.UserError(f'{epsilon=}, expected 0 <= epsilon < 0.5')


def _check_std(std: float) -> None:
  if not std > 0:
    raise types.UserError(f'{std=}, expected a positive standard deviation')
