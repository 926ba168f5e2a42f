"""Contrastive flow matching: predictions kept away from other examples' velocities (2506.05350).

With the prediction f of example n, its velocity u_n and that of another example m(n),

  L = -mean_n w_n mean |f_n - u_m(n)|^2,   total = flow's loss + lambda L

m(n) is the previous example of the batch (SpeedrunDiT) or a random other one (DeltaFM), w_n is 1,
or t_n ('linear'), and 0 where the label was dropped if `skip_null` says so; then the others count N
/ (number not dropped) times. The other example knows nothing of x_t, so for w_n = 1 what minimises
the total is

  (1)  f* = (E[u | x_t] - lambda E[u]) / (1 - lambda)

and not the velocity: whoever samples f follows another flow than that of the data. Published
samples do so. `correct` turns f back in the samplers,

  (2)  v = (1 - lambda) f + lambda E[u],   on the linear path E[u] = E[e] - E[x] = -E[x],

with lambda w_n in place of lambda, if no other term scores f (`direction` does). E[x] is the mean
of the training data, at most 4096 of them spread evenly, which are read when the first sample is
made; so data are needed for that, and a folder of weights alone will not do. For lambda >= 1 the
total has no minimum (DeltaFM's argument defaults to 1, its command has 0.05).

Neither code asks whether the other example has another class, in training, though DeltaFM has a
rule for that (`other_class`), with which E[u] in (1) is that of the other classes.

REG's class token has no such term: SpeedrunDiT computes one and never adds it.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import options, types
from diversedit_jax.data import sources
from diversedit_jax.data.sources import described
from diversedit_jax.losses import arithmetic
from diversedit_jax.methods import base, batches, registry
from diversedit_jax.models import config as model_config

NEGATIVES = ('previous', 'random')
WEIGHTINGS = ('uniform', 'linear')
MAX_EXAMPLES = 4096
"""Most examples of which the mean is taken."""
_CHUNK = 256  # Examples read at a time.


@registry.register(
  'contrastive',
  not_with={
    'meanflow': "an average velocity's target holds the network's own derivative, so the target of "
    'another example is none to stay away from'
  },
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(base.Term):
  """Keeps predictions away from other examples' velocities (contrastive flow matching, 2506.05350).

  source: training data, for their mean. mirrored: whether they are mirrored by a fair coin.
  null_label: K, or None without classes.
  null_factor: what `skip_null` multiplies the weight by on average, where the label is not dropped.
  """

  weight: float = options.option(
    0.05, above=0, below=1, decides_network=True, doc='Factor lambda of the loss, of both codes.'
  )
  negatives: str = options.option(
    'previous',
    choices=NEGATIVES,
    doc='The other example: the previous one of the batch (SpeedrunDiT), or any (DeltaFM).',
  )
  other_class: bool = options.option(
    False,
    decides_network=True,
    doc='Takes the other example from another class; with negatives=random.',
  )
  skip_null: bool = options.option(
    False,
    decides_network=True,
    doc='Leaves out examples whose label was dropped; the others count for them (DeltaFM).',
  )
  weighting: str = options.option(
    'uniform',
    choices=WEIGHTINGS,
    decides_network=True,
    doc='Weight of an example: 1, or its time t (SpeedrunDiT).',
  )
  correct: bool = options.option(
    False,
    may_change=True,
    doc="Turns the network's output into the velocity while sampling; reads the training data for "
    'their mean. Published samples are not corrected.',
  )
  source: sources.Source | None = dataclasses.field(default=None, repr=False, compare=False)
  mirrored: bool = False
  null_label: int | None = None
  null_factor: float = 1.0

  def prepare(self, setup: base.Setup) -> 'Contrastive':
    prediction, null_label = setup.interpolant.prediction, setup.architecture.null_label
    if prediction != 'velocity':
      raise types.UserError(
        f'method={setup.method!r}: contrastive is about velocities, got '
        f'interpolant.prediction={prediction!r}'
      )
    parts = registry.parse(setup.method)
    if self.weighting == 'linear' and 'selfflow' in parts:
      raise types.UserError(
        f'method={setup.method!r}: contrastive.weighting=linear is the time of an example, and '
        'selfflow draws two; leave contrastive.weighting=uniform'
      )
    if self.other_class and self.negatives != 'random':
      raise types.UserError(
        'contrastive.other_class=True with negatives=previous, which may be of the same class; set '
        'contrastive.negatives=random'
      )
    for name in ('other_class', 'skip_null'):
      if getattr(self, name) and null_label is None:
        raise types.UserError(
          f'contrastive.{name}=True is about classes, and {setup.source.name} has none'
        )
    if self.correct:
      self._check_correction(setup.interpolant.path, parts)
    # The mean of N / (1 + Binomial(N - 1, 1 - p)).
    n, p = setup.examples, setup.label_dropout
    factor = (1 - p**n) / (1 - p) if p < 1 else 1.0
    if self.skip_null and self.weight * factor >= 1:
      raise types.UserError(
        f'contrastive.weight={self.weight} counts {factor:.3g} times with skip_null and '
        f'train.label_dropout={p}, and the loss has no minimum from 1 on; lower it'
      )
    return dataclasses.replace(
      self,
      source=setup.source,
      mirrored=setup.mirrored,
      null_label=null_label,
      null_factor=factor,
    )

  def _check_correction(self, path, parts):
    if 'direction' in parts:
      raise types.UserError(
        'contrastive.correct=True undoes contrastive alone, and direction changes what the network '
        'learns, too; leave one of them out'
      )
    needed = (
      ('interpolant.path', path, 'linear', 'the mean velocity depends on the time elsewhere'),
      ('contrastive.schedule', self.schedule, 'constant', 'the weight must be one number'),
      ('contrastive.other_class', self.other_class, False, 'each class has a mean of its own'),
    )
    for name, value, wanted, why in needed:
      if value != wanted:
        raise types.UserError(f'contrastive.correct=True needs {name}={wanted}, got {value}: {why}')

  def check(self, architecture: model_config.Architecture, examples: int) -> None:
    del architecture
    if examples < 2:
      raise types.UserError(
        f'method contrastive needs another example, got microbatches of {examples}'
      )

  def draw(self, key: jax.Array, n: int) -> Any:
    """Uniform numbers [N], of which `others` makes an index within a microbatch."""
    return jax.random.uniform(key, (n,)) if self.negatives == 'random' else ()

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """Metric 'loss', before weighting: minus the mean squared distance."""
    del features
    noisy, labels_N = context.noisy, context.noisy.batch['labels']
    counts_N = jnp.ones(labels_N.shape, bool)
    if self.negatives == 'previous':
      target = jnp.roll(noisy.target, 1, axis=0)
    else:
      other_N, counts_N = others(context.drawn, labels_N if self.other_class else None)
      target = noisy.target[other_N]
    distance_N = distance(context.output.pred, target)
    dropped_N = noisy.y == self.null_label if self.skip_null else jnp.zeros_like(counts_N)
    weight_N = jnp.where(counts_N, weights(self.weighting, noisy.t, dropped_N), 0)
    loss = -jnp.mean(weight_N * distance_N)
    return self.weight * loss, {'loss': loss}

  def for_sampling(self, network: base.Network) -> base.Network:
    """A network whose model says the velocity, by (2), if `correct` asks for it."""
    if not self.correct:
      return network
    mean_HWC = -self.mean
    return base.saying(
      network, lambda output, t_N, y_N: corrected(output.pred, self.share(t_N, y_N), mean_HWC)
    )

  def share(self, t_N: jax.Array, y_N: jax.Array) -> jax.Array:
    """What stands for lambda in (2) at times and labels; [N]."""
    share_N = self.weight * (t_N if self.weighting == 'linear' else jnp.ones_like(t_N))
    if self.skip_null:
      share_N = jnp.where(y_N == self.null_label, 0, share_N * self.null_factor)
    return share_N

  def sampling_facts(self) -> Mapping[str, Any]:
    """The weight, and of how many examples the mean is."""
    if not self.correct:
      return {}
    return {'corrected': self.weight, 'mean_of': min(len(self.source), MAX_EXAMPLES)}

  @functools.cached_property
  def mean(self) -> np.ndarray:
    """The mean [H, W, C] of the training data as the model sees them, float32.

    Raises:
      UserError: there are no data, only their description.
    """
    if isinstance(self.source, described.DescribedSource):
      raise types.UserError(
        f'contrastive.correct=True needs the mean of the training data, and of {self.source.name} '
        'there is only a description: give data like them, --config.data.source=KIND:PATH, or '
        'sample without it, --config.contrastive.correct=False'
      )
    return mean_of(self.source, mirrored=self.mirrored)


def distance(pred: jax.Array, target: jax.Array) -> jax.Array:
  """Mean squared difference of each example [N], float32 or better; targets are constants."""
  pred, target = arithmetic.at_least_float32(pred), arithmetic.at_least_float32(target)
  difference = pred - jax.lax.stop_gradient(target)
  return jnp.mean(jnp.square(difference), axis=tuple(range(1, pred.ndim)))


def weights(weighting: str, t_N: jax.Array, dropped_N: jax.Array) -> jax.Array:
  """w_n of the module: 1 or t, and 0 where dropped, whose share the others take; [N]."""
  weight_N = t_N if weighting == 'linear' else jnp.ones_like(t_N)
  kept = jnp.sum(~dropped_N)
  return jnp.where(dropped_N, 0, weight_N * (dropped_N.shape[0] / jnp.maximum(kept, 1)))


def others(draw_N: jax.Array, labels_N: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """Another example for each one, uniformly: of all, or of those with another label.

  Args:
    draw_N: independent uniform numbers in [0, 1). labels_N: None asks for no other label.

  Returns:
    (index_N, found_N): where nothing is found, the index is that of the example itself or of any.
  """
  n = draw_N.shape[0]
  allowed_NN = ~jnp.eye(n, dtype=bool)
  if labels_N is not None:
    allowed_NN = labels_N[:, None] != labels_N[None, :]
  rank_NN = jnp.cumsum(allowed_NN, axis=1)
  count_N = rank_NN[:, -1]
  chosen_N = jnp.minimum(jnp.floor(draw_N * count_N).astype(jnp.int32), count_N - 1)
  return jnp.argmax(rank_NN == chosen_N[:, None] + 1, axis=1), count_N > 0


def corrected(f_NHWC: jax.Array, weight_N: jax.Array, mean_HWC: jax.Array) -> jax.Array:
  """(2): the velocity, from what the network learned and the mean velocity."""
  weight = weight_N.reshape(-1, *(1,) * mean_HWC.ndim)
  return (1 - weight) * f_NHWC + weight * mean_HWC[None]


def mean_of(source: sources.Source, *, mirrored: bool = False) -> np.ndarray:
  """Mean [H, W, C] of a source's examples, float32: images in [-1, 1], or scaled latents.

  At most 4096, spread evenly. mirrored: whether their mirror images count, too.

  Raises:
    UserError: there are no examples.
  """
  count = min(len(source), MAX_EXAMPLES)
  if not count:
    raise types.UserError(f'{source.name} has no examples, expected some to take the mean of')
  indices = np.arange(count) * len(source) // count
  raw = 'moments' in source.gather(indices[:1])
  total = np.zeros(source.shape, np.float64)
  for start in range(0, count, _CHUNK):
    some = indices[start : start + _CHUNK]
    both = [source.gather(some)]
    if mirrored:
      both.append(source.gather(some, np.ones(len(some), bool)))
    for batch in both:
      x_NHWC = np.split(batch['moments'], 2, -1)[0] if raw else batches.clean(batch)
      total += x_NHWC.sum(axis=0, dtype=np.float64) / (count * len(both))
  if not raw:
    return total.astype(np.float32)
  with jax.ensure_compile_time_eval():  # Also where a sampler is traced.
    return np.asarray(source.scaling.apply(jnp.asarray(total, jnp.float32)[None])[0])
