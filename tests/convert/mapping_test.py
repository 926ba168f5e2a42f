"""Names and layouts, both ways, on models of the reference systems."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.convert import families, mapping

_NAMES = ('sit_plain', 'sit_qknorm', 'sit_skip')
_GRID = (4, 4)


def _parameters(archive):
  return {n.removeprefix('params/'): x for n, x in archive.items() if n.startswith('params/')}


@pytest.fixture(scope='module', params=_NAMES)
def reference(request, golden):
  """(config, state dict) of one reference model."""
  archive = golden(request.param)
  return json.loads(str(archive['config'])), _parameters(archive)


@pytest.fixture
def plain(golden):
  return _parameters(golden('sit_plain'))


@pytest.fixture
def skip(golden):
  return _parameters(golden('sit_skip'))


def _assert_same(found, expected):
  assert set(found) == set(expected)
  for name, array in expected.items():
    assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_round_trip_is_exact(reference):
  """Bit for bit, the position table too: it is computed in float64 as the reference does."""
  _, state_dict = reference
  params = mapping.to_ours(state_dict, 'sit')
  _assert_same(mapping.to_torch(params, 'sit', grid=_GRID), state_dict)


def test_other_way_round_is_exact(reference):
  params = mapping.to_ours(reference[1], 'sit')
  again = mapping.to_ours(mapping.to_torch(params, 'sit', grid=_GRID), 'sit')
  _assert_same(trees.named_leaves(again), trees.named_leaves(params))


def test_names_and_shapes(reference):
  config, state_dict = reference
  D, L, p = config['hidden_size'], config['depth'], config['patch_size']
  C, K, P, Z = (
    config['in_channels'],
    config['num_classes'],
    config['projector_dim'],
    config['z_dims'][0],
  )
  E = D // config['num_heads']
  linear = lambda fan_in, fan_out: {'kernel': (fan_in, fan_out), 'bias': (fan_out,)}
  norm = lambda width: {'scale': (width,), 'bias': (width,)}
  stacked = lambda n, tree: jax.tree.map(
    lambda shape: (n, *shape), tree, is_leaf=lambda x: isinstance(x, tuple)
  )
  attn = {'qkv': linear(D, 3 * D), 'proj': linear(D, D)}
  if config['qk_norm']:
    attn |= {'q_norm': norm(E), 'k_norm': norm(E)}
  mlp = {'fc1': linear(D, 4 * D), 'fc2': linear(4 * D, D)}
  block = {'attn': attn, 'mlp': mlp, 'adaln': linear(D, 6 * D)}
  fuse = {'norm': norm(2 * D), 'linear': linear(2 * D, D)}
  if 'skip_norms.0.weight' in state_dict:
    half = L // 2
    blocks = {name: stacked(half, block) for name in ('first', 'second')}
    blocks['fuse'] = stacked(half, fuse)
  else:
    blocks = {'layers': stacked(L, block)}
  expected = {
    'model': {
      'patch_embed': linear(p * p * C, D),
      'time_embed': {'fc1': linear(256, D), 'fc2': linear(D, D)},
      'label_embed': {'embedding': (K + 1, D)},
      'blocks': blocks,
      'final': {'adaln': linear(D, 2 * D), 'linear': linear(D, p * p * C)},
    },
    'heads': {'repa': {'0': {'fc1': linear(D, P), 'fc2': linear(P, P), 'fc3': linear(P, Z)}}},
  }
  params = mapping.to_ours(state_dict, 'sit')
  assert jax.tree.map(np.shape, params) == expected


def test_layouts(plain):
  model = mapping.to_ours(plain, 'sit')['model']
  conv = plain['x_embedder.proj.weight']
  kernel = model['patch_embed']['kernel'].reshape(2, 2, 4, 64)
  for row, col, channel in np.ndindex(2, 2, 4):
    np.testing.assert_array_equal(kernel[row, col, channel], conv[:, channel, row, col])
  np.testing.assert_array_equal(
    model['final']['linear']['kernel'], plain['final_layer.linear.weight'].T
  )
  for i in range(4):
    np.testing.assert_array_equal(
      model['blocks']['layers']['attn']['qkv']['kernel'][i], plain[f'blocks.{i}.attn.qkv.weight'].T
    )


def test_second_half_and_fusions_are_mirrored(skip):
  blocks = mapping.to_ours(skip, 'sit')['model']['blocks']
  for k, (first, second, fusion) in enumerate([(0, 5, 2), (1, 4, 1), (2, 3, 0)]):
    for half, i in (('first', first), ('second', second)):
      np.testing.assert_array_equal(
        blocks[half]['mlp']['fc1']['kernel'][k], skip[f'blocks.{i}.mlp.fc1.weight'].T
      )
      np.testing.assert_array_equal(
        blocks[half]['adaln']['bias'][k], skip[f'blocks.{i}.adaLN_modulation.1.bias']
      )
    fuse = blocks['fuse']
    np.testing.assert_array_equal(fuse['norm']['scale'][k], skip[f'skip_norms.{fusion}.weight'])
    np.testing.assert_array_equal(
      fuse['linear']['kernel'][k], skip[f'skip_linears.{fusion}.linear.weight'].T
    )


def test_results_do_not_alias_the_input(plain):
  params = mapping.to_ours(plain, 'sit')
  leaves = jax.tree.leaves(params)
  assert all(leaf.flags.c_contiguous and leaf.flags.writeable for leaf in leaves)
  assert not any(np.shares_memory(leaf, x) for leaf in leaves for x in plain.values())


def test_infer_config(reference):
  config, state_dict = reference
  skips = any(name.startswith('skip_norms') for name in state_dict)
  assert mapping.infer_config(state_dict) == {
    'depth': config['depth'],
    'width': config['hidden_size'],
    'heads': config['num_heads'] if config['qk_norm'] else None,
    'mlp_ratio': config['mlp_ratio'],
    'patch_size': config['patch_size'],
    'channels': config['in_channels'],
    'num_classes': config['num_classes'],
    'qk_norm': config['qk_norm'],
    'skips': skips,
    'interval': False,
    'class_token': 0,
    'learn_sigma': False,
    'tokens': 16,
    'projectors': ((config['projector_dim'], config['z_dims'][0]),),
  }


def test_infer_config_of_something_else():
  config = mapping.infer_config({'weight': np.zeros((3, 4))})
  assert config['depth'] == 0 and config['width'] is None and config['tokens'] is None


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


def test_unequal_numbers_are_refused(plain):
  gap = {re.sub(r'^blocks\.1\.', 'decoder_blocks.0.', name): x for name, x in plain.items()}
  with pytest.raises(types.UserError, match='decoder_blocks cannot continue blocks'):
    mapping.to_ours(gap, 'sit')


def _problems(state_dict, **kwargs):
  with pytest.raises(types.UserError) as error:
    mapping.to_ours(state_dict, 'sit', **kwargs)
  message = str(error.value)
  assert '\n' not in message
  head, _, tail = message.partition(': ')
  assert "family 'sit'" in head
  return set(tail.split('; '))


def test_all_misfits_are_listed_and_no_others(plain):
  del plain['blocks.2.attn.qkv.bias'], plain['final_layer.linear.weight']
  plain['x_embedder.proj.weight'] = np.zeros((48, 4, 2, 2), np.float32)
  plain['blocks.0.mlp.fc1.bias'] = np.zeros((4, 64), np.float32)
  plain['blocks.1.mlp.fc1.bias'] = np.zeros((256,), np.int8)
  plain['blocks.0.attn.rope'] = np.zeros((7,), np.float32)
  assert _problems(plain) == {
    'blocks.2.attn.qkv.bias: missing, expected shape (192)',
    'final_layer.linear.weight: missing, expected shape (16, 64)',
    'x_embedder.proj.weight: shape (48, 4, 2, 2), expected (64, 4, 2, 2)',
    'blocks.0.mlp.fc1.bias: shape (4, 64), expected (256)',
    'blocks.1.mlp.fc1.bias: int8, expected floating point',
    'blocks.0.attn.rope: unknown, shape (7)',
  }


def test_learned_sigma_head_is_refused(plain):
  """The original SiT and DiT predict 8 channels; those are other families."""
  plain['final_layer.linear.weight'] = np.zeros((32, 64), np.float32)
  plain['final_layer.linear.bias'] = np.zeros((32,), np.float32)
  assert _problems(plain) == {
    'final_layer.linear.weight: shape (32, 64), expected (16, 64)',
    'final_layer.linear.bias: shape (32), expected (16)',
  }


def test_missing_layers_and_partial_options(plain, skip):
  gap = {name: x for name, x in plain.items() if not name.startswith('blocks.1.')}
  problems = _problems(gap)
  assert 'blocks.1.mlp.fc2.weight: missing, expected shape (64, 256)' in problems
  assert 'blocks.3.mlp.fc2.weight: unknown, shape (64, 256)' in problems
  plain['blocks.1.attn.q_norm.weight'] = np.ones(16, np.float32)
  problems = _problems(plain)
  assert len(problems) == 4 * 4 - 1
  assert 'blocks.0.attn.k_norm.bias: missing, expected shape (16)' in problems
  one_less = {name: x for name, x in skip.items() if not name.startswith('blocks.5.')}
  assert 'blocks: long skips join two halves, but there are 5 blocks' in _problems(one_less)
  fewer = {name: x for name, x in skip.items() if not name.startswith('skip_norms.2')}
  assert _problems(fewer) == {
    'skip_norms.2.weight: missing, expected shape (128)',
    'skip_norms.2.bias: missing, expected shape (128)',
  }


def test_an_empty_state_dict_misses_everything():
  problems = _problems({})
  assert 'blocks.0.attn.qkv.weight: missing, expected shape (3*D, D)' in problems
  assert 't_embedder.mlp.0.weight: missing, expected shape (D, 256)' in problems


def test_unknown_family(plain):
  for convert in (mapping.to_ours, mapping.to_torch, mapping.infer_config):
    with pytest.raises(types.UserError, match="unknown family 'sitt'; did you mean 'sit'"):
      convert(plain, 'sitt')


def test_position_table_is_checked(plain):
  table = plain['pos_embed']
  near, off = table.copy(), table.copy()
  near[0, 5, 7] += 5e-7
  off[0, 5, 7] += 2e-6
  mapping.to_ours(plain | {'pos_embed': near}, 'sit')
  (problem,) = _problems(plain | {'pos_embed': off})
  assert problem == 'pos_embed: not the sine-cosine table of a 4x4 grid, off by 2e-06'
  swapped = table.reshape(4, 4, 64).swapaxes(0, 1).reshape(1, 16, 64)
  for bad in (swapped, np.full_like(table, np.nan)):
    (problem,) = _problems(plain | {'pos_embed': bad})
    assert 'not the sine-cosine table' in problem
  del plain['pos_embed']
  mapping.to_ours(plain, 'sit')


def test_position_table_of_other_grids(plain):
  params = mapping.to_ours(plain, 'sit')
  wide = mapping.to_torch(params, 'sit', grid=(2, 5))
  assert wide['pos_embed'].shape == (1, 10, 64)
  mapping.to_ours(wide, 'sit', grid=(2, 5))
  assert _problems(wide) == {
    'pos_embed: 10 tokens are not a square: give the grid as (rows, columns)'
  }
  assert _problems(wide, grid=(3, 5)) == {'pos_embed: shape (1, 10, 64), expected (1, 15, 64)'}
  (problem,) = _problems(wide, grid=(5, 2))
  assert 'not the sine-cosine table of a 5x2 grid' in problem


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_short_dtypes_round_trip(plain, dtype):
  """The rounded position table is within the dtype's epsilon of ours and rounds to itself again."""
  short = {name: x.astype(dtype) for name, x in plain.items()}
  params = mapping.to_ours(short, 'sit')
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(dtype)}
  _assert_same(mapping.to_torch(params, 'sit', grid=_GRID), short)


def test_jax_arrays_are_taken(plain):
  params = jax.tree.map(jax.numpy.asarray, mapping.to_ours(plain, 'sit'))
  _assert_same(mapping.to_torch(params, 'sit', grid=_GRID), plain)


def test_misfits_of_our_parameters(skip):
  params = mapping.to_ours(skip, 'sit')
  blocks = params['model']['blocks']
  blocks['second']['mlp']['fc1']['bias'] = np.zeros((2, 256), np.float32)
  blocks['layers'] = np.zeros(3, np.float32)
  del blocks['fuse']['norm']['scale'], params['heads']['repa']['0']['fc2']['bias']
  with pytest.raises(types.UserError) as error:
    mapping.to_torch(params, 'sit', grid=_GRID)
  assert set(str(error.value).partition(': ')[2].split('; ')) == {
    'model/blocks/second/mlp/fc1/bias: shape (2, 256), expected (3, 256)',
    'model/blocks/layers: unknown, shape (3)',
    'model/blocks/fuse/norm/scale: missing, expected shape (3, 128)',
    'heads/repa/0/fc2/bias: missing, expected shape (96)',
  }


def test_patch_size_on_the_way_out(plain):
  """16 values per patch are 2x2 of 4 channels, or 4x4 of one: the caller says which."""
  params = mapping.to_ours(plain, 'sit')
  other = mapping.to_torch(params, 'sit', patch_size=4, grid=_GRID)
  assert other['x_embedder.proj.weight'].shape == (64, 1, 4, 4)
  _assert_same(trees.named_leaves(mapping.to_ours(other, 'sit')), trees.named_leaves(params))
  with pytest.raises(
    types.UserError, match=r'patch_size=3.*shape \(16, 64\), expected \(3\*3\*C, 64\)'
  ):
    mapping.to_torch(params, 'sit', patch_size=3, grid=_GRID)
  for bad in ({'patch_size': 0}, {'grid': (0, 4)}):
    with pytest.raises(types.UserError, match='must be positive'):
      mapping.to_torch(params, 'sit', **bad)


def test_a_family_is_added_as_data(plain, monkeypatch):
  """A class token with a row of zeros in front of the table, as in REG, and one more linear."""
  sit = families.FAMILIES['sit']
  rules = (
    *sit.rules,
    families.Rule(
      torch='token.weight', ours='model/token/kernel', shape=('D', 'Q'), layout='linear'
    ),
  )
  monkeypatch.setitem(families.FAMILIES, 'token', families.Family(rules=rules, zero_rows=1))
  zeros = np.zeros((1, 1, 64), np.float32)
  plain['pos_embed'] = np.concatenate([zeros, plain['pos_embed']], axis=1)
  plain['token.weight'] = np.arange(640, dtype=np.float32).reshape(64, 10)
  params = mapping.to_ours(plain, 'token')
  assert params['model']['token']['kernel'].shape == (10, 64)
  assert mapping.infer_config(plain, 'token')['tokens'] == 16
  _assert_same(mapping.to_torch(params, 'token', grid=_GRID), plain)
