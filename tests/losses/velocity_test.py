"""The velocity loss is a per-example mean in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax.losses import velocity


def test_per_example_mean_matches_numpy():
  rng = np.random.default_rng(0)
  pred, target = rng.normal(size=(2, 5, 4, 4, 3)).astype(np.float32)
  loss_N = velocity.velocity_loss(jnp.asarray(pred), jnp.asarray(target))
  wanted = np.mean((pred.astype(np.float64) - target) ** 2, axis=(1, 2, 3))
  assert loss_N.shape == (5,) and loss_N.dtype == jnp.float32
  np.testing.assert_allclose(loss_N, wanted, rtol=1e-6)  # 48 float32 terms of one sign.


def test_bfloat16_prediction_is_subtracted_in_float32():
  pred = jnp.full((1, 8, 8, 4), 1.0, jnp.bfloat16)
  target = jnp.full((1, 8, 8, 4), 1.0 + 2.0**-12, jnp.float32)  # Lost if rounded to bfloat16.
  loss_N = velocity.velocity_loss(pred, target)
  assert loss_N.dtype == jnp.float32
  np.testing.assert_array_equal(loss_N, np.float32(2.0**-24))


def test_float64_stays_and_gradient_is_closed_form():
  with jax.enable_x64(True):
    pred = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 2, 2)))
    target = jnp.ones_like(pred)
    gradient = jax.grad(lambda p: velocity.velocity_loss(p, target).sum())(pred)
    assert gradient.dtype == jnp.float64
    np.testing.assert_allclose(gradient, 2 * (pred - target) / 8, rtol=1e-14)


def test_refuses_shapes_that_would_broadcast():
  with pytest.raises(ValueError, match=r'\(2, 4, 4, 3\).*\(2, 4, 4, 1\)'):
    velocity.velocity_loss(jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 1)))
