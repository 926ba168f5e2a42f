"""Mesh sizes and rules; what eight devices compute is in training/devices_test.py."""

from flax import nnx
import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from diversedit_jax import sharding, types


def test_mesh_takes_what_is_left():
  mesh = sharding.make_mesh(data=-1)
  assert dict(mesh.shape) == {'data': len(jax.devices()), 'fsdp': 1, 'tensor': 1}


@pytest.mark.parametrize('sizes', [(3, 5, 1), (-1, -1, 1), (-1, 7, 1), (0, 1, 1)])
def test_impossible_meshes_are_refused(sizes):
  with pytest.raises(types.UserError, match='devices'):
    sharding.make_mesh(*sizes)


def param(*shape):
  return nnx.Param(
    jax.ShapeDtypeStruct(shape, np.float32), out_sharding=('embed', 'mlp'), eager_sharding=False
  )


def test_rules_map_logical_axes_and_keep_whole_what_does_not_divide():
  mesh = sharding.planned_mesh(1, 4, 2, 8)
  tree = {
    'divides': param(8, 6),
    'does_not': param(6, 6),
    'bare': jax.ShapeDtypeStruct((3,), np.float32),
  }
  got = sharding.shardings_of(tree, mesh)
  assert got['divides'].spec == PartitionSpec('fsdp', 'tensor')
  assert got['does_not'].spec == PartitionSpec(None, 'tensor')
  assert got['bare'].spec == PartitionSpec()


def test_fsdp_that_splits_nothing_is_refused_with_a_size_that_does():
  shapes = jax.ShapeDtypeStruct((1152, 8), np.float32)
  split = lambda fsdp: sharding.shardings_of(
    param(1152, 8), sharding.planned_mesh(-1, fsdp, 1, 256)
  )
  sharding.check_split(shapes, split(128), sharding.planned_mesh(-1, 128, 1, 256), 1152)
  assert sharding.shard_bytes(shapes, split(128)) == 1152 * 8 * 4 // 128
  with pytest.raises(types.UserError, match=r'fsdp=256 leaves 100% .*use mesh.fsdp=128'):
    sharding.check_split(shapes, split(256), sharding.planned_mesh(-1, 256, 1, 256), 1152)


@pytest.mark.parametrize(
  ('tensor', 'heads', 'hidden', 'best'),
  [(5, 16, 4608, 1), (4, 6, 1536, 2), (32, 16, 4608, 16), (4, 12, 90, 2)],
)
def test_tensor_must_divide_heads_and_mlp(tensor, heads, hidden, best):
  """Heads and MLPs of XL/2 and S/2, and a narrow MLP."""
  mesh = lambda size: sharding.planned_mesh(-1, 1, size, 160)
  with pytest.raises(
    types.UserError, match=f'tensor={tensor} does .* {heads} heads .*mesh.tensor={best} and'
  ):
    sharding.check_tensor(mesh(tensor), heads, hidden)
  sharding.check_tensor(mesh(best), heads, hidden)


def test_batch_keeps_its_rows_and_order():
  mesh = sharding.make_mesh()
  rows = sharding.process_rows(mesh, 6)
  np.testing.assert_array_equal(rows, np.arange(6))
  batch = {'x': np.arange(12.0).reshape(6, 2)}
  np.testing.assert_array_equal(sharding.put_batch(batch, mesh, 6)['x'], batch['x'])


def test_constrain_batch_does_nothing_without_a_mesh():
  x = np.ones((3, 2), np.float32)
  np.testing.assert_array_equal(jax.jit(sharding.constrain_batch)(x), x)


def test_batches_are_rounded_up_and_padded_with_their_last_row():
  mesh = sharding.planned_mesh(2, 2, 1, 4)
  assert [sharding.round_up(size, mesh) for size in (1, 4, 5)] == [4, 4, 8]
  x = np.arange(6).reshape(3, 2)
  np.testing.assert_array_equal(sharding.pad_rows(x, 5), [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]])
  assert sharding.pad_rows(x, 3) is x
