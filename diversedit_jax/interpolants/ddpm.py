"""DiT's 1000 diffusion steps as times of the vp path (DDPM, arXiv 2006.11239; DiT, 2212.09748).

Step i adds noise of variance beta_i = 1e-4 + i (0.02 - 1e-4) / 999, so that after it the data are
scaled by alpha_i = sqrt(prod_{j <= i} (1 - beta_j)). The vp path is the limit of many small steps;
the two agree in alpha to a few per cent. Time and step are matched here by equal alpha, so that a
network trained on the steps sees exactly the noise levels that it knows.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax.interpolants import paths

STEPS = 1000


def log_alpha_of_steps() -> np.ndarray:
  """The falling log alpha_i of every step, float64 [1000]."""
  return np.log1p(-np.linspace(1e-4, 0.02, STEPS)).cumsum() / 2


def index(t_N: jax.Array) -> jax.Array:
  """The step, a real number in [0, 999], that has the alpha of the vp path at t; any shape.

  Between steps log alpha is interpolated; times before the first step belong to the first.
  """
  depth_S = jnp.asarray(-log_alpha_of_steps(), t_N.dtype)
  depth = -paths.vp_log_alpha(t_N)
  return jnp.interp(depth, depth_S, jnp.arange(STEPS, dtype=t_N.dtype))
