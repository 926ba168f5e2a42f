"""types, rng and trees: small promises that everything else leans on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import rng, trees, types

TREE = {
  'b': {'w': jnp.full((2, 3), 2.0)},
  'a': [jnp.ones(4, jnp.bfloat16), jnp.zeros((), jnp.int32)],
}


def test_check_names_array_found_and_expected():
  types.check('x', jnp.zeros((2, 3, 3)), 'N H H', H=3)
  with pytest.raises(ValueError, match=r'x has shape \(2, 3, 4\), expected \(N, H, H\)'):
    types.check('x', jnp.zeros((2, 3, 4)), 'N H H')
  with pytest.raises(ValueError, match=r'y has shape \(2,\), expected \(N, C=4\)'):
    types.check('y', jnp.zeros(2), 'N C', C=4)


def test_paths_counts_and_bytes():
  assert list(trees.named_leaves(TREE)) == ['a/0', 'a/1', 'b/w']
  assert trees.count(TREE) == 11
  assert trees.num_bytes(TREE) == 4 * 2 + 4 + 6 * 4


def test_global_norm_is_the_norm_of_all_leaves_together():
  leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(TREE)]
  np.testing.assert_allclose(
    trees.global_norm(TREE), np.linalg.norm(np.concatenate(leaves)), rtol=1e-6
  )


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_all_finite_finds_one_bad_value(bad):
  for finite in (trees.all_finite, trees.finite_sums):
    assert bool(finite(TREE))
    spoiled = TREE | {'b': {'w': TREE['b']['w'].at[1, 2].set(bad)}}
    assert not bool(finite(spoiled))


def test_sums_hide_no_bad_value_behind_another_and_may_overflow():
  both = {'w': jnp.array([jnp.inf, -jnp.inf, 1.0])}
  assert not bool(trees.finite_sums(both))
  huge = {'w': jnp.full(4, 3e38)}
  assert bool(trees.all_finite(huge)) and not bool(trees.finite_sums(huge))


def test_did_you_mean():
  assert trees.did_you_mean('optimzer', ['model', 'optimizer']) == "; did you mean 'optimizer'?"
  assert trees.did_you_mean('zzz', ['model', 'data']) == '; known: data, model'
  assert trees.did_you_mean('zzz', map(str, range(1000))).endswith('132, 133, ... (1000 in all)')


def test_streams_depend_on_key_name_and_step_alone():
  key = jax.random.key(0)
  data = lambda *args: tuple(np.asarray(jax.random.key_data(rng.stream(*args))))
  assert data(key, 'time', 3) == data(key, 'time', jnp.int32(3))
  others = {
    data(key, 'time', 4),
    data(key, 'noise', 3),
    data(jax.random.key(1), 'time', 3),
    data(key, 'time'),
  }
  assert len(others | {data(key, 'time', 3)}) == 5


def test_per_example_keys_do_not_depend_on_the_batch():
  key = jax.random.key(0)
  whole = jax.random.key_data(rng.per_example(key, np.arange(8)))
  parts = [jax.random.key_data(rng.per_example(key, np.arange(i, i + 2))) for i in range(0, 8, 2)]
  np.testing.assert_array_equal(whole, np.concatenate(parts))
  assert len(np.unique(whole, axis=0)) == 8


def leaf(values, dtype=jnp.float32):
  return {'w': jnp.asarray(values, dtype)}


VALUES = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


def flipped_bit(bit):
  bits = VALUES.view(np.uint32).copy()
  bits[3, 2] ^= np.uint32(1 << bit)
  return bits.view(np.float32)


CHANGES = {
  **{f'bit {bit}': flipped_bit(bit) for bit in (0, 15, 31)},
  'negated': -VALUES,
  'two signs': VALUES * np.where(np.arange(6) % 5, 1, -1).astype(np.float32),
  'rows exchanged': VALUES[::-1],
  'columns exchanged': VALUES[:, ::-1],
  'two exchanged': np.concatenate([VALUES[1::-1], VALUES[2:]]),
  'shape': VALUES.reshape(6, 8),
  'zeros': 0 * VALUES,
  'negative zeros': -0.0 * np.abs(VALUES),
}


@pytest.mark.parametrize('shape', [(3,), (2, 5), (2, 4, 6, 3)])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_normal_numbers_are_those_of_jax(shape, dtype):
  key = jax.random.key(7)
  ours, expected = rng.normal(key, shape, dtype), jax.random.normal(key, shape, dtype)
  assert ours.dtype == dtype
  np.testing.assert_array_equal(ours, expected)


def test_fingerprints_of_other_values_differ():
  found = {name: trees.fingerprint(leaf(x)) for name, x in CHANGES.items()}
  found['same'] = trees.fingerprint(leaf(VALUES))
  found['name'] = trees.fingerprint({'v': jnp.asarray(VALUES)})
  found['type'] = trees.fingerprint(leaf(VALUES, jnp.bfloat16))
  assert len(set(found.values())) == len(CHANGES) + 3
  assert all(len(digits) == 16 and int(digits, 16) >= 0 for digits in found.values())
  assert trees.fingerprint(leaf(VALUES.copy())) == found['same']
  assert trees.fingerprint({'w': VALUES}) == found['same']  # On the host.


def test_fingerprint_of_any_tree():
  first = trees.fingerprint(TREE)
  assert trees.fingerprint(TREE | {'a': [TREE['a'][0], jnp.ones((), jnp.int32)]}) != first
  half = TREE['a'][0].at[2].set(1.0078125)  # The last bit of a bfloat16.
  assert trees.fingerprint(TREE | {'a': [half, TREE['a'][1]]}) != first


def test_checksums_of_other_values_differ():
  found = {name: int(trees.checksums(leaf(x))['w']) for name, x in CHANGES.items()}
  found['same'] = int(trees.checksums(leaf(VALUES))['w'])
  del found['shape']  # A checkpoint knows its shapes.
  assert len(set(found.values())) == len(found)
  assert int(trees.checksums({'w': VALUES})['w']) == found['same']  # On the host.
  bits = VALUES.view(np.uint32).ravel()
  bits = bits ^ (bits >> 15)
  places = np.arange(bits.size, dtype=np.uint32)
  assert int(np.sum(bits * (2 * places + 1), dtype=np.uint32)) == found['same']


@pytest.mark.parametrize('tree', [TREE, {'n': jnp.int32(7), 'h': jnp.ones((2, 3), jnp.bfloat16)}])
def test_a_checksum_sees_each_bit_of_each_value(tree):
  first = trees.checksums(tree)
  for name, x in trees.named_leaves(tree).items():
    bits = np.asarray(x).view(f'uint{8 * x.dtype.itemsize}')
    for bit in range(8 * x.dtype.itemsize):
      changed = bits ^ bits.dtype.type(1 << bit)
      assert int(trees.checksums({name: changed})[name]) != int(first[name]), (name, bit)
