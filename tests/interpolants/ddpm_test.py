"""Steps of DiT's diffusion on the vp path: equal alpha, rising with time, the ends."""

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import interpolants
from diversedit_jax.interpolants import ddpm


def test_alphas_are_those_of_the_linear_schedule():
  """The recursion of DDPM gives them one step after the other."""
  alpha_bar, log_alphas = 1.0, []
  for i in range(1000):
    alpha_bar *= 1 - (1e-4 + i * (0.02 - 1e-4) / 999)
    log_alphas.append(np.log(alpha_bar) / 2)
  np.testing.assert_allclose(ddpm.log_alpha_of_steps(), log_alphas, rtol=1e-12)


def test_the_step_of_a_time_has_its_alpha():
  log_alpha_S = ddpm.log_alpha_of_steps()
  t_N = np.linspace(0.005, 1, 997)
  wanted = np.log(interpolants.vp().alpha(t_N))
  assert wanted[0] < log_alpha_S[0] and wanted[-1] > log_alpha_S[-1]  # All within the steps.
  for x64, tolerance in ((False, 1e-4), (True, 1e-12)):
    with jax.enable_x64(x64):
      index_N = ddpm.index(jnp.asarray(t_N, jnp.float64 if x64 else jnp.float32))
      assert index_N.dtype == (jnp.float64 if x64 else jnp.float32)
    found = np.interp(index_N, np.arange(1000), log_alpha_S)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


def test_steps_rise_with_time_from_the_first_to_the_last():
  index_N = np.asarray(ddpm.index(jnp.linspace(0, 1, 501)))
  assert (np.diff(index_N)[1:] > 0).all() and np.diff(index_N)[0] >= 0
  assert index_N[0] == 0
  # The path ends at log alpha = -5.025, the steps at -5.05: a little before the last of them.
  assert 995 < index_N[-1] < 999
  # Earlier than the first step is the first step; its alpha^2 is 1 - 1e-4.
  np.testing.assert_array_equal(ddpm.index(jnp.asarray([0.0, 1e-5, 5e-4])), 0)
  # Both run evenly through time, to some per cent.
  np.testing.assert_allclose(index_N, np.linspace(0, 999, 501), atol=5)
