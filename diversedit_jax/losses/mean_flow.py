"""Arithmetic of MeanFlow (arXiv 2505.13447) and improved MeanFlow (2512.02012), without a network.

u(z, r, t) is the average velocity from time t back to r <= t, h = t - r, v = noise - data on the
linear path z = (1 - t) x + t noise. The method calls the network and takes the derivative

  du/dt = jvp of u along (v_g, 1, 0) for (z, t, r)

Everything is computed in float32 or better. Arrays of velocities are [N, ...]; times are [N].
"""

import jax
import jax.numpy as jnp

from diversedit_jax import types
from diversedit_jax.losses import diversity


def ordered_times(
  a_N: jax.Array,
  b_N: jax.Array,
  *,
  equal_fraction: float = 0.75,
  order_N: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """(t_N, r_N): the larger and the smaller of two draws, r = t for a share of the batch.

  Args:
    a_N, b_N: independent draws from a law of time.
    equal_fraction: int(equal_fraction N) examples get r = t, the authors' 0.75 in MeanFlow and 0.5
      in improved MeanFlow.
    order_N: a permutation of 0 .. N-1, whose least get r = t; None is the order of the batch, as
      in the authors' code.

  Raises:
    UserError: if equal_fraction is outside [0, 1].
  """
  if not 0 <= equal_fraction <= 1:
    raise types.UserError(f'{equal_fraction=} must lie in [0, 1]')
  t_N, r_N = jnp.maximum(a_N, b_N), jnp.minimum(a_N, b_N)
  size = t_N.shape[0]
  order_N = jnp.arange(size) if order_N is None else order_N
  return t_N, jnp.where(order_N < int(equal_fraction * size), t_N, r_N)


def guided_velocity(
  v: jax.Array,
  v_null: jax.Array,
  v_class: jax.Array,
  *,
  omega: float,
  kappa: float,
  t_N: jax.Array,
  start: float = 0.0,
  end: float = 1.0,
) -> jax.Array:
  """Guidance inside the training target: the velocity whose flow is guided.

  Args:
    v: velocity of the path, noise - data.
    v_null: the network's velocity u(z, t, t) under the null label, same shape.
    v_class: the same under the example's label.
    omega: weight of v.
    kappa: weight of v_class; the effective guidance scale is omega / (1 - kappa).
    t_N: times.
    start: guidance is applied where start <= t <= end.
    end: see start.

  Returns:
    v_g = omega v + (1 - omega - kappa) v_null + kappa v_class inside the interval, v outside.
  """
  v, v_null, v_class = (diversity.at_least_float32(x) for x in (v, v_null, v_class))
  guided = omega * v + (1 - omega - kappa) * v_null + kappa * v_class
  return jnp.where(_spread((t_N >= start) & (t_N <= end), v), guided, v)


def target(v_g: jax.Array, du_dt: jax.Array, t_N: jax.Array, r_N: jax.Array) -> jax.Array:
  """What u is regressed on: v_g - (t - r) du/dt with t - r clipped to [0, 1]; held constant."""
  v_g, du_dt = diversity.at_least_float32(v_g), diversity.at_least_float32(du_dt)
  h = _spread(jnp.clip(t_N - r_N, 0, 1), v_g)
  return jax.lax.stop_gradient(v_g - h * du_dt)


def improved_prediction(
  u: jax.Array, du_dt: jax.Array, t_N: jax.Array, r_N: jax.Array
) -> jax.Array:
  """V = u + (t - r) du/dt of improved MeanFlow, with du/dt held constant.

  V is regressed on v_g, which the caller holds constant.
  """
  u, du_dt = diversity.at_least_float32(u), diversity.at_least_float32(du_dt)
  return u + _spread(t_N - r_N, u) * jax.lax.stop_gradient(du_dt)


def squared_error(x: jax.Array, y: jax.Array) -> jax.Array:
  """Sum of (x - y)^2 over all axes but the first; [N].

  Raises:
    ValueError: if the shapes differ.
  """
  if x.shape != y.shape:
    raise ValueError(f'squared_error: the arrays have shapes {x.shape} and {y.shape}')
  error = diversity.at_least_float32(x) - diversity.at_least_float32(y)
  return jnp.sum(jnp.square(error), axis=tuple(range(1, error.ndim)))


def adaptive(
  error_N: jax.Array, *, power: float = 1.0, constant: float = 0.01
) -> tuple[jax.Array, jax.Array]:
  """Divides each example's error by a power of itself, which is held constant.

  Args:
    error_N: `squared_error`, a sum over an example's values and not their mean.
    power: p; 0 leaves the error, 1 makes every loss about 1 and normalises the gradients only.
    constant: c, added to the error; 0.01 in the authors' code.

  Returns:
    (loss_N, weight_N) with weight = 1 / (error + c)^p and loss = weight error.
  """
  error_N = diversity.at_least_float32(error_N)
  weight_N = jax.lax.stop_gradient(1 / jnp.power(error_N + constant, power))
  return weight_N * error_N, weight_N


def _spread(x_N: jax.Array, like: jax.Array) -> jax.Array:
  """[N] as [N, 1, ...] of the rank of another array."""
  return x_N.reshape(x_N.shape + (1,) * (like.ndim - 1))
