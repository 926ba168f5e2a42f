"""MeanFlow's arithmetic by hand: times, guided velocity, target, error and its weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.methods import meanflow


@pytest.fixture
def _float64():
  with jax.enable_x64(True):
    yield


def test_interval_includes_both_ends():
  v, v_null, v_class = (jnp.full((5, 2), x) for x in (1.0, 10.0, 100.0))
  t_N = jnp.asarray([0.24, 0.25, 0.5, 0.75, 0.76])
  v_g = meanflow.guided_velocity(
    v, v_null, v_class, omega=2.0, kappa=0.5, t_N=t_N, start=0.25, end=0.75
  )
  # 2 * 1 - 1.5 * 10 + 0.5 * 100 inside.
  np.testing.assert_allclose(v_g[:, 0], [1, 37, 37, 37, 1], rtol=1e-14)


@pytest.mark.usefixtures('_float64')
def test_ordered_times():
  a_N, b_N = jnp.asarray([0.1, 0.9, 0.3, 0.4]), jnp.asarray([0.2, 0.5, 0.8, 0.4])
  # int(0.3 * 4) = 1 example has r = t.
  t_N, r_N = meanflow.ordered_times(a_N, b_N, equal_fraction=0.3)
  np.testing.assert_array_equal(t_N, [0.2, 0.9, 0.8, 0.4])
  np.testing.assert_array_equal(r_N, [0.2, 0.5, 0.3, 0.4])
  t_N, r_N = meanflow.ordered_times(a_N, b_N, equal_fraction=1.0)
  np.testing.assert_array_equal(t_N, r_N)
  for fraction in (-0.1, 1.1):
    with pytest.raises(types.UserError, match='equal_fraction'):
      meanflow.ordered_times(a_N, b_N, equal_fraction=fraction)


def test_target_clips_the_interval_and_is_constant():
  v_g, du_dt = jnp.ones((3, 2)), jnp.full((3, 2), 2.0)
  t_N, r_N = jnp.asarray([0.5, 0.2, 3.0]), jnp.asarray([0.25, 0.7, 1.0])
  target = meanflow.target(v_g, du_dt, t_N, r_N)
  np.testing.assert_allclose(target[:, 0], [0.5, 1, -1], rtol=1e-14)
  gradients = jax.grad(lambda *a: meanflow.target(*a).sum(), argnums=(0, 1, 2, 3))(
    v_g, du_dt, t_N, r_N
  )
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.usefixtures('_float64')
@pytest.mark.parametrize(('power', 'constant'), [(1.0, 0.01), (0.5, 1e-3), (0.0, 0.01)])
def test_adaptive_scales_the_gradient_by_the_weight(power, constant):
  error_N = jnp.asarray([0.0, 0.3, 40.0])
  loss_N, weight_N = meanflow.adaptive(error_N, power=power, constant=constant)
  np.testing.assert_allclose(weight_N, (np.asarray(error_N) + constant) ** -power, rtol=1e-14)
  np.testing.assert_allclose(loss_N, weight_N * error_N, rtol=1e-14)
  options = {'power': power, 'constant': constant}
  gradient = jax.grad(lambda e: meanflow.adaptive(e, **options)[0].sum())(error_N)
  np.testing.assert_allclose(gradient, weight_N, rtol=1e-14)


def test_bfloat16_velocities_are_combined_in_float32():
  array = lambda *x: jnp.asarray(x, jnp.bfloat16).reshape(2, 1)
  t_N, r_N = jnp.asarray([1.0, 0.5], jnp.bfloat16), jnp.asarray([0.5, 0.5], jnp.bfloat16)
  one, tiny = array(1, 1), array(2.0**-12, 2.0**-12)
  wanted = np.asarray([[1 + 2.0**-13], [1]], np.float32)  # 1 if rounded to bfloat16.
  for value in (
    meanflow.improved_prediction(one, tiny, t_N, r_N),
    meanflow.target(one, -tiny, t_N, r_N),
  ):
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, wanted)
  omega = 1 + 2.0**-12
  guided = meanflow.guided_velocity(one, 0 * one, 0 * one, omega=omega, kappa=0.0, t_N=t_N)
  assert guided.dtype == jnp.float32
  np.testing.assert_array_equal(guided, np.float32(omega))
  error_N = meanflow.squared_error(array(256, 0), array(0.5, 3))
  assert error_N.dtype == jnp.float32
  np.testing.assert_array_equal(error_N, np.asarray([255.5**2, 9], np.float32))


def test_squared_error_refuses_shapes_that_would_broadcast():
  with pytest.raises(ValueError, match=r'\(2, 3\).*\(2, 1\)'):
    meanflow.squared_error(jnp.ones((2, 3)), jnp.ones((2, 1)))
