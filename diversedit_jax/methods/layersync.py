"""LayerSync: pulls early blocks towards later ones of the same pass (arXiv 2510.12581).

f_k [N, T, D] is the output of block k, sg(.) holds its argument constant, P a set of pairs:

  L = -sum_{(k, m) in P} mean_{n,t} cos(f_k[n,t], sg(f_m[n,t]))

No head, no encoder, no further pass. The diversity loss pushes apart what this pulls together.

The released code sums outside its loop over pairs, so that only the last pair counts, and lets both
blocks of a pair be 8 by default, where the loss is the constant -1: here all pairs count, and equal
blocks are refused.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from diversedit_jax import options, types
from diversedit_jax.losses import arithmetic
from diversedit_jax.methods import base, registry
from diversedit_jax.models import config as model_config
from diversedit_jax.models import taps

PAIRS = {24: '8:18', 28: '8:16'}
"""Published pairs by depth: of SiT-L and SiT-XL."""
_SHORTEST = 1e-8  # As torch.nn.functional.cosine_similarity and F.normalize bound lengths.
_PAIR = re.compile(r'([1-9]\d*):([1-9]\d*)')


@registry.register('layersync')
@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSync(base.Term):
  """Pulls early blocks towards later ones of the same pass (LayerSync, arXiv 2510.12581)."""

  pairs: str = options.option(
    '',
    doc="Pairs EARLY:LATE of blocks, counted from 1, as '8:16' or '4:12,8:16'; '' is 8:16 at depth "
    "28, 8:18 at 24 (published), and elsewhere the first one's share of the depth.",
  )
  weight: float = options.option(0.2, above=0, doc='Factor of the loss.')

  couples_examples = False

  def __post_init__(self):
    super().__post_init__()
    for pair in self.pairs.split(',') if self.pairs else ():
      found = _PAIR.fullmatch(pair)
      if found is None:
        raise types.UserError(
          f"layersync.pairs={self.pairs!r}: {pair!r} is no pair of blocks EARLY:LATE, as '8:16'"
        )
      if found[1] == found[2]:
        raise types.UserError(
          f'layersync.pairs={self.pairs!r}: block {found[1]} cannot learn from itself, the loss '
          'would be constant'
        )

  def prepare(self, setup: base.Setup) -> 'LayerSync':
    depth = setup.architecture.depth
    early, late = max(1, round(depth * 8 / 28)), max(2, round(depth * 16 / 28))
    return dataclasses.replace(self, pairs=self.pairs or PAIRS.get(depth, f'{early}:{late}'))

  def check(self, architecture: model_config.Architecture, examples: int) -> None:
    del examples
    for block in self._blocks:
      base.check_block('layersync.pairs', block, architecture.depth)

  @property
  def _pairs(self) -> list[tuple[int, int]]:
    return [(int(k), int(m)) for k, m in _PAIR.findall(self.pairs)]

  @property
  def _blocks(self) -> list[int]:
    """Every block of a pair, once."""
    return sorted({block for pair in self._pairs for block in pair})

  def tap(self, key: jax.Array, depth: int) -> taps.Tap:
    del key, depth
    return taps.chosen([block - 1 for block in self._blocks])

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """The weighted sum over pairs; metrics 'loss' (before weighting) and its pairs by name."""
    del context
    f = dict(zip(self._blocks, features, strict=True))
    parts = {f'pair_{k}_{m}': jnp.mean(distance(f[k], f[m])) for k, m in self._pairs}
    loss = jnp.sum(jnp.stack([*parts.values()]))
    return self.weight * loss, {'loss': loss, **parts}


def distance(early_NTD: jax.Array, late_NTD: jax.Array) -> jax.Array:
  """-cos of each token's two outputs, [N, T], float32 or better; the later ones held constant.

  Raises:
    ValueError: if the shapes differ or are not of rank 3.
  """
  early, late = arithmetic.student_and_teacher(early_NTD, late_NTD)
  return -arithmetic.cosine(early, late, -1, _SHORTEST)
