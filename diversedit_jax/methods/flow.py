"""Training along a stochastic interpolant, as SiT does (arXiv 2401.08740, Section 2).

With data x, noise e and a network f,

  x_t = alpha(t) x + sigma(t) e,   v = alpha'(t) x + sigma'(t) e
  loss_N = w(t) mean |f(x_t, t, y) - v|^2             predicting the velocity (w = 1)
  loss_N = w(t) mean |f(x_t, t, y) - e|^2             predicting the noise
  loss_N = w(t) mean |sigma f(x_t, t, y) + e|^2       predicting the score

and, with l = sigma sigma' - (alpha'/alpha) sigma^2, w = 1 ('none'), (l / sigma)^2 ('velocity') or
l / sigma^2 ('likelihood').
"""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from diversedit_jax import interpolants, rng, trees, types
from diversedit_jax.interpolants import paths
from diversedit_jax.losses import velocity as velocity_lib
from diversedit_jax.methods import base
from diversedit_jax.models import config as config_lib
from diversedit_jax.models import taps
from diversedit_jax.sampling import guidance, trajectory

TimeLaw = Callable[[jax.Array, int], jax.Array]
"""(key, n) -> t_N; see `interpolants.times`."""

PREDICTIONS = {'velocity': 'velocity', 'noise': 'epsilon', 'score': 'score'}
"""What the network says, and its name in `interpolants.convert`."""

WEIGHTINGS = ('none', 'velocity', 'likelihood')


@dataclasses.dataclass(frozen=True, kw_only=True)
class StochasticInterpolant:
  """SiT's objective.

  path: interpolant. time_law: of the training times.
  prediction: what the network says, of `PREDICTIONS`. weighting: w, of `WEIGHTINGS`.
  label_dropout: probability of the null label, drawn per example. null_label: K, or None without
    classes.
  """

  path: interpolants.Path
  time_law: TimeLaw
  prediction: str = 'velocity'
  weighting: str = 'none'
  label_dropout: float = 0.1
  null_label: int | None
  encoders: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self):
    trees.check_known('interpolant.prediction', self.prediction, PREDICTIONS)
    trees.check_known('interpolant.weighting', self.weighting, WEIGHTINGS)
    check_label_dropout(self.label_dropout)
    if self.prediction == 'velocity' and self.weighting != 'none':
      raise types.UserError(
        f'interpolant.weighting={self.weighting!r} is for a noise or a score; a velocity has '
        "weight 1: set weighting='none'"
      )

  def check_model(
    self, architecture: config_lib.Architecture, execution: config_lib.Execution
  ) -> None:
    """Refuses times of a diffusion on another path."""
    if architecture.time_input == 'ddpm' and self.path.name != 'vp':
      raise types.UserError(
        "model.time_input='ddpm' is the step of a diffusion along interpolant.path=vp, got "
        f'{self.path.name!r}'
      )

  def check_sampler(self, sampler: trajectory.SamplerConfig) -> None:
    """Refuses a sampler of average velocities, and one that starts where v is not defined."""
    if sampler.kind == 'average_velocity':
      raise types.UserError(
        "sampler.kind='average_velocity' needs a network that predicts averages; set "
        'method=meanflow, or another sampler.kind'
      )
    # A noise or a score says nothing about x where alpha = 0, so neither about the velocity.
    if self.prediction != 'velocity' and self.path.alpha(1.0) < 1e-6 and sampler.start == 1:
      raise types.UserError(
        f'interpolant.prediction={self.prediction!r} gives no velocity at t = 1 of the '
        f'{self.path.name!r} path; set sampler.start=0.999'
      )

  def draw(self, batch: types.Batch, key: jax.Array) -> base.Draw:
    x_NHWC = base.clean(batch)
    n = x_NHWC.shape[0]
    t_N = self.time_law(rng.stream(key, 'time'), n)
    eps_NHWC = rng.normal(rng.stream(key, 'noise'), x_NHWC.shape, x_NHWC.dtype)
    y_N, _ = drop_labels(
      batch['labels'], rng.stream(key, 'label_dropout'), self.label_dropout, self.null_label
    )
    x_t, target = self.noised(x_NHWC, eps_NHWC, t_N)
    return base.Draw(x_t=x_t, t=t_N, y=y_N, target=target, noise=eps_NHWC, batch=batch)

  def noised(self, x: jax.Array, eps: jax.Array, t_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x_t, target) of data [N, ...] and noise; the target of a score is -e (see the module)."""
    x_t = interpolants.interpolate(self.path, x, eps, t_N)
    if self.prediction == 'velocity':
      return x_t, interpolants.velocity_target(self.path, x, eps, t_N)
    return x_t, eps if self.prediction == 'noise' else -eps

  def at(self, draw: base.Draw, t_N: jax.Array) -> base.Draw:
    x_t, target = self.noised(draw.clean, draw.noise, t_N)
    return dataclasses.replace(draw, x_t=x_t, t=t_N, target=target)

  def run(
    self, network: base.Network, draw: base.Draw, tap: taps.Tap, blocks: int | None = None
  ) -> types.Output:
    return network.model(draw.x_t, draw.t, draw.y, tap=tap, blocks=blocks)

  def forward(
    self, network: base.Network, draw: base.Draw, tap: taps.Tap
  ) -> tuple[Any, jax.Array, base.Metrics]:
    output = self.run(network, draw, tap)
    loss_N = self.loss(output.pred, draw.target, draw.t)
    return output.features, loss_N, {self.prediction: jnp.mean(loss_N)}

  def loss(self, pred: jax.Array, target: jax.Array, t_N: jax.Array) -> jax.Array:
    """Weighted mean squared error of each example [N], of predictions [N, ...] and targets."""
    if self.prediction == 'score':
      pred = paths.per_example(self.path.sigma(t_N), pred) * pred
    return self.weight(t_N) * velocity_lib.velocity_loss(pred, target)

  def weight(self, t_N: jax.Array) -> jax.Array:
    """w(t) of the module's head."""
    if self.weighting == 'none':
      return jnp.ones_like(t_N)
    alpha, sigma = self.path.alpha(t_N), self.path.sigma(t_N)
    lam = sigma * self.path.d_sigma(t_N) - self.path.d_alpha(t_N) / alpha * sigma**2
    return (lam / sigma) ** 2 if self.weighting == 'velocity' else lam / sigma**2

  def velocity(self, network: base.Network) -> guidance.Predict:
    """(x_NHWC, t_N, y_N) -> v_NHWC, whatever the network predicts."""
    kind = PREDICTIONS[self.prediction]

    def predict(x_NHWC, t_N, y_N):
      pred = network.model(x_NHWC, t_N, y_N).pred
      return interpolants.convert.convert(
        pred, x_NHWC, t_N, self.path, source=kind, target='velocity'
      )

    return predict

  def sample(
    self,
    network: base.Network,
    keys_N: jax.Array,
    labels_N: jax.Array,
    config: trajectory.SamplerConfig,
  ) -> jax.Array:
    return trajectory.sample(
      self.velocity(network),
      network.model.architecture.shape,
      keys_N,
      labels_N,
      config,
      null_label=network.model.architecture.null_label,
    )

  def extra_passes(self) -> float:
    return 0.0


def drop_labels(
  y_N: jax.Array, key: jax.Array, probability: float, null_label: int | None
) -> tuple[jax.Array, jax.Array]:
  """Labels with the null label where dropped, and where [N] bool; all 0 without classes."""
  if null_label is None:
    return jnp.zeros_like(y_N), jnp.zeros(y_N.shape, bool)
  dropped_N = jax.random.bernoulli(key, probability, y_N.shape)
  return jnp.where(dropped_N, null_label, y_N), dropped_N


def check_label_dropout(probability: float) -> None:
  """Refuses what is no probability below 1 (UserError)."""
  if not 0 <= probability < 1:
    raise types.UserError(f'train.label_dropout must lie in [0, 1), got {probability}')
