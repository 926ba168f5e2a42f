"""Velocity regression, the diffusion loss of SiT (arXiv 2401.08740) and REPA (2410.06940)."""

import jax
import jax.numpy as jnp


@jax.named_scope('velocity_loss')
def velocity_loss(pred_NHWC: jax.Array, target_NHWC: jax.Array) -> jax.Array:
  """Mean of (pred - target)^2 over all axes but the first.

  Args:
    pred_NHWC: predicted velocity, any rank >= 1, any float type.
    target_NHWC: true velocity d x_t / dt, same shape.

  Returns:
    loss_N, one value per example, in float32 (float64 if either input is float64).

  Raises:
    ValueError: if the shapes differ.
  """
  if pred_NHWC.shape != target_NHWC.shape:
    raise ValueError(
      f'velocity_loss: prediction has shape {pred_NHWC.shape}, target {target_NHWC.shape}'
    )
  dtype = jnp.promote_types(jnp.promote_types(pred_NHWC.dtype, target_NHWC.dtype), jnp.float32)
  error = pred_NHWC.astype(dtype) - target_NHWC.astype(dtype)
  return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
