"""DiverseDiT's representation diversity loss as a term on any flow (arXiv 2603.04239, Section 3.3).

The other half of DiverseDiT, the long residual connections, is part of the model (`models.stack`).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from diversedit_jax import rng, types
from diversedit_jax.losses import diversity_config, diversity_streaming
from diversedit_jax.methods import base
from diversedit_jax.models import config as config_lib
from diversedit_jax.models import taps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diverse(base.Term):
  """w(L_div) L_div over the block outputs, at a cost linear in the number of blocks.

  config: which blocks, which variant of each term, which weight.
  """

  config: diversity_config.DiversityConfig = diversity_config.DiversityConfig()
  name: ClassVar[str] = 'diverse'

  def check(self, architecture: config_lib.Architecture, examples: int) -> None:
    # Traced: even a key would be compiled.
    jax.eval_shape(lambda: self.config.select(architecture.depth, jax.random.key(0)))
    if examples % self.config.groups:
      raise types.UserError(
        f'diversity.groups={self.config.groups} does not divide the {examples} examples of a '
        'microbatch'
      )

  def tap(self, key: jax.Array, depth: int) -> taps.Tap:
    """Running sums, or all block outputs if a variant needs them; features are loss_G, terms_G."""
    selection = self.config.select(depth, rng.stream(key, 'diverse/layers'))
    if self.config.needs_all_features:
      every = taps.every()
      finish = lambda _, f_LNTD: diversity_streaming.from_features(f_LNTD, selection, self.config)
      return dataclasses.replace(every, finish=finish)
    selected_L = jnp.asarray(selection.selected_L)
    return taps.Tap(
      init=lambda x, depth: diversity_streaming.init_statistics(x.shape, x.dtype),
      step=lambda carry, f, i: diversity_streaming.update(carry, f, selected_L[i], self.config),
      finish=lambda carry, sums: diversity_streaming.finish(carry, sums, selection, self.config),
    )

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """The weighted loss; metrics 'loss' (before weighting), 'weight', 'orth', 'mi', 'disp'."""
    del context
    added, logged = self.config.objective(*features)
    renamed = {'diversity': 'loss', 'diversity_weight': 'weight'}
    return added, {renamed.get(name, name): value for name, value in logged.items()}
