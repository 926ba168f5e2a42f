"""Which blocks and pairs of blocks the diversity loss compares (arXiv 2603.04239, section 3.3)."""

from collections.abc import Iterable, Sequence
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import types


class Selection(NamedTuple):
  """A choice of blocks and pairs as arrays, constant or traced.

  selected_L: 1 for the blocks whose pairs are compared, else 0; int32.
  pairs_LL: how often the pair (row, column) is compared; int32.
  dispersion_L: 1 for the blocks whose channel usage counts, else 0; int32.
  """

  selected_L: Any
  pairs_LL: Any
  dispersion_L: Any


def all_pairs(layers: Iterable[int]) -> list[tuple[int, int]]:
  """Every pair i before j among the layers, in lexical order."""
  return list(itertools.combinations(layers, 2))


def authors_pairs(depth: int, encoder_depth: int | None = None) -> list[tuple[int, int]]:
  """The pairs that the authors' code compares; their number is at most M = min(10, L(L-1)/2).

  Without projection (`encoder_depth=None`): the first M in lexical order. With projection, as the
  released trainer always runs: i from M - e - 1 to M + e - 1, where e is the depth of alignment,
  and j from i + 1 to L - 1, until there are M. Negative indices count from the end, so a pair can
  occur in both orders, or pair a block with itself; i may also start beyond the last block, and
  then there is no pair at all.

  Raises:
    UserError: if depth < 2, or the rule names a block that does not exist (the code stops there).
  """
  _check_depth(depth)
  count = min(10, depth * (depth - 1) // 2)
  if encoder_depth is None:
    return all_pairs(range(depth))[:count]
  rows = range(count - encoder_depth - 1, count + encoder_depth)
  pairs = [(i, j) for i in rows for j in range(i + 1, depth)][:count]
  if any(min(pair) < -depth for pair in pairs):
    raise types.UserError(
      f'the authors have no pairs for {depth=} with {encoder_depth=}: their rule starts at block '
      f'{rows.start}, but blocks end at {-depth}; align an earlier block or select layers'
    )
  return [(i % depth, j % depth) for i, j in pairs]


def random_layers(key: jax.Array, depth: int, k: int) -> jax.Array:
  """k different blocks of `depth`, each choice equally likely: sorted indices [k], traceable.

  Raises:
    UserError: unless 2 <= k <= depth.
  """
  _check_depth(depth)
  if not 2 <= k <= depth:
    raise types.UserError(f'{k} random layers asked for, expected from 2 to {depth=}')
  return jnp.sort(jax.random.permutation(key, depth)[:k])


def layer_mask(indices: Any, depth: int) -> Any:
  """0/1 vector [L] (int32) of the given block indices, numpy in, numpy out."""
  numbers = np.arange(depth)[:, None]
  return (numbers == indices[None, :]).any(axis=1).astype(np.int32)


def select(selected_L: Any, dispersion: str = 'selected') -> Selection:
  """All pairs among the blocks of a 0/1 mask; `dispersion` over 'selected' or 'all' blocks."""
  depth = len(selected_L)
  before_LL = np.triu(np.ones((depth, depth), np.int32), 1)
  pairs_LL = selected_L[:, None] * selected_L[None, :] * before_LL
  all_L = np.ones(depth, np.int32)
  return Selection(selected_L, pairs_LL, selected_L if dispersion == 'selected' else all_L)


def select_pairs(pairs: Sequence[tuple[int, int]], depth: int) -> Selection:
  """The given pairs, which may be none or repeat; dispersion over all blocks."""
  pairs_LL = np.zeros((depth, depth), np.int32)
  for i, j in pairs:
    pairs_LL[i, j] += 1
  selected_L = (pairs_LL.any(axis=0) | pairs_LL.any(axis=1)).astype(np.int32)
  return Selection(selected_L, pairs_LL, np.ones(depth, np.int32))


def check_layers(layers: Iterable[int], depth: int) -> tuple[int, ...]:
  """The layers as a tuple; a UserError unless at least two, all different and within depth."""
  _check_depth(depth)
  layers = tuple(int(l) for l in layers)
  if len(layers) < 2 or len(set(layers)) < len(layers) or not set(layers) <= set(range(depth)):
    raise types.UserError(
      f'diversity needs at least two different layers from 0 to {depth - 1}, got {layers}'
    )
  return layers


def _check_depth(depth: int) -> None:
  if depth < 2:
    raise types.UserError(
      f'diversity compares blocks, so it needs a depth of at least 2, got {depth}'
    )
