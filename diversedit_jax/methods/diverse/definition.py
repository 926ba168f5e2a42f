"""Representation diversity loss of DiverseDiT (arXiv 2603.04239) as its equations read.

f_l [N, T, D] is the output of block l, P a set of pairs of blocks, B a set of blocks.

  (9)      mu_l   = mean_{n,t} f_l[n,t]
  (10)     L_orth = mean_{(i,j) in P} cos(mu_i, mu_j)
  (11, 12) L_MI   = mean_{(i,j) in P} mean_{n,t} cos(f_i[n,t], f_j[n,t])
  (13)     a      = mean_{l in B} mean_{n,t} |f_l[n,t,d]| / sqrt(sum_{n,t} f_l[n,t,d]^2)
  (14)     L_disp = -Var_d(a_d / max_d a_d), the population variance over channels
  (15)     L_div  = 0.33 L_orth + 0.33 L_MI + 0.33 L_disp

The paper's (13) has no absolute value: `usage='signed'`. The usage a is then a signed vector whose
maximum may come near zero, where (14) is ill-conditioned, so the absolute value of the authors'
code is the default. That code also takes |.| of every pair's mean in (12): `mi='absolute'`;
replaces (14) by -clip(4 Var, 0, 1): `dispersion='code'`; and averages the three terms:
`weights=THIRDS`.

A vector shorter than 1e-12 counts as zero: its cosines are 0 and it receives no gradient.
Everything is computed in float32 or better.

This file is the reference, a plain loop over pairs. Training uses `streaming`, which is linear in
the number of blocks and equal to this file in value and gradient.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from diversedit_jax import trees, types
from diversedit_jax.losses import arithmetic
from diversedit_jax.methods.diverse import layers as layers_lib

MI = ('signed', 'absolute')
DISPERSIONS = ('paper', 'code')
USAGES = ('absolute', 'signed')
PAPER_WEIGHTS = (0.33, 0.33, 0.33)  # (15)
THIRDS = (1 / 3, 1 / 3, 1 / 3)  # The authors' code.


def orthogonality(f_LNTD: jax.Array, pairs: Sequence[tuple[int, int]]) -> jax.Array:
  """(9, 10): mean cosine of the mean features of each pair of blocks; 0 without pairs."""
  mu_LD = [
    arithmetic.unit(jnp.mean(f_NTD, axis=(0, 1))) for f_NTD in arithmetic.at_least_float32(f_LNTD)
  ]
  return _mean([jnp.vdot(mu_LD[i], mu_LD[j]) for i, j in pairs], f_LNTD)


def mutual_information(
  f_LNTD: jax.Array, pairs: Sequence[tuple[int, int]], mi: str = 'signed'
) -> jax.Array:
  """(11, 12): mean cosine of the token features of each pair of blocks; 0 without pairs."""
  u_LNTD = [arithmetic.unit(f_NTD) for f_NTD in arithmetic.at_least_float32(f_LNTD)]
  means = [jnp.mean(jnp.sum(u_LNTD[i] * u_LNTD[j], axis=-1)) for i, j in pairs]
  return _mean([jnp.abs(m) for m in means] if mi == 'absolute' else means, f_LNTD)


def channel_usage(f_LNTD: jax.Array, blocks: Sequence[int], usage: str = 'absolute') -> jax.Array:
  """(13): how much each channel is used, mean over the blocks; [D], maximum not yet divided out."""
  f_LMD = arithmetic.at_least_float32(f_LNTD).reshape(f_LNTD.shape[0], -1, f_LNTD.shape[-1])
  columns = [arithmetic.unit(f_LMD[l], axis=0) for l in blocks]
  a_BD = [jnp.mean(jnp.abs(c) if usage == 'absolute' else c, axis=0) for c in columns]
  return sum(a_BD[1:], start=a_BD[0]) / len(blocks)


def dispersion_of_usage(a_D: jax.Array, blocks: int | jax.Array, dispersion: str) -> jax.Array:
  """(14) over the last axis of a usage vector that is a mean over a number of blocks.

  The code's form adds 1e-8 to the number of blocks and to the maximum; the paper's form adds
  nothing, and is 0 where every channel is unused.
  """
  if dispersion == 'code':
    a_D = a_D * (blocks / (blocks + 1e-8))
    peak = jnp.max(a_D, axis=-1, keepdims=True) + 1e-8
    return -jnp.clip(jnp.var(a_D / peak, axis=-1) / 0.25, 0, 1)
  peak = jnp.max(a_D, axis=-1, keepdims=True)
  return -jnp.var(a_D / jnp.where(peak == 0, 1, peak), axis=-1)


def diversity_loss(
  f_LNTD: jax.Array,
  *,
  layers: Sequence[int] | None = None,
  pairs: Sequence[tuple[int, int]] | None = None,
  dispersion_layers: Sequence[int] | None = None,
  mi: str = 'signed',
  dispersion: str = 'paper',
  usage: str = 'absolute',
  weights: Sequence[float] = PAPER_WEIGHTS,
  groups: int = 1,
) -> tuple[jax.Array, Mapping[str, jax.Array]]:
  """(15) for given block features, by the plain loop over pairs.

  Args:
    f_LNTD: block outputs in depth order, any float type.
    layers: blocks, counted from 0, whose pairs are all taken; None takes every block.
    pairs: the pairs themselves instead; may be empty, then orth and mi are 0.
    dispersion_layers: blocks B of (13); None takes `layers`, and every block with `pairs`.
    mi: 'signed' (12) or 'absolute' (the authors' code).
    dispersion: 'paper' (14) or 'code'.
    usage: 'absolute' or 'signed' (13).
    weights: weights of orth, mi and disp in the sum.
    groups: the batch is cut into this many consecutive groups of equal size, and the terms of the
      groups are averaged: what data parallel training computes when every device uses its own
      examples only.

  Returns:
    The loss (scalar) and its terms {'orth', 'mi', 'disp'} (scalars), not weighted. Units: cosines,
    about [-1, 1].

  Raises:
    UserError: for fewer than two blocks, an unknown variant, or a batch not divisible by groups.
  """
  types.check('f_LNTD', f_LNTD, 'L N T D')
  depth, batch = f_LNTD.shape[:2]
  if layers is not None and pairs is not None:
    raise types.UserError(f'give layers or pairs, not both: {layers=}, {pairs=}')
  for name, value, known in (
    ('mi', mi, MI),
    ('dispersion', dispersion, DISPERSIONS),
    ('usage', usage, USAGES),
  ):
    trees.check_known(name, value, known)
  if len(weights) != 3:
    raise types.UserError(f'weights are {tuple(weights)}, expected three: orth, mi, disp')
  arithmetic.check_groups(groups, batch)
  chosen = layers_lib.check_layers(range(depth) if layers is None else layers, depth)
  if pairs is None:
    pairs = layers_lib.all_pairs(chosen)
  blocks = chosen if dispersion_layers is None else tuple(dispersion_layers)
  if not blocks or not set(blocks) <= set(range(depth)):
    raise types.UserError(f'dispersion layers are {blocks}, expected some of 0 to {depth - 1}')

  terms_G = []
  for f in jnp.split(f_LNTD, groups, axis=1):
    a_D = channel_usage(f, blocks, usage)
    disp = dispersion_of_usage(a_D, len(blocks), dispersion)
    terms_G.append((orthogonality(f, pairs), mutual_information(f, pairs, mi), disp))
  terms = {
    name: sum(term_G) / groups
    for name, term_G in zip(('orth', 'mi', 'disp'), zip(*terms_G, strict=True), strict=True)
  }
  return sum(w * term for w, term in zip(weights, terms.values(), strict=True)), terms


def adaptive_weight(loss: jax.Array, lo: float = 0.1, hi: float = 0.5) -> jax.Array:
  """Weight of the loss L: 1 above hi, (L - lo) / hi in (lo, hi], 0 otherwise; any shape.

  The slope's denominator is hi, as in the paper and the code, so that the weight jumps from
  (hi - lo) / hi to 1 at hi.
  """
  return jnp.where(loss > hi, 1.0, jnp.where(loss > lo, (loss - lo) / hi, 0.0)).astype(loss.dtype)


def weighted(
  loss: jax.Array, lo: float = 0.1, hi: float = 0.5, stop_gradient: bool = False
) -> tuple[jax.Array, jax.Array]:
  """(w L, w) with the adaptive weight w of L; any shape.

  The authors' code lets gradients flow through w, so between lo and hi the gradient is that of
  (L - lo) L / hi; `stop_gradient=True` treats w as a constant.
  """
  weight = adaptive_weight(loss, lo, hi)
  if stop_gradient:
    weight = jax.lax.stop_gradient(weight)
  return weight * loss, weight


def similarity_matrices(f_LNTD: jax.Array) -> dict[str, jax.Array]:
  """How similar every two blocks are, for telemetry.

  Returns:
    'token': [L, L], mean over n, t of cos(f_i[n,t], f_j[n,t]), the entries of (12);
    'mean': [L, L], cosine of the mean features, the entries of (10).
  """
  f_LNTD = arithmetic.at_least_float32(f_LNTD)
  highest = jax.lax.Precision.HIGHEST
  u_LX = arithmetic.unit(f_LNTD).reshape(f_LNTD.shape[0], -1)
  mu_LD = arithmetic.unit(jnp.mean(f_LNTD, axis=(1, 2)))
  tokens = f_LNTD.shape[1] * f_LNTD.shape[2]
  return {
    'token': jnp.matmul(u_LX, u_LX.T, precision=highest) / tokens,
    'mean': jnp.matmul(mu_LD, mu_LD.T, precision=highest),
  }


def _mean(values: Sequence[jax.Array], like: jax.Array) -> jax.Array:
  if not values:
    return jnp.zeros((), jnp.promote_types(like.dtype, jnp.float32))
  return sum(values[1:], start=values[0]) / len(values)
