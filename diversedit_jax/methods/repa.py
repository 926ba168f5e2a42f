"""REPA: block outputs, projected, aligned with features of frozen encoders (arXiv 2410.06940).

  loss = -weight * mean over pairs, examples and tokens of cos(projector(f_block), encoder tokens)

The released code aligns the output of one block; DiverseDiT (2603.04239, Fig. 2) also looks at
several (encoder, block) pairs at once, each with its own projector. A cosine bounds the norms from
below by 1e-12, as PyTorch's `normalize` does.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import options, types
from diversedit_jax.frozen import encoders
from diversedit_jax.losses import arithmetic
from diversedit_jax.methods import base, registry
from diversedit_jax.models import config as model_config
from diversedit_jax.models import heads as heads_lib
from diversedit_jax.models import taps

BLOCKS = {12: 5, 24: 8, 28: 8}
"""Aligned block by depth in DiverseDiT's recipe (Table A1); REPA itself takes 4 for depth 12."""

_SHORTEST = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """encoder: its name. block: whose output is aligned, from 1. width: Z, width of its tokens."""

  encoder: str
  block: int
  width: int


@registry.register('repa')
@dataclasses.dataclass(frozen=True, kw_only=True)
class Repa(base.Term):
  """Aligns blocks with features of frozen encoders (REPA, arXiv 2410.06940).

  aligned: what is aligned with what; `prepare` makes it from `pairs`.
  class_token: whether the class token is aligned with the encoder's summary too, as REG does.
  """

  pairs: str = options.option(
    'dinov2-vit-b',
    doc='ENCODER@BLOCK,... with blocks from 1; without a block 5 (depth 12; 4 for reg) or 8 (24, '
    '28). Encoders: pca, dinov2-vit-{s,b,l,g}, dinov2reg-vit-{s,b,l,g}, mae-vit-{b,l,h}, '
    'mocov3-vit-{s,b,l}, clip-vit-l, siglip2-vit-{b,l,so400m}, convnextv2-{t,b,l}, ijepa-vit-h '
    '(not for reg); see docs/methods.md.',
  )
  weight: float = options.option(
    0.5, at_least=0, doc='Factor of the mean over pairs; 0 only with reg.'
  )
  hidden: int = options.option(2048, at_least=1, doc='Width of the projectors.')
  weights: str = options.option(
    '', path=True, may_change=True, doc="Folder with the encoders' official weight files."
  )
  dtype: str = options.option(
    'float32', choices=model_config.DTYPES, doc="Type of the encoders' matrix products."
  )
  aligned: tuple[Pair, ...] = ()
  class_token: bool = False
  needs_pixels: ClassVar[bool] = True
  couples_examples: ClassVar[bool] = False

  def prepare(self, setup: base.Setup) -> 'Repa':
    """With its encoders opened; see `open_pairs`."""
    if not self.weight:
      raise types.UserError('repa.weight=0 aligns nothing; leave repa out of the method')
    return self.open_pairs(setup, BLOCKS)

  def open_pairs(self, setup: base.Setup, blocks: Mapping[int, int]) -> 'Repa':
    """The term with the encoders of its pairs opened, shapes only.

    Args:
      setup: data and model. blocks: the block by depth where a pair names none.

    Raises:
      UserError: for pairs that cannot be read, an unknown encoder, or data without pixels.
    """
    parsed = parse_pairs(self.pairs, setup.architecture.depth, blocks)
    if setup.source.pixel_shape is None:
      raise types.UserError(
        f'method={setup.method!r} shows pixels to an encoder, and {setup.source.name} has none '
        'beside its latents'
      )
    request = encoders.Request(
      source=setup.source,
      grid=setup.architecture.grid,
      image_shape=setup.source.pixel_shape,
      weights=self.weights,
      dtype=self.dtype,
      key='repa.weights',
    )
    opened = {
      name: encoders.open_encoder(name, request) for name in dict.fromkeys(n for n, _ in parsed)
    }
    aligned = tuple(
      Pair(encoder=name, block=block, width=opened[name].shapes().tokens.shape[-1])
      for name, block in parsed
    )
    return dataclasses.replace(self, aligned=aligned, opened=tuple(opened.values()))

  def check(self, architecture: model_config.Architecture, examples: int) -> None:
    del examples
    for pair in self.aligned:
      base.check_block('repa.pairs', pair.block, architecture.depth)

  def heads(
    self,
    architecture: model_config.Architecture,
    execution: model_config.Execution,
    *,
    rngs: nnx.Rngs,
  ) -> nnx.Module:
    """One projector per pair, by number."""
    make = lambda pair: heads_lib.Projector(
      architecture.width, self.hidden, pair.width, dtype=execution.compute_dtype, rngs=rngs
    )
    return nnx.Dict({str(i): make(pair) for i, pair in enumerate(self.aligned)})

  @property
  def _blocks(self) -> tuple[int, ...]:
    return tuple(sorted({pair.block for pair in self.aligned}))

  def tap(self, key: jax.Array, depth: int) -> taps.Tap:
    del key, depth
    return taps.chosen([block - 1 for block in self._blocks])

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """Metrics 'loss' (before weighting) and, with several pairs, 'loss/ENCODER@BLOCK'."""
    losses = {}
    for i, pair in enumerate(self.aligned):
      projected_NTZ = context.heads[str(i)](features[self._blocks.index(pair.block)])
      target_NTZ = context.noisy.batch[f'{pair.encoder}/tokens']
      if self.class_token:
        summary_NZ = context.noisy.batch[f'{pair.encoder}/summary']
        target_NTZ = jnp.concatenate([summary_NZ[:, None], target_NTZ], axis=1)
      losses[f'{pair.encoder}@{pair.block}'] = jnp.mean(alignment(projected_NTZ, target_NTZ))
    loss = sum(losses.values()) / len(losses)
    each = {f'loss/{name}': value for name, value in losses.items()} if len(losses) > 1 else {}
    return self.weight * loss, {'loss': loss, **each}

  def flops(self, architecture: model_config.Architecture, examples: int) -> float:
    """The projectors, forward and backward."""
    del examples
    width, hidden = architecture.width, self.hidden
    macs = sum(width * hidden + hidden * hidden + hidden * p.width for p in self.aligned)
    return 3 * 2.0 * architecture.sequence * macs


def alignment(projected_NTZ: jax.Array, target_NTZ: jax.Array) -> jax.Array:
  """Minus the mean over tokens of the cosine between projection and target.

  Args:
    projected_NTZ: output of one encoder's projector, any float type.
    target_NTZ: features of that encoder, same shape; no gradient reaches them.

  Returns:
    loss_N in [-1, 1], in float32 (float64 if either input is float64).

  Raises:
    ValueError: if the shapes differ or are not of rank 3.
  """
  projected, target = arithmetic.student_and_teacher(projected_NTZ, target_NTZ)
  return -jnp.mean(arithmetic.cosine(projected, target, -1, _SHORTEST), axis=1)


def parse_pairs(
  text: str, depth: int, blocks: Mapping[int, int] = BLOCKS
) -> tuple[tuple[str, int], ...]:
  """(encoder, block) of each 'ENCODER@BLOCK' in a list with commas; blocks count from 1.

  Without '@BLOCK' the block is that of the depth in `blocks`.

  Raises:
    UserError: for an empty list, a repeated pair, a block that is no number, or none for the depth.
  """
  pairs = []
  for item in text.split(','):
    encoder, _, block = item.strip().partition('@')
    if not encoder or (block and not block.isdecimal()):
      raise types.UserError(
        f"repa.pairs={text!r} is not a list of ENCODER@BLOCK as in 'dinov2-vit-b@8'"
      )
    if not block and depth not in blocks:
      raise types.UserError(f'repa.pairs={text!r} needs a block for depth {depth}: {encoder}@BLOCK')
    pairs.append((encoder, int(block) if block else blocks[depth]))
  if len(set(pairs)) < len(pairs):
    raise types.UserError(f'repa.pairs={text!r} names a pair twice')
  return tuple(pairs)
