"""The transformer block with adaLN-Zero, the fusion of long skips and the final layer.

One block (DiT, arXiv 2212.09748, adaLN-Zero), c the conditioning vector:

  (1)  s1, k1, g1, s2, k2, g2 = Linear(SiLU(c))        shift, scale, gate for attention, then MLP
  (2)  x <- x + g1 * Attention(Norm(x) * (1 + k1) + s1)
  (3)  x <- x + g2 * MLP(Norm(x) * (1 + k2) + s2)

and the fusion of a long residual connection (DiverseDiT, arXiv 2603.04239, Eq. 8):

  (4)  f = Linear(LN([x, skip]))

No weights make (4) the identity on x, because LN takes the size of x away. Its residual form starts
as the identity, so a trained network without skips can be given them (`model.skip.residual`):

  (5)  f = x + Linear(LN([x, skip])), with a Linear that is zero at initialisation

What Norm and MLP are, and whether queries and keys turn with their positions, the files of `blocks`
say: SiT has LN and GELU, LightningDiT (2501.01423) RMSNorm, SwiGLU and rotary positions.

Normalisation, softmax and the residual stream stay in float32 whatever the compute dtype of the
matrix products. What the backward pass keeps and what it computes again is not decided here: the
names that `checkpoint_name` gives are read by `tuning.recomputed`, and change no value.
"""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from diversedit_jax.models import attention, blocks, config, groups, linear, norms, rotary, tuning


def modulate(x_NTD: jax.Array, shift_NSD: jax.Array, scale_NSD: jax.Array) -> jax.Array:
  """x * (1 + scale) + shift; S is 1 for all tokens of an example, or T."""
  return x_NTD * (1 + scale_NSD) + shift_NSD


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
      norm = norms.OF_HEADS[architecture.norm]
      features = width // architecture.heads
      self.q_norm, self.k_norm = (norm(features, dtype=dtype, rngs=rngs) for _ in range(2))
    self.qk_norm, self.rope, self.grid = architecture.qk_norm, architecture.rope, architecture.grid

  @jax.named_scope('attention')
  def __call__(
    self,
    x_NTD: jax.Array,
    attend: attention.Attend = attention.attend,
    tokens: groups.Whole = groups.WHOLE,
  ) -> jax.Array:
    n, t, d = x_NTD.shape
    qkv = jnp.split(self.qkv(x_NTD), 3, axis=2)
    q, k, v = (x.reshape(n, t, self.heads, d // self.heads) for x in qkv)
    if self.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    if self.rope:
      q, k = (rotary.turned(x, self.grid, tokens) for x in (q, k))
    return self.proj(attend(q, k, v, self.implementation).reshape(n, t, d))


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


def with_shifts(vectors: Sequence[jax.Array]) -> Sequence[jax.Array]:
  """The six vectors of (1), of which the shifts are zero where there are but four."""
  if len(vectors) == 6:
    return vectors
  scale1, gate1, scale2, gate2 = vectors
  zero = jnp.zeros_like(scale1)
  return zero, scale1, gate1, zero, scale2, gate2


class _Parts(nnx.Module):
  """Two norms, attention and an MLP, which every block has."""

  def __init__(
    self, architecture: config.Architecture, execution: config.Execution, *, rngs: nnx.Rngs
  ):
    norm = norms.OF_TOKENS[architecture.norm]
    self.norm1, self.norm2 = (norm(architecture.width, rngs=rngs) for _ in range(2))
    self.attn = Attention(architecture, execution, rngs=rngs)
    self.mlp = blocks.mlp(architecture.mlp)(architecture, execution, rngs=rngs)


class Block(_Parts):
  """Equations (1) to (3); the identity at initialisation.

  attend: what stands for `attention.attend`, see `taps.showing`. tokens: see `groups`.
  """

  def __init__(
    self, architecture: config.Architecture, execution: config.Execution, *, rngs: nnx.Rngs
  ):
    super().__init__(architecture, execution, rngs=rngs)
    self.vectors = architecture.vectors
    self.adaln = adaln(architecture, execution, self.vectors, rngs=rngs)

  @jax.named_scope('block')
  def __call__(
    self,
    x_NTD: jax.Array,
    c_ND: jax.Array,
    attend: attention.Attend = attention.attend,
    tokens: groups.Whole = groups.WHOLE,
  ) -> jax.Array:
    vectors = modulation(self.adaln, c_ND, self.vectors, x_NTD.dtype, tokens)
    shift1, scale1, gate1, shift2, scale2, gate2 = with_shifts(vectors)
    h_NTD = modulate(self.norm1(x_NTD), shift1, scale1)
    x_NTD = add_gated(x_NTD, gate1, self.attn(h_NTD, attend, tokens))
    x_NTD = checkpoint_name(x_NTD, tuning.RESIDUAL)
    return add_gated(x_NTD, gate2, self.mlp(modulate(self.norm2(x_NTD), shift2, scale2)))


class Unmodulated(_Parts):
  """Equations (2) and (3) without scales, shifts and gates, for blocks told all in tokens."""

  @jax.named_scope('block')
  def __call__(
    self,
    x_NTD: jax.Array,
    c_ND: None,
    attend: attention.Attend = attention.attend,
    tokens: groups.Whole = groups.WHOLE,
  ) -> jax.Array:
    x_NTD = x_NTD + self.attn(self.norm1(x_NTD), attend, tokens).astype(x_NTD.dtype)
    x_NTD = checkpoint_name(x_NTD, tuning.RESIDUAL)
    return x_NTD + self.mlp(self.norm2(x_NTD)).astype(x_NTD.dtype)


def of(architecture: config.Architecture) -> type[nnx.Module]:
  """The class of an architecture's blocks."""
  if architecture.conditioning == 'tokens':
    return Unmodulated
  return blocks.own_block(architecture.block) or Block


class Fuse(nnx.Module):
  """Equation (4): joins a block of the second half to its mirror in the first half."""

  def __init__(
    self, architecture: config.Architecture, execution: config.Execution, *, rngs: nnx.Rngs
  ):
    width = architecture.width
    self.norm = norms.LayerNorm(2 * width, rngs=rngs)
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
    self.norm = norms.LayerNorm(2 * width, rngs=rngs)
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
    self.norm = norms.OF_TOKENS[architecture.norm](architecture.width, rngs=rngs)
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
    x_NTD = modulate(self.norm(x_NTD), shift, scale)
    if not self.has_class_token:
      return self.linear(x_NTD), None
    return self.linear(x_NTD[:, 1:]), self.class_linear(x_NTD[:, 0])
