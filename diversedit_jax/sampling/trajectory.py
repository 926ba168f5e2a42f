"""Sampling trajectories: time grids, guided and unguided stretches, all steps in one program.

  euler           S steps of the ODE on linspace(1, 0, S+1); S evaluations
  heun            the same grid, the last step by Euler; 2S - 1 evaluations
  euler_maruyama  S steps of the SDE on linspace(1, last_step, S) and then 0; S evaluations

as REPA's samplers (arXiv 2410.06940); a fourth kind is in `average`. RAE's ODE (2510.11690) ends
at 0.001, shifted, in the place of 0 (`end`). Evaluations with guidance count twice, whatever the
size of a network that guides. The grid is known before anything is traced, so the steps fall into
stretches that are guided throughout or not at all, each one a scan; steps that need one of the two
velocities cost a single evaluation.
"""

from collections.abc import Callable, Mapping
import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import options, rng, trees, types
from diversedit_jax.interpolants import paths
from diversedit_jax.interpolants import times as laws
from diversedit_jax.sampling import guidance as guidance_lib
from diversedit_jax.sampling import steppers

Noise = Callable[[jax.Array], steppers.State]
"""Step index (int32 scalar) -> z ~ N(0, I), of the structure of the state."""

RULES = ('step', 'evaluation')

CLASS, NULL, GUIDE = 'class', 'null', 'guide'
"""The velocities of `guidance`: with and without the class, and of the network that guides."""

Shape = tuple[int, ...] | Mapping[str, tuple[int, ...]]
"""Shape of one sample: [H, W, C], or by name where several arrays move together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig(options.Section, section='sampler', may_change=True):
  """How to sample; the defaults are REPA's and the paper's SDE with 250 steps, without guidance.

  path: name of the interpolant that the network was trained on; the ODE does not look at it.
  dtype: type of the state, 'float32' or 'float64' (needs JAX's x64 mode). The network may compute
    in another type; its output is cast to this one.
  """

  kind: str = options.option(
    'euler_maruyama',
    choices=steppers.KINDS,
    doc='SDE (euler_maruyama), solvers of the ODE, or average velocities.',
  )
  steps: int = options.option(250, at_least=1, doc='Steps from noise to data.')
  times: tuple[float, ...] = options.option(
    (),
    at_least=0,
    at_most=1,
    doc='Times from start down to 0, instead of equal steps; ODE only.',
  )
  shift: float | None = options.option(
    None,
    above=0,
    doc='Shift a of equal steps, towards noise if above 1; None is that of the training times '
    '(interpolant.shift).',
  )
  end: float = options.option(
    0.0,
    at_least=0,
    below=0.5,
    doc='Time, before the shift, at which solvers of the ODE stop; RAE (2510.11690) has 0.001, and '
    'its num_steps are points, one more than steps.',
  )
  start: float = options.option(
    1.0,
    above=0.5,
    at_most=1,
    doc='Time of pure noise; 0.999 for a noise or a score on the paths linear and cosine.',
  )
  diffusion: str = options.option(
    '2t', choices=steppers.DIFFUSIONS, doc='Diffusion coefficient w_t of the SDE (SiT, 3.3).'
  )
  last_step: float = options.option(
    0.04, above=0, below=1, doc='Time from which the SDE steps to 0 without noise.'
  )
  clamp: float = options.option(
    0.0,
    at_least=0,
    below=1,
    doc='Least sigma (linear path: t) that divides where the network predicts data. With 0 solvers '
    'of the ODE end at the last prediction; JiT and RAEv2 have 0.05 and stop short of it.',
  )
  guidance_scale: float = options.option(
    1.0,
    at_least=0,
    doc='Scale of guidance, by samples without a class or by sampler.autoguidance; 1 is none, 0 '
    'samples of what guides.',
  )
  guidance_low: float = options.option(
    0.0, at_least=0, at_most=1, doc='Lower end of the times t in which guidance acts.'
  )
  guidance_high: float = options.option(
    1.0, at_least=0, at_most=1, doc='Upper end of the times in which guidance acts.'
  )
  guidance_rule: str = options.option(
    'step',
    choices=RULES,
    doc='What lies in [guidance_low, guidance_high] is guided: a step by its start (REPA), or an '
    'evaluation by its own time, ends left out (JiT, 2511.13720).',
  )
  guidance_channels: int | None = options.option(
    None, at_least=1, doc='How many channels are guided, from the first; None guides all.'
  )
  autoguidance: str = options.option(
    '',
    path=True,
    doc='Weights of a worse network that guides instead of the null label (2406.02507): a folder '
    'checkpoints/STEP of a run, the run for its newest, or a file; see docs/evaluation.md.',
  )
  autoguidance_weights: str = options.option(
    'ema', doc="Which weights of its checkpoint guide, as in sample.weights: 'ema', 'params'..."
  )
  class_token_scale: float | None = options.option(
    None,
    at_least=0,
    doc="Guidance of REG's class token, also where guidance_scale=1; None is guidance_scale, and "
    'both 0 and 1 are none (2507.01467).',
  )
  path: str = 'linear'
  dtype: str = 'float32'

  def __post_init__(self):
    super().__post_init__()
    trees.check_known('sampler.path', self.path, paths.PATHS)
    trees.check_known('sampler.dtype', self.dtype, ('float32', 'float64'))
    fewest = 2 if self.noisy else 1
    if self.steps < fewest:
      raise types.UserError(f'{self.kind} with steps={self.steps}, expected at least {fewest}')
    if self.start <= self.last_step:
      raise types.UserError(
        f'sampler.start={self.start} must be after sampler.last_step={self.last_step}'
      )
    if self.times:
      self._check_times()
    if self.kind == 'average_velocity' and self.guidance_scale != 1:
      raise types.UserError(
        f'sampler.guidance_scale={self.guidance_scale} with average velocities: they are guided in '
        'training (meanflow.omega, meanflow.kappa); set guidance_scale=1'
      )
    _ = self.guidance  # Checks the rest.

  def facts(self) -> dict[str, Any]:
    """The options that act for this kind, beside steps and guidance: for protocol cards."""
    facts = {'start': self.start, 'dtype': self.dtype}
    if self.times:
      facts['times'] = list(self.times)
    if self.noisy:
      facts |= {'diffusion': self.diffusion, 'last_step': self.last_step}
    if self.clamp:
      facts['clamp'] = self.clamp
    if self.shift not in (None, 1):
      facts['shift'] = self.shift
    if self.end and not self.noisy:
      facts['end'] = self.end
    if self.guided and self.guidance_rule != 'step':
      facts['guidance_rule'] = self.guidance_rule
    return facts

  def _check_times(self):
    if self.shift is not None:
      raise types.UserError(
        f'sampler.shift={self.shift} is of equal steps, and sampler.times says all times: give one'
      )
    if self.end:
      raise types.UserError(
        f'sampler.end={self.end} is of equal steps, and sampler.times says all times: give one'
      )
    if self.noisy:
      raise types.UserError('sampler.times are for the ODE; the SDE has its own grid')
    falling = all(a > b for a, b in itertools.pairwise(self.times))
    if not falling or self.times[0] != self.start or self.times[-1] != 0:
      raise types.UserError(
        f'sampler.times={self.times}, expected falling times from start={self.start} to 0'
      )
    if self.steps != len(self.times) - 1:
      raise types.UserError(
        f'sampler.times has {len(self.times) - 1} steps, but sampler.steps={self.steps}'
      )

  def without_effect(self) -> list[str]:
    """Sentences about options that are not at their defaults and do nothing here."""
    idle = {}
    if not self.noisy:
      idle |= dict.fromkeys(('diffusion', 'last_step'), f'{self.kind} has no noise in its steps')
    if self.noisy:
      idle['end'] = f'{self.kind} goes to 0 from last_step'
    if self.guidance_scale == 1:
      idle['guidance_channels'] = 'guidance_scale=1 does not guide the image'
    if not self.guided:
      names = ('guidance_low', 'guidance_high', 'guidance_rule')
      names += ('autoguidance', 'autoguidance_weights')
      idle |= dict.fromkeys(names, 'guidance_scale=1 is no guidance')
    elif not any(self.velocities in s.velocities for s in stretches(self)):
      what = 'step starts' if self.guidance_rule == 'step' else 'evaluation lies'
      interval = f'no {what} in [{self.guidance_low}, {self.guidance_high}]'
      idle |= dict.fromkeys(('guidance_scale', 'class_token_scale'), interval)
    if not self.autoguidance:
      idle['autoguidance_weights'] = 'they are those of sampler.autoguidance'
    return [
      f'sampler.{name}={getattr(self, name)} has no effect: {reason}'
      for name, reason in idle.items()
      if getattr(self, name) != _DEFAULTS[name]
    ]

  @property
  def token_scale(self) -> float:
    """Scale of the class token in (1) of `guidance`; at 0 REG leaves it with its class."""
    if self.class_token_scale is None:
      return self.guidance_scale
    return self.class_token_scale or 1.0

  @property
  def velocities(self) -> tuple[str, ...]:
    """What `guidance` needs inside its interval: CLASS, NULL or both; GUIDE for NULL in (2)."""
    scales = {self.guidance_scale, self.token_scale}
    if self.guidance_channels is not None:
      scales.add(1.0)  # The scale of the other channels.
    other = GUIDE if self.autoguidance else NULL
    return tuple(name for name, needless in ((CLASS, 0), (other, 1)) if scales != {needless})

  @property
  def guided(self) -> bool:
    """Whether anything is guided inside the interval."""
    return self.velocities != (CLASS,)

  @property
  def needs_null(self) -> bool:
    """Whether anything is guided by samples without a class."""
    return NULL in self.velocities

  @property
  def noisy(self) -> bool:
    """Whether the sampler follows the SDE."""
    return steppers.KINDS[self.kind].noisy

  @property
  def guidance(self) -> guidance_lib.Guidance:
    """The guidance fields as one object."""
    return guidance_lib.Guidance(
      scale=self.guidance_scale,
      low=self.guidance_low,
      high=self.guidance_high,
      open=self.guidance_rule == 'evaluation',
      channels=self.guidance_channels,
    )


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(SamplerConfig)}


class Stretch(NamedTuple):
  """Consecutive steps of one kind.

  method: name of the kind of its steps, see `steppers.KINDS`.
  velocities: what each of a step's evaluations needs, of CLASS, NULL and GUIDE; two to guide.
  index: number of each step in the whole trajectory, [s].
  steps: their constants, numpy float64 [s].
  """

  method: str
  velocities: tuple[tuple[str, ...], ...]
  index: np.ndarray
  steps: steppers.Step


class Evaluations(NamedTuple):
  """Cost of a trajectory.

  per_sample: network evaluations for each sample; a guided one counts 2.
  calls: calls of a network; those with and without the class are one with twice the batch.
  """

  per_sample: int
  calls: int


def time_grid(config: SamplerConfig) -> np.ndarray:
  """Falling times from `start` to 0, or to `end` as it is shifted, float64 [steps + 1]."""
  if config.times:
    return np.array(config.times, np.float64)
  if config.noisy:
    return np.append(_shifted(config.start, config.last_step, config.steps, config.shift), 0.0)
  end = laws.shifted(config.end, config.shift or 1.0)
  return _shifted(config.start, end, config.steps + 1, config.shift)


def _shifted(first, last, count, a):
  """So many times from first to last, equally far apart before they are shifted by a."""
  if a in (None, 1):
    return np.linspace(first, last, count)
  ends = (laws.shifted(t, 1 / a) for t in (first, last))
  grid = laws.shifted(np.linspace(*ends, count), a)
  grid[0], grid[-1] = first, last  # The shift and its inverse round.
  return grid


def stretches(config: SamplerConfig) -> list[Stretch]:
  """The whole trajectory as the fewest stretches of like steps."""
  grid = time_grid(config)
  last = steppers.KINDS[config.kind].last or config.kind
  methods = [*[config.kind] * (config.steps - 1), last]
  if config.noisy:
    steps = steppers.sde_steps(grid, paths.PATHS[config.path], config.diffusion)
  else:
    steps = steppers.ode_steps(grid)

  def velocities(i):
    at = steppers.KINDS[methods[i]].at
    if config.guidance_rule == 'step':
      at = (0.0,) * len(at)
    inside = config.guidance.inside(np.array([(1 - s) * grid[i] + s * grid[i + 1] for s in at]))
    return tuple(config.velocities if one else (CLASS,) for one in inside)

  likes = itertools.groupby(range(config.steps), key=lambda i: (methods[i], velocities(i)))
  found = []
  for (method, names), run in likes:
    index = np.array(list(run), np.int32)
    found.append(Stretch(method, names, index, steppers.Step(*(c[index] for c in steps))))
  return found


def evaluations(config: SamplerConfig) -> Evaluations:
  """Exactly how often `sample` evaluates the network."""
  found = stretches(config)
  return Evaluations(
    per_sample=sum(len(s.index) * sum(map(len, s.velocities)) for s in found),
    calls=sum(len(s.index) * (1 + (one == (CLASS, GUIDE))) for s in found for one in s.velocities),
  )


def check_guidance(config: SamplerConfig, null_label: int | None) -> None:
  """Refuses guidance of a network without classes (null label None or 0) with a UserError."""
  if config.needs_null and not null_label:
    name = 'guidance_scale' if config.guidance_scale != 1 else 'class_token_scale'
    raise types.UserError(
      f'{name}={getattr(config, name)} needs a network with classes; train one, or set {name}=1'
    )


def sample(
  predict: guidance_lib.Predict,
  shape: Shape,
  keys_N: jax.Array,
  labels_N: jax.Array | None,
  config: SamplerConfig,
  *,
  null_label: int | None,
  combine: guidance_lib.Combine | None = None,
  guide: guidance_lib.Predict | None = None,
) -> steppers.State:
  """Samples from noise; pure, and meant to be traced whole:

    jax.jit(lambda params, keys, labels: sample(network(params), (32, 32, 4), keys, labels, config,
                                                null_label=1000))

  Sample n sees `keys_N[n]` only, for its initial noise and the noise of every step, so it is the
  same picture in a batch of any size.

  Args:
    predict: (x, t_N, y_N) -> velocity of the structure of x, t in the state's type.
    shape: shape of one sample [H, W, C] or of the batch [N, H, W, C]; a dict of shapes of one
      sample where several arrays move together.
    keys_N: one JAX key per sample, as from `rng.per_example`.
    labels_N: class labels, int32; None for a network without classes.
    config: the sampler.
    null_label: label that means no class, for guidance; None for a network without classes.
    combine: how to guide; None is `config.guidance` on an array.
    guide: the network of `config.autoguidance`, like predict.

  Returns:
    The state at the last time, 0 or that of `end`, in `config.dtype`.

  Raises:
    UserError: for guidance without classes, or float64 without x64.
  """
  n = keys_N.shape[0]
  if not isinstance(shape, Mapping) and len(shape) == 4:
    if shape[0] != n:
      raise ValueError(f'shape {tuple(shape)} asks for {shape[0]} samples, but there are {n} keys')
    shape = shape[1:]
  return integrate(
    predict,
    normal(keys_N, shape, 'sampling_start', state_dtype(config)),
    labels_N,
    config,
    noise=lambda step: normal(keys_N, shape, 'sampling_step', state_dtype(config), step),
    null_label=null_label,
    combine=combine,
    guide=guide,
  )


def normal(
  keys_N: jax.Array, shape: Shape, name: str, dtype: jnp.dtype, step: jax.Array | None = None
) -> steppers.State:
  """Standard normal state [N, ...]; row n is a function of `keys_N[n]`, name and step."""
  if isinstance(shape, Mapping):
    return {k: normal(keys_N, s, f'{name}/{k}', dtype, step) for k, s in shape.items()}
  draw = lambda key: rng.normal(rng.stream(key, name, step), shape, dtype)
  return jax.vmap(draw)(keys_N)


def integrate(
  predict: guidance_lib.Predict,
  x: steppers.State,
  labels_N: jax.Array | None,
  config: SamplerConfig,
  *,
  noise: Noise | None = None,
  null_label: int | None,
  combine: guidance_lib.Combine | None = None,
  guide: guidance_lib.Predict | None = None,
) -> steppers.State:
  """`sample` from a given state at the first time with given noise.

  Args:
    predict, labels_N, config, null_label, combine, guide: as for `sample`.
    x: state at `config.start`; cast to `config.dtype`.
    noise: noise of each step of the SDE. The last step asks for it too, and does not use it.

  Returns:
    The state at the last time, 0 or that of `end`, in `config.dtype`.
  """
  check_guidance(config, None if labels_N is None else null_label)
  if config.autoguidance and config.guided and guide is None:
    raise ValueError(f'{config.autoguidance} is to guide, but there is no guide')
  if config.noisy and noise is None:
    raise ValueError(f'{config.kind} needs noise, a function of the step index')
  if steppers.KINDS[config.kind].step is None:
    raise ValueError('average velocities are not integrated; see `average.sample`')
  dtype, combine = state_dtype(config), combine or config.guidance.combine
  x = jax.tree.map(lambda x: x.astype(dtype), x)

  for stretch in stretches(config):

    def body(x, index_and_step, kind=steppers.KINDS[stretch.method], asked=stretch.velocities):
      index, step = index_and_step
      seen = []

      def velocity(x, t):
        names = asked[min(len(seen), len(asked) - 1)]
        seen.append(names)
        if names == (CLASS, NULL):
          return guidance_lib.guided_velocity(predict, x, t, labels_N, combine, null_label)
        if names == (CLASS, GUIDE):
          return guidance_lib.led_velocity(predict, guide, x, t, labels_N, combine)
        y_N = jnp.full_like(labels_N, null_label) if names == (NULL,) else labels_N
        return guidance_lib.velocity(guide if names == (GUIDE,) else predict, x, t, y_N)

      x = kind.step(velocity, x, step, noise(index) if kind.noisy else None)
      if len(seen) != len(asked):
        raise ValueError(
          f'a step of {config.kind!r} evaluates the velocity {len(seen)} times; `at` of its '
          f'`steppers.Kind` has {len(asked)}'
        )
      return x, None

    constants = steppers.Step(*(jnp.asarray(c, dtype) for c in stretch.steps))
    x, _ = jax.lax.scan(body, x, (jnp.asarray(stretch.index), constants))
  return x


def state_dtype(config: SamplerConfig) -> jnp.dtype:
  """Type of the sampler's state.

  Raises:
    UserError: float64 without JAX's x64 mode.
  """
  dtype = jnp.dtype(config.dtype)
  if dtype == jnp.float64 and not jax.config.jax_enable_x64:
    raise types.UserError("sampler dtype='float64' needs JAX_ENABLE_X64=1; use 'float32'")
  return dtype
