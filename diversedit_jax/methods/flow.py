"""Flow matching along a stochastic interpolant, as SiT trains (arXiv 2401.08740).

With data x, noise eps and a network v_theta,

  x_t = alpha(t) x + sigma(t) eps,   v = alpha'(t) x + sigma'(t) eps
  loss_N = mean |v_theta(x_t, t, y) - v|^2
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diversedit_jax import interpolants, rng, types
from diversedit_jax.losses import velocity as velocity_lib
from diversedit_jax.methods import base
from diversedit_jax.models import taps

TimeLaw = Callable[[jax.Array, int], jax.Array]
"""(key, n) -> t_N; see `interpolants.times`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VelocityFlow:
  """Predicts the velocity.

  path: interpolant. time_law: of the training times.
  label_dropout: probability of the null label, drawn per example. null_label: K, or None without
    classes.
  """

  path: interpolants.Path
  time_law: TimeLaw
  label_dropout: float = 0.1
  null_label: int | None

  def __post_init__(self):
    if not 0 <= self.label_dropout < 1:
      raise types.UserError(f'train.label_dropout must lie in [0, 1), got {self.label_dropout}')

  def draw(self, batch: types.Batch, key: jax.Array) -> base.Draw:
    x_NHWC, y_N = batch['images'] if 'images' in batch else batch['latents'], batch['labels']
    n = x_NHWC.shape[0]
    t_N = self.time_law(rng.stream(key, 'time'), n)
    eps_NHWC = jax.random.normal(rng.stream(key, 'noise'), x_NHWC.shape, x_NHWC.dtype)
    if self.null_label is None:
      y_N = jnp.zeros_like(y_N)
    else:
      dropped_N = jax.random.bernoulli(rng.stream(key, 'label_dropout'), self.label_dropout, (n,))
      y_N = jnp.where(dropped_N, self.null_label, y_N)
    return base.Draw(
      x_t=interpolants.interpolate(self.path, x_NHWC, eps_NHWC, t_N),
      t=t_N,
      y=y_N,
      target=interpolants.velocity_target(self.path, x_NHWC, eps_NHWC, t_N),
      noise=eps_NHWC,
      batch=batch,
    )

  def forward(self, network: base.Network, draw: base.Draw, tap: taps.Tap) -> tuple[Any, jax.Array]:
    output = network.model(draw.x_t, draw.t, draw.y, tap=tap)
    return output.features, self.loss(output, draw)

  def loss(self, output: types.Output, draw: base.Draw) -> jax.Array:
    """Per-example mean squared error of the velocity, [N]."""
    return velocity_lib.velocity_loss(output.pred, draw.target)
