"""Options of the diversity loss: which blocks, which variants of the terms, which weights."""

from collections.abc import Mapping
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import types
from diversedit_jax.losses import diversity, diversity_layers

_DEFAULT_NUM_LAYERS = 10  # The paper's main runs.


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiversityConfig:
  """What to compare and how to weigh it; the defaults are the paper's, over all blocks.

  layers: 'all'; 'random' (`num_layers` new ones each step, the paper); 'authors' (the pairs of the
    authors' code); or the block indices themselves, counted from 0, also as the text '0,2,5', since
    a config keeps the type of its entries.
  num_layers: how many blocks 'random' draws; None means 10.
  encoder_depth: for 'authors' only, depth of the aligned block, counted from 1; None is their rule
    without alignment.
  dispersion_layers: 'selected' or 'all' blocks in (13); None is 'selected', and 'all' for
    'authors', whose selection can be empty.
  mi, dispersion, usage, weights: see `diversity.diversity_loss`.
  groups: number of consecutive parts of the batch that keep their own statistics. 1 uses the
    global batch, independent of the number of devices. Setting it to the number of devices of a
    PyTorch run reproduces that run: each part has its own loss and its own adaptive weight, and
    the weighted losses are averaged, as DDP averages gradients.
  adaptive: multiply the loss by its adaptive weight; otherwise by 1 (the paper saw this diverge).
  lo, hi: range of the adaptive weight, in units of the loss.
  stop_gradient_weight: treat the adaptive weight as a constant; the authors' code does not.
  """

  layers: str | tuple[int, ...] = 'all'
  num_layers: int | None = None
  encoder_depth: int | None = None
  dispersion_layers: str | None = None
  mi: str = 'signed'
  dispersion: str = 'paper'
  usage: str = 'absolute'
  weights: tuple[float, float, float] = diversity.PAPER_WEIGHTS
  groups: int = 1
  adaptive: bool = True
  lo: float = 0.1
  hi: float = 0.5
  stop_gradient_weight: bool = False

  def __post_init__(self):
    if isinstance(self.layers, str) and re.fullmatch(r'\d+(,\d+)*', self.layers):
      object.__setattr__(self, 'layers', tuple(self.layers.split(',')))
    if not isinstance(self.layers, str):
      object.__setattr__(self, 'layers', tuple(int(l) for l in self.layers))
      if len(set(self.layers)) < max(2, len(self.layers)):
        raise types.UserError(f'layers are {self.layers}, expected at least two different ones')
    elif self.layers not in ('all', 'random', 'authors'):
      raise types.UserError(
        f"layers is {self.layers!r}, expected 'all', 'random', 'authors' or block indices as '0,2'"
      )
    object.__setattr__(self, 'weights', tuple(float(w) for w in self.weights))
    diversity.check_variants(self.mi, self.dispersion, self.usage, self.weights)
    if self.num_layers is not None and self.layers != 'random':
      raise types.UserError(
        f"num_layers={self.num_layers} needs layers='random', got layers={self.layers!r}"
      )
    if self.num_layers is not None and self.num_layers < 2:
      raise types.UserError(f'num_layers={self.num_layers}, expected at least 2')
    if self.encoder_depth is not None and self.layers != 'authors':
      raise types.UserError(
        f"encoder_depth={self.encoder_depth} needs layers='authors', got layers={self.layers!r}"
      )
    if self.dispersion_layers not in (None, 'selected', 'all'):
      raise types.UserError(
        f"dispersion_layers={self.dispersion_layers!r}, expected 'selected', 'all' or None"
      )
    if self.layers == 'authors' and self.dispersion_layers == 'selected':
      raise types.UserError(
        "dispersion_layers='selected' does not exist with layers='authors': the authors' code "
        'takes all blocks'
      )
    if self.groups < 1:
      raise types.UserError(f'groups={self.groups}, expected at least 1')
    if not 0 <= self.lo < self.hi:
      raise types.UserError(
        f'the weight range is lo={self.lo}, hi={self.hi}, expected 0 <= lo < hi'
      )

  @classmethod
  def authors(cls, encoder_depth: int | None) -> 'DiversityConfig':
    """The loss of the authors' code, in every respect but `groups` (theirs is per device)."""
    return cls(
      layers='authors',
      encoder_depth=encoder_depth,
      mi='absolute',
      dispersion='code',
      weights=diversity.THIRDS,
    )

  @property
  def needs_all_features(self) -> bool:
    """True if the loss wants f_LNTD at once (Gram form), False if running sums suffice.

    The sum over all pairs of cosines is |sum of unit vectors|^2; neither absolute values nor a
    choice among the pairs can be read off it.
    """
    return self.mi == 'absolute' or self.layers == 'authors'

  @property
  def needs_key(self) -> bool:
    """True if `select` draws blocks and so wants a key at every step."""
    return self.layers == 'random'

  def select(self, depth: int, key: jax.Array | None = None) -> diversity_layers.Selection:
    """The blocks and pairs for a network of the given depth; traced if drawn at random.

    Raises:
      UserError: if the depth does not allow them, or a key is missing.
    """
    if self.layers == 'authors':
      pairs = diversity_layers.authors_pairs(depth, self.encoder_depth)
      return diversity_layers.select_pairs(pairs, depth)
    if self.layers == 'random':
      if key is None:
        raise types.UserError("layers='random' draws blocks, so it needs a key")
      count = _DEFAULT_NUM_LAYERS if self.num_layers is None else self.num_layers
      indices = diversity_layers.random_layers(key, depth, count)
    else:
      layers = range(depth) if self.layers == 'all' else self.layers
      indices = np.array(diversity_layers.check_layers(layers, depth))
    mask_L = diversity_layers.layer_mask(indices, depth)
    return diversity_layers.select(mask_L, self.dispersion_layers or 'selected')

  def objective(
    self, loss_G: jax.Array, terms_G: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What is added to the training loss, and what to log, from the loss and terms of each group.

    Returns:
      mean_g w(L_g) L_g (scalar); and the group means of {'diversity' (not weighted),
      'diversity_weight', 'orth', 'mi', 'disp'} (scalars).
    """
    if self.adaptive:
      added_G, weight_G = diversity.weighted(loss_G, self.lo, self.hi, self.stop_gradient_weight)
    else:
      added_G, weight_G = loss_G, jnp.ones_like(loss_G)
    logged = {'diversity': loss_G, 'diversity_weight': weight_G, **terms_G}
    return jnp.mean(added_G), {name: jnp.mean(value_G) for name, value_G in logged.items()}
