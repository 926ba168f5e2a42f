"""REG: a class token of a frozen encoder, denoised together with the data (arXiv 2507.01467).

The encoder's summary c of the clean image enters as one more token, noised with noise of its own at
the same time, and the network predicts its velocity too:

  c_t = alpha c + sigma e_c,   loss_N = |v - v*|^2 + class_weight |v_c - v_c*|^2   (means)

REG also aligns the block outputs, the class token included, with the encoder's features; that is
the term `repa` with `class_token=True`. While sampling, the class token starts from noise, moves
with the image by the same steps, and is thrown away at the end.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from diversedit_jax import options, rng, types
from diversedit_jax.methods import base, flow, registry, repa
from diversedit_jax.models import config as model_config
from diversedit_jax.models import taps
from diversedit_jax.sampling import guidance, trajectory

BLOCKS = {12: 4, 24: 8, 28: 8}
"""Aligned block by depth in REG (arXiv 2507.01467)."""


@registry.register(
  'reg',
  not_with={'repa': 'it contains that alignment, of the class token too (set repa.weight)'},
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reg(flow.StochasticInterpolant):
  """Denoises an encoder's class token with the image (REG, arXiv 2507.01467).

  encoder: name of the one whose summary is the class token; `prepare` takes it from `repa.pairs`.
  alignment: the term that comes with it, or None.
  """

  class_weight: float = options.option(
    0.03, at_least=0, doc="Factor of the class token's loss (2507.01467)."
  )
  encoder: str = ''
  alignment: repa.Repa | None = None
  reads: ClassVar[tuple[str, ...]] = ('repa',)
  needs_pixels: ClassVar[bool] = True

  def prepare(self, setup: base.Setup) -> 'Reg':
    """With the encoder of `repa.pairs` opened; without its alignment if `repa.weight` is 0."""
    found = super().prepare(setup)
    if found.scored != 'velocity':
      raise types.UserError(
        'method=reg compares velocities: set interpolant.prediction to velocity or data; got '
        f'{found.prediction!r}'
      )
    given = setup.parts['repa']
    alignment = dataclasses.replace(given.open_pairs(setup, BLOCKS), class_token=True)
    if len(alignment.aligned) > 1:
      raise types.UserError(
        f'repa.pairs={given.pairs!r} with method=reg, whose class token is of one encoder: name one'
      )
    (encoder,) = alignment.opened
    if encoder.shapes().summary is None:
      raise types.UserError(
        f'method={setup.method!r} denoises the class token of its encoder, and {encoder.name!r} '
        'has none; name another in repa.pairs, or take method=repa'
      )
    return dataclasses.replace(
      found,
      encoder=encoder.name,
      opened=alignment.opened,
      alignment=alignment if alignment.weight else None,
    )

  def adapt(
    self, architecture: model_config.Architecture, execution: model_config.Execution
  ) -> tuple[model_config.Architecture, model_config.Execution]:
    """A model with a class token as wide as the encoder's summary."""
    (encoder,) = self.opened
    width = encoder.shapes().summary.shape[-1]
    return dataclasses.replace(architecture, class_token=width), execution

  def terms(self, setup: base.Setup) -> tuple[base.Term, ...]:
    """The alignment; leaving it out (`repa.weight=0`) is an ablation of the paper."""
    del setup
    return () if self.alignment is None else (self.alignment,)

  @property
  def encoders(self) -> tuple[str, ...]:
    """The one that makes the class token."""
    return (self.encoder,)

  def check_model(
    self, architecture: model_config.Architecture, execution: model_config.Execution
  ) -> None:
    super().check_model(architecture, execution)
    if not architecture.class_token:
      raise types.UserError('method=reg needs a model with a class token')

  def draw(self, batch: types.Batch, key: jax.Array) -> base.NoisyBatch:
    summary_NZ = batch[f'{self.encoder}/summary']
    noise_NZ = jax.random.normal(
      rng.stream(key, 'class_token_noise'), summary_NZ.shape, summary_NZ.dtype
    )
    noisy = super().draw(batch, key)
    return self._with_class_token(noisy, noise_NZ)

  def _with_class_token(self, noisy, noise_NZ):
    token_NZ, target_NZ = self.noised(noisy.batch[f'{self.encoder}/summary'], noise_NZ, noisy.t)
    extras = {'class_token': token_NZ, 'class_target': target_NZ, 'class_noise': noise_NZ}
    return dataclasses.replace(noisy, extras={**noisy.extras, **extras})

  def at(self, noisy: base.NoisyBatch, t_N: jax.Array) -> base.NoisyBatch:
    return self._with_class_token(super().at(noisy, t_N), noisy.extras['class_noise'])

  def run(
    self, network: base.Network, noisy: base.NoisyBatch, tap: taps.Tap, blocks: int | None = None
  ) -> types.Output:
    token_NZ = noisy.extras['class_token']
    return network.model(
      noisy.x_t, noisy.t, noisy.y, class_token_NZ=token_NZ, tap=tap, blocks=blocks
    )

  def forward(
    self, network: base.Network, noisy: base.NoisyBatch, tap: taps.Tap
  ) -> tuple[types.Output, jax.Array, base.Metrics]:
    output = self.run(network, noisy, tap)
    image_N = self.score(output.pred, noisy)
    token_N = self.loss(output.class_token, noisy.extras['class_target'], noisy.t)
    metrics = {'velocity': jnp.mean(image_N), 'class_token': jnp.mean(token_N)}
    return output, image_N + self.class_weight * token_N, metrics

  def velocity(self, network: base.Network, clamp: float = 0.0) -> guidance.Predict:
    """({'image', 'class_token'}, t_N, y_N) -> velocities of the same structure."""

    def predict(x, t_N, y_N):
      output = network.model(x['image'], t_N, y_N, class_token_NZ=x['class_token'])
      said = {'image': output.pred, 'class_token': output.class_token}
      return {name: self.as_velocity(said[name], x[name], t_N, clamp) for name in said}

    return predict

  def sample(
    self,
    network: base.Network,
    keys_N: jax.Array,
    labels_N: jax.Array,
    config: trajectory.SamplerConfig,
    guide: guidance.Predict | None = None,
  ) -> jax.Array:
    """Image and class token together, each with its own noise and guidance scale."""
    model = network.model.architecture
    made = trajectory.sample(
      self.velocity(network, config.clamp),
      {'image': model.shape, 'class_token': (model.class_token,)},
      keys_N,
      labels_N,
      config,
      null_label=model.null_label,
      combine=self.combine(config),
      guide=guide,
    )
    return made['image']

  @staticmethod
  def combine(config: trajectory.SamplerConfig) -> guidance.Combine:
    """Guidance of the image, and of the class token with a scale of its own."""

    def combine(with_class, without):
      token, token_null = with_class['class_token'], without['class_token']
      if config.token_scale != 1:
        token = token_null + config.token_scale * (token - token_null)
      return {
        'image': config.guidance.combine(with_class['image'], without['image']),
        'class_token': token,
      }

    return combine
