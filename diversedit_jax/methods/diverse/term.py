"""DiverseDiT's representation diversity loss as a term on any flow (arXiv 2603.04239, Section 3.3).

The other half of DiverseDiT, the long residual connections, is part of the model (`models.stack`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diversedit_jax import rng, types
from diversedit_jax.methods import base, registry, schedules
from diversedit_jax.methods.diverse import diversity_options, streaming
from diversedit_jax.models import config as model_config
from diversedit_jax.models import taps


@registry.register('diverse', section='diversity')
@dataclasses.dataclass(frozen=True, kw_only=True)
class Diverse(diversity_options.DiversityOptions):
  """Representation diversity loss over the block outputs (DiverseDiT, arXiv 2603.04239).

  w(L_div) L_div, at a cost linear in the number of blocks.
  """

  @property
  def factor(self) -> schedules.Schedule:
    return schedules.warmup(self.warmup_steps) * super().factor

  def check(self, architecture: model_config.Architecture, examples: int) -> None:
    # Traced: even a key would be compiled.
    jax.eval_shape(lambda: self.select(architecture.depth, jax.random.key(0)))
    if examples % self.groups:
      raise types.UserError(
        f'diversity.groups={self.groups} does not divide the {examples} examples of a microbatch'
      )

  def tap(self, key: jax.Array, depth: int) -> taps.Tap:
    """Running sums, or all block outputs if a variant needs them; features are loss_G, terms_G."""
    selection = self.select(depth, rng.stream(key, 'diverse/layers'))
    if self.needs_all_features:
      every = taps.every()
      finish = lambda _, f_LNTD: streaming.from_features(f_LNTD, selection, self)
      return dataclasses.replace(every, finish=finish)
    selected_L = jnp.asarray(selection.selected_L)
    return taps.Tap(
      init=lambda x, depth: streaming.init_statistics(x.shape, x.dtype),
      step=lambda carry, f, i: streaming.update(carry, f, selected_L[i], self),
      finish=lambda carry, sums: streaming.finish(carry, sums, selection, self),
    )

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """The weighted loss; metrics 'loss' (before weighting), 'weight', 'orth', 'mi', 'disp'."""
    return self.objective(*features)
