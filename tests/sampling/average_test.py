"""Sampling by average velocities: the steps, given times, noise by key, types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import rng, types
from diversedit_jax.sampling import average, trajectory


def config_of(**fields):
  return trajectory.SamplerConfig(kind='average_velocity', **({'steps': 1} | fields))


def curved(x, t_N, h_N, y_N):
  """Mean over [t - h, t] of the velocity 3 y t^2 + x / 2 at a held x: easy to step by hand."""
  t, h, y = (a[:, None, None, None] for a in (t_N, h_N, y_N))
  return y * (t**3 - (t - h) ** 3) / h + x / 2


@pytest.mark.parametrize(
  ('fields', 'grid'),
  [
    ({}, (1.0, 0.0)),
    ({'steps': 4}, (1.0, 0.75, 0.5, 0.25, 0.0)),
    ({'steps': 3, 'times': (1.0, 0.6, 0.1, 0.0)}, (1.0, 0.6, 0.1, 0.0)),
    ({'steps': 2, 'start': 0.8}, (0.8, 0.4, 0.0)),
  ],
)
def test_each_step_subtracts_its_length_times_the_average(fields, grid):
  with jax.enable_x64(True):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 2, 1)))
    y = jnp.asarray([1, 4])
    found = average.integrate(curved, x, y, config_of(dtype='float64', **fields))
    for t, r in zip(grid[:-1], grid[1:], strict=True):
      x = x - (np.asarray(y)[:, None, None, None] * (t**3 - r**3) + (t - r) * x / 2)
    np.testing.assert_allclose(found, x, rtol=1e-13, atol=1e-14)


def test_a_sample_depends_on_its_own_key_and_label_only():
  keys_N = rng.per_example(jax.random.key(0), jnp.arange(4))
  labels_N = jnp.asarray([0, 1, 2, 3])
  run = lambda part: average.sample(
    curved, (3, 3, 2), keys_N[part], labels_N[part], config_of(steps=2)
  )
  together = run(slice(None))
  assert together.shape == (4, 3, 3, 2) and together.dtype == jnp.float32
  apart = np.concatenate([run(slice(0, 1)), run(slice(1, 4))])
  np.testing.assert_allclose(together, apart, rtol=1e-6, atol=1e-6)
  assert np.std(together, axis=0).min() > 1e-3
  # Where nothing moves, the samples are the noise that the other samplers start from.
  still = average.sample(lambda x, t, h, y: 0 * x, (3, 3, 2), keys_N, None, config_of())
  noise = trajectory.normal(keys_N, (3, 3, 2), 'sampling_start', jnp.float32)
  np.testing.assert_array_equal(still, noise)


def test_the_state_keeps_its_type_over_a_bfloat16_network():
  def predict(x, t_N, h_N, y_N):
    assert x.dtype == t_N.dtype == h_N.dtype == jnp.float32 and y_N is None
    return jnp.full(x.shape, 2.0**-9, jnp.bfloat16)

  found = average.integrate(predict, jnp.ones((1, 2, 2, 1)), None, config_of(steps=4))
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, np.float32(1 - 2.0**-9))  # 1 in bfloat16.


def test_the_network_is_traced_once_for_all_steps():
  traced = []

  def predict(x, t_N, h_N, y_N):
    traced.append(x.shape)
    return x

  start = jnp.zeros((2, 2, 2, 1))
  jax.eval_shape(lambda x: average.integrate(predict, x, None, config_of(steps=50)), start)
  assert traced == [(2, 2, 2, 1)]


def test_refuses_float64_without_x64():
  with pytest.raises(types.UserError, match='JAX_ENABLE_X64'):
    average.integrate(curved, jnp.ones((1, 2, 2, 1)), None, config_of(dtype='float64'))
