"""MeanFlow: the average velocity over an interval, for sampling in one step (arXiv 2505.13447).

With z_t = (1 - t) x + t e, v = e - x and r <= t, the network u(z_t, r, t) is to be the mean of the
velocity over [r, t], which is the solution of

  (1)  u = v_g - (t - r) du/dt,   du/dt = v_g d_z u + d_t u   (forward-mode derivative, one pass)
  (2)  v_g = omega v + (1 - omega - kappa) u(z, t, t; null) + kappa u(z, t, t; y)

with guidance (2) inside the interval [start, end] of t, so that sampling needs none. The right side
of (1) is held constant. With e = sum (u - target)^2 over the example,

  (3)  loss_N = e / stop_gradient((e + c)^p).

The improved loss (2512.02012) compares V = u + (t - r) stop_gradient(du/dt) with v_g, and takes the
derivative along the network's own velocity u(z, t, t; y) instead of v_g.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, ClassVar

from absl import logging
import jax
import jax.numpy as jnp

from diversedit_jax import interpolants, options, rng, types
from diversedit_jax.interpolants import times
from diversedit_jax.losses import arithmetic
from diversedit_jax.methods import base, batches, flow, registry
from diversedit_jax.models import config as model_config
from diversedit_jax.models import taps
from diversedit_jax.sampling import average, guidance, trajectory

_PATH = interpolants.linear()
VARIANTS = {'original': 0.75, 'improved': 0.5}
"""Losses, and the share of the batch with r = t that each was published with."""
MASKS = ('independent', 'correlated')
GUIDANCE = {
  'S': {'omega': 1.0, 'kappa': 0.5, 'start': 0.0, 'end': 1.0},
  'B': {'omega': 1.0, 'kappa': 0.5, 'start': 0.0, 'end': 1.0},
  'M': {'omega': 1.0, 'kappa': 0.5, 'start': 0.0, 'end': 1.0},
  'L': {'omega': 0.2, 'kappa': 0.92, 'start': 0.0, 'end': 0.8},
  'XL': {'omega': 0.2, 'kappa': 0.92, 'start': 0.0, 'end': 0.75},
}
"""Published guidance in training by size (2505.13447, table of its configurations); it has no size
S, which takes B's here."""


@registry.register(
  'meanflow',
  not_with={
    'sra': "SRA's teacher sees the data at one cleaner time, an average velocity has two times"
  },
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanFlow(base.Flow):
  """Average velocities, for samples in one step (MeanFlow, arXiv 2505.13447).

  time_law: law of two draws for each example, the larger being t and the smaller r.
  label_dropout: share of dropped labels; their v_g is v. null_label: K, or None without classes.
  """

  variant: str = options.option(
    'original', choices=VARIANTS, doc='Loss of MeanFlow, or of improved MeanFlow (2512.02012).'
  )
  equal_fraction: float | None = options.option(
    None,
    at_least=0,
    at_most=1,
    doc='Share of the batch with r = t, where the loss is that of flow matching; None is 0.75, or '
    '0.5 for improved.',
  )
  omega: float = options.option(
    1.0, above=0, doc='Guidance in training, of effective scale omega / (1 - kappa) (2505.13447).'
  )
  kappa: float = options.option(
    0.5,
    at_least=0,
    below=1,
    doc="Weight of the network's own velocity with the class in that guidance.",
  )
  start: float = options.option(
    0.0, at_least=0, at_most=1, doc='First time at which guidance acts: start <= t <= end.'
  )
  end: float = options.option(1.0, at_least=0, at_most=1, doc='Last time at which guidance acts.')
  power: float = options.option(
    1.0, at_least=0, doc='Power p of the adaptive weight 1 / (error + c)^p.'
  )
  constant: float = options.option(0.01, above=0, doc='Constant c of the adaptive weight.')
  masks: str = options.option(
    'independent',
    choices=MASKS,
    doc="Sets r = t and drops labels anywhere in the batch, or both at each batch's head as the "
    'released code does (correlated).',
  )
  time_law: flow.TimeLaw = times.Uniform()
  label_dropout: float = 0.1
  null_label: int | None = None
  # arXiv 2505.13447: logit-normal times, Adam with b2 = 0.95, no clipping, samples in one step,
  # guidance in training only.
  recipe: ClassVar[Mapping[str, Any]] = {
    'interpolant.time_law': 'logit_normal',
    'interpolant.time_mean': -0.4,
    'optimizer.b2': 0.95,
    'optimizer.clip_norm': 0.0,
    'sampler.kind': 'average_velocity',
    'sampler.steps': 1,
    'sampler.guidance_scale': 1.0,
  }

  def __post_init__(self):
    super().__post_init__()
    if self.start > self.end:
      raise types.UserError(
        f'meanflow.start={self.start} must not be above meanflow.end={self.end}'
      )

  def prepare(self, setup: base.Setup) -> 'MeanFlow':
    found = setup.interpolant
    if (found.path, found.prediction, found.weighting) != ('linear', 'velocity', 'none'):
      raise types.UserError(
        'method=meanflow is defined for interpolant.path=linear, prediction=velocity, '
        f'weighting=none; got {found.path}, {found.prediction}, {found.weighting}'
      )
    if self.guided and not setup.label_dropout:
      raise types.UserError(
        f'meanflow.omega={self.omega}, kappa={self.kappa} guide by the null label, which '
        'train.label_dropout=0 never trains; set train.label_dropout above 0, or omega=1, kappa=0'
      )
    if found.time_law == 'uniform':
      logging.warning(
        'method=meanflow with uniform times: its published recipe (logit-normal times, b2, no '
        'clipping, one step) comes with the meta-argument --config=FILE.py:method=meanflow only'
      )
    return dataclasses.replace(
      self,
      time_law=found.make_time_law(),
      label_dropout=setup.label_dropout,
      null_label=setup.architecture.null_label,
    )

  def adapt(
    self, architecture: model_config.Architecture, execution: model_config.Execution
  ) -> tuple[model_config.Architecture, model_config.Execution]:
    """A model that embeds the length of an interval, with attention that jvp can pass.

    The fused kernels have no forward-mode derivative; naming one is refused by `check_model`.
    """
    attention = 'xla' if execution.attention == 'auto' else execution.attention
    return (
      dataclasses.replace(architecture, interval=True),
      dataclasses.replace(execution, attention=attention),
    )

  @property
  def guided(self) -> bool:
    """True if (2) asks the network for velocities."""
    return (self.omega, self.kappa) != (1.0, 0.0)

  @property
  def _needs_class(self) -> bool:
    return self.kappa > 0 or self.variant == 'improved'

  def check_model(
    self, architecture: model_config.Architecture, execution: model_config.Execution
  ) -> None:
    """Refuses times of a diffusion, guidance without classes, and fused attention (UserError)."""
    if self.guided and self.null_label is None:
      raise types.UserError(
        f'meanflow.omega={self.omega}, kappa={self.kappa} guide by classes, and the data have '
        'none; set omega=1, kappa=0'
      )
    if architecture.time_input != 'unit':
      raise types.UserError(
        f'model.time_input={architecture.time_input!r} is not for method=meanflow, on the linear '
        'path'
      )
    if execution.attention != 'xla':
      raise types.UserError(
        f'model.attention={execution.attention!r} with method=meanflow: its loss needs a '
        'forward-mode derivative, which fused kernels do not define; set model.attention=xla'
      )

  def check_sampler(self, sampler: trajectory.SamplerConfig) -> None:
    """Refuses to guide a network once more that was guided in training."""
    if self.guided and sampler.guidance_scale != 1:
      raise types.UserError(
        f'sampler.guidance_scale={sampler.guidance_scale} with meanflow.omega={self.omega}, '
        f'kappa={self.kappa}: the network was guided in training; set guidance_scale=1'
      )

  def draw(self, batch: types.Batch, key: jax.Array) -> base.NoisyBatch:
    x_NHWC = batches.clean(batch)
    n = x_NHWC.shape[0]
    ends = (self.time_law(rng.stream(key, name), n) for name in ('time', 'time/second'))
    share = VARIANTS[self.variant] if self.equal_fraction is None else self.equal_fraction
    # Spread over the batch, so that each group of a loss on groups has its share; or at its head.
    order_N = jnp.arange(n)
    if self.masks == 'independent':
      order_N = jax.random.permutation(rng.stream(key, 'equal'), n)
    t_N, r_N = ordered_times(*ends, equal_fraction=share, order_N=order_N)
    eps_NHWC = rng.normal(rng.stream(key, 'noise'), x_NHWC.shape, x_NHWC.dtype)
    label_key = rng.stream(key, 'label_dropout')
    y_N, dropped_N = flow.drop_labels(
      batch['labels'], label_key, self.label_dropout, self.null_label
    )
    if self.masks == 'correlated' and self.null_label is not None:
      dropped_N = jnp.arange(n) < jnp.sum(dropped_N)
      y_N = jnp.where(dropped_N, self.null_label, batch['labels'])
    return base.NoisyBatch(
      x_t=interpolants.interpolate(_PATH, x_NHWC, eps_NHWC, t_N),
      t=t_N,
      y=y_N,
      target=eps_NHWC - x_NHWC,
      noise=eps_NHWC,
      batch=batch,
      extras={'h': t_N - r_N, 'dropped': dropped_N},
    )

  def at(self, noisy: base.NoisyBatch, t_N: jax.Array) -> base.NoisyBatch:
    """At other times and with h = 0, where u is the velocity."""
    x_t = interpolants.interpolate(_PATH, noisy.clean, noisy.noise, t_N)
    extras = {**noisy.extras, 'h': jnp.zeros_like(t_N)}
    target = noisy.noise - noisy.clean
    return dataclasses.replace(noisy, x_t=x_t, t=t_N, target=target, extras=extras)

  def run(
    self, network: base.Network, noisy: base.NoisyBatch, tap: taps.Tap, blocks: int | None = None
  ) -> types.Output:
    h_N = noisy.extras['h']
    return network.model(noisy.x_t, noisy.t, noisy.y, h_N=h_N, tap=tap, blocks=blocks)

  def forward(
    self, network: base.Network, noisy: base.NoisyBatch, tap: taps.Tap
  ) -> tuple[types.Output, jax.Array, base.Metrics]:
    """(1) to (3); features are those of u, never of its derivative; `pred` is None."""

    def predict(z_NHWC, t_N, r_N, y_N, tap=None):
      output = network.model(z_NHWC, t_N, y_N, h_N=t_N - r_N, tap=tap)
      return output.pred, output.features

    frozen = jax.lax.stop_gradient(network)
    velocity = lambda z, t, y: frozen.model(z, t, y, h_N=jnp.zeros_like(t)).pred
    features, loss_N, metrics = self.loss(predict, velocity, noisy, tap)
    return types.Output(None, features), loss_N, metrics

  def loss(
    self,
    predict: Callable[..., tuple[jax.Array, Any]],
    velocity: guidance.Predict,
    noisy: base.NoisyBatch,
    tap: taps.Tap | None = None,
  ) -> tuple[Any, jax.Array, base.Metrics]:
    """`forward` for any average velocity.

    Args:
      predict: (z, t_N, r_N, y_N, tap) -> (u, features). velocity: u at r = t, without gradient.
      noisy: batch of the step. tap: passed on.

    Returns:
      (features, loss_N, metrics 'average_velocity' (the weighted loss, near 1 where p = 1), 'error'
      (mean of e per value) and 'velocity' (mean squared error of u against v where r = t)).
    """
    z, t_N, h_N, v = noisy.x_t, noisy.t, noisy.extras['h'], noisy.target
    v_g, v_class = self._guided(velocity, noisy)
    tangent = v_g if self.variant == 'original' else v_class
    u, du_dt, features = jax.jvp(
      lambda z, t, r: predict(z, t, r, noisy.y, tap),
      (z, t_N, t_N - h_N),
      (tangent, jnp.ones_like(t_N), jnp.zeros_like(t_N)),
      has_aux=True,
    )
    du_dt = jax.lax.stop_gradient(du_dt)
    if self.variant == 'original':
      error_N = squared_error(u, target(v_g, du_dt, t_N, t_N - h_N))
    else:
      prediction = improved_prediction(u, du_dt, t_N, t_N - h_N)
      error_N = squared_error(prediction, v_g)
    loss_N, _ = adaptive(error_N, power=self.power, constant=self.constant)
    equal_N = (h_N == 0).astype(error_N.dtype)
    plain_N = squared_error(jax.lax.stop_gradient(u), v)
    per_value = z.shape[0] / z.size
    return (
      features,
      loss_N,
      {
        'average_velocity': jnp.mean(loss_N),
        'error': per_value * jnp.mean(error_N),
        'velocity': per_value * jnp.sum(equal_N * plain_N) / jnp.maximum(jnp.sum(equal_N), 1),
      },
    )

  def _guided(self, velocity, noisy):
    """v_g of (2), and the network's own velocity; both constant."""
    z, t_N = noisy.x_t, noisy.t
    if not self.guided:
      v_class = velocity(z, t_N, noisy.y) if self._needs_class else noisy.target
      return noisy.target, jax.lax.stop_gradient(v_class)
    twice = lambda x: jnp.concatenate([x, x])
    null_N = jnp.full_like(noisy.y, self.null_label)
    if self._needs_class:
      v = velocity(twice(z), twice(t_N), jnp.concatenate([noisy.y, null_N]))
      v_class, v_null = jnp.split(v, 2)
    else:
      v_class, v_null = noisy.target, velocity(z, t_N, null_N)
    v_g = guided_velocity(
      noisy.target,
      v_null,
      v_class,
      omega=self.omega,
      kappa=self.kappa,
      t_N=t_N,
      start=self.start,
      end=self.end,
    )
    dropped = noisy.extras['dropped'].reshape(-1, *(1,) * (z.ndim - 1))
    return jax.lax.stop_gradient((jnp.where(dropped, noisy.target, v_g), v_class))

  def velocity(self, network: base.Network, clamp: float = 0.0) -> guidance.Predict:
    """(x_NHWC, t_N, y_N) -> u over an empty interval, the instantaneous velocity."""
    del clamp
    return lambda x, t, y: network.model(x, t, y, h_N=jnp.zeros_like(t)).pred

  def sample(
    self,
    network: base.Network,
    keys_N: jax.Array,
    labels_N: jax.Array,
    config: trajectory.SamplerConfig,
    guide: guidance.Predict | None = None,
  ) -> jax.Array:
    """By average velocities, or along the instantaneous velocity with the other samplers."""
    model = network.model
    if config.kind != 'average_velocity':
      return trajectory.sample(
        self.velocity(network),
        model.architecture.shape,
        keys_N,
        labels_N,
        config,
        null_label=model.architecture.null_label,
        guide=guide,
      )
    predict = lambda x, t, h, y: model(x, t, y, h_N=h).pred
    return average.sample(predict, model.architecture.shape, keys_N, labels_N, config)

  def extra_passes(self) -> float:
    """One for the derivative, one without gradient for each velocity that is asked for."""
    return 1.0 + self.guided + self._needs_class


def ordered_times(
  a_N: jax.Array,
  b_N: jax.Array,
  *,
  equal_fraction: float = 0.75,
  order_N: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """(t_N, r_N): the larger and the smaller of two draws, r = t for a share of the batch.

  Args:
    a_N, b_N: independent draws from a law of time.
    equal_fraction: int(equal_fraction N) examples get r = t, the authors' 0.75 in MeanFlow and 0.5
      in improved MeanFlow.
    order_N: a permutation of 0 .. N-1, whose least get r = t; None is the order of the batch, as
      in the authors' code.

  Raises:
    UserError: if equal_fraction is outside [0, 1].
  """
  if not 0 <= equal_fraction <= 1:
    raise types.UserError(f'{equal_fraction=} must lie in [0, 1]')
  t_N, r_N = jnp.maximum(a_N, b_N), jnp.minimum(a_N, b_N)
  size = t_N.shape[0]
  order_N = jnp.arange(size) if order_N is None else order_N
  return t_N, jnp.where(order_N < int(equal_fraction * size), t_N, r_N)


def guided_velocity(
  v: jax.Array,
  v_null: jax.Array,
  v_class: jax.Array,
  *,
  omega: float,
  kappa: float,
  t_N: jax.Array,
  start: float = 0.0,
  end: float = 1.0,
) -> jax.Array:
  """Guidance inside the training target: the velocity whose flow is guided.

  Args:
    v: velocity of the path, noise - data.
    v_null: the network's velocity u(z, t, t) under the null label, same shape.
    v_class: the same under the example's label.
    omega: weight of v.
    kappa: weight of v_class; the effective guidance scale is omega / (1 - kappa).
    t_N: times.
    start: guidance is applied where start <= t <= end.
    end: see start.

  Returns:
    v_g = omega v + (1 - omega - kappa) v_null + kappa v_class inside the interval, v outside.
  """
  v, v_null, v_class = (arithmetic.at_least_float32(x) for x in (v, v_null, v_class))
  guided = omega * v + (1 - omega - kappa) * v_null + kappa * v_class
  return jnp.where(_spread((t_N >= start) & (t_N <= end), v), guided, v)


def target(v_g: jax.Array, du_dt: jax.Array, t_N: jax.Array, r_N: jax.Array) -> jax.Array:
  """What u is regressed on: v_g - (t - r) du/dt with t - r clipped to [0, 1]; held constant."""
  v_g, du_dt = arithmetic.at_least_float32(v_g), arithmetic.at_least_float32(du_dt)
  h = _spread(jnp.clip(t_N - r_N, 0, 1), v_g)
  return jax.lax.stop_gradient(v_g - h * du_dt)


def improved_prediction(
  u: jax.Array, du_dt: jax.Array, t_N: jax.Array, r_N: jax.Array
) -> jax.Array:
  """V = u + (t - r) du/dt of improved MeanFlow, with du/dt held constant.

  V is regressed on v_g, which the caller holds constant.
  """
  u, du_dt = arithmetic.at_least_float32(u), arithmetic.at_least_float32(du_dt)
  return u + _spread(t_N - r_N, u) * jax.lax.stop_gradient(du_dt)


def squared_error(x: jax.Array, y: jax.Array) -> jax.Array:
  """Sum of (x - y)^2 over all axes but the first; [N].

  Raises:
    ValueError: if the shapes differ.
  """
  if x.shape != y.shape:
    raise ValueError(f'squared_error: the arrays have shapes {x.shape} and {y.shape}')
  error = arithmetic.at_least_float32(x) - arithmetic.at_least_float32(y)
  return jnp.sum(jnp.square(error), axis=tuple(range(1, error.ndim)))


def adaptive(
  error_N: jax.Array, *, power: float = 1.0, constant: float = 0.01
) -> tuple[jax.Array, jax.Array]:
  """Divides each example's error by a power of itself, which is held constant.

  Args:
    error_N: `squared_error`, a sum over an example's values and not their mean.
    power: p; 0 leaves the error, 1 makes every loss about 1 and normalises the gradients only.
    constant: c, added to the error; 0.01 in the authors' code.

  Returns:
    (loss_N, weight_N) with weight = 1 / (error + c)^p and loss = weight error.
  """
  error_N = arithmetic.at_least_float32(error_N)
  weight_N = jax.lax.stop_gradient(1 / jnp.power(error_N + constant, power))
  return weight_N * error_N, weight_N


def _spread(x_N: jax.Array, like: jax.Array) -> jax.Array:
  """[N] as [N, 1, ...] of the rank of another array."""
  return x_N.reshape(x_N.shape + (1,) * (like.ndim - 1))
