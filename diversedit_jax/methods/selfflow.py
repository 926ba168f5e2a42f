"""Self-Flow: two noise levels in one image, and a cleaner teacher (arXiv 2603.06507).

Each example has two times t_0, t_1 ~ p(t), and its tokens are split at random into two groups, of
which group 0 has the share R, rounded as `groups.sizes` does. With tau = t_g on the tokens of group
g, noise and target are made token by token, and each token is conditioned on its own time:

  (1)  x_tau = alpha(tau) x + sigma(tau) e,   v = alpha'(tau) x + sigma'(tau) e
  (2)  loss_N = mean |f(x_tau, tau, y) - v|^2
  (3)  alignment = weight * mean (1 - cos(head(f_k(x_tau)), sg f'_m(x_s)))

f' is the averaged network on the same data, noise and dropped labels. Its times are, after the
paper, s = min(t_0, t_1) for all tokens; or, after arXiv 2607.02508, each group's own made cleaner,
s_g = clip(t_g - t_max u_g, 0, 1) with u_g ~ U(0, 1), which is SRA's. That paper also lets tokens
attend within their group only, in the teacher too where it has groups. Both are for training: a
sampler gives all tokens one time and lets all attend to all.

No training code of the authors exists. The one that SRA's repository has (2607.02508) takes the
cosine over the token axis (`axis`), gives the teacher labels that are not dropped and, with
`--teacher-mask` and the minimum, clean tokens in group 1: the latter two are not offered.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from diversedit_jax import options, rng, types
from diversedit_jax.methods import base, flow, registry, sra
from diversedit_jax.models import cost, embed, groups, taps

TEACHER_TIMES = ('minimum', 'cleaner')
T_MAX = 0.2  # As SRA.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment(sra.Sra, section='selfflow'):
  """(3): SRA's term with a teacher at other times.

  minimum: whether the teacher is at the lesser time, and not at each group's own made cleaner.
  groups: number of times of an example.
  """

  minimum: bool
  groups: int

  def draw(self, key: jax.Array, n: int) -> jax.Array | tuple[()]:
    """u_NG, where it is needed."""
    return () if self.minimum else jax.random.uniform(key, (n, self.groups), jnp.float32)

  def teacher_time(self, context: base.Context) -> jax.Array:
    t_NG = context.noisy.extras['times']
    if self.minimum:
      return jnp.min(t_NG, axis=1)
    return sra.teacher_time(t_NG, context.drawn, self.t_max)


@registry.register(
  'selfflow',
  not_with={'sra': 'it brings that alignment, with other times (set selfflow.alignment_weight)'},
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfFlow(flow.StochasticInterpolant):
  """Two noise levels in one image, aligned with a cleaner one (Self-Flow, arXiv 2603.06507).

  `prepare` fills in the fields that are no options.

  sizes: tokens of each group. patch_size: side of a token. alignment: the term that comes with it,
  or None. extra: see `extra_passes`.
  """

  share: float = options.option(
    0.25, above=0, below=1, doc='R, share of the tokens with the second time (2603.06507).'
  )
  separate_attention: bool = options.option(
    False, doc='In training tokens attend within their group only (2607.02508).'
  )
  teacher_time: str = options.option(
    'minimum',
    choices=TEACHER_TIMES,
    doc="The teacher's time: the lesser one for all tokens, or each group's own, made cleaner "
    '(2607.02508).',
  )
  t_max: float | None = options.option(
    None, at_least=0, at_most=1, doc="The most by which 'cleaner' is cleaner; None is 0.2."
  )
  student_block: int | None = options.option(
    None,
    at_least=1,
    doc='Block that is aligned, from 1; None is 0.3 L: 3, 7, 8 at depth 12, 24, 28.',
  )
  teacher_block: int | None = options.option(
    None,
    at_least=1,
    doc='Block of the averaged network that it is aligned with; None is 0.7 L: 8, 17, 20.',
  )
  kind: str = options.option('cosine', choices=sra.KINDS, doc='Distance of the features.')
  axis: str = options.option(
    'features', choices=sra.AXES, doc="Axis of the cosine; the released code takes 'tokens'."
  )
  beta: float | None = options.option(
    None, above=0, doc='Where the smooth L1 turns from square to line; None is 0.05.'
  )
  alignment_weight: float = options.option(
    0.5, at_least=0, doc='Factor of the alignment; 0 leaves it out, and with it the teacher.'
  )
  schedule: str = options.option(
    'constant', doc='What multiplies the alignment over the run, as of every term.'
  )
  sizes: tuple[int, ...] = ()
  patch_size: int = 1
  alignment: Alignment | None = None
  extra: float = 0.0
  needs_teacher: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    if self.t_max is not None and self.teacher_time != 'cleaner':
      raise types.UserError(
        f"selfflow.t_max={self.t_max} is for teacher_time='cleaner', got {self.teacher_time!r}"
      )

  def prepare(self, setup: base.Setup) -> 'SelfFlow':
    """With sizes of groups and, unless its weight is 0, the alignment."""
    found, model = super().prepare(setup), setup.architecture
    if found.prediction != 'velocity':
      raise types.UserError(
        f'method=selfflow predicts velocities; interpolant.prediction={found.prediction!r}'
      )
    if model.conditioning == 'tokens':
      raise types.UserError(
        'method=selfflow gives groups of tokens times of their own, and model.conditioning=tokens '
        'tells one time to all; set model.conditioning=adaln'
      )
    sizes = groups.sizes((self.share, 1 - self.share), model.tokens)
    if 0 in sizes:
      raise types.UserError(
        f'selfflow.share={self.share} of {model.tokens} tokens leaves a group without any; '
        f'take at least {1 / model.tokens:.2g} and at most {1 - 1 / model.tokens:.2g}'
      )
    more = model.depth * 2 * model.vectors * model.width**2 * (len(sizes) - 1)
    if self.separate_attention:
      pairs = model.tokens**2 - sum(t**2 for t in sizes)
      more -= sum(4 * blocks.depth * blocks.width * pairs for blocks in model.stacks)
    return dataclasses.replace(
      found,
      sizes=sizes,
      patch_size=model.patch_size,
      alignment=self._alignment(model.depth, len(sizes)) if self.alignment_weight else None,
      extra=3 * more / cost.forward_flops(model),
    )

  def _alignment(self, depth, number):
    return Alignment(
      student_block=self.student_block or max(1, 3 * depth // 10),
      teacher_block=self.teacher_block or max(1, round(0.7 * depth)),
      kind=self.kind,
      axis=self.axis,
      beta=self.beta,
      t_max=T_MAX if self.t_max is None else self.t_max,
      weight=self.alignment_weight,
      schedule=self.schedule,
      decay_epochs=0.0,
      steps_per_epoch=1,
      minimum=self.teacher_time == 'minimum',
      groups=number,
    )

  def idle(self, key: str) -> str:
    of_flow = ('share', 'separate_attention', 'alignment_weight')
    return '' if self.alignment or key in of_flow else 'selfflow.alignment_weight=0'

  def terms(self, setup: base.Setup) -> tuple[base.Term, ...]:
    """The alignment; leaving it out (`selfflow.alignment_weight=0`) is an ablation."""
    del setup
    return () if self.alignment is None else (self.alignment,)

  def extra_passes(self) -> float:
    """The second conditioning, less what attention within groups saves."""
    return self.extra

  def draw(self, batch: types.Batch, key: jax.Array) -> base.NoisyBatch:
    """Times [N, 2] and 'order', the tokens of group 0 before those of group 1, as extras.

    `t` is the time of group 1, the one that the plain flow draws.
    """
    noisy = super().draw(batch, key)
    n, tokens = noisy.t.shape[0], sum(self.sizes)
    t_N = self.time_law(rng.stream(key, 'second_time'), n)
    order_NT = jnp.argsort(jax.random.uniform(rng.stream(key, 'groups'), (n, tokens)), axis=1)
    noisy = dataclasses.replace(noisy, extras={'order': order_NT})
    return self.at(noisy, jnp.stack([t_N, noisy.t], axis=1))

  def at(self, noisy: base.NoisyBatch, t_N: jax.Array) -> base.NoisyBatch:
    """The same data, noise and labels at one time each [N], or at one for each group [N, G]."""
    extras = {'order': noisy.extras['order']}
    if t_N.ndim == 1:
      return dataclasses.replace(super().at(noisy, t_N), extras=extras)
    x_NHWC, tokens, p = noisy.clean, self._groups(noisy), self.patch_size
    tau_NT1 = tokens.restored(tokens.spread(t_N.reshape(-1, 1)))
    tau_NHW1 = embed.unpatchify(jnp.repeat(tau_NT1, p * p, axis=2), p, *x_NHWC.shape[1:3])
    x_t, target = self.noised(x_NHWC, noisy.noise, tau_NHW1)
    return dataclasses.replace(
      noisy, x_t=x_t, t=t_N[:, -1], target=target, extras=extras | {'times': t_N}
    )

  def _groups(self, noisy):
    return groups.grouped(noisy.extras['order'], self.sizes, separate=self.separate_attention)

  def run(
    self, network: base.Network, noisy: base.NoisyBatch, tap: taps.Tap, blocks: int | None = None
  ) -> types.Output:
    """With groups where the batch has a time for each, and as a plain flow where it has one."""
    if 'times' not in noisy.extras:
      return super().run(network, noisy, tap, blocks)
    times, tokens = noisy.extras['times'], self._groups(noisy)
    return network.model(noisy.x_t, times, noisy.y, tokens=tokens, tap=tap, blocks=blocks)
