"""Meshes over several slices: which devices are neighbours, and what is refused."""

import types as python_types

import numpy as np
import pytest

from diversedit_jax import sharding, slices, types


def chips(count, *, number=1, platform='cpu'):
  """Devices as JAX describes them, eight to a process, in slices of one size; shuffled."""
  made = [
    python_types.SimpleNamespace(
      id=i,
      process_index=i // 8,
      slice_index=i * number // count,
      platform=platform,
      device_kind='of a test',
      coords=(i % 4, i // 4 % 4, 0),
      core_on_chip=0,
    )
    for i in range(count)
  ]
  return [made[i] for i in np.random.default_rng(0).permutation(count)]


def slices_in(array):
  return np.vectorize(lambda device: device.slice_index)(array)


def test_data_alone_reaches_across_slices():
  devices = chips(32, number=2, platform='tpu')
  found = slices_in(slices.arrange(devices, (4, 4, 2), -1))
  assert [set(block.flat) for block in found] == [{0}, {0}, {1}, {1}]
  for wrong in ((1, 32, 1), (1, 16, 2), (1, 4, 8)):
    with pytest.raises(types.UserError, match='mesh.slices=1 to have it so'):
      slices.arrange(devices, wrong, -1)
    whole = slices.arrange(devices, wrong, 1)
    assert whole.shape == wrong and len({device.id for device in whole.flat}) == 32
    assert list(slices_in(whole).flat) == [0] * 16 + [1] * 16


def test_gpus_are_grouped_as_told_and_not_without():
  devices = chips(16, number=2, platform='gpu')
  assert slices.arrange(devices, (1, 16, 1), -1).shape == (1, 16, 1)
  found = slices.arrange(devices, (4, 4, 1), 2)
  processes = [{device.process_index for device in row.flat} for row in found]
  assert processes == [{0}, {0}, {1}, {1}]
  with pytest.raises(types.UserError, match='8 devices of each of 2 slices'):
    slices.arrange(devices, (1, 16, 1), 2)
  with pytest.raises(types.UserError, match='mesh.slices=3 does not divide 16 devices'):
    slices.arrange(devices, (16, 1, 1), 3)


def test_tpus_tell_how_many_slices_there_are():
  devices = chips(32, number=2, platform='tpu')
  with pytest.raises(types.UserError, match='mesh.slices=4, but the devices are in 2 slices'):
    slices.groups(devices, 4)
  with pytest.raises(types.UserError, match='have 16, 15 devices'):
    slices.groups(sorted(devices, key=lambda device: device.id)[:-1], -1)


def test_the_only_slice_need_not_have_a_number():
  devices = chips(16, platform='tpu')
  for device in devices:
    del device.slice_index
  found = slices.arrange(devices, (4, 2, 2), -1)
  assert found.shape == (4, 2, 2) and len({device.id for device in found.flat}) == 16


def test_a_plan_without_devices_knows_what_it_is_told():
  assert sharding.planned_mesh(-1, 8, 1, 32, slices=4).shape['data'] == 4
  with pytest.raises(types.UserError, match='8 devices of each of 4 slices'):
    sharding.planned_mesh(-1, 16, 1, 32, slices=4)
