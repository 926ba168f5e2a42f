"""The transformer block with adaLN-Zero, the fusion of long skips and the final layer.

One block (DiT, arXiv 2212.09748, adaLN-Zero), c the conditioning vector:

  (1)  s1, k1, g1, s2, k2, g2 = Linear(SiLU(c))        shift, scale, gate for attention, then MLP
  (2)  x <- x + g1 * Attention(LN(x) * (1 + k1) + s1)
  (3)  x <- x + g2 * MLP(LN(x) * (1 + k2) + s2)

and the fusion of a long residual connection (DiverseDiT, arXiv 2603.04239, Eq. 8):

  (4)  f = Linear(LN([x, skip]))

No weights make (4) the identity on x, because LN takes the size of x away. Its residual form starts
as the identity, so a trained network without skips can be given them (`model.skip.residual`):

  (5)  f = x + Linear(LN([x, skip])), with a Linear that is zero at initialisation

Normalisation, softmax and the residual stream stay in float32 whatever the compute dtype of the
matrix products. What the backward pass keeps and what it computes again is not decided here: the
names that `checkpoint_name` gives are read by `tuning.recomputed`, and change no value.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from diversedit_jax.models import attention, config, embed, groups, linear, tuning

NORM_EPSILON = 1e-6
QK_NORM_EPSILON = 1e-5  # The default of torch.nn.LayerNorm, which timm uses for q and k.
Attend = Callable[[jax.Array, jax.Array, jax.Array, str], jax.Array]


@jax.jit  # A unit of its own also backwards, which makes it one kernel on a GPU instead of three.
def normalise(x_NTD: jax.Array, epsilon: float = NORM_EPSILON) -> jax.Array:
  """LayerNorm over the last axis without parameters, in float32 at least."""
  x = x_NTD.astype(jnp.promote_types(x_NTD.dtype, jnp.float32))
  centred = x - checkpoint_name(jnp.mean(x, axis=-1, keepdims=True), tuning.STATISTICS)
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(checkpoint_name(variance, tuning.STATISTICS) + epsilon)


class LayerNorm(nnx.LayerNorm):
  """`normalise` with a scale and a bias for each feature."""

  def __init__(self, features: int, *, rngs: nnx.Rngs):
    super().__init__(
      features,
      epsilon=NORM_EPSILON,
      scale_init=embed.ones(None),
      bias_init=embed.zeros(None),
      rngs=rngs,
    )

  def __call__(self, x_NTD: jax.Array) -> jax.Array:
    return normalise(x_NTD, self.epsilon) * self.scale[None, None] + self.bias[None, None]


def modulate(x_NTD: jax.Array, shift_NSD: jax.Array, scale_NSD: jax.Array) -> jax.Array:
  """LN(x) * (1 + scale) + shift; S is 1 for all tokens of an example, or T."""
  return normalise(x_NTD) * (1 + scale_NSD) + shift_NSD


def add_gated(x_NTD: jax.Array, gate_NSD: jax.Array, h_NTD: jax.Array) -> jax.Array:
  """x + gate * h in the dtype of x."""
  return x_NTD + gate_NSD * h_NTD.astype(x_NTD.dtype)


class Attention(nnx.Module):
  """Multi-head self-attention, [N, T, D] -> [N, T, D]; one projection makes q, k and v."""

  def __init__(
    self, architecture: config.Architecture, execution: config.Execution, *, rngs: nnx.Rngs
  ):
    width, dtype = architecture.width, execution.compute_dtype
    self.heads = architecture.heads
    self.implementation = attention.implementation(architecture, execution)
    # An axis of its own for the three, so that devices share each of them by heads.
    self.qkv = linear.Linear(width, (3, width), ('embed', None, 'heads'), dtype=dtype, rngs=rngs)
    self.proj = linear.Linear(width, width, ('heads', 'embed'), dtype=dtype, rngs=rngs)
    if architecture.qk_norm:
      norm = lambda: nnx.LayerNorm(
        width // architecture.heads,
        epsilon=QK_NORM_EPSILON,
        use_fast_variance=False,
        dtype=dtype,
        scale_init=embed.ones(None),
        bias_init=embed.zeros(None),
        rngs=rngs,
      )
      self.q_norm, self.k_norm = norm(), norm()
    self.qk_norm = architecture.qk_norm

  @jax.named_scope('attention')
  def __call__(self, x_NTD: jax.Array, attend: Attend = attention.attend) -> jax.Array:
    n, t, d = x_NTD.shape
    qkv = jnp.split(self.qkv(x_NTD), 3, axis=2)
    q, k, v = (x.reshape(n, t, self.heads, d // self.heads) for x in qkv)
    if self.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    return self.proj(attend(q, k, v, self.implementation).reshape(n, t, d))


class Mlp(nnx.Module):
  """D -> ratio * D -> D with the tanh-approximated GELU."""

  def __init__(
    self, architecture: config.Architecture, execution: config.Execution, *, rngs: nnx.Rngs
  ):
    width, hidden = architecture.width, architecture.hidden
    dtype = execution.compute_dtype
    self.fc1 = linear.Linear(width, hidden, ('embed', 'mlp'), dtype=dtype, rngs=rngs)
    self.fc2 = linear.Linear(hidden, width, ('mlp', 'embed'), dtype=dtype, rngs=rngs)

  @jax.named_scope('mlp')
  def __call__(self, x_NTD: jax.Array) -> jax.Array:
    h_NTE = checkpoint_name(self.fc1(x_NTD), tuning.HIDDEN)
    return self.fc2(jax.nn.gelu(h_NTE, approximate=True))


def adaln(
  architecture: config.Architecture, execution: config.Execution, parts: int, *, rngs: nnx.Rngs
) -> linear.Linear:
  """The zero-initialised layer that turns the conditioning into `parts` vectors of width D."""
  return linear.Linear(
    architecture.width,
    parts * architecture.width,
    ('embed', None),
    init=nnx.initializers.zeros,
    dtype=execution.compute_dtype,
    rngs=rngs,
  )


def modulation(
  layer: linear.Linear, c_ND: jax.Array, parts: int, dtype: Any, tokens: groups.Whole
) -> list[jax.Array]:
  """(1): the vectors that an `adaln` layer makes of the conditioning, spread over tokens."""
  vectors = jnp.split(layer(jax.nn.silu(c_ND)).astype(dtype), parts, axis=-1)
  return [tokens.spread(checkpoint_name(vector_ND, tuning.MODULATION)) for vector_ND in vectors]


class Block(nnx.Module):
  """Equations (1) to (3); the identity at initialisation.

  attend: what stands for `attention.attend`, see `taps.showing`. tokens: see `groups`.
  """

  def __init__(
    self, architecture: config.Architecture, execution: config.Execution, *, rngs: nnx.Rngs
  ):
    self.attn = Attention(architecture, execution, rngs=rngs)
    self.mlp = Mlp(architecture, execution, rngs=rngs)
    self.adaln = adaln(architecture, execution, 6, rngs=rngs)

  @jax.named_scope('block')
  def __call__(
    self,
    x_NTD: jax.Array,
    c_ND: jax.Array,
    attend: Attend = attention.attend,
    tokens: groups.Whole = groups.WHOLE,
  ) -> jax.Array:
    vectors = modulation(self.adaln, c_ND, 6, x_NTD.dtype, tokens)
    shift1, scale1, gate1, shift2, scale2, gate2 = vectors
    x_NTD = add_gated(x_NTD, gate1, self.attn(modulate(x_NTD, shift1, scale1), attend))
    x_NTD = checkpoint_name(x_NTD, tuning.RESIDUAL)
    return add_gated(x_NTD, gate2, self.mlp(modulate(x_NTD, shift2, scale2)))


class Fuse(nnx.Module):
  """Equation (4): joins a block of the second half to its mirror in the first half."""

  def __init__(
    self, architecture: config.Architecture, execution: config.Execution, *, rngs: nnx.Rngs
  ):
    width = architecture.width
    self.norm = LayerNorm(2 * width, rngs=rngs)
    self.linear = linear.Linear(
      2 * width, width, (None, 'embed'), dtype=execution.compute_dtype, rngs=rngs
    )

  @jax.named_scope('fuse')
  def __call__(self, x_NTD: jax.Array, skip_NTD: jax.Array) -> jax.Array:
    both_NTE = jnp.concatenate([x_NTD, skip_NTD], axis=-1)
    return self.linear(self.norm(both_NTE)).astype(x_NTD.dtype)


class ResidualFuse(nnx.Module):
  """Equation (5); its parameters have names of their own, since they mean something else."""

  def __init__(
    self, architecture: config.Architecture, execution: config.Execution, *, rngs: nnx.Rngs
  ):
    width = architecture.width
    self.norm = LayerNorm(2 * width, rngs=rngs)
    self.update = linear.Linear(
      2 * width,
      width,
      (None, 'embed'),
      init=nnx.initializers.zeros,
      dtype=execution.compute_dtype,
      rngs=rngs,
    )

  @jax.named_scope('fuse')
  def __call__(self, x_NTD: jax.Array, skip_NTD: jax.Array) -> jax.Array:
    both_NTE = jnp.concatenate([x_NTD, skip_NTD], axis=-1)
    return x_NTD + self.update(self.norm(both_NTE)).astype(x_NTD.dtype)


class Final(nnx.Module):
  """adaLN with its own shift and scale, then the zero-initialised linear heads.

  (x_NTD, c_ND) -> (patches [N, T, P*P*C'], class token [N, Z] or None), with C' = 2C where the
  network also predicts a variance. A class token stands before the patches.
  """

  def __init__(
    self, architecture: config.Architecture, execution: config.Execution, *, rngs: nnx.Rngs
  ):
    head = lambda out: linear.Linear(
      architecture.width, out, ('embed', None), init=nnx.initializers.zeros, rngs=rngs
    )
    outputs = architecture.channels * (2 if architecture.learn_sigma else 1)
    self.adaln = adaln(architecture, execution, 2, rngs=rngs)
    self.linear = head(architecture.patch_size**2 * outputs)
    self.has_class_token = bool(architecture.class_token)
    if architecture.class_token:
      self.class_linear = head(architecture.class_token)

  @jax.named_scope('final')
  def __call__(
    self, x_NTD: jax.Array, c_ND: jax.Array, tokens: groups.Whole = groups.WHOLE
  ) -> tuple[jax.Array, jax.Array | None]:
    shift, scale = modulation(self.adaln, c_ND, 2, x_NTD.dtype, tokens)
    x_NTD = modulate(x_NTD, shift, scale)
    if not self.has_class_token:
      return self.linear(x_NTD), None
    return self.linear(x_NTD[:, 1:]), self.class_linear(x_NTD[:, 0])
