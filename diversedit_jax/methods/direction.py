"""The direction of the velocity, beside its size (FasterDiT, arXiv 2410.10356; LightningDiT).

With the prediction f [N, H, W, C] and the velocity u,

  L = weight mean_n mean_{h,w} (1 - cos(f[n,h,w], u[n,h,w])),   the cosine over the C channels
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diversedit_jax import options, types
from diversedit_jax.losses import arithmetic
from diversedit_jax.methods import base, registry

_SHORTEST = 1e-8  # As torch.nn.functional.cosine_similarity bounds lengths.


@registry.register(
  'direction',
  not_with={'meanflow': 'it predicts averages, whose target is no velocity of the data'},
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Direction(base.Term):
  """Aligns the predicted velocity's direction with the true one's (FasterDiT, arXiv 2410.10356)."""

  weight: float = options.option(
    1.0, above=0, doc='Factor of the loss; 1 in LightningDiT (2501.01423).'
  )

  couples_examples = False

  def prepare(self, setup: base.Setup) -> 'Direction':
    found = setup.interpolant.prediction
    if found != 'velocity':
      raise types.UserError(
        f'method={setup.method!r}: direction is about velocities, got '
        f'interpolant.prediction={found!r}'
      )
    return self

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """Metric 'loss', before weighting."""
    del features
    loss = jnp.mean(distance(context.output.pred, context.noisy.target))
    return self.weight * loss, {'loss': loss}


def distance(pred_NHWC: jax.Array, velocity_NHWC: jax.Array) -> jax.Array:
  """The mean over positions of 1 - cos over channels, [N], float32 or better.

  Raises:
    ValueError: if the shapes differ.
  """
  tokens = lambda x: x.reshape(len(x), -1, x.shape[-1])
  pred, velocity = arithmetic.student_and_teacher(tokens(pred_NHWC), tokens(velocity_NHWC))
  return 1 - jnp.mean(arithmetic.cosine(pred, velocity, -1, _SHORTEST), axis=1)
