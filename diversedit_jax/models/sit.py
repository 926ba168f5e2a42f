"""SiT, the diffusion transformer (arXiv 2401.08740), with DiverseDiT's long residual connections.

In the notation of `types`:

  x_NHWC -> patches -> Linear + positions -> L blocks -> adaLN, Linear -> unpatchify -> velocity
  t_N -> sinusoids -> MLP ---+
  y_N -> label table --------+-> c_ND, which modulates every block
  h_N -> sinusoids -> MLP ---+   only where an average over an interval is predicted (MeanFlow)

and, for REG, a class token [N, Z] that is noised like the data and predicted with them.
"""

import dataclasses
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import sharding, types
from diversedit_jax.models import block, config, embed, groups, linear, stack, taps


class Given(NamedTuple):
  """What a forward pass is given; t_N and y_N are rows of the conditioning, see `groups`."""

  x_NHWC: jax.Array
  t_N: jax.Array
  y_N: jax.Array
  h_N: jax.Array | None
  class_token_NZ: jax.Array | None
  tokens: groups.Whole


class SiT(nnx.Module):
  """Scalable interpolant transformer; at initialisation its output is exactly zero."""

  def __init__(
    self,
    architecture: config.Architecture,
    execution: config.Execution = config.PLAIN,
    *,
    rngs: nnx.Rngs,
  ):
    if architecture.head.depth and type(self) is SiT:
      raise ValueError('SiT has no decoder: make a network with model.head.depth by networks.make')
    self.architecture, self.execution = architecture, execution
    width = architecture.width
    self.patch_embed = linear.Linear(
      architecture.patch_size**2 * architecture.channels, width, (None, 'embed'), rngs=rngs
    )
    time_embed = embed.TIME_EMBEDS[architecture.time_features]
    self.time_embed = time_embed(width, rngs=rngs)
    self.label_embed = embed.LabelEmbed(architecture.num_classes, width, rngs=rngs)
    if architecture.interval:
      self.interval_embed = time_embed(width, rngs=rngs)
    if architecture.class_token:
      self.class_token_embed = embed.ClassTokenEmbed(architecture.class_token, width, rngs=rngs)
    self.blocks = stack.Stack(architecture, execution, rngs=rngs)
    self.final = block.Final(architecture.last, execution, rngs=rngs)
    if architecture.base:
      plain = dataclasses.replace(architecture, class_token=0)
      self.base = block.Final(plain, execution, rngs=rngs)

  @jax.named_scope('embed')
  def tokens(self, x_NHWC: jax.Array, class_token_NZ: jax.Array | None = None) -> jax.Array:
    """Patch tokens with their positions, [N, T, D] in the dtype of the residual stream.

    A class token comes first, without a position: [N, 1 + T, D].
    """
    architecture = self.architecture
    x_NTD = self.patch_embed(embed.patchify(x_NHWC, architecture.patch_size))
    x_NTD = x_NTD.astype(jnp.promote_types(x_NTD.dtype, self.execution.residual_dtype))
    if architecture.position_table:
      positions = embed.position_table(*architecture.grid, architecture.width)
      x_NTD = x_NTD + jnp.asarray(positions, x_NTD.dtype)[None]
    if class_token_NZ is None:
      return x_NTD
    first_ND = self.class_token_embed(class_token_NZ).astype(x_NTD.dtype)
    return jnp.concatenate([first_ND[:, None], x_NTD], axis=1)

  @jax.named_scope('embed')
  def condition(self, t_N: jax.Array, y_N: jax.Array, h_N: jax.Array | None = None) -> jax.Array:
    """The conditioning vector c_ND, the sum of the embeddings of time, label and interval."""
    time_input = embed.TIME_INPUTS[self.architecture.time_input]
    c_ND = self.time_embed(time_input(t_N)) + self.label_embed(y_N)
    if h_N is not None:
      c_ND = c_ND + self.interval_embed(h_N)
    return sharding.constrain_batch(c_ND)

  @jax.named_scope('embed')
  def times(self, t_N: jax.Array, h_N: jax.Array | None = None) -> jax.Array:
    """The embedding of time and interval alone, [N, D]."""
    times_ND = self.time_embed(embed.TIME_INPUTS[self.architecture.time_input](t_N))
    return times_ND if h_N is None else times_ND + self.interval_embed(h_N)

  def embed_inputs(self, given: Given) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Embeds what is given: x_NTD and c_ND for the blocks, and final_c_ND for `predict`."""
    c_ND = self.condition(given.t_N, given.y_N, given.h_N)
    return given.tokens.sorted(self.tokens(given.x_NHWC, given.class_token_NZ)), c_ND, c_ND

  def predict(
    self, f_NTD: jax.Array, final_c_ND: jax.Array, given: Given
  ) -> tuple[jax.Array, jax.Array | None]:
    """Patches [N, T, P*P*C'] and class token of the last block's output, see `block.Final`."""
    return self.final(f_NTD, final_c_ND, given.tokens)

  def predict_base(self, f_NTD: jax.Array, final_c_ND: jax.Array, given: Given) -> jax.Array:
    """Patches of the output of block `base`, without a class token."""
    return self.base(f_NTD, final_c_ND, given.tokens)[0]

  @jax.named_scope('model')
  def __call__(
    self,
    x_NHWC: jax.Array,
    t_N: jax.Array,
    y_N: jax.Array,
    *,
    h_N: jax.Array | None = None,
    class_token_NZ: jax.Array | None = None,
    tokens: groups.Whole = groups.WHOLE,
    tap: taps.Tap | None = None,
    blocks: int | None = None,
  ) -> types.Output:
    """One forward pass.

    Args:
      x_NHWC: noisy latents or images.
      t_N: times in [0, 1], 0 data and 1 noise; [N, G] where tokens are grouped.
      y_N: integer labels, K for the null label.
      h_N: lengths t - r of intervals that end at t; for a model with `interval`, and only there.
      class_token_NZ: noisy class tokens; for a model with `class_token`, and only there.
      tokens: groups of tokens with times of their own, see `groups`; all have one by default.
      tap: what to keep of the block outputs.
      blocks: stop after so many of them, for the features alone; None runs all.

    Returns:
      `Output` with the prediction [N, H, W, C], that of the class token [N, Z] and that of block
      `base`, in float32 at least (None if only the first blocks ran), and the tap's features.

    Raises:
      ValueError: for a wrong shape, a missing input, or one that the model has no place for.
    """
    architecture = self.architecture
    rows, cols = architecture.input_size
    types.check('x', x_NHWC, 'N H W C', H=rows, W=cols, C=architecture.channels)
    types.check('y', y_N, 'N', N=x_NHWC.shape[0])
    _check_input('h_N', h_N, architecture.interval)
    _check_input('class_token_NZ', class_token_NZ, architecture.class_token > 0)
    given = Given(x_NHWC, *tokens.rows(t_N, y_N), h_N, class_token_NZ, tokens)
    x_NTD, c_ND, final_c_ND = self.embed_inputs(given)
    tap = tokens.tap(tap or taps.nothing())
    early = taps.chosen([architecture.base - 1]) if architecture.base else taps.nothing()
    tap = taps.joined({'asked': tap, 'base': early})
    x_NTD, features = self.blocks(x_NTD, c_ND, tokens, tap=tap, blocks=blocks)
    if blocks is not None and blocks < architecture.depth:
      return types.Output(None, features['asked'])

    def image(out_NTP):
      pred = embed.unpatchify(tokens.restored(out_NTP), architecture.patch_size, rows, cols)
      return _finished(pred[..., : architecture.channels])

    out, class_token_NZ = self.predict(x_NTD, final_c_ND, given)
    base = None
    if architecture.base:
      f_NTD = features['base'][0][:, -architecture.tokens :]
      base = image(self.predict_base(f_NTD, final_c_ND, given))
    class_token_NZ = jax.tree.map(_finished, class_token_NZ)
    return types.Output(image(out), features['asked'], class_token_NZ, base)


def _finished(x: jax.Array) -> jax.Array:
  return sharding.constrain_batch(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


def _check_input(name, given, wanted):
  if (given is not None) != wanted:
    raise ValueError(f'{name} is {"missing" if wanted else "not an input of this model"}')
