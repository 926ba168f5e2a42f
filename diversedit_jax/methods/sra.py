"""SRA: a block aligned with a later block of the averaged network (arXiv 2505.02831).

The teacher is the EMA network on the same data, noise and dropped labels at a cleaner time; it has
no head and receives no gradient. With u ~ U(0, 1) for each example,

  (1)  t_teacher = clip(t - t_max u, 0, 1)
  (2)  loss = weight(step) * distance(head(f_student), f_teacher)
  (3)  weight(step) = weight * 10^-k,  k = max(0, epoch - decay_after) / decay_epochs,
       epoch = floor(step / steps_per_epoch)

The distance is a smooth L1, L2, L1, or 1 - cosine. A cosine bounds the norms from below by 1e-8,
as PyTorch's `cosine_similarity` does.
"""

import dataclasses
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import options, trees, types
from diversedit_jax.losses import arithmetic
from diversedit_jax.methods import base, registry
from diversedit_jax.models import config as model_config
from diversedit_jax.models import cost, taps
from diversedit_jax.models import heads as heads_lib

KINDS = ('smooth_l1', 'l2', 'l1', 'cosine')
AXES = ('features', 'tokens')
BETA = 0.05  # Turning point of the smooth L1 in the paper.
BLOCKS = {12: (4, 8), 24: (8, 16), 28: (8, 20)}
"""(student, teacher) by depth: the released defaults; depth 24 is stated nowhere and is a guess."""

_SHORTEST = 1e-8


@registry.register('sra')
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sra(base.Term):
  """Aligns a block with a later one of the averaged network (SRA, arXiv 2505.02831).

  steps_per_epoch: updates in an epoch of the data; `prepare` counts them.
  """

  student_block: int | None = options.option(
    None,
    at_least=1,
    doc='Block that is aligned, from 1; None takes 4, 8, 8 at depth 12, 24, 28.',
  )
  teacher_block: int | None = options.option(
    None,
    at_least=1,
    doc='Block of the averaged network that it is aligned with; None takes 8, 16, 20.',
  )
  kind: str = options.option(
    'smooth_l1',
    choices=KINDS,
    doc="Distance of the features; the released code's default is cosine, with weight 0.5.",
  )
  axis: str = options.option(
    'features', choices=AXES, doc="Axis of the cosine; the released code takes 'tokens'."
  )
  beta: float | None = options.option(
    None, above=0, doc='Where the smooth L1 turns from square to line; None is 0.05.'
  )
  t_max: float = options.option(
    0.2,
    at_least=0,
    at_most=1,
    doc="The most by which the teacher's time is cleaner than the student's.",
  )
  weight: float = options.option(0.2, above=0, doc='Factor of the loss at the start.')
  decay_after: float = options.option(
    149.0, at_least=0, doc='Epochs with the full weight; 99 at 512 px.'
  )
  decay_epochs: float = options.option(
    1_000.0,
    at_least=0,
    doc='Epochs in which the weight then falls to a tenth; 800 at 512 px, 0 keeps it.',
  )
  steps_per_epoch: int | None = None
  needs_teacher: ClassVar[bool] = True
  couples_examples: ClassVar[bool] = False

  def __post_init__(self):
    super().__post_init__()
    if self.axis != 'features' and self.kind != 'cosine':
      raise types.UserError(
        f"{self.section}.axis={self.axis!r} is for kind='cosine', got {self.kind!r}"
      )
    if self.beta is not None and self.kind != 'smooth_l1':
      raise types.UserError(
        f"{self.section}.beta={self.beta} is for kind='smooth_l1', got {self.kind!r}"
      )

  def prepare(self, setup: base.Setup) -> 'Sra':
    """With the published blocks of the depth where none are named, and the length of an epoch."""
    depth = setup.architecture.depth
    student, teacher = BLOCKS.get(depth, (None, None))
    if student is None and None in (self.student_block, self.teacher_block):
      raise types.UserError(
        f'nothing is published for depth {depth}: set sra.student_block and sra.teacher_block'
      )
    return dataclasses.replace(
      self,
      student_block=self.student_block or student,
      teacher_block=self.teacher_block or teacher,
      steps_per_epoch=max(1, len(setup.source) // setup.batch_size),
    )

  def check(self, architecture: model_config.Architecture, examples: int) -> None:
    del examples
    for name in ('student_block', 'teacher_block'):
      base.check_block(f'{self.section}.{name}', getattr(self, name), architecture.depth)
    if self.student_block > self.teacher_block:
      raise types.UserError(
        f'{self.section}.student_block={self.student_block} must not be deeper than '
        f'{self.section}.teacher_block={self.teacher_block}'
      )

  def heads(
    self,
    architecture: model_config.Architecture,
    execution: model_config.Execution,
    *,
    rngs: nnx.Rngs,
  ) -> nnx.Module:
    """D -> 2D -> D."""
    return heads_lib.AlignmentHead(architecture.width, dtype=execution.compute_dtype, rngs=rngs)

  def draw(self, key: jax.Array, n: int) -> jax.Array:
    """u_N of (1)."""
    return jax.random.uniform(key, (n,), jnp.float32)

  def tap(self, key: jax.Array, depth: int) -> taps.Tap:
    del key, depth
    return taps.chosen([self.student_block - 1])

  def teacher_time(self, context: base.Context) -> jax.Array:
    """Times at which the teacher sees the data, (1)."""
    return teacher_time(context.noisy.t, context.drawn, self.t_max)

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """(2); metrics 'loss' (before weighting) and 'weight'."""
    teacher_NTD = context.teacher(self.teacher_time(context), self.teacher_block)
    loss_N = distance(
      context.heads(features[0]),
      jax.lax.stop_gradient(teacher_NTD),
      kind=self.kind,
      axis=self.axis,
      beta=BETA if self.beta is None else self.beta,
    )
    weight = decayed_weight(
      context.step,
      weight=self.weight,
      decay_after=self.decay_after,
      decay_epochs=self.decay_epochs,
      steps_per_epoch=self.steps_per_epoch,
    )
    loss = jnp.mean(loss_N)
    return weight * loss, {'loss': loss, 'weight': weight}

  def flops(self, architecture: model_config.Architecture, examples: int) -> float:
    """The teacher forward up to its block, and the head forward and backward."""
    del examples
    head = 3 * 2.0 * architecture.sequence * 4 * architecture.width**2
    teacher = cost.encoder_flops(architecture) * self.teacher_block / architecture.depth
    return teacher + head


def teacher_time(t_N: jax.Array, u_N: jax.Array, t_max: float | jax.Array) -> jax.Array:
  """(1), [N]; u_N is uniform in [0, 1)."""
  return jnp.clip(t_N - t_max * u_N, 0, 1)


def distance(
  student_NTD: jax.Array,
  teacher_NTD: jax.Array,
  *,
  kind: str,
  axis: str = 'features',
  beta: float = BETA,
) -> jax.Array:
  """How far the student's features are from the teacher's, for each example.

  Args:
    student_NTD: output of the student's head, any float type.
    teacher_NTD: features of the averaged network, same shape; no gradient reaches them.
    kind: 'smooth_l1', 'l2' (squared error) or 'l1', the mean over tokens and features; or
      'cosine', the mean of 1 - cos.
    axis: axis of the cosine: 'features', one cosine per token, or 'tokens', one per feature
      channel, which is what the released code computes because it names no axis.
    beta: for 'smooth_l1', d^2 / (2 beta) where |d| < beta, |d| - beta / 2 elsewhere.

  Returns:
    loss_N >= 0, in float32 (float64 if either input is float64).

  Raises:
    UserError: for an unknown kind or axis, or a beta that is not positive.
    ValueError: if the shapes differ or are not of rank 3.
  """
  trees.check_known('kind', kind, KINDS)
  trees.check_known('axis', axis, AXES)
  if not beta > 0:
    raise types.UserError(f'{beta=} must be positive')
  student, teacher = arithmetic.student_and_teacher(student_NTD, teacher_NTD)
  if kind == 'cosine':
    along = 1 if axis == 'tokens' else 2
    return 1 - jnp.mean(arithmetic.cosine(student, teacher, along, _SHORTEST), axis=1)
  error = student - teacher
  if kind == 'l2':
    cost_NTD = jnp.square(error)
  elif kind == 'l1':
    cost_NTD = jnp.where(error == 0, 0, jnp.abs(error))  # JAX gives |x| the slope 1 at 0.
  else:
    size = jnp.abs(error)
    cost_NTD = jnp.where(size < beta, jnp.square(error) / (2 * beta), size - beta / 2)
  return jnp.mean(cost_NTD, axis=(1, 2))


def decayed_weight(
  step: int | jax.Array,
  *,
  weight: float,
  decay_after: float,
  decay_epochs: float,
  steps_per_epoch: int,
) -> jax.Array:
  """(3) at a number of updates, a float32 scalar.

  Args:
    step: updates done, may be traced. weight: factor at the start.
    decay_after: last epoch, from 0, with the full weight.
    decay_epochs: epochs in which the weight falls to a tenth; 0 keeps it.
    steps_per_epoch: updates in an epoch.

  Raises:
    UserError: for a negative decay, or fewer than one step in an epoch.
  """
  if decay_after < 0 or decay_epochs < 0:
    raise types.UserError(f'{decay_after=} and {decay_epochs=} must be at least 0')
  if steps_per_epoch < 1:
    raise types.UserError(f'{steps_per_epoch=} must be at least 1')
  if decay_epochs == 0:
    return jnp.asarray(weight, jnp.float32)
  epoch = jnp.asarray(step, jnp.int32) // steps_per_epoch
  late = jnp.maximum(epoch - decay_after, 0).astype(jnp.float32)
  return jnp.float32(weight) * jnp.power(jnp.float32(10), -late / decay_epochs)
