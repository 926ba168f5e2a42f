"""AdamW, or Muon beside it, with a schedule and global-norm clipping, from plain optax."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diversedit_jax import options, trees, types
from diversedit_jax.training import muon as muon_lib
from diversedit_jax.training import patterns

SCHEDULES = ('constant', 'cosine', 'linear')


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(options.Section, section='optimizer'):
  """AdamW as the published recipes use it (REPA: 1e-4 constant, no decay, clip 1.0)."""

  name: str = options.option(
    muon_lib.ADAMW,
    choices=(muon_lib.ADAMW, muon_lib.MUON),
    doc='AdamW for all parameters, or Muon for matrices of hidden layers beside it; see '
    'docs/optimizers.md.',
  )
  learning_rate: float = options.option(1e-4, at_least=0, doc='Peak of the learning rate.')
  b1: float = options.option(0.9, at_least=0, below=1, doc='Decay of the first moment.')
  b2: float = options.option(0.999, at_least=0, below=1, doc='Decay of the second moment.')
  eps: float = options.option(1e-8, at_least=0, doc="Added to the second moment's root.")
  weight_decay: float = options.option(
    0.0, at_least=0, doc="Decoupled weight decay, on all of AdamW's parameters."
  )
  clip_norm: float = options.option(
    1.0, at_least=0, doc='Largest global gradient norm; 0 does not clip.'
  )
  warmup_steps: int = options.option(0, at_least=0, doc='Updates of a linear rise from 0.')
  schedule: str = options.option(
    'constant',
    choices=SCHEDULES,
    doc='After the warm-up: constant, cosine to 0 at the end, or linear as the next three say.',
  )
  decay_start: int = options.option(
    0, at_least=0, doc='Updates before the rate of schedule=linear falls.'
  )
  decay_end: int | None = options.option(
    None, at_least=1, doc='Updates after which it falls no more; None is the end of the run.'
  )
  decay_to: float = options.option(
    0.0, at_least=0, at_most=1, doc='What it falls to, as a share of the peak; RAE and RAEv2: 0.1.'
  )
  freeze: str = options.option(
    '',
    doc="Patterns of parameters that stay as they are, as 'blocks/*' or '*,!final/*' for all but "
    'those; see docs/weights.md. They have no moments.',
  )
  shard_over_data: bool = options.option(
    False,
    may_change=True,
    doc='Splits moments and average over mesh.data too (ZeRO-1): less memory, and less time where '
    'a device has few examples, for one all-gather a step.',
  )
  muon: muon_lib.MuonOptions = options.option(muon_lib.MuonOptions(), doc='See optimizer.muon.')

  def __post_init__(self):
    super().__post_init__()
    given = {
      'decay_start': self.decay_start,
      'decay_end': self.decay_end,
      'decay_to': self.decay_to,
    }
    if self.schedule != 'linear' and (found := {k: v for k, v in given.items() if v}):
      name, value = next(iter(found.items()))
      raise types.UserError(
        f"optimizer.{name}={value} is of optimizer.schedule='linear', got {self.schedule!r}"
      )


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate by the number of updates already made; Muon's runs in proportion."""
  return _schedule(config, config.learning_rate, steps)


def _schedule(config, peak, steps):
  if config.warmup_steps >= steps:
    raise types.UserError(
      f'optimizer.warmup_steps={config.warmup_steps} must be less than train.steps={steps}'
    )
  rest = steps - config.warmup_steps
  if config.schedule == 'linear':
    after = _linear(config, peak, steps)
  elif config.schedule == 'cosine':
    after = optax.cosine_decay_schedule(peak, rest)
  else:
    after = optax.constant_schedule(peak)
  if not config.warmup_steps:
    return after
  warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
  return optax.join_schedules([warmup, after], [config.warmup_steps])


def _linear(config, peak, steps):
  """The rate by the number of updates after the warm-up."""
  end = steps if config.decay_end is None else config.decay_end
  if not config.warmup_steps <= config.decay_start < end:
    last = 'train.steps' if config.decay_end is None else 'optimizer.decay_end'
    raise types.UserError(
      f'optimizer.decay_start={config.decay_start} must be at least optimizer.warmup_steps='
      f'{config.warmup_steps} and less than {last}={end}'
    )
  begin = config.decay_start - config.warmup_steps
  return optax.linear_schedule(
    peak, config.decay_to * peak, end - config.decay_start, transition_begin=begin
  )


def make(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """The gradient transformation: clip, then AdamW, or Muon and AdamW."""
  made = optax.adamw(
    schedule(config, steps),
    b1=config.b1,
    b2=config.b2,
    eps=config.eps,
    weight_decay=config.weight_decay,
  )
  if config.name == muon_lib.MUON:
    rate = config.muon.learning_rate
    peak = config.learning_rate if rate is None else rate
    made = muon_lib.transformation(config.muon, _schedule(config, peak, steps), made)
  if not config.clip_norm:
    return made
  return optax.chain(clip_by_global_norm(config.clip_norm), made)


def flops(config: OptimizerConfig, params: Any, devices: int) -> float:
  """FLOPs of an update in matrix products on each of some devices; AdamW has none.

  params: what is trained, arrays or shapes.
  """
  return muon_lib.flops(config.muon, params, devices) if config.name == muon_lib.MUON else 0.0


def check(config: OptimizerConfig, params: Any) -> None:
  """Refuses Muon without a matrix to train (UserError). params: what is trained."""
  if config.name == muon_lib.MUON and not muon_lib.division(config.muon, params)[muon_lib.MUON]:
    raise types.UserError(
      f'optimizer.name=muon has no matrix to train with optimizer.freeze={config.freeze!r} and '
      f'optimizer.muon.parameters={config.muon.parameters}; give optimizer.name=adamw'
    )


def division(config: OptimizerConfig, params: Any) -> str:
  """Which parameters go to which optimizer, in words; '' where all go to one. params: as there."""
  if config.name != muon_lib.MUON:
    return ''
  parts, names = muon_lib.division(config.muon, params), trees.named_leaves(params)
  count = sum(muon_lib.matrices(n, x.shape)[0] for n, x in parts[muon_lib.MUON].items())
  words = [
    f'{trees.count(part):,} parameters to {who} ({patterns.of(part, names)})'
    for who, part in parts.items()
    if part
  ]
  return f'optimizer.name=muon: {count:,} matrices, {"; ".join(words)}'


def other_form(opt_state: optax.OptState) -> optax.OptState:
  """The state of `make` with clipping as the one without, or the other way round.

  Clipping has no state, so a run that goes on may begin to clip, or no longer clip.
  """
  clips = isinstance(opt_state, tuple) and isinstance(opt_state[0], optax.EmptyState)
  return opt_state[1] if clips else (optax.EmptyState(), opt_state)


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
