"""AdamW with a schedule and global-norm clipping, from plain optax."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from diversedit_jax import trees, types

SCHEDULES = ('constant', 'cosine')


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """AdamW as the published recipes use it (REPA: 1e-4 constant, no decay, clip 1.0).

  learning_rate: peak. warmup_steps: linear from 0. schedule: 'constant' or 'cosine' to 0 at the
    last step.
  clip_norm: of the global gradient norm; 0 switches clipping off.
  shard_over_data: whether moments and average are split over the mesh's 'data' axis too (ZeRO-1):
    less memory, and less time where a device has few examples, for one all-gather a step.
  """

  learning_rate: float = 1e-4
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  warmup_steps: int = 0
  schedule: str = 'constant'
  shard_over_data: bool = False

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      hint = trees.did_you_mean(self.schedule, SCHEDULES)
      raise types.UserError(f'unknown optimizer.schedule {self.schedule!r}{hint}')
    for name in ('b1', 'b2'):
      if not 0 <= getattr(self, name) < 1:
        raise types.UserError(f'optimizer.{name} must lie in [0, 1), got {getattr(self, name)}')
    for name in ('learning_rate', 'eps', 'weight_decay', 'clip_norm', 'warmup_steps'):
      if getattr(self, name) < 0:
        raise types.UserError(f'optimizer.{name} must not be negative, got {getattr(self, name)}')


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate by the number of updates already made."""
  if config.warmup_steps >= steps:
    raise types.UserError(
      f'optimizer.warmup_steps={config.warmup_steps} must be less than train.steps={steps}'
    )
  rest = steps - config.warmup_steps
  after = (
    optax.constant_schedule(config.learning_rate)
    if config.schedule == 'constant'
    else optax.cosine_decay_schedule(config.learning_rate, rest)
  )
  if not config.warmup_steps:
    return after
  warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
  return optax.join_schedules([warmup, after], [config.warmup_steps])


def make(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """The gradient transformation: clip, then AdamW."""
  adamw = optax.adamw(
    schedule(config, steps),
    b1=config.b1,
    b2=config.b2,
    eps=config.eps,
    weight_decay=config.weight_decay,
  )
  if not config.clip_norm:
    return adamw
  return optax.chain(clip_by_global_norm(config.clip_norm), adamw)


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
  """Scales gradients whose global norm is above `most` down to it; stateless, like optax's.

  One factor for all, so that it is fused into what reads the gradients: the compiler stores the
  quotients that optax asks for, which is two more passes over them.
  """

  def update(grads, state, params=None):
    del params
    norm = trees.global_norm(grads)
    scale = jnp.where(norm > most, most / norm, 1.0)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
