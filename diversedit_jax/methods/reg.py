"""REG: a class token of a frozen encoder, denoised together with the data (arXiv 2507.01467).

The encoder's summary c of the clean image enters as one more token, noised with noise of its own at
the same time, and the network predicts its velocity too:

  c_t = alpha c + sigma e_c,   loss_N = |v - v*|^2 + class_weight |v_c - v_c*|^2   (means)

REG also aligns the block outputs, the class token included, with the encoder's features; that is
the term `repa` with `class_token=True`. While sampling, the class token starts from noise, moves
with the image by the same steps, and is thrown away at the end.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diversedit_jax import rng, types
from diversedit_jax.methods import base, flow
from diversedit_jax.models import config as config_lib
from diversedit_jax.models import taps
from diversedit_jax.sampling import guidance, trajectory

CLASS_WEIGHT = 0.03


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reg(flow.StochasticInterpolant):
  """Flow matching of image and class token.

  encoder: whose summary is the class token. class_weight: of its loss.
  """

  encoder: str
  class_weight: float = CLASS_WEIGHT

  def __post_init__(self):
    super().__post_init__()
    if self.class_weight < 0:
      raise types.UserError(f'reg.class_weight must not be negative, got {self.class_weight}')
    if self.prediction != 'velocity':
      raise types.UserError(
        f'method=reg predicts velocities; interpolant.prediction={self.prediction!r}'
      )

  @property
  def encoders(self) -> tuple[str, ...]:
    """The one that makes the class token."""
    return (self.encoder,)

  def check_model(
    self, architecture: config_lib.Architecture, execution: config_lib.Execution
  ) -> None:
    super().check_model(architecture, execution)
    if not architecture.class_token:
      raise types.UserError('method=reg needs a model with a class token')

  def check_sampler(self, sampler: trajectory.SamplerConfig) -> None:
    super().check_sampler(sampler)
    if sampler.class_token_scale is not None and sampler.guidance_scale <= 1:
      raise types.UserError(
        f'sampler.class_token_scale={sampler.class_token_scale} acts only where the image is '
        f'guided, and sampler.guidance_scale={sampler.guidance_scale}'
      )

  def draw(self, batch: types.Batch, key: jax.Array) -> base.Draw:
    summary_NZ = batch[f'{self.encoder}/summary']
    noise_NZ = jax.random.normal(
      rng.stream(key, 'class_token_noise'), summary_NZ.shape, summary_NZ.dtype
    )
    draw = super().draw(batch, key)
    return self._with_class_token(draw, noise_NZ)

  def _with_class_token(self, draw, noise_NZ):
    token_NZ, target_NZ = self.noised(draw.batch[f'{self.encoder}/summary'], noise_NZ, draw.t)
    extras = {'class_token': token_NZ, 'class_target': target_NZ, 'class_noise': noise_NZ}
    return dataclasses.replace(draw, extras={**draw.extras, **extras})

  def at(self, draw: base.Draw, t_N: jax.Array) -> base.Draw:
    return self._with_class_token(super().at(draw, t_N), draw.extras['class_noise'])

  def run(
    self, network: base.Network, draw: base.Draw, tap: taps.Tap, blocks: int | None = None
  ) -> types.Output:
    token_NZ = draw.extras['class_token']
    return network.model(draw.x_t, draw.t, draw.y, class_token_NZ=token_NZ, tap=tap, blocks=blocks)

  def forward(
    self, network: base.Network, draw: base.Draw, tap: taps.Tap
  ) -> tuple[Any, jax.Array, base.Metrics]:
    output = self.run(network, draw, tap)
    image_N = self.loss(output.pred, draw.target, draw.t)
    token_N = self.loss(output.class_token, draw.extras['class_target'], draw.t)
    metrics = {'velocity': jnp.mean(image_N), 'class_token': jnp.mean(token_N)}
    return output.features, image_N + self.class_weight * token_N, metrics

  def velocity(self, network: base.Network) -> guidance.Predict:
    """({'image', 'class_token'}, t_N, y_N) -> velocities of the same structure."""

    def predict(x, t_N, y_N):
      output = network.model(x['image'], t_N, y_N, class_token_NZ=x['class_token'])
      return {'image': output.pred, 'class_token': output.class_token}

    return predict

  def sample(
    self,
    network: base.Network,
    keys_N: jax.Array,
    labels_N: jax.Array,
    config: trajectory.SamplerConfig,
  ) -> jax.Array:
    """Image and class token together, each with its own noise and guidance scale."""
    model = network.model.architecture
    made = trajectory.sample(
      self.velocity(network),
      {'image': model.shape, 'class_token': (model.class_token,)},
      keys_N,
      labels_N,
      config,
      null_label=model.null_label,
      combine=self.combine(config),
    )
    return made['image']

  @staticmethod
  def combine(config: trajectory.SamplerConfig) -> guidance.Combine:
    """Guidance of the image, and of the class token with a scale of its own."""
    scale = config.guidance_scale if config.class_token_scale is None else config.class_token_scale

    def combine(with_class, without):
      token = with_class['class_token']
      if scale > 0:
        token = without['class_token'] + scale * (token - without['class_token'])
      return {
        'image': config.guidance.combine(with_class['image'], without['image']),
        'class_token': token,
      }

    return combine
