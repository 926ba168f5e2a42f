"""Dispersive Loss: spreads the outputs of one block over the batch (arXiv 2506.09027).

No positives, no projector, no further pass: see `losses.dispersive` for the four forms.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

import jax

from diversedit_jax import types
from diversedit_jax.losses import dispersive as dispersive_lib
from diversedit_jax.methods import base
from diversedit_jax.models import config as config_lib
from diversedit_jax.models import taps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """Published constants; the block follows the depth, the groups are one device's examples."""

  weight: float
  temperature: float
  group_size: int
  block: Callable[[int], int]


PRESETS = {
  # The paper's experiments: 16 devices of 16 examples.
  'paper': Preset(weight=0.5, temperature=0.5, group_size=16, block=lambda depth: depth // 4),
  # The released PyTorch code: 8 devices of 32 examples.
  'release': Preset(weight=0.25, temperature=1.0, group_size=32, block=lambda depth: depth),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dispersive(base.Term):
  """The loss on one block.

  block: whose output, counted from 1. kind: of `losses.dispersive.KINDS`.
  temperature: of the InfoNCE forms. margin: of the hinge, in mean squared distance per feature.
  weight: factor of the loss. groups: consecutive parts of the batch with a loss each; 1 is the
    global batch, which is a different loss (its least value is -log of the group's size). Fewer
    groups than devices send the block's features and their gradient between devices.
  """

  block: int
  kind: str = 'infonce_l2'
  temperature: float = 0.5
  margin: float = 1.0
  weight: float = 0.5
  groups: int = 1
  name: ClassVar[str] = 'dispersive'

  def __post_init__(self):
    dispersive_lib.check_options(self.kind, self.temperature, self.margin)

  def check(self, architecture: config_lib.Architecture, examples: int) -> None:
    base.check_block('dispersive.block', self.block, architecture.depth)
    if self.groups < 1 or examples % self.groups:
      raise types.UserError(
        f'dispersive.groups={self.groups} does not divide the {examples} examples of a microbatch'
      )
    if examples == self.groups:
      raise types.UserError(
        f'dispersive.groups={self.groups} leaves one example in each group, where the loss is '
        'constant'
      )

  def tap(self, key: jax.Array, depth: int) -> taps.Tap:
    del key, depth
    return taps.chosen([self.block - 1])

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """Metric 'loss', before weighting."""
    del context
    loss = dispersive_lib.dispersive_loss(
      features[0],
      kind=self.kind,
      temperature=self.temperature,
      margin=self.margin,
      groups=self.groups,
    )
    return self.weight * loss, {'loss': loss}

  def flops(self, architecture: config_lib.Architecture, examples: int) -> float:
    """The Gram matrix of a group, forward and backward."""
    return 3 * 2.0 * examples / self.groups * architecture.sequence * architecture.width
