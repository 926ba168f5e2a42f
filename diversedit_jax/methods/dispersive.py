"""Dispersive Loss: spreads the outputs of one block over the batch (arXiv 2506.09027).

No positives, no projector, no further pass. z_i are the features of example i, flattened to
n = T D numbers; means run over all pairs (i, j) of a group of B examples, the diagonal included.

  infonce_l2       log mean_ij exp(-D_ij / tau)      D_ij = |z_i - z_j|^2 / n
  infonce_cosine   log mean_ij exp(-D_ij / tau)      D_ij = -cos(z_i, z_j)
  hinge            mean_ij max(0, margin - D_ij)^2   D_ij = |z_i - z_j|^2 / n
  covariance       sum_{k != l} Cov_kl^2             Cov over the group of z_i / |z_i|, ddof 1

The released code has only infonce_l2, with tau = 1, divides by n, and includes the diagonal, whose
D_ii = 0 bounds the loss below by -log B. The paper gives the other kinds in a line each: it leaves
the margin of the hinge open, and whether the diagonal counts. Here it counts everywhere, so that
the hinge has a constant margin^2 / B. The normalisation and diagonal of the covariance follow
third-party code.

A vector shorter than 1e-12 counts as zero: its cosines are 0 and it receives no gradient from the
kinds that normalise. Everything is computed in float32 or better.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diversedit_jax import options, trees, types
from diversedit_jax.losses import arithmetic
from diversedit_jax.methods import base, registry
from diversedit_jax.models import config as model_config
from diversedit_jax.models import taps

KINDS = ('infonce_l2', 'infonce_cosine', 'hinge', 'covariance')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """Published constants; the block follows the depth, the groups are one device's examples."""

  weight: float
  temperature: float
  group_size: int
  block: Callable[[int], int]


PRESETS = {
  # The paper's experiments: 16 devices of 16 examples.
  'paper': Preset(weight=0.5, temperature=0.5, group_size=16, block=lambda depth: depth // 4),
  # The released PyTorch code: 8 devices of 32 examples.
  'release': Preset(weight=0.25, temperature=1.0, group_size=32, block=lambda depth: depth),
}


@registry.register('dispersive')
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dispersive(base.Term):
  """Spreads the outputs of one block over the batch (Dispersive Loss, arXiv 2506.09027).

  One group is the global batch, which is a different loss (its least value is -log of the group's
  size). Fewer groups than devices send the block's features and their gradient between devices.
  """

  preset: str = options.option(
    'paper', choices=PRESETS, doc='Published values of what is None below: paper or released code.'
  )
  kind: str = options.option(
    'infonce_l2',
    choices=KINDS,
    doc='Form of the loss: InfoNCE with squared distances or cosines, a hinge on distances, or '
    'covariances of features.',
  )
  block: int | None = options.option(
    None, at_least=1, doc='Block that is spread, from 1; None is L/4 (paper) or L (release).'
  )
  temperature: float | None = options.option(
    None, above=0, doc='tau of the InfoNCE forms; None is 0.5 (paper) or 1 (release).'
  )
  margin: float | None = options.option(
    None, above=0, doc='Margin of the hinge, in mean squared distance per feature; None is 1.'
  )
  weight: float | None = options.option(
    None, above=0, doc='Factor of the loss; None is 0.5 (paper) or 0.25 (release).'
  )
  groups: int | None = options.option(
    None,
    at_least=1,
    doc='Consecutive parts of the batch with a loss each, 1 for the global batch; None makes '
    'groups of 16 (paper) or 32 (release) examples.',
  )

  def __post_init__(self):
    super().__post_init__()
    for name, kinds in (
      ('temperature', ('infonce_l2', 'infonce_cosine')),
      ('margin', ('hinge',)),
    ):
      value = getattr(self, name)
      if value is not None and self.kind not in kinds:
        raise types.UserError(
          f'dispersive.{name}={value} is for kind {" and ".join(kinds)}, got {self.kind!r}'
        )

  def prepare(self, setup: base.Setup) -> 'Dispersive':
    preset = PRESETS[self.preset]
    if self.groups is None and setup.examples % preset.group_size:
      raise types.UserError(
        f'dispersive.preset={self.preset!r} has groups of {preset.group_size}, which do not divide '
        f'the {setup.examples} examples of a microbatch; set dispersive.groups'
      )
    published = {
      'block': max(1, preset.block(setup.architecture.depth)),
      'groups': setup.examples // preset.group_size,
      'weight': preset.weight,
    }
    return dataclasses.replace(
      self, **{name: value for name, value in published.items() if getattr(self, name) is None}
    )

  def check(self, architecture: model_config.Architecture, examples: int) -> None:
    base.check_block('dispersive.block', self.block, architecture.depth)
    if examples % self.groups:
      raise types.UserError(
        f'dispersive.groups={self.groups} does not divide the {examples} examples of a microbatch'
      )
    if examples == self.groups:
      raise types.UserError(
        f'dispersive.groups={self.groups} leaves one example in each group, where the loss is '
        'constant'
      )

  def tap(self, key: jax.Array, depth: int) -> taps.Tap:
    del key, depth
    return taps.chosen([self.block - 1])

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """Metric 'loss', before weighting."""
    del context
    preset = PRESETS[self.preset]
    loss = dispersive_loss(
      features[0],
      kind=self.kind,
      temperature=self.temperature or preset.temperature,
      margin=self.margin or 1.0,
      groups=self.groups,
    )
    return self.weight * loss, {'loss': loss}

  def flops(self, architecture: model_config.Architecture, examples: int) -> float:
    """The Gram matrix of a group, forward and backward."""
    return 3 * 2.0 * examples / self.groups * architecture.sequence * architecture.width


def dispersive_loss(
  f_NTD: jax.Array,
  *,
  kind: str = 'infonce_l2',
  temperature: float = 0.5,
  margin: float = 1.0,
  groups: int = 1,
) -> jax.Array:
  """Loss of one block's features; couples the examples of a group.

  Args:
    f_NTD: block output, any float type.
    kind: one of `KINDS`.
    temperature: tau of the InfoNCE kinds; the paper's experiments have 0.5, the released code 1.
    margin: margin of the hinge, in units of the mean squared difference per feature.
    groups: the batch is cut into this many consecutive groups of equal size, and the losses of the
      groups are averaged: what data parallel training computes when every device uses its own
      examples only, as the released code does.

  Returns:
    The loss, a scalar in float32 (float64 for float64 features).

  Raises:
    UserError: for an unknown kind, a temperature or margin that is not positive, and groups that
      do not divide the batch or hold one example.
    ValueError: if f_NTD is not of rank 3.
  """
  types.check('f_NTD', f_NTD, 'N T D')
  trees.check_known('kind', kind, KINDS)
  for name, value in (('temperature', temperature), ('margin', margin)):
    if not value > 0:
      raise types.UserError(f'{name} must be positive, got {value}')
  batch = f_NTD.shape[0]
  arithmetic.check_groups(groups, batch)
  if batch == groups:
    raise types.UserError(
      f'{groups=} of a batch of {batch} hold one example each, expected at least two'
    )
  f_GBX = arithmetic.at_least_float32(f_NTD).reshape(groups, batch // groups, -1)

  def loss(f_BX):
    if kind == 'infonce_l2':
      return _log_mean_exp(-squared_distances(f_BX) / temperature)
    if kind == 'infonce_cosine':
      return _log_mean_exp(_gram(arithmetic.unit(f_BX)) / temperature)
    if kind == 'hinge':
      return jnp.mean(jnp.square(jnp.maximum(0, margin - squared_distances(f_BX))))
    return _covariances(arithmetic.unit(f_BX))

  return jnp.mean(jax.vmap(loss)(f_GBX))


def squared_distances(f_BX: jax.Array) -> jax.Array:
  """|a - b|^2 / X for every two rows, at least 0 and exactly 0 on the diagonal; [B, B]."""
  # What all examples share cancels in a difference, but not in the rounding of |a|^2 + |b|^2 - 2ab.
  gram_BB = _gram(f_BX - jnp.mean(f_BX, axis=0, keepdims=True))
  squares_B = jnp.diagonal(gram_BB)  # Not sums of their own, so that the diagonal cancels.
  d_BB = squares_B[:, None] + squares_B[None, :] - 2 * gram_BB
  return jnp.maximum(d_BB, 0) / f_BX.shape[1]


def _covariances(u_BX: jax.Array) -> jax.Array:
  """Sum of the squared covariances between different columns of u.

  The X x X matrix of covariances is never made: |C^T C|^2 = |C C^T|^2 for the centred C.
  """
  c_BX = u_BX - jnp.mean(u_BX, axis=0, keepdims=True)
  freedom = len(u_BX) - 1
  variances_X = jnp.sum(jnp.square(c_BX), axis=0) / freedom
  return jnp.sum(jnp.square(_gram(c_BX) / freedom)) - jnp.sum(jnp.square(variances_X))


def _gram(f_BX: jax.Array) -> jax.Array:
  return jnp.matmul(f_BX, f_BX.T, precision=jax.lax.Precision.HIGHEST)


def _log_mean_exp(x_BB: jax.Array) -> jax.Array:
  return jax.nn.logsumexp(x_BB) - jnp.log(x_BB.size)
