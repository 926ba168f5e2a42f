"""Training along a stochastic interpolant, as SiT does (arXiv 2401.08740, Section 2).

With data x, noise e and a network f,

  x_t = alpha(t) x + sigma(t) e,   v = alpha'(t) x + sigma'(t) e
  loss_N = w(t) mean |f(x_t, t, y) - v|^2             predicting the velocity (w = 1)
  loss_N = w(t) mean |f(x_t, t, y) - e|^2             predicting the noise
  loss_N = w(t) mean |sigma f(x_t, t, y) + e|^2       predicting the score
  loss_N = d(t)^2 mean |f(x_t, t, y) - x|^2           predicting the data (JiT, arXiv 2511.13720)

where d = (alpha sigma' - alpha' sigma) / max(sigma, clamp), on the linear path 1 / max(t, clamp),
makes the last one that of the velocities (5) of `interpolants.convert`, of f and of x both; and,
with l = sigma sigma' - (alpha'/alpha) sigma^2, w = 1 ('none'), (l / sigma)^2 ('velocity') or
l / sigma^2 ('likelihood').
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from diversedit_jax import interpolants, rng, types
from diversedit_jax.interpolants import paths, section, times
from diversedit_jax.losses import velocity as velocity_lib
from diversedit_jax.methods import base, batches, registry
from diversedit_jax.models import config as model_config
from diversedit_jax.models import taps
from diversedit_jax.sampling import guidance, trajectory

TimeLaw = Callable[[jax.Array, int], jax.Array]
"""(key, n) -> t_N; see `interpolants.times`."""


@registry.register('flow')
@dataclasses.dataclass(frozen=True, kw_only=True)
class StochasticInterpolant(base.Flow):
  """SiT's objective; its options are those of `interpolants.section` and of `train`.

  path: interpolant. time_law: law of the training times.
  prediction: what the network says. weighting: w. clamp: least sigma that divides, of data.
  label_dropout: probability of the null label, drawn per example.
  null_label: K, or None without classes.
  """

  path: interpolants.Path = dataclasses.field(default_factory=interpolants.linear)
  time_law: TimeLaw = times.Uniform()
  prediction: str = 'velocity'
  weighting: str = 'none'
  clamp: float = 0.05
  label_dropout: float = 0.1
  null_label: int | None = None

  def prepare(self, setup: base.Setup) -> 'StochasticInterpolant':
    return dataclasses.replace(
      self,
      path=setup.interpolant.make_path(),
      time_law=setup.interpolant.make_time_law(),
      prediction=setup.interpolant.prediction,
      weighting=setup.interpolant.weighting,
      clamp=setup.interpolant.clamp,
      label_dropout=setup.label_dropout,
      null_label=setup.architecture.null_label,
    )

  def check_model(
    self, architecture: model_config.Architecture, execution: model_config.Execution
  ) -> None:
    """Refuses times of a diffusion on another path (UserError)."""
    del execution
    if architecture.time_input == 'ddpm' and self.path.name != 'vp':
      raise types.UserError(
        "model.time_input='ddpm' is the step of a diffusion along interpolant.path=vp, got "
        f'{self.path.name!r}'
      )

  def check_sampler(self, sampler: trajectory.SamplerConfig) -> None:
    """Refuses average velocities, and a start where v is not defined (UserError)."""
    if sampler.kind == 'average_velocity':
      raise types.UserError(
        "sampler.kind='average_velocity' needs a network that predicts averages; set "
        'method=meanflow, or another sampler.kind'
      )
    # A noise or a score says nothing about x where alpha = 0, so neither about the velocity.
    blind = self.prediction in ('noise', 'score')
    if blind and self.path.alpha(1.0) < 1e-6 and sampler.start == 1:
      raise types.UserError(
        f'interpolant.prediction={self.prediction!r} gives no velocity at t = 1 of the '
        f'{self.path.name!r} path; set sampler.start=0.999'
      )

  def draw(self, batch: types.Batch, key: jax.Array) -> base.NoisyBatch:
    x_NHWC = batches.clean(batch)
    n = x_NHWC.shape[0]
    t_N = self.time_law(rng.stream(key, 'time'), n)
    eps_NHWC = rng.normal(rng.stream(key, 'noise'), x_NHWC.shape, x_NHWC.dtype)
    y_N, _ = drop_labels(
      batch['labels'], rng.stream(key, 'label_dropout'), self.label_dropout, self.null_label
    )
    x_t, target = self.noised(x_NHWC, eps_NHWC, t_N)
    return base.NoisyBatch(x_t=x_t, t=t_N, y=y_N, target=target, noise=eps_NHWC, batch=batch)

  def noised(self, x: jax.Array, eps: jax.Array, t_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x_t, target) of data [N, ...] and noise; the target of a score is -e (see the module)."""
    x_t = interpolants.interpolate(self.path, x, eps, t_N)
    if self.prediction == 'velocity':
      return x_t, interpolants.velocity_target(self.path, x, eps, t_N)
    return x_t, {'noise': eps, 'score': -eps, 'data': x}[self.prediction]

  def at(self, noisy: base.NoisyBatch, t_N: jax.Array) -> base.NoisyBatch:
    x_t, target = self.noised(noisy.clean, noisy.noise, t_N)
    return dataclasses.replace(noisy, x_t=x_t, t=t_N, target=target)

  def run(
    self, network: base.Network, noisy: base.NoisyBatch, tap: taps.Tap, blocks: int | None = None
  ) -> types.Output:
    return network.model(noisy.x_t, noisy.t, noisy.y, tap=tap, blocks=blocks)

  def forward(
    self, network: base.Network, noisy: base.NoisyBatch, tap: taps.Tap
  ) -> tuple[types.Output, jax.Array, base.Metrics]:
    output = self.run(network, noisy, tap)
    loss_N = self.score(output.pred, noisy)
    return output, loss_N, {self.scored: jnp.mean(loss_N)}

  def score(self, pred: jax.Array, noisy: base.NoisyBatch) -> jax.Array:
    return self.loss(pred, noisy.target, noisy.t)

  @property
  def scored(self) -> str:
    """What the loss compares, and the name of its metric: of data, their velocities."""
    return 'velocity' if self.prediction == 'data' else self.prediction

  def loss(self, pred: jax.Array, target: jax.Array, t_N: jax.Array) -> jax.Array:
    """Weighted mean squared error of each example [N], of predictions [N, ...] and targets."""
    if self.prediction == 'score':
      pred = paths.per_example(self.path.sigma(t_N), pred) * pred
    return self.weight(t_N) * velocity_lib.velocity_loss(pred, target)

  def weight(self, t_N: jax.Array) -> jax.Array:
    """w(t) of the module's head, or d(t)^2."""
    alpha, sigma = self.path.alpha(t_N), self.path.sigma(t_N)
    d_alpha, d_sigma = self.path.d_alpha(t_N), self.path.d_sigma(t_N)
    if self.prediction == 'data':
      return ((alpha * d_sigma - d_alpha * sigma) / jnp.maximum(sigma, self.clamp)) ** 2
    if self.weighting == 'none':
      return jnp.ones_like(t_N)
    lam = sigma * d_sigma - d_alpha / alpha * sigma**2
    return (lam / sigma) ** 2 if self.weighting == 'velocity' else lam / sigma**2

  def velocity(self, network: base.Network, clamp: float = 0.0) -> guidance.Predict:
    """(x_NHWC, t_N, y_N) -> v_NHWC, whatever the network predicts; see `as_velocity`."""

    def predict(x_NHWC, t_N, y_N):
      return self.as_velocity(network.model(x_NHWC, t_N, y_N).pred, x_NHWC, t_N, clamp)

    return predict

  def as_velocity(
    self, pred: jax.Array, x_t: jax.Array, t_N: jax.Array, clamp: float = 0.0
  ) -> jax.Array:
    """The velocity that a prediction [N, ...] means; clamp: least sigma that divides."""
    return interpolants.convert.convert(
      pred,
      x_t,
      t_N,
      self.path,
      source=section.PREDICTIONS[self.prediction],
      target='velocity',
      clamp=max(clamp, interpolants.convert.SMALLEST),
    )

  def sample(
    self,
    network: base.Network,
    keys_N: jax.Array,
    labels_N: jax.Array,
    config: trajectory.SamplerConfig,
    guide: guidance.Predict | None = None,
  ) -> jax.Array:
    return trajectory.sample(
      self.velocity(network, config.clamp),
      network.model.architecture.shape,
      keys_N,
      labels_N,
      config,
      null_label=network.model.architecture.null_label,
      guide=guide,
    )


def drop_labels(
  y_N: jax.Array, key: jax.Array, probability: float, null_label: int | None
) -> tuple[jax.Array, jax.Array]:
  """Labels with the null label where dropped, and where [N] bool; all 0 without classes."""
  if null_label is None:
    return jnp.zeros_like(y_N), jnp.zeros(y_N.shape, bool)
  dropped_N = jax.random.bernoulli(key, probability, y_N.shape)
  return jnp.where(dropped_N, null_label, y_N), dropped_N
