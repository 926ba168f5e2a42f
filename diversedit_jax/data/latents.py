"""Latents of a variational autoencoder: moments of the posterior, samples of it, and their scale.

  std = exp(clip(logvar, -30, 20) / 2)                                                 (1)
  z = mean + std * epsilon,   x = (z - shift) * scale                                  (2)

A store keeps [mean, std], and z is sampled anew at every step, as REPA does. x is what the
diffusion model sees: latent diffusion (arXiv 2112.10752) has scale 0.18215 and shift 0; arXiv
2403.03206 has a shift too.
"""

import dataclasses

import jax
import jax.numpy as jnp

from diversedit_jax import types

LOGVAR_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
  """Scale and shift of equation (2): one number for all channels, or one per channel."""

  scale: float | tuple[float, ...] = 0.18215
  shift: float | tuple[float, ...] = 0.0

  def __post_init__(self):
    for name in ('scale', 'shift'):
      value = getattr(self, name)
      if not isinstance(value, (int, float)):
        object.__setattr__(self, name, tuple(float(v) for v in value))
    if not all(s > 0 for s in jax.tree.leaves(self.scale)):
      raise types.UserError(f'the scale of latents must be positive, got {self.scale}')

  def apply(self, z_NHWC: jax.Array) -> jax.Array:
    """Maps raw latents to what the model sees."""
    scale, shift = self._arrays(z_NHWC)
    return (z_NHWC - shift) * scale

  def undo(self, x_NHWC: jax.Array) -> jax.Array:
    """Maps what the model makes to what the decoder takes."""
    scale, shift = self._arrays(x_NHWC)
    return x_NHWC / scale + shift

  def _arrays(self, x_NHWC):
    return tuple(
      jnp.asarray(value, x_NHWC.dtype).reshape(1, 1, 1, -1) for value in (self.scale, self.shift)
    )


def mean_std(moments_NHWC: jax.Array) -> jax.Array:
  """Maps the [mean, logvar] of an encoder to [mean, std] by (1); both are [N, H, W, 2C]."""
  mean, logvar = jnp.split(moments_NHWC, 2, axis=-1)
  return jnp.concatenate([mean, jnp.exp(jnp.clip(logvar, *LOGVAR_RANGE) / 2)], axis=-1)


def sample(moments_NHWC: jax.Array, eps_NHWC: jax.Array, scaling: Scaling) -> jax.Array:
  """Samples scaled latents [N, H, W, C] from [mean, std] [N, H, W, 2C] and normal noise, by (2)."""
  mean, std = jnp.split(moments_NHWC.astype(eps_NHWC.dtype), 2, axis=-1)
  return scaling.apply(mean + std * eps_NHWC)
