"""The diversity loss of arXiv 2603.04239 at a cost linear in the number of blocks, for training.

With unit token features u_l = f_l / |f_l| and S = sum_l u_l over the k selected blocks,

  (a)  sum_{i<j} u_i . u_j = (|S|^2 - sum_l |u_l|^2) / 2

so (12) over all pairs needs one running sum, and its gradient needs only S and f_l:

  (b)  d/df_l = 2 / (k (k - 1) N T) (S - (S . u_l) u_l) / |f_l|

(10) and (13) need column sums [D] per block. The blocks are seen one at a time:

  carry = init_statistics(f.shape, f.dtype)
  carry, sums = update(carry, f_NTD, selection.selected_L[l], options)  # in the scan over blocks
  loss_G, terms_G = finish(carry, sums, selection, options)  # sums as the scan stacks them
  loss, metrics = options.objective(loss_G, terms_G)

Absolute values of (12) and the authors' pair lists need the matrix of all cosines instead, one
matrix product over the stacked features: `from_features`. Both equal `definition.diversity_loss`.
Statistics, above all S, are float32 or better whatever the type of the features: with S in
bfloat16 the gradient would be wrong by 2 %.
"""

from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from diversedit_jax import types
from diversedit_jax.losses import arithmetic
from diversedit_jax.methods.diverse import definition, diversity_options, layers

_SUMS = 'diversity_sums'
_HIGHEST = jax.lax.Precision.HIGHEST  # Cosines must not be rounded to TF32 or bfloat16.


class Statistics(NamedTuple):
  """What the scan carries from block to block: the sum S of unit token features, [N, T, D]."""

  unit_NTD: jax.Array


class BlockSums(NamedTuple):
  """What one block leaves behind, per group; the scan stacks it to [L, ...].

  mean_GD: mean feature (9).
  usage_GD: mean of |f| (or f) over tokens divided by the norm of the column of tokens (13).
  length_G: mean of |u|^2 over tokens: 1, less the share of zero tokens.
  """

  mean_GD: jax.Array
  usage_GD: jax.Array
  length_G: jax.Array


def init_statistics(shape: tuple[int, int, int], dtype: jax.typing.DTypeLike) -> Statistics:
  """The empty sum for features of the given [N, T, D] and type; float32 or better."""
  return Statistics(jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32)))


def update(
  carry: Statistics,
  f_NTD: jax.Array,
  selected: jax.Array,
  options: diversity_options.DiversityOptions,
) -> tuple[Statistics, BlockSums]:
  """Takes in the output of one block.

  Args:
    carry: from the block before, or `init_statistics`.
    f_NTD: output of this block, any float type.
    selected: scalar, `selection.selected_L[l]`: 1 to compare this block, 0 to leave it out.
    options: variant of the usage and number of groups.
  """
  u_NTD, sums = _measure(f_NTD, options)
  return Statistics(carry.unit_NTD + u_NTD * jnp.asarray(selected, u_NTD.dtype)), sums


def finish(
  carry: Statistics,
  sums: BlockSums,
  selection: layers.Selection,
  options: diversity_options.DiversityOptions,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss of each group from the statistics of all blocks.

  Args:
    carry: after the last block.
    sums: stacked in depth order, leading axis L.
    selection: from `options.select`, possibly traced; all pairs among its selected blocks count.
    options: variants and weights; must not ask for all features.

  Returns:
    loss_G and terms_G {'orth', 'mi', 'disp'}, each [G]; `options.objective` makes the scalar.
  """
  if options.needs_all_features:
    raise ValueError(f'running sums cannot give {options}; use from_features')
  dtype = carry.unit_NTD.dtype
  selected_L = jnp.asarray(selection.selected_L, dtype)
  count = jnp.sum(selected_L)
  S_GMD = _by_group(carry.unit_NTD, options.groups)
  total_G = jnp.mean(jnp.sum(jnp.square(S_GMD), axis=-1), axis=-1)
  self_G = jnp.sum(selected_L[:, None] * sums.length_G, axis=0)
  mi_G = (total_G - self_G) / (count * (count - 1))  # (a)
  return _combine(mi_G, sums, selection, options)


def from_features(
  f_LNTD: jax.Array,
  selection: layers.Selection,
  options: diversity_options.DiversityOptions,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss of each group from the features of all blocks, any variant; returns as `finish`."""
  types.check('f_LNTD', f_LNTD, 'L N T D', L=len(selection.selected_L))
  if not options.needs_all_features:

    def body(carry, block):
      f_NTD, selected = block
      return update(carry, f_NTD, selected, options)

    start = init_statistics(f_LNTD.shape[1:], f_LNTD.dtype)
    carry, sums = jax.lax.scan(body, start, (f_LNTD, jnp.asarray(selection.selected_L)))
    return finish(carry, sums, selection, options)

  mean_cosine_GLL, sums = _measure_all(f_LNTD, options)
  if options.mi == 'absolute':
    mean_cosine_GLL = jnp.abs(mean_cosine_GLL)
  return _combine(_pair_mean(mean_cosine_GLL, selection.pairs_LL), sums, selection, options)


def _by_group(f_NTD: jax.Array, groups: int) -> jax.Array:
  """[N, T, D] -> [G, (N/G) T, D], groups of consecutive examples."""
  arithmetic.check_groups(groups, f_NTD.shape[0])
  return f_NTD.reshape(groups, -1, f_NTD.shape[-1])


def _measure_now(
  f_NTD: jax.Array, options: diversity_options.DiversityOptions
) -> tuple[jax.Array, BlockSums]:
  """Unit token features and column sums of one block."""
  f_NTD = arithmetic.at_least_float32(f_NTD)
  f_GMD = _by_group(f_NTD, options.groups)
  strength_GMD = jnp.abs(f_GMD) if options.usage == 'absolute' else f_GMD
  strength_GD, squares_GD, squares_NT1 = _kept(
    jnp.mean(strength_GMD, axis=1),
    jnp.sum(jnp.square(f_GMD), axis=1),
    jnp.sum(jnp.square(f_NTD), axis=-1, keepdims=True),
  )
  inverse_NT1 = arithmetic.inverse_length(squares_NT1)
  # Not 1 but what rounding made of it, so that (a) holds for the rounded u. Its gradient is zero.
  length_NT1 = jax.lax.stop_gradient(squares_NT1 * jnp.square(inverse_NT1))
  length_G = jnp.mean(_by_group(length_NT1, options.groups), axis=(1, 2))
  usage_GD = strength_GD * arithmetic.inverse_length(squares_GD)
  return f_NTD * inverse_NT1, BlockSums(jnp.mean(f_GMD, axis=1), usage_GD, length_G)


def _kept(*sums: jax.Array) -> tuple[jax.Array, ...]:
  return tuple(checkpoint_name(x, _SUMS) for x in sums)


def _measure(
  f_NTD: jax.Array, options: diversity_options.DiversityOptions
) -> tuple[jax.Array, BlockSums]:
  # The backward pass has f, which is kept anyway, and its sums; otherwise every block would keep
  # its unit features in float32 too.
  policy = jax.checkpoint_policies.save_only_these_names(_SUMS)
  return jax.checkpoint(_measure_now, static_argnums=1, policy=policy)(f_NTD, options)


def _measure_all(
  f_LNTD: jax.Array, options: diversity_options.DiversityOptions
) -> tuple[jax.Array, BlockSums]:
  """Mean over tokens of the cosines of all pairs, [G, L, L], and the column sums [L, ...]."""

  def cosines(f_LNTD):
    u_LNTD, sums = jax.vmap(lambda f_NTD: _measure_now(f_NTD, options))(f_LNTD)
    u_LGX = u_LNTD.reshape(u_LNTD.shape[0], options.groups, -1)
    tokens = f_LNTD.shape[1] // options.groups * f_LNTD.shape[2]
    return jnp.einsum('lgx,kgx->glk', u_LGX, u_LGX, precision=_HIGHEST) / tokens, sums

  return jax.checkpoint(cosines)(f_LNTD)


def _combine(
  mi_G: jax.Array,
  sums: BlockSums,
  selection: layers.Selection,
  options: diversity_options.DiversityOptions,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """(10), (13), (14), (15) from the column sums [L, G, D] and the group's (12)."""
  mu_LGD = arithmetic.unit(sums.mean_GD)
  mean_cosine_GLL = jnp.einsum('lgd,kgd->glk', mu_LGD, mu_LGD, precision=_HIGHEST)
  orth_G = _pair_mean(mean_cosine_GLL, selection.pairs_LL)

  blocks_L = jnp.asarray(selection.dispersion_L, mi_G.dtype)
  blocks = jnp.sum(blocks_L)
  a_GD = jnp.sum(blocks_L[:, None, None] * sums.usage_GD, axis=0) / blocks
  disp_G = definition.dispersion_of_usage(a_GD, blocks, options.dispersion)

  orth, mi, disp = options.weights
  terms_G = {'orth': orth_G, 'mi': mi_G, 'disp': disp_G}
  return orth * orth_G + mi * mi_G + disp * disp_G, terms_G


def _pair_mean(x_GLL: jax.Array, pairs_LL: jax.Array) -> jax.Array:
  """Mean of the entries that the pairs name, [G]; 0 without pairs."""
  pairs_LL = jnp.asarray(pairs_LL, x_GLL.dtype)
  return jnp.sum(x_GLL * pairs_LL[None], axis=(1, 2)) / jnp.maximum(jnp.sum(pairs_LL), 1)
