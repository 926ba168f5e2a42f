"""Normalisations over the last axis, the features of a token or of a head.

  LN(x)  = (x - mean x) / sqrt(var x + e)     with w and b where they are trained: w LN(x) + b
  RMS(x) = w x / sqrt(mean x^2 + e)           RMSNorm (arXiv 1910.07467), w trained

Both are computed in float32 at least.
"""

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from diversedit_jax.models import embed, tuning

EPSILON = 1e-6
QK_EPSILON = 1e-5  # The default of torch.nn.LayerNorm, which timm uses for q and k.


@jax.jit  # A unit of its own also backwards, which makes it one kernel on a GPU instead of three.
def normalise(x_NTD: jax.Array, epsilon: float = EPSILON) -> jax.Array:
  """LN without parameters."""
  x = x_NTD.astype(jnp.promote_types(x_NTD.dtype, jnp.float32))
  centred = x - checkpoint_name(jnp.mean(x, axis=-1, keepdims=True), tuning.STATISTICS)
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(checkpoint_name(variance, tuning.STATISTICS) + epsilon)


@jax.jit
def scaled_to_one(x: jax.Array, epsilon: float = EPSILON) -> jax.Array:
  """RMS without w."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  square = checkpoint_name(jnp.mean(jnp.square(x), axis=-1, keepdims=True), tuning.STATISTICS)
  return x * jax.lax.rsqrt(square + epsilon)


class PlainNorm(nnx.Module):
  """LN without parameters, where the modulation that follows scales and shifts."""

  def __init__(self, features: int, *, rngs: nnx.Rngs):
    del features, rngs

  def __call__(self, x_NTD: jax.Array) -> jax.Array:
    return normalise(x_NTD)


class LayerNorm(nnx.LayerNorm):
  """LN with w and b."""

  def __init__(self, features: int, *, rngs: nnx.Rngs):
    super().__init__(
      features, epsilon=EPSILON, scale_init=embed.ones(None), bias_init=embed.zeros(None), rngs=rngs
    )

  def __call__(self, x_NTD: jax.Array) -> jax.Array:
    return normalise(x_NTD, self.epsilon) * self.scale[None, None] + self.bias[None, None]


class RmsNorm(nnx.Module):
  """RMS with w; what comes out is in `dtype`, None for float32 at least."""

  def __init__(self, features: int, *, dtype: jnp.dtype | None = None, rngs: nnx.Rngs):
    self.scale = nnx.Param(embed.ones(None)(rngs.params(), (features,)))
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    out = scaled_to_one(x) * jnp.expand_dims(self.scale[...], range(x.ndim - 1))
    return out if self.dtype is None else out.astype(self.dtype)


def _qk_layer_norm(features, *, dtype, rngs):
  return nnx.LayerNorm(
    features,
    epsilon=QK_EPSILON,
    use_fast_variance=False,
    dtype=dtype,
    scale_init=embed.ones(None),
    bias_init=embed.zeros(None),
    rngs=rngs,
  )


OF_TOKENS = {'layer': PlainNorm, 'rms': RmsNorm}
"""By `model.norm`: before attention, MLP and head."""

OF_HEADS = {'layer': _qk_layer_norm, 'rms': RmsNorm}
"""By `model.norm`: of queries and keys, where `model.qk_norm` asks for it."""
