"""Transformers with a wide, shallow decoder after the blocks (DDT, arXiv 2504.05741).

As RAE publishes it (2510.11690): c = silu(t + y) conditions the blocks, which are the encoder.
Their outputs f and the embedding of time, without the label, modulate each token of the decoder,
which reads the noisy input again:

  (1)  s = Linear(silu(t + f))                  Linear where the widths differ
  (2)  h <- Blocks(Linear(patches), s)          the decoder, (1) to (3) of `block` with s for c
  (3)  out = Final(h, s)

An earlier block may predict too, by Final(s, s) with s = silu(t + f) (internal guidance, as RAEv2).

RAEv2's encoder (2605.18324) is not modulated: tokens of time and label, trained ones plus t or y,
stand before the others, without a place.

Taps see the outputs of the encoder, and long skips join its blocks.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import sharding
from diversedit_jax.models import attention, config, embed, groups, linear, sit, stack, taps


class Decoder(nnx.Module):
  """The decoder, (1) and (2) of the module's head, with s' = silu(t + f) given."""

  def __init__(
    self, architecture: config.Architecture, execution: config.Execution, *, rngs: nnx.Rngs
  ):
    decoder, dtype = architecture.decoder, execution.compute_dtype
    patch = architecture.patch_size**2 * architecture.channels
    self.patch_size, self.residual_dtype = architecture.patch_size, execution.residual_dtype
    self.patch_embed = linear.Linear(patch, decoder.width, (None, 'embed'), rngs=rngs)
    if architecture.class_token:
      self.class_token_embed = embed.ClassTokenEmbed(
        architecture.class_token, decoder.width, rngs=rngs
      )
    self.project = (
      linear.Linear(architecture.width, decoder.width, (None, 'embed'), dtype=dtype, rngs=rngs)
      if decoder.width != architecture.width
      else None
    )
    self.blocks = stack.Stack(decoder, attention.fitting(decoder, execution), rngs=rngs)

  @jax.named_scope('decoder')
  def __call__(self, given: sit.Given, s_NTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Decodes the noisy input: tokens h_NTW and their conditioning s_NTW, of silu(t + f)."""
    s_NTW = s_NTD if self.project is None else self.project(s_NTD).astype(s_NTD.dtype)
    h_NTW = self.patch_embed(embed.patchify(given.x_NHWC, self.patch_size))
    h_NTW = h_NTW.astype(jnp.promote_types(h_NTW.dtype, self.residual_dtype))
    if given.class_token_NZ is not None:
      first_NW = self.class_token_embed(given.class_token_NZ).astype(h_NTW.dtype)
      h_NTW = jnp.concatenate([first_NW[:, None], h_NTW], axis=1)
    h_NTW, _ = self.blocks(
      given.tokens.sorted(h_NTW), s_NTW, given.tokens.each(), tap=taps.nothing()
    )
    return h_NTW, s_NTW


class DDT(sit.SiT):
  """SiT's interface with RAE's head."""

  def __init__(
    self,
    architecture: config.Architecture,
    execution: config.Execution = config.PLAIN,
    *,
    rngs: nnx.Rngs,
  ):
    super().__init__(architecture, execution, rngs=rngs)
    self.decoder = Decoder(architecture, execution, rngs=rngs)

  def condition(self, t_N: jax.Array, y_N: jax.Array, h_N: jax.Array | None = None) -> jax.Array:
    return self._condition(self.times(t_N, h_N), y_N)

  def _condition(self, times_ND, y_N):
    return sharding.constrain_batch(jax.nn.silu(times_ND + self.label_embed(y_N)))

  def embed_inputs(self, given: sit.Given) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    times_ND = self.times(given.t_N, given.h_N)
    x_NTD = self.tokens(given.x_NHWC, given.class_token_NZ)
    return given.tokens.sorted(x_NTD), self._condition(times_ND, given.y_N), times_ND

  def predict(
    self, f_NTD: jax.Array, final_c_ND: jax.Array, given: sit.Given
  ) -> tuple[jax.Array, jax.Array | None]:
    h_NTW, s_NTW = self.decoder(given, self._timed(f_NTD, final_c_ND, given))
    return self.final(h_NTW, s_NTW, given.tokens.each())

  def predict_base(self, f_NTD: jax.Array, final_c_ND: jax.Array, given: sit.Given) -> jax.Array:
    s_NTD = self._timed(f_NTD, final_c_ND, given)
    return self.base(s_NTD, s_NTD, given.tokens.each())[0]

  def _timed(self, f_NTD, times_ND, given):
    """silu(t + f)."""
    return jax.nn.silu(given.tokens.spread(times_ND).astype(f_NTD.dtype) + f_NTD)


class InContext(DDT):
  """SiT's interface with RAEv2's encoder and head."""

  def __init__(
    self,
    architecture: config.Architecture,
    execution: config.Execution = config.PLAIN,
    *,
    rngs: nnx.Rngs,
  ):
    super().__init__(architecture, execution, rngs=rngs)
    initial = sharding.annotated(nnx.initializers.normal(architecture.width**-0.5), None, 'embed')
    token = lambda count: nnx.Param(initial(rngs.params(), (count, architecture.width)))
    self.time_tokens = token(architecture.context.time)
    self.label_tokens = token(architecture.context.label)

  def embed_inputs(self, given: sit.Given) -> tuple[jax.Array, None, jax.Array]:
    if isinstance(given.tokens, groups.Grouped):
      raise ValueError('groups of tokens have times of their own, but a context tells one time')
    x_NTD = self.tokens(given.x_NHWC, given.class_token_NZ)
    times_ND = self.times(given.t_N, given.h_N)
    context = [
      self.time_tokens[...][None] + times_ND[:, None],
      self.label_tokens[...][None] + self.label_embed(given.y_N)[:, None],
    ]
    x_NTD = jnp.concatenate([*(part.astype(x_NTD.dtype) for part in context), x_NTD], axis=1)
    return sharding.constrain_batch(x_NTD), None, times_ND

  def predict(
    self, f_NTD: jax.Array, final_c_ND: jax.Array, given: sit.Given
  ) -> tuple[jax.Array, jax.Array | None]:
    return super().predict(f_NTD[:, self.architecture.context_tokens :], final_c_ND, given)
