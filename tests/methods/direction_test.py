"""The loss of directions against the reference (LightningDiT's), and what it refuses."""

from helpers import config_changes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import types
from diversedit_jax.losses import velocity as velocity_lib
from diversedit_jax.methods import direction


def test_values_and_gradient_are_the_references(golden):
  arrays = golden('lightningdit')
  with jax.enable_x64(True):
    image = lambda name: jnp.asarray(arrays[f'loss/{name}'].transpose(0, 2, 3, 1), jnp.float64)
    pred, velocity = image('pred'), image('x1') - image('x0')  # In its clock: data less noise.

    def total(pred):
      errors_N = velocity_lib.velocity_loss(pred, velocity)
      return jnp.mean(errors_N) + jnp.mean(direction.distance(pred, velocity))

    np.testing.assert_allclose(
      direction.distance(pred, velocity), arrays['loss/cos_f64'], rtol=1e-10
    )
    value, gradient = jax.value_and_grad(total)(pred)
    np.testing.assert_allclose(value, arrays['loss/total_f64'], rtol=1e-10)
    expected = arrays['loss/grad_pred_f64'].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
  single = direction.distance(pred.astype(jnp.float32), velocity.astype(jnp.float32))
  np.testing.assert_allclose(single, arrays['loss/cos'], rtol=1e-5)


@pytest.mark.parametrize('scale', [1e-3, 7.0])
def test_size_does_not_count_and_sign_does(scale):
  u = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 3, 4)), jnp.float32)
  np.testing.assert_allclose(direction.distance(scale * u, u), 0, atol=1e-6)
  np.testing.assert_allclose(direction.distance(-scale * u, u), 2, atol=1e-6)


def test_other_predictions_are_refused():
  changes = {'method': 'direction', 'interpolant.prediction': 'data'}
  with pytest.raises(types.UserError, match="direction is about velocities, got .*'data'"):
    experiment_lib.build(config_changes.changed(changes))
