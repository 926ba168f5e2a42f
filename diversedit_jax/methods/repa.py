"""REPA: block outputs, projected, aligned with features of frozen encoders (arXiv 2410.06940).

  loss = -weight * mean over pairs, examples and tokens of cos(projector(f_block), encoder tokens)

The released code aligns the output of one block; DiverseDiT (2603.04239, Fig. 2) also looks at
several (encoder, block) pairs at once, each with its own projector.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import types
from diversedit_jax.losses import alignment
from diversedit_jax.methods import base
from diversedit_jax.models import config as config_lib
from diversedit_jax.models import heads as heads_lib
from diversedit_jax.models import taps

BLOCKS = {12: 5, 24: 8, 28: 8}
"""Aligned block by depth in DiverseDiT's recipe (Table A1); REPA itself takes 4 for depth 12."""

REG_BLOCKS = {12: 4, 24: 8, 28: 8}
"""The same in REG (arXiv 2507.01467)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """encoder: its name. block: whose output is aligned, counted from 1. width: Z of its tokens."""

  encoder: str
  block: int
  width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repa(base.Term):
  """Alignment with frozen features.

  pairs: what is aligned with what. weight: of the mean over pairs. hidden: width of the projectors.
  class_token: align the class token with the encoder's summary too, as REG does.
  """

  pairs: tuple[Pair, ...]
  weight: float = 0.5
  hidden: int = 2048
  class_token: bool = False
  name: ClassVar[str] = 'repa'

  def check(self, architecture: config_lib.Architecture, examples: int) -> None:
    del examples
    for pair in self.pairs:
      base.check_block('repa.pairs', pair.block, architecture.depth)

  def heads(
    self, architecture: config_lib.Architecture, execution: config_lib.Execution, *, rngs: nnx.Rngs
  ) -> nnx.Module:
    """One projector per pair, by number."""
    make = lambda pair: heads_lib.Projector(
      architecture.width, self.hidden, pair.width, dtype=execution.compute_dtype, rngs=rngs
    )
    return nnx.Dict({str(i): make(pair) for i, pair in enumerate(self.pairs)})

  @property
  def _blocks(self) -> tuple[int, ...]:
    return tuple(sorted({pair.block for pair in self.pairs}))

  def tap(self, key: jax.Array, depth: int) -> taps.Tap:
    del key, depth
    return taps.chosen([block - 1 for block in self._blocks])

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """Metrics 'loss' (before weighting) and, with several pairs, 'loss/ENCODER@BLOCK'."""
    losses = {}
    for i, pair in enumerate(self.pairs):
      projected_NTZ = context.heads[str(i)](features[self._blocks.index(pair.block)])
      target_NTZ = context.draw.batch[f'{pair.encoder}/tokens']
      if self.class_token:
        summary_NZ = context.draw.batch[f'{pair.encoder}/summary']
        target_NTZ = jnp.concatenate([summary_NZ[:, None], target_NTZ], axis=1)
      losses[f'{pair.encoder}@{pair.block}'] = jnp.mean(alignment.cosine(projected_NTZ, target_NTZ))
    loss = sum(losses.values()) / len(losses)
    each = {f'loss/{name}': value for name, value in losses.items()} if len(losses) > 1 else {}
    return self.weight * loss, {'loss': loss, **each}

  def flops(self, architecture: config_lib.Architecture, examples: int) -> float:
    """The projectors, forward and backward."""
    del examples
    hidden = self.hidden
    macs = sum(architecture.width * hidden + hidden * hidden + hidden * p.width for p in self.pairs)
    return 3 * 2.0 * architecture.sequence * macs


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
