"""Names and layouts, both ways, on models of the reference systems."""

import re

from helpers import family_weights
import jax
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.convert import mapping

_NAMES = ('sit_plain', 'sit_qknorm', 'sit_skip')
_GRID = (4, 4)


@pytest.fixture(scope='module', params=_NAMES)
def reference(request, golden):
  """The state dict of one reference model."""
  return family_weights.parameters(golden(request.param))


@pytest.fixture
def plain(golden):
  return family_weights.parameters(golden('sit_plain'))


@pytest.fixture
def skip(golden):
  return family_weights.parameters(golden('sit_skip'))


def _assert_same(found, expected):
  assert set(found) == set(expected)
  for name, array in expected.items():
    assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_round_trip_is_exact(reference):
  """Bit for bit, the position table too: it is computed in float64 as the reference does."""
  params = jax.tree.map(jax.numpy.asarray, mapping.to_ours(reference, 'sit'))
  _assert_same(mapping.to_torch(params, 'sit', grid=_GRID), reference)


def test_no_and_several_projectors(plain):
  bare = {name: x for name, x in plain.items() if not name.startswith('projectors')}
  params = mapping.to_ours(bare, 'sit')
  assert set(params) == {'model'}
  _assert_same(mapping.to_torch(params, 'sit', grid=_GRID), bare)
  wide = {
    name.replace('projectors.0', 'projectors.1'): np.repeat(np.repeat(x, 2, 0), 2, -1)
    if name.endswith(('2.weight', '4.weight'))
    else np.repeat(x, 2, 0)
    for name, x in plain.items()
    if name.startswith('projectors')
  }
  params = mapping.to_ours(plain | wide, 'sit')
  assert params['heads']['repa']['1']['fc3']['kernel'].shape == (192, 96)
  assert mapping.infer_config(plain | wide)['projectors'] == ((96, 48), (192, 96))
  _assert_same(mapping.to_torch(params, 'sit', grid=_GRID), plain | wide)


def test_decoder_blocks_continue_the_blocks(plain):
  def old_name(name):
    return re.sub(r'^blocks\.([23])\.', lambda m: f'decoder_blocks.{int(m[1]) - 2}.', name)

  old = {old_name(name): x for name, x in plain.items()}
  assert old['decoder_blocks.1.mlp.fc1.bias'] is plain['blocks.3.mlp.fc1.bias']
  expected = trees.named_leaves(mapping.to_ours(plain, 'sit'))
  _assert_same(trees.named_leaves(mapping.to_ours(old, 'sit')), expected)
  assert mapping.infer_config(old)['depth'] == 4
  gap = {re.sub(r'^blocks\.1\.', 'decoder_blocks.0.', name): x for name, x in plain.items()}
  with pytest.raises(types.UserError, match='decoder_blocks cannot follow blocks'):
    mapping.to_ours(gap, 'sit')


def _problems(state_dict, **kwargs):
  with pytest.raises(types.UserError) as error:
    mapping.to_ours(state_dict, 'sit', **kwargs)
  head, _, tail = str(error.value).partition(': ')
  assert "family 'sit'" in head
  return tail.split('; ')


def test_all_misfits_are_listed_and_no_others(plain, skip):
  del plain['blocks.2.attn.qkv.bias'], plain['final_layer.linear.weight']
  plain['x_embedder.proj.weight'] = np.zeros((48, 4, 2, 2), np.float32)
  plain['blocks.0.mlp.fc1.bias'] = np.zeros((4, 64), np.float32)
  plain['blocks.1.mlp.fc1.bias'] = np.zeros((256,), np.int8)
  plain['blocks.0.attn.rope'] = np.zeros((7,), np.float32)
  assert _problems(plain) == [
    'missing: blocks.2.attn.qkv.bias, final_layer.linear.weight',
    'not expected: blocks.0.attn.rope',
    'x_embedder.proj.weight has shape (48, 4, 2, 2) instead of (64, 4, 2, 2), '
    'blocks.0.mlp.fc1.bias has shape (4, 64) instead of (256), '
    'blocks.1.mlp.fc1.bias has dtype int8 instead of floating-point numbers',
  ]
  one_less = {name: x for name, x in skip.items() if not name.startswith('blocks.5.')}
  assert 'long skips need an even number of blocks, found 5' in _problems(one_less)
  fewer = {name: x for name, x in skip.items() if not name.startswith('skip_norms.2')}
  assert _problems(fewer) == ['missing: skip_norms.2.weight, skip_norms.2.bias']
  params = mapping.to_ours(skip, 'sit')
  del params['model']['blocks']['fuse']['norm']['scale']
  with pytest.raises(types.UserError, match='missing: model/blocks/fuse/norm/scale$'):
    mapping.to_torch(params, 'sit', grid=_GRID)


def test_long_lists_of_misfits_are_cut():
  """One file of another program can miss hundreds of names."""
  (missing, unknown) = _problems({f'layer{i}.weight': np.zeros(2) for i in range(300)})
  assert missing.startswith('missing: x_embedder.proj.weight, ') and missing.endswith(' more')
  assert missing.count(',') == 5 and unknown.endswith('layer4.weight, and 295 more')


def test_a_part_in_one_block_is_expected_in_all(plain):
  plain['blocks.1.attn.q_norm.weight'] = np.ones(16, np.float32)
  (problem,) = _problems(plain)
  assert 'blocks.0.attn.q_norm.weight' in problem and problem.endswith('and 10 more')


def test_position_table_is_checked(plain):
  table = plain['pos_embed']
  near, off = table.copy(), table.copy()
  near[0, 5, 7] += 5e-7
  off[0, 5, 7] += 2e-6
  mapping.to_ours(plain | {'pos_embed': near}, 'sit')
  (problem,) = _problems(plain | {'pos_embed': off})
  assert problem == 'pos_embed is not the sine-cosine table of a 4x4 grid (off by 2e-06)'
  (problem,) = _problems(plain | {'pos_embed': np.full_like(table, np.nan)})
  assert 'not the sine-cosine table' in problem
  del plain['pos_embed']
  mapping.to_ours(plain, 'sit')


def test_position_table_of_other_grids(plain):
  params = mapping.to_ours(plain, 'sit')
  wide = mapping.to_torch(params, 'sit', grid=(2, 5))
  assert wide['pos_embed'].shape == (1, 10, 64)
  mapping.to_ours(wide, 'sit', grid=(2, 5))
  (problem,) = _problems(wide)
  assert problem == 'pos_embed has 10 tokens, not a square number: give the grid (rows, columns)'
  (problem,) = _problems(wide, grid=(3, 5))
  assert problem == 'pos_embed has shape (1, 10, 64) instead of (1, 15, 64)'
  (problem,) = _problems(wide, grid=(5, 2))
  assert 'not the sine-cosine table of a 5x2 grid' in problem


def test_patch_size_on_the_way_out(plain):
  """16 values per patch are 2x2 of 4 channels, or 4x4 of one: the caller says which."""
  params = mapping.to_ours(plain, 'sit')
  other = mapping.to_torch(params, 'sit', patch_size=4, grid=_GRID)
  assert other['x_embedder.proj.weight'].shape == (64, 1, 4, 4)
  _assert_same(trees.named_leaves(mapping.to_ours(other, 'sit')), trees.named_leaves(params))
  message = r'patch_size=3: .* has shape \(16, 64\) instead of \(3\*3\*C, 64\)'
  with pytest.raises(types.UserError, match=message):
    mapping.to_torch(params, 'sit', patch_size=3, grid=_GRID)
  for bad in ({'patch_size': 0}, {'grid': (0, 4)}):
    with pytest.raises(types.UserError, match='must be positive'):
      mapping.to_torch(params, 'sit', **bad)


def test_labels_without_a_null_label(plain):
  """A model trained without dropping labels has K rows; a row of zeros stands for no label."""
  name, path = 'y_embedder.embedding_table.weight', ('model', 'label_embed', 'embedding')
  table = plain[name]
  leaf = lambda params: params[path[0]][path[1]][path[2]]
  np.testing.assert_array_equal(leaf(mapping.to_ours(plain, 'sit', num_classes=10)), table)
  found = leaf(mapping.to_ours(plain, 'sit', num_classes=11))
  np.testing.assert_array_equal(found[:-1], table)
  assert found.shape == (12, 64) and found.dtype == table.dtype and not found[-1].any()
  with pytest.raises(types.UserError, match='has 11 rows, .*; given --num_classes=9'):
    mapping.to_ours(plain, 'sit', num_classes=9)
  # ImageNet's classes are 1000, so that 1000 rows are hardly 999 and a null label.
  plain[name] = np.zeros((1000, 64), np.float32)
  with pytest.raises(types.UserError, match='Say which: --num_classes=1000 or --num_classes=999'):
    mapping.to_ours(plain, 'sit')
  assert leaf(mapping.to_ours(plain, 'sit', num_classes=1000)).shape == (1001, 64)
  assert leaf(mapping.to_ours(plain, 'sit', num_classes=999)).shape == (1000, 64)
