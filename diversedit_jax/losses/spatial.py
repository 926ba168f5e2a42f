"""Spatial normalisation of an encoder's patch tokens, as iREPA has it (arXiv 2512.10794).

In every channel, over the T tokens of an image,

  z <- (z - a mean_T z) / (std_T z + epsilon),   std of z itself, over T - 1

A channel that is constant over the tokens becomes (1 - a) z / epsilon: for a < 1 and the published
epsilon of 1e-6 it drowns all others. That is the published form and is what this computes; a larger
epsilon bounds such channels, and `constant_share` counts them.
"""

import jax
import jax.numpy as jnp

from diversedit_jax.losses import arithmetic

EPSILON = 1e-6
"""Published."""
_FLAT = 1e-3


def normalised(z_NTZ: jax.Array, share: float, epsilon: float = EPSILON) -> jax.Array:
  """Features of an image's patches, at least two, normalised over them; float32 or better.

  share: a, of the mean that is subtracted. epsilon: added to the deviation.
  """
  z_NTZ = arithmetic.at_least_float32(z_NTZ)
  return (z_NTZ - share * jnp.mean(z_NTZ, axis=1, keepdims=True)) / (_std(z_NTZ) + epsilon)


def constant_share(z_NTZ: jax.Array) -> jax.Array:
  """Share of images' channels whose tokens deviate by less than a thousandth of their size."""
  z_NTZ = arithmetic.at_least_float32(z_NTZ)
  return jnp.mean(_std(z_NTZ)[:, 0] <= _FLAT * arithmetic.rms(z_NTZ, axis=1))


def _std(z_NTZ):
  return jnp.std(z_NTZ, axis=1, ddof=1, keepdims=True)
