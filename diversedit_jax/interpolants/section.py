"""Options of the interpolant: path, prediction, weighting and law of time."""

import dataclasses
import math

from diversedit_jax import options, types
from diversedit_jax.interpolants import paths, times

PREDICTIONS = {'velocity': 'velocity', 'noise': 'epsilon', 'score': 'score', 'data': 'x0'}
"""What the network may say, and its name in `interpolants.convert`."""

AUTO = 'auto'
"""The `interpolant.shift` that follows from the dimension of the data."""

WEIGHTINGS = ('none', 'velocity', 'likelihood')

_NEAREST = 1e-3  # To the ends of time, for a noise or a score (SiT).


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolant(options.Section, section='interpolant'):
  """Along which path data become noise, what is predicted on it and at which times."""

  path: str = options.option(
    'linear',
    choices=paths.PATHS,
    decides_network=True,
    doc='Path from data to noise (SiT, 2401.08740).',
  )
  prediction: str = options.option(
    'velocity', choices=PREDICTIONS, decides_network=True, doc='What the network predicts.'
  )
  clamp: float = options.option(
    0.05,
    above=0,
    below=1,
    doc='Least sigma (linear path: t) that divides the error of predicted data, whose loss is that '
    'of the velocity (JiT, 2511.13720; RAEv2).',
  )
  weighting: str = options.option(
    'none',
    choices=WEIGHTINGS,
    doc='Weight of the loss by time where a noise or a score is predicted: none, that of the '
    'velocity loss, or of the likelihood (SiT, 2401.08740).',
  )
  time_law: str = options.option(
    'uniform', choices=times.TIME_LAWS, doc='Law of the training times; see interpolants/times.py.'
  )
  time_mean: float = options.option(
    0.0, doc='Mean of logit_normal and lognormal; MeanFlow uses -0.4.'
  )
  time_std: float = options.option(
    1.0, above=0, doc='Standard deviation of logit_normal and lognormal.'
  )
  time_latest: float = options.option(
    1.0,
    above=0,
    at_most=1,
    doc='Times are of the law up to here alone, before the shift; RAE (2510.11690) has 0.999.',
  )
  shift: float | str | None = options.option(
    None,
    above=0,
    doc="Shift a of the training times and, without one of its own, of the sampler's; 'auto' is "
    'sqrt(dimension of the data / 4096), None no shift (SD3, 2403.03206; RAE, 2510.11690).',
  )
  epsilon: float | None = options.option(
    None,
    at_least=0,
    below=0.5,
    doc='Times are drawn from [epsilon, 1 - epsilon]; None is what path and prediction need.',
  )

  def __post_init__(self):
    super().__post_init__()
    if self.prediction in ('velocity', 'data') and self.weighting != 'none':
      raise types.UserError(
        f'interpolant.weighting={self.weighting!r} is for a noise or a score; a velocity has '
        "weight 1, and predicted data are scored as velocities: set weighting='none'"
      )
    if self.prediction == 'data' and self.path == 'vp':
      raise types.UserError(
        "interpolant.prediction='data' with interpolant.path='vp', whose velocity is infinite at "
        't = 0 under any clamp of sigma; take path linear or cosine'
      )
    if self.prediction != 'data' and self.clamp != Interpolant.clamp:
      raise types.UserError(
        f"interpolant.clamp={self.clamp} is for prediction='data', got {self.prediction!r}; leave "
        f'clamp={Interpolant.clamp}'
      )
    if isinstance(self.shift, str) and self.shift != AUTO:
      raise types.UserError(f"interpolant.shift={self.shift!r} is neither a number nor '{AUTO}'")
    needed = paths.PATHS[self.path].epsilon
    if self.epsilon is not None and self.epsilon < needed:
      raise types.UserError(
        f'interpolant.epsilon={self.epsilon} is too small: path {self.path!r} needs {needed}'
      )
    if not self._has_mean and (self.time_mean, self.time_std) != (0.0, 1.0):
      raise types.UserError(
        f'interpolant.time_law={self.time_law!r} has no mean and deviation; leave time_mean=0.0, '
        f'time_std=1.0 (got {self.time_mean}, {self.time_std})'
      )

  @property
  def _has_mean(self) -> bool:
    return any(f.name == 'mean' for f in dataclasses.fields(times.TIME_LAWS[self.time_law]))

  def for_data(self, shape: tuple[int, ...]) -> 'Interpolant':
    """With the shift of data of a shape [H, W, C], where it is to follow from that."""
    if self.shift != AUTO:
      return self
    return dataclasses.replace(self, shift=times.shift_of(math.prod(shape)))

  def make_path(self) -> paths.Path:
    """The path by name."""
    return paths.PATHS[self.path]

  def make_time_law(self):
    """The law of training times, (key, n) -> t_N."""
    law, epsilon = times.TIME_LAWS[self.time_law], self.epsilon
    if epsilon is None:
      singular = self.prediction in ('noise', 'score') and self.path != 'vp'
      epsilon = max(self.make_path().epsilon, _NEAREST if singular else 0)
    fields = {
      'epsilon': epsilon,
      'path': self.path,
      'mean': self.time_mean,
      'std': self.time_std,
      'latest': self.time_latest,
      'shift': 1.0 if self.shift is None else self.shift,
    }
    return law(**{f.name: fields[f.name] for f in dataclasses.fields(law)})
