"""Options of the diversity loss: which blocks, which variants of the terms, which weights."""

from collections.abc import Mapping
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import options, types
from diversedit_jax.methods import base
from diversedit_jax.methods.diverse import definition
from diversedit_jax.methods.diverse import layers as layers_lib

_NAMED = ('all', 'random', 'authors')
_DEFAULT_NUM_LAYERS = 10  # The paper's main runs.


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiversityOptions(base.Term):
  """What to compare and how to weigh it; the defaults are the paper's, over all blocks."""

  layers: str = options.option(
    'all',
    doc='Compared blocks: all, random (num_layers new ones each step, the paper), authors (the '
    "pairs of the authors' code) or a list as '1,3,6', counted from 1.",
  )
  num_layers: int | None = options.option(
    None, at_least=2, doc="How many blocks 'random' draws; None is the paper's 10."
  )
  encoder_depth: int | None = options.option(
    None,
    at_least=1,
    doc="For 'authors' only: depth of the aligned block, from 1; None is their rule without one.",
  )
  dispersion_layers: str | None = options.option(
    None,
    choices=('selected', 'all'),
    doc="Blocks in Eq. 13: selected or all; None is selected, and all for 'authors'.",
  )
  mi: str = options.option(
    'signed',
    choices=definition.MI,
    doc='Cosines of pairs of blocks in Eq. 12: signed (paper) or absolute (released code).',
  )
  dispersion: str = options.option(
    'paper',
    choices=definition.DISPERSIONS,
    doc='Dispersion, Eq. 14, as in the paper or in the released code.',
  )
  usage: str = options.option(
    'absolute',
    choices=definition.USAGES,
    doc='Usage of channels in Eq. 13: absolute (released code) or signed (paper).',
  )
  weights: tuple[float, float, float] = options.option(
    definition.PAPER_WEIGHTS,
    at_least=0,
    doc='Weights of orthogonality, mutual information and dispersion, Eq. 15.',
  )
  groups: int = options.option(
    1,
    at_least=1,
    doc='Consecutive parts of the batch with a loss and an adaptive weight each; 1 is the global '
    'batch, the number of GPUs reproduces a run of the released code.',
  )
  adaptive: bool = options.option(
    True, doc='Multiplies the loss by its adaptive weight; a constant one diverges (Table 8).'
  )
  warmup_steps: int = options.option(
    0,
    at_least=0,
    doc='Updates in which the weight rises from 0 to its value, as schedule=warmup:N; 0 is the '
    "paper, 10,000 the authors' newest code.",
  )
  lo: float = options.option(
    0.1, at_least=0, doc='Loss below which the adaptive weight is 0 (Section 3.3).'
  )
  hi: float = options.option(
    0.5, above=0, doc='Loss above which the adaptive weight is 1 (Section 3.3).'
  )
  stop_gradient_weight: bool = options.option(
    False, doc='Treats the adaptive weight as a constant; the released code does not.'
  )

  def __post_init__(self):
    super().__post_init__()
    if self.layers not in _NAMED and len(set(self._blocks)) < max(2, len(self._blocks)):
      raise types.UserError(
        f'diversity.layers={self.layers!r} must be all, random, authors, or at least two different '
        "blocks counted from 1, as '1,3,6'"
      )
    for name, needed in (('num_layers', 'random'), ('encoder_depth', 'authors')):
      value = getattr(self, name)
      if value is not None and self.layers != needed:
        raise types.UserError(
          f'diversity.{name}={value} is for diversity.layers={needed!r}, got {self.layers!r}'
        )
    if self.layers == 'authors' and self.dispersion_layers == 'selected':
      raise types.UserError(
        "diversity.dispersion_layers='selected' does not exist with layers='authors': the authors' "
        'code takes all blocks'
      )
    if not any(self.weights):
      raise types.UserError(
        f'diversity.weights={self.weights} weigh nothing; leave diverse out of the method'
      )
    if self.lo >= self.hi:
      raise types.UserError(f'diversity.lo={self.lo} must be below diversity.hi={self.hi}')

  @property
  def _blocks(self) -> tuple[int, ...]:
    """The blocks of a list, counted from 1; none if it is no list of such."""
    fits = re.fullmatch(r'[1-9]\d*(,[1-9]\d*)*', self.layers)
    return tuple(int(block) for block in self.layers.split(',')) if fits else ()

  @property
  def needs_all_features(self) -> bool:
    """True if the loss wants f_LNTD at once (Gram form), False if running sums suffice.

    The sum over all pairs of cosines is |sum of unit vectors|^2; neither absolute values nor a
    choice among the pairs can be read off it.
    """
    return self.mi == 'absolute' or self.layers == 'authors'

  def select(self, depth: int, key: jax.Array | None = None) -> layers_lib.Selection:
    """The blocks and pairs for a network of the given depth; traced if drawn at random.

    Raises:
      UserError: if the depth does not allow them, or a key is missing.
    """
    if self.layers == 'authors':
      pairs = layers_lib.authors_pairs(depth, self.encoder_depth)
      return layers_lib.select_pairs(pairs, depth)
    if self.layers == 'random':
      if key is None:
        raise types.UserError("layers='random' draws blocks, so it needs a key")
      count = _DEFAULT_NUM_LAYERS if self.num_layers is None else self.num_layers
      indices = layers_lib.random_layers(key, depth, count)
    else:
      indices = np.array(self._indices(depth))
    mask_L = layers_lib.layer_mask(indices, depth)
    return layers_lib.select(mask_L, self.dispersion_layers or 'selected')

  def _indices(self, depth: int) -> tuple[int, ...]:
    """Chosen blocks, counted from 0."""
    if self.layers == 'all':
      return layers_lib.check_layers(range(depth), depth)
    outside = [block for block in self._blocks if block > depth]
    if outside:
      raise types.UserError(
        f'diversity.layers={self.layers!r}: block {outside[0]} is not one of 1 to {depth} (counted '
        'from 1)'
      )
    return layers_lib.check_layers([block - 1 for block in self._blocks], depth)

  def objective(
    self, loss_G: jax.Array, terms_G: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What is added to the training loss, and what to log, from the loss and terms of each group.

    Returns:
      mean_g w(L_g) L_g (scalar); and the group means of {'loss' (not weighted), 'weight', 'orth',
      'mi', 'disp'} (scalars).
    """
    if self.adaptive:
      added_G, weight_G = definition.weighted(loss_G, self.lo, self.hi, self.stop_gradient_weight)
    else:
      added_G, weight_G = loss_G, jnp.ones_like(loss_G)
    logged = {'loss': loss_G, 'weight': weight_G, **terms_G}
    return jnp.mean(added_G), {name: jnp.mean(value_G) for name, value_G in logged.items()}
