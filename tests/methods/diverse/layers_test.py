"""Selections of blocks and pairs: the authors' rule, random draws, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.methods.diverse import layers


def test_authors_pairs_of_the_released_depths():
  # Depth 8 alignment, at least 12 blocks: block 1 with blocks 2 to 11 (counting from 0).
  assert layers.authors_pairs(28, 8) == [(1, j) for j in range(2, 12)]
  assert layers.authors_pairs(12, None) == [(0, j) for j in range(1, 11)]


def test_authors_pairs_may_be_empty_repeat_or_name_one_block_twice():
  assert layers.authors_pairs(5, 2) == []
  wrapped = layers.authors_pairs(5, 10)
  assert (4, 4) in wrapped and (4, 0) in wrapped
  selection = layers.select_pairs([(0, 1), (0, 1), (2, 2)], 4)
  assert selection.pairs_LL[0, 1] == 2 and selection.pairs_LL[2, 2] == 1
  assert selection.pairs_LL.sum() == 3
  np.testing.assert_array_equal(selection.selected_L, [1, 1, 1, 0])
  np.testing.assert_array_equal(selection.dispersion_L, [1, 1, 1, 1])


def test_authors_rule_beyond_the_blocks_is_refused():
  with pytest.raises(types.UserError, match='starts at block -6'):
    layers.authors_pairs(3, 8)


def test_random_layers_are_sorted_distinct_and_uniform_under_jit():
  draw = jax.jit(jax.vmap(layers.random_layers, in_axes=(0, None, None)), static_argnums=(1, 2))
  layers_XK = np.asarray(draw(jax.random.split(jax.random.key(0), 4000), 7, 3))
  assert layers_XK.shape == (4000, 3)
  assert (np.diff(layers_XK, axis=1) > 0).all() and layers_XK.min() == 0 and layers_XK.max() == 6
  # Each of 35 subsets has probability 1/35: mean 114, standard deviation 10.5; six deviations.
  _, counts = np.unique(layers_XK, axis=0, return_counts=True)
  assert len(counts) == 35 and np.abs(counts - 4000 / 35).max() < 63


@pytest.mark.parametrize(
  ('depth', 'k', 'message'),
  [(7, 1, '1 random layers'), (7, 8, '8 random layers'), (1, 2, 'depth of at least 2, got 1')],
)
def test_random_layers_refuse_impossible_counts(depth, k, message):
  with pytest.raises(types.UserError, match=message):
    layers.random_layers(jax.random.key(0), depth, k)


def test_select_counts_each_pair_once_traced_or_not():
  mask_L = layers.layer_mask(np.array([0, 2, 3]), 5)
  np.testing.assert_array_equal(mask_L, [1, 0, 1, 1, 0])
  for dispersion, wanted in (('selected', mask_L), ('all', np.ones(5))):
    still = layers.select(mask_L, dispersion)
    traced = jax.jit(lambda m, d=dispersion: layers.select(m, d))(jnp.asarray(mask_L))
    for selection in (still, traced):
      pairs = np.argwhere(np.asarray(selection.pairs_LL)).tolist()
      assert pairs == [[0, 2], [0, 3], [2, 3]]
      np.testing.assert_array_equal(selection.dispersion_L, wanted)
