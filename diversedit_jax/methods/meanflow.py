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

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from diversedit_jax import interpolants, rng, trees, types
from diversedit_jax.losses import mean_flow as loss_lib
from diversedit_jax.methods import base, flow
from diversedit_jax.models import config as config_lib
from diversedit_jax.models import taps
from diversedit_jax.sampling import average, guidance, trajectory

_PATH = interpolants.linear()
VARIANTS = ('original', 'improved')
MASKS = ('independent', 'correlated')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanFlow:
  """MeanFlow's objective.

  time_law: of two draws for each example, of which the larger is t and the smaller r.
  equal_fraction: of the batch that has r = t, where the loss is that of flow matching.
  variant: of `VARIANTS`. omega, kappa, start, end: of (2). power, constant: p and c of (3).
  masks: 'independent' sets r = t and drops labels anywhere in the batch; 'correlated' does both at
    its head, as the released code on each device.
  label_dropout: share of dropped labels; their v_g is v. null_label: K, or None without classes.
  """

  time_law: flow.TimeLaw
  equal_fraction: float = 0.75
  variant: str = 'original'
  omega: float = 1.0
  kappa: float = 0.5
  start: float = 0.0
  end: float = 1.0
  power: float = 1.0
  constant: float = 0.01
  masks: str = 'independent'
  label_dropout: float = 0.1
  null_label: int | None
  encoders: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self):
    trees.check_known('meanflow.variant', self.variant, VARIANTS)
    trees.check_known('meanflow.masks', self.masks, MASKS)
    flow.check_label_dropout(self.label_dropout)
    for fits, message in (
      (0 <= self.equal_fraction <= 1, f'equal_fraction={self.equal_fraction} is not in [0, 1]'),
      (0 <= self.start <= self.end <= 1, f'interval [{self.start}, {self.end}] is not in [0, 1]'),
      (self.omega > 0, f'omega={self.omega} is not positive'),
      (0 <= self.kappa < 1, f'kappa={self.kappa} is not in [0, 1)'),
      (self.power >= 0, f'power={self.power} is negative'),
      (self.constant > 0, f'constant={self.constant} is not positive'),
    ):
      if not fits:
        raise types.UserError(f'meanflow.{message}')
    if self.guided and self.null_label is None:
      raise types.UserError(
        f'meanflow.omega={self.omega}, kappa={self.kappa} guide by classes, and the data have '
        'none; set omega=1, kappa=0'
      )

  @property
  def guided(self) -> bool:
    """True if (2) asks the network for velocities."""
    return (self.omega, self.kappa) != (1.0, 0.0)

  @property
  def _needs_class(self) -> bool:
    return self.kappa > 0 or self.variant == 'improved'

  def check_model(
    self, architecture: config_lib.Architecture, execution: config_lib.Execution
  ) -> None:
    """Refuses times of a diffusion, and fused attention, which has no forward-mode derivative."""
    if architecture.time_input != 'unit':
      raise types.UserError(
        f'model.time_input={architecture.time_input!r} is not for method=meanflow, on the '
        'linear path'
      )
    if execution.attention != 'xla':
      raise types.UserError(
        f'model.attention={execution.attention!r} with method=meanflow: its loss needs a '
        'forward-mode derivative, which fused kernels do not define; set model.attention=xla'
      )

  def check_sampler(self, sampler: trajectory.SamplerConfig) -> None:
    """Refuses to guide a network once more that was guided in training."""
    if self.guided and sampler.guidance_scale > 1:
      raise types.UserError(
        f'sampler.guidance_scale={sampler.guidance_scale} with meanflow.omega={self.omega}, '
        f'kappa={self.kappa}: the network was guided in training; set guidance_scale=1'
      )

  def draw(self, batch: types.Batch, key: jax.Array) -> base.Draw:
    x_NHWC = base.clean(batch)
    n = x_NHWC.shape[0]
    ends = (self.time_law(rng.stream(key, name), n) for name in ('time', 'time/second'))
    # Spread over the batch, so that each group of a loss on groups has its share; or at its head.
    order_N = jnp.arange(n)
    if self.masks == 'independent':
      order_N = jax.random.permutation(rng.stream(key, 'equal'), n)
    t_N, r_N = loss_lib.ordered_times(*ends, equal_fraction=self.equal_fraction, order_N=order_N)
    eps_NHWC = rng.normal(rng.stream(key, 'noise'), x_NHWC.shape, x_NHWC.dtype)
    label_key = rng.stream(key, 'label_dropout')
    y_N, dropped_N = flow.drop_labels(
      batch['labels'], label_key, self.label_dropout, self.null_label
    )
    if self.masks == 'correlated' and self.null_label is not None:
      dropped_N = jnp.arange(n) < jnp.sum(dropped_N)
      y_N = jnp.where(dropped_N, self.null_label, batch['labels'])
    return base.Draw(
      x_t=interpolants.interpolate(_PATH, x_NHWC, eps_NHWC, t_N),
      t=t_N,
      y=y_N,
      target=eps_NHWC - x_NHWC,
      noise=eps_NHWC,
      batch=batch,
      extras={'h': t_N - r_N, 'dropped': dropped_N},
    )

  def at(self, draw: base.Draw, t_N: jax.Array) -> base.Draw:
    """At other times and with h = 0, where u is the velocity."""
    x_t = interpolants.interpolate(_PATH, draw.clean, draw.noise, t_N)
    extras = {**draw.extras, 'h': jnp.zeros_like(t_N)}
    target = draw.noise - draw.clean
    return dataclasses.replace(draw, x_t=x_t, t=t_N, target=target, extras=extras)

  def run(
    self, network: base.Network, draw: base.Draw, tap: taps.Tap, blocks: int | None = None
  ) -> types.Output:
    h_N = draw.extras['h']
    return network.model(draw.x_t, draw.t, draw.y, h_N=h_N, tap=tap, blocks=blocks)

  def forward(
    self, network: base.Network, draw: base.Draw, tap: taps.Tap
  ) -> tuple[Any, jax.Array, base.Metrics]:
    """(1) to (3); features are those of u itself, never of its derivative."""

    def predict(z_NHWC, t_N, r_N, y_N, tap=None):
      output = network.model(z_NHWC, t_N, y_N, h_N=t_N - r_N, tap=tap)
      return output.pred, output.features

    frozen = jax.lax.stop_gradient(network)
    velocity = lambda z, t, y: frozen.model(z, t, y, h_N=jnp.zeros_like(t)).pred
    return self.loss(predict, velocity, draw, tap)

  def loss(
    self,
    predict: Callable[..., tuple[jax.Array, Any]],
    velocity: guidance.Predict,
    draw: base.Draw,
    tap: taps.Tap | None = None,
  ) -> tuple[Any, jax.Array, base.Metrics]:
    """`forward` for any average velocity.

    Args:
      predict: (z, t_N, r_N, y_N, tap) -> (u, features). velocity: u at r = t, without gradient.
      draw: of the step. tap: passed on.

    Returns:
      (features, loss_N, metrics 'average_velocity' (the weighted loss, near 1 where p = 1), 'error'
      (mean of e per value) and 'velocity' (mean squared error of u against v where r = t)).
    """
    z, t_N, h_N, v = draw.x_t, draw.t, draw.extras['h'], draw.target
    v_g, v_class = self._guided(velocity, draw)
    tangent = v_g if self.variant == 'original' else v_class
    u, du_dt, features = jax.jvp(
      lambda z, t, r: predict(z, t, r, draw.y, tap),
      (z, t_N, t_N - h_N),
      (tangent, jnp.ones_like(t_N), jnp.zeros_like(t_N)),
      has_aux=True,
    )
    du_dt = jax.lax.stop_gradient(du_dt)
    if self.variant == 'original':
      error_N = loss_lib.squared_error(u, loss_lib.target(v_g, du_dt, t_N, t_N - h_N))
    else:
      prediction = loss_lib.improved_prediction(u, du_dt, t_N, t_N - h_N)
      error_N = loss_lib.squared_error(prediction, v_g)
    loss_N, _ = loss_lib.adaptive(error_N, power=self.power, constant=self.constant)
    equal_N = (h_N == 0).astype(error_N.dtype)
    plain_N = loss_lib.squared_error(jax.lax.stop_gradient(u), v)
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

  def _guided(self, velocity, draw):
    """v_g of (2), and the network's own velocity; both constant."""
    z, t_N = draw.x_t, draw.t
    if not self.guided:
      v_class = velocity(z, t_N, draw.y) if self._needs_class else draw.target
      return draw.target, jax.lax.stop_gradient(v_class)
    twice = lambda x: jnp.concatenate([x, x])
    null_N = jnp.full_like(draw.y, self.null_label)
    if self._needs_class:
      v = velocity(twice(z), twice(t_N), jnp.concatenate([draw.y, null_N]))
      v_class, v_null = jnp.split(v, 2)
    else:
      v_class, v_null = draw.target, velocity(z, t_N, null_N)
    v_g = loss_lib.guided_velocity(
      draw.target,
      v_null,
      v_class,
      omega=self.omega,
      kappa=self.kappa,
      t_N=t_N,
      start=self.start,
      end=self.end,
    )
    dropped = draw.extras['dropped'].reshape(-1, *(1,) * (z.ndim - 1))
    return jax.lax.stop_gradient((jnp.where(dropped, draw.target, v_g), v_class))

  def velocity(self, network: base.Network) -> guidance.Predict:
    """(x_NHWC, t_N, y_N) -> u over an empty interval, the instantaneous velocity."""
    return lambda x, t, y: network.model(x, t, y, h_N=jnp.zeros_like(t)).pred

  def sample(
    self,
    network: base.Network,
    keys_N: jax.Array,
    labels_N: jax.Array,
    config: trajectory.SamplerConfig,
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
      )
    predict = lambda x, t, h, y: model(x, t, y, h_N=h).pred
    return average.sample(predict, model.architecture.shape, keys_N, labels_N, config)

  def extra_passes(self) -> float:
    """One for the derivative, one without gradient for each velocity that is asked for."""
    return 1.0 + self.guided + self._needs_class
