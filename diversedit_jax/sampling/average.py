"""Sampling by average velocities, in one step or a few (MeanFlow, arXiv 2505.13447).

With u(x, r, t) the mean of the velocity over [r, t] along the flow,

  x_r = x_t - (t - r) u(x_t, r, t)

so that one evaluation leads from noise to data. Guidance is part of what the network learned.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diversedit_jax.sampling import trajectory

Average = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]
"""(x_NHWC, t_N, h_N, y_N) -> u_NHWC, the mean velocity over [t - h, t]."""


def sample(
  average: Average,
  shape: tuple[int, int, int],
  keys_N: jax.Array,
  labels_N: jax.Array | None,
  config: trajectory.SamplerConfig,
) -> jax.Array:
  """Samples from noise; sample n sees `keys_N[n]` only.

  Args:
    average: the network.
    shape: shape of one sample.
    keys_N: one JAX key per sample.
    labels_N: class labels, int32; None for a network without classes.
    config: a sampler of kind 'average_velocity'.

  Returns:
    x_NHWC at the last time of the grid, 0 unless `config.end` is set, in `config.dtype`.
  """
  x = trajectory.normal(keys_N, shape, 'sampling_start', trajectory.state_dtype(config))
  return integrate(average, x, labels_N, config)


def integrate(
  average: Average, x_NHWC: jax.Array, labels_N: jax.Array | None, config: trajectory.SamplerConfig
) -> jax.Array:
  """`sample` from a given state at `config.start`."""
  grid = trajectory.time_grid(config)
  dtype = trajectory.state_dtype(config)

  def body(x_NHWC, t_and_h):
    t_N, h_N = (jnp.full(x_NHWC.shape[:1], s, dtype) for s in t_and_h)
    return x_NHWC - t_and_h[1] * average(x_NHWC, t_N, h_N, labels_N).astype(dtype), None

  steps = jnp.asarray(grid[:-1], dtype), jnp.asarray(grid[:-1] - grid[1:], dtype)
  return jax.lax.scan(body, x_NHWC.astype(dtype), steps)[0]
