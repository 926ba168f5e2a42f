"""The original SiT's clock and sign: what they mean, and that they are their own inverses."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from diversedit_jax.convert import layouts
from diversedit_jax.models import embed

_DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)


@pytest.fixture
def kernel():
  return np.random.default_rng(0).normal(0, 0.02, (embed.TIME_FREQUENCIES, 40))


def test_reversed_clock_sees_the_other_time(kernel):
  """K^T features(1 - t) = (M K)^T features(t), to the rounding of the float32 sinusoids."""
  t = np.array([0.0, 0.125, 0.3, 0.5, 0.9, 1.0])
  features = lambda t: np.asarray(embed.time_features(jnp.asarray(t, jnp.float32)), np.float64)
  expected = features(1 - t) @ kernel
  np.testing.assert_allclose(features(t) @ layouts.reverse_clock(kernel), expected, atol=3e-7)
  assert np.abs(features(t) @ kernel - expected).max() > 0.1


def test_reversed_clock_is_orthogonal_and_its_own_inverse():
  matrix = layouts.reverse_clock(np.eye(embed.TIME_FREQUENCIES))
  np.testing.assert_array_equal(matrix, matrix.T)
  np.testing.assert_allclose(matrix @ matrix, np.eye(embed.TIME_FREQUENCIES), atol=1e-15)


@pytest.mark.parametrize('dtype', _DTYPES)
def test_reversed_clock_twice_is_within_the_stated_bound(kernel, dtype):
  given = kernel.astype(dtype)
  there = layouts.reverse_clock(given)
  back = layouts.reverse_clock(there)
  assert there.dtype == back.dtype == given.dtype
  exact = given.astype(np.float64)
  norms = np.tile(np.hypot(*np.split(exact, 2)), (2, 1))
  units = 4 if dtype is np.float64 else 1
  error = np.abs(back.astype(np.float64) - exact) / norms
  assert error.max() <= units * float(ml_dtypes.finfo(dtype).eps)
  assert np.abs(there.astype(np.float64) - exact).max() > 0.01


@pytest.mark.parametrize('dtype', _DTYPES)
def test_negated_velocity(dtype):
  """Two values per patch, three channels each and three of the variance; twice changes no bit."""
  x = np.arange(1, 25).reshape(2, 12).astype(dtype)
  sizes = {'C': 3}
  negated = layouts.negate_velocity(x, sizes)
  signs = np.array([-1, -1, -1, 1, 1, 1] * 2, dtype)
  np.testing.assert_array_equal(negated, x * signs)
  assert negated.dtype == x.dtype
  np.testing.assert_array_equal(layouts.negate_velocity(negated, sizes), x)
  np.testing.assert_array_equal(layouts.negate_velocity(x[0], sizes), x[0] * signs)
