"""Mesh sizes and rules; what eight devices compute is in training/devices_test.py."""

from flax import nnx
import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from diversedit_jax import sharding, types


def fake_mesh(**sizes):
  return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


def test_mesh_takes_what_is_left():
  mesh = sharding.make_mesh(data=-1)
  assert dict(mesh.shape) == {'data': len(jax.devices()), 'fsdp': 1, 'tensor': 1}


@pytest.mark.parametrize('sizes', [(3, 5, 1), (-1, -1, 1), (-1, 7, 1), (0, 1, 1)])
def test_impossible_meshes_are_refused(sizes):
  with pytest.raises(types.UserError, match='devices'):
    sharding.make_mesh(*sizes)


def test_unknown_rules_are_refused():
  with pytest.raises(types.UserError, match="did you mean 'fsdp'"):
    sharding.rule_set('fdsp')


def test_rules_map_logical_axes_and_replicate_what_does_not_divide(caplog):
  mesh = fake_mesh(data=1, fsdp=4, tensor=2)
  make = lambda *shape: nnx.Param(
    jax.ShapeDtypeStruct(shape, np.float32), out_sharding=('embed', 'mlp'), eager_sharding=False
  )
  tree = {
    'divides': make(8, 6),
    'does_not': make(6, 6),
    'bare': jax.ShapeDtypeStruct((3,), np.float32),
  }
  with caplog.at_level('WARNING'):
    got = sharding.shardings_of(tree, mesh, sharding.RULES['fsdp_tp'])
  assert got['divides'].spec == PartitionSpec('fsdp', 'tensor')
  assert got['does_not'].spec == PartitionSpec(None, 'tensor')
  assert got['bare'].spec == PartitionSpec()
  assert 'axis embed of size 6 is not divisible by mesh axis fsdp=4' in caplog.text


def test_constrain_batch_does_nothing_without_a_mesh():
  x = np.ones((3, 2), np.float32)
  np.testing.assert_array_equal(jax.jit(sharding.constrain_batch)(x), x)
