"""SRA: a block aligned with a later block of the averaged network (arXiv 2505.02831).

The teacher is the EMA network on the same data, noise and dropped labels at a cleaner time,
t_teacher = clip(t - t_max u, 0, 1) with u ~ U(0, 1); it has no head and receives no gradient.

  loss = weight(step) * distance(head(f_student), f_teacher)
"""

import dataclasses
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import types
from diversedit_jax.losses import alignment
from diversedit_jax.methods import base
from diversedit_jax.models import config as config_lib
from diversedit_jax.models import cost, taps
from diversedit_jax.models import heads as heads_lib

BLOCKS = {12: (4, 8), 24: (8, 16), 28: (8, 20)}
"""(student, teacher) by depth: the released defaults; depth 24 is stated nowhere and is a guess."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sra(base.Term):
  """Self-alignment.

  student_block, teacher_block: counted from 1.
  kind: of `losses.alignment.KINDS`. axis: of the cosine, 'features' or 'tokens' (released code).
  beta: where the smooth l1 turns from square to line.
  t_max: the most that the teacher's time is cleaner.
  weight: factor of the loss at the start. decay_after: epochs that it stays so. decay_epochs: in
    which it then falls to a tenth; 0 keeps it. steps_per_epoch: of the data at this batch size.
  """

  student_block: int
  teacher_block: int
  kind: str = 'smooth_l1'
  axis: str = 'features'
  beta: float = 0.05
  t_max: float = 0.2
  weight: float = 0.2
  decay_after: float = 149
  decay_epochs: float = 1000
  steps_per_epoch: int
  name: ClassVar[str] = 'sra'

  def __post_init__(self):
    alignment.check_self_alignment(self.kind, self.axis, self.beta)
    if not 0 <= self.t_max <= 1:
      raise types.UserError(f'sra.t_max must lie in [0, 1], got {self.t_max}')
    for name in ('decay_after', 'decay_epochs'):
      if getattr(self, name) < 0:
        raise types.UserError(f'sra.{name} must not be negative, got {getattr(self, name)}')

  def check(self, architecture: config_lib.Architecture, examples: int) -> None:
    del examples
    base.check_block('sra.student_block', self.student_block, architecture.depth)
    base.check_block('sra.teacher_block', self.teacher_block, architecture.depth)
    if self.student_block > self.teacher_block:
      raise types.UserError(
        f'sra.student_block={self.student_block} lies behind teacher_block={self.teacher_block}; '
        'the teacher is to be ahead'
      )

  def heads(
    self, architecture: config_lib.Architecture, execution: config_lib.Execution, *, rngs: nnx.Rngs
  ) -> nnx.Module:
    """D -> 2D -> D."""
    return heads_lib.AlignmentHead(architecture.width, dtype=execution.compute_dtype, rngs=rngs)

  def draw(self, key: jax.Array, n: int) -> jax.Array:
    """u_N, how far the teacher is ahead."""
    return jax.random.uniform(key, (n,), jnp.float32)

  def tap(self, key: jax.Array, depth: int) -> taps.Tap:
    del key, depth
    return taps.chosen([self.student_block - 1])

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """Metrics 'loss' (before weighting) and 'weight'."""
    t_N = alignment.teacher_time(context.draw.t, context.drawn, self.t_max)
    teacher_NTD = context.teacher(t_N, self.teacher_block)
    loss_N = alignment.self_alignment(
      context.heads(features[0]),
      jax.lax.stop_gradient(teacher_NTD),
      kind=self.kind,
      axis=self.axis,
      beta=self.beta,
    )
    weight = alignment.self_alignment_weight(
      context.step,
      weight=self.weight,
      decay_after=self.decay_after,
      decay_epochs=self.decay_epochs,
      steps_per_epoch=self.steps_per_epoch,
    )
    loss = jnp.mean(loss_N)
    return weight * loss, {'loss': loss, 'weight': weight}

  def flops(self, architecture: config_lib.Architecture, examples: int) -> float:
    """The teacher forward up to its block, and the head forward and backward."""
    del examples
    head = 3 * 2.0 * architecture.sequence * 4 * architecture.width**2
    return cost.forward_flops(architecture) * self.teacher_block / architecture.depth + head
