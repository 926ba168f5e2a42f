"""Internal guidance: the model is led away from a prediction of its own block (2512.24176; RAEv2).

A second final layer makes of the output of block k, as the last one does of the last block's, a
prediction f_k of the same kind (velocity, noise, score or data). With the flow's loss l_N,

  (1)  L = weight mean_N l_N(f_k)                    beside mean_N l_N(f)
  (2)  f <- f_k + scale (f - f_k)                    in samplers, if low <= t <= high

The gradient of (1) stops at block k. f_k is the answer of a shallower network to the same input, so
(2) is autoguidance (2406.02507) without a second network or a second pass. It acts on each
prediction by itself, also on that of the null label: classifier-free guidance, with its own scale
and interval, then combines two that were led, as in both released codes. t is that of the
evaluation: of Heun's method each look has its own. Where another term makes a velocity of f
(contrastive, `correct`), (2) takes that: f_k was never kept away from other examples.

The authors' code (CVL-UESTC/Internal-Guidance, 640db88): block 8 of XL's 28, weight 0.5; scale 1.4
beside class guidance of 1.35 (SiT-XL/2, which has [0, 0.7]) and 1.45 (LightningDiT-XL/1), 1.7 alone
there. RAEv2 (2605.18324, nanovisionx/RAEv2 8a0d238): block 8 of 28, weight 1, scale 1.78 for t in
[0.1, 1]. Its option of another scale for the null label is in none of its configs.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diversedit_jax import options, types
from diversedit_jax.methods import base, registry
from diversedit_jax.models import config as model_config
from diversedit_jax.sampling import guidance


@registry.register(
  'internal',
  not_with={
    'meanflow': "an average velocity's target holds the network's own derivative, and an earlier "
    "block's prediction would need one of its own"
  },
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Internal(base.Term):
  """A block predicts too, and samples are led away from that (internal guidance, 2512.24176)."""

  block: int | None = options.option(
    None,
    at_least=1,
    decides_network=True,
    doc='k, block whose output predicts, from 1; None is the published share of the depth, 8 of 28 '
    '(3 at depth 12, 7 at 24).',
  )
  weight: float = options.option(
    0.5, above=0, doc="Factor of its loss (the authors' code; RAEv2, 2605.18324: 1)."
  )
  scale: float = options.option(
    1.0,
    at_least=0,
    may_change=True,
    doc="Guidance of samples, f_k + scale (f - f_k); 1 is none, 0 block k's own prediction. "
    'Published: 1.4 with class guidance, 1.7 without; RAEv2: 1.78.',
  )
  low: float = options.option(
    0.0,
    at_least=0,
    at_most=1,
    may_change=True,
    doc='First time at which it acts: low <= t <= high; RAEv2: 0.1.',
  )
  high: float = options.option(
    1.0, at_least=0, at_most=1, may_change=True, doc='Last time at which it acts.'
  )

  couples_examples = False
  combines = True

  def __post_init__(self):
    super().__post_init__()
    if self.low > self.high:
      raise types.UserError(f'internal.low={self.low} must not be above internal.high={self.high}')

  @property
  def _guidance(self) -> guidance.Guidance:
    return guidance.Guidance(scale=self.scale, low=self.low, high=self.high)

  def prepare(self, setup: base.Setup) -> 'Internal':
    depth = setup.architecture.depth
    found = dataclasses.replace(self, block=self.block or max(1, round(8 * depth / 28)))
    base.check_block('internal.block', found.block, depth)
    if found.block == depth and not setup.architecture.head.depth:
      way = 'an earlier block' if depth > 1 else 'a deeper model'
      raise types.UserError(
        f"internal.block={depth} is the last block, and its prediction would be the model's own by "
        f'another final layer; give {way}, or a wide head (model.head.depth)'
      )
    return found

  def adapt(
    self, architecture: model_config.Architecture, execution: model_config.Execution
  ) -> tuple[model_config.Architecture, model_config.Execution]:
    """A model with a second final layer."""
    return dataclasses.replace(architecture, base=self.block), execution

  def idle(self, key: str) -> str:
    return 'internal.scale=1' if key in ('low', 'high') and self.scale == 1 else ''

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """Metric 'loss', before weighting."""
    del features
    loss = jnp.mean(context.score(context.output.base))
    return self.weight * loss, {'loss': loss}

  def for_sampling(self, network: base.Network) -> base.Network:
    """A network whose model says (2)."""
    if self.scale == 1:
      return network
    return base.saying(network, self._guided)

  def _guided(self, output, t_N, y_N):
    del y_N
    guided_NHWC = self._guidance.combine(output.pred, output.base)
    inside_N111 = self._guidance.inside(t_N).reshape(-1, 1, 1, 1)
    return jnp.where(inside_N111, guided_NHWC, output.pred)

  def sampling_facts(self) -> Mapping[str, Any]:
    """Block, scale and interval, where they act."""
    if self.scale == 1:
      return {}
    return {'block': self.block, 'scale': self.scale, 'interval': (self.low, self.high)}

  def flops(self, architecture: model_config.Architecture, examples: int) -> float:
    """FLOPs of the second final layer, which behind a wide head modulates each token by itself."""
    del examples
    width, outputs = architecture.width, 2 if architecture.learn_sigma else 1
    patch = architecture.patch_size**2 * architecture.channels * outputs
    rows = architecture.tokens if architecture.head.depth else 1
    return 3.0 * (2 * architecture.tokens * patch * width + 4 * rows * width**2)
