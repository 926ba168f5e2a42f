"""HASTE's attention term: early blocks attend as late blocks of a frozen encoder do (2505.16792).

With q, k [T, H, d] of one block, A = q k^T / sqrt(d) its logits, P a set of pairs (block of the
model, block of the encoder), and head h of the one compared with head h of the other,

  L = 1/|P| sum_{(k, m) in P} mean_{n,h,i} -sum_j softmax(A_m)[n,h,i,j] log softmax(A_k)[n,h,i,j]

over patches i, j alone: class tokens and registers leave rows and columns before the softmax. It
is a cross entropy, so its least value is the encoder's entropy, not 0. HASTE is `repa+haste`, both
stopped at a step.

The released code takes the logarithm of a softmax, which is -inf or NaN for wide logits; this is a
log-softmax. Nothing [T, T] is kept for the backward pass, which makes the logits again.
"""

from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from diversedit_jax import options, types
from diversedit_jax.frozen import encoders
from diversedit_jax.methods import base, registry
from diversedit_jax.models import config as model_config
from diversedit_jax.models import taps

PAIRS = '5:9,6:10,7:11,8:12'
"""Published, of every SiT with DINOv2-B."""
STOP = 250_000
"""Updates after which both alignments end, published for ImageNet at 256 x 256."""
_PAIR = re.compile(r'([1-9]\d*):([1-9]\d*)')


@registry.register('haste')
@dataclasses.dataclass(frozen=True, kw_only=True)
class Haste(base.Term):
  """Attends as an encoder does (HASTE, arXiv 2505.16792).

  Its encoder's weights and dtype are those of the section `repa`, whose encoder it may share.

  teacher: patches, heads and width of a head of the encoder; `prepare` finds them.
  """

  pairs: str = options.option(
    PAIRS,
    doc="Pairs BLOCK:ENCODER_BLOCK, counted from 1, as '5:9,6:10' (published: of SiT with "
    'DINOv2-B).',
  )
  weight: float = options.option(0.5, above=0, doc='Factor of the mean over pairs.')
  encoder: str = options.option(
    'dinov2-vit-b',
    doc='The frozen encoder, a transformer as in repa.pairs, with repa.weights and repa.dtype.',
  )
  heads_used: int = options.option(
    0, at_least=0, doc='The first heads of both that are compared; 0 is all that both have.'
  )
  teacher: tuple[int, int, int] = (0, 0, 0)
  reads: ClassVar[tuple[str, ...]] = ('repa.weights', 'repa.dtype')
  needs_pixels: ClassVar[bool] = True
  couples_examples: ClassVar[bool] = False
  # arXiv 2505.16792: REPA at block 8 of every size, both alignments up to a step.
  recipe: ClassVar[Mapping[str, Any]] = {
    'repa.pairs': 'dinov2-vit-b@8',
    'repa.schedule': f'stop:{STOP}',
    'haste.schedule': f'stop:{STOP}',
  }

  def __post_init__(self):
    super().__post_init__()
    pairs = self.pairs.split(',')
    for pair in pairs:
      if not _PAIR.fullmatch(pair):
        raise types.UserError(
          f'haste.pairs={self.pairs!r}: {pair!r} is no pair BLOCK:ENCODER_BLOCK, counted from 1, '
          "as '5:9'"
        )
    if len(set(pairs)) < len(pairs):
      raise types.UserError(f'haste.pairs={self.pairs!r} names a pair twice')

  @property
  def _pairs(self) -> list[tuple[int, int]]:
    return [(int(k), int(m)) for k, m in _PAIR.findall(self.pairs)]

  @property
  def _blocks(self) -> list[int]:
    """Every block of the model that is in a pair, once."""
    return sorted({k for k, _ in self._pairs})

  def prepare(self, setup: base.Setup) -> 'Haste':
    """With its encoder opened, which is asked for the attention of the blocks in the pairs."""
    request = setup.parts['repa'].request(setup)
    blocks = tuple(sorted({m for _, m in self._pairs}))
    try:
      encoder = encoders.open_encoder(self.encoder, dataclasses.replace(request, attention=blocks))
    except types.UserError as error:
      raise types.UserError(
        f'haste.encoder={self.encoder!r}, haste.pairs={self.pairs!r}: {error}'
      ) from error
    _, *teacher = encoder.shapes().queries[blocks[0]].shape
    return dataclasses.replace(self, opened=(encoder,), teacher=tuple(teacher))

  def check(self, architecture: model_config.Architecture, examples: int) -> None:
    del examples
    for block in self._blocks:
      base.check_block('haste.pairs', block, architecture.depth)
    _, heads, _ = self.teacher
    if self.heads_used > min(architecture.heads, heads):
      raise types.UserError(
        f'haste.heads_used={self.heads_used}: the model has {architecture.heads} heads and '
        f'{self.encoder!r} has {heads}; 0 takes {min(architecture.heads, heads)}'
      )

  def tap(self, key: jax.Array, depth: int) -> taps.Tap:
    del key, depth
    return taps.attention([block - 1 for block in self._blocks])

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """Metrics 'loss' (before weighting) and each pair's 'pair_BLOCK_ENCODERBLOCK'."""
    # Nothing [T, T] is kept for the backward pass.
    compared = jax.checkpoint(functools.partial(attention_loss, heads=self.heads_used))
    batch, parts = context.noisy.batch, {}
    for k, m in self._pairs:
      q_NTHd, k_NTHd = (x[self._blocks.index(k)] for x in features)
      teacher = (batch[f'{self.encoder}/{name}/{m}'] for name in ('queries', 'keys'))
      parts[f'pair_{k}_{m}'] = jnp.mean(compared(q_NTHd, k_NTHd, *teacher))
    loss = jnp.mean(jnp.stack([*parts.values()]))
    return self.weight * loss, {'loss': loss, **parts}

  def flops(self, architecture: model_config.Architecture, examples: int) -> float:
    """Logits of both, made twice, and the gradients of the model's queries and keys."""
    del examples
    t, teacher_heads, teacher_dim = self.teacher
    heads = self.heads_used or min(architecture.heads, teacher_heads)
    dim = architecture.width // architecture.heads
    return 2.0 * len(self._pairs) * t * t * heads * (4 * dim + 2 * teacher_dim)


def attention_loss(
  q_NTHd: jax.Array,
  k_NTHd: jax.Array,
  teacher_q_NTHd: jax.Array,
  teacher_k_NTHd: jax.Array,
  heads: int = 0,
) -> jax.Array:
  """Cross entropy of one block's attention against the teacher's, a mean over heads and rows.

  Args:
    q_NTHd, k_NTHd: queries and keys of the model; patches come last.
    teacher_q_NTHd, teacher_k_NTHd: those of the encoder's patches; they receive no gradient.
    heads: the first ones that count; 0 is as many as both have.

  Returns:
    loss_N, in float32 at least.

  Raises:
    ValueError: if the model has fewer tokens than the encoder has patches.
  """
  t = teacher_q_NTHd.shape[1]
  if q_NTHd.shape[1] < t:
    raise ValueError(f'{q_NTHd.shape[1]} tokens cannot attend as {t} patches do')
  heads = heads or min(q_NTHd.shape[2], teacher_q_NTHd.shape[2])

  def logits(q, k):
    q, k = q[:, -t:, :heads], k[:, -t:, :heads]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    products = jnp.einsum('nqhd,nkhd->nhqk', q, k, preferred_element_type=wide)
    return products * q.shape[-1] ** -0.5

  teacher = jax.lax.stop_gradient((teacher_q_NTHd, teacher_k_NTHd))
  weights_NHTT = jax.nn.softmax(logits(*teacher))
  wanted_NHTT = weights_NHTT * jax.nn.log_softmax(logits(q_NTHd, k_NTHd))
  return -jnp.mean(jnp.sum(wanted_NHTT, axis=-1), axis=(1, 2))
