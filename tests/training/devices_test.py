"""Eight simulated devices compute what one does; FSDP and ZeRO-1 split the state among them."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from diversedit_jax.training import average

HERE = pathlib.Path(__file__).parent
# Sizes of the axes 'data', 'fsdp' and 'tensor', and whether the state is split over 'data'.
MESHES = {
  'dp': '8,1,1,0',
  'zero1': '8,1,1,1',
  'fsdp': '1,8,1,0',
  'zero1_fsdp_tp': '2,2,2,1',
}
COMBINED = {'dp_fsdp_tp': '2,2,2,0'}  # For combinations of methods, which are slow.


def run(folder, devices, meshes, method='flow+diverse'):
  """What eight_devices.py writes, by the name of the mesh."""
  layouts = [f'{name}:{sizes}' for name, sizes in meshes.items()]
  helper = HERE.parent / 'helpers' / 'eight_devices.py'
  subprocess.run(
    [sys.executable, str(helper), str(devices), method, str(folder), *layouts],
    check=True,
    cwd=HERE.parents[1],
    env=os.environ | {'PYTHONPATH': str(HERE.parents[1])},
  )
  found = {}
  for name in meshes:
    with np.load(folder / f'{name}.npz') as file:
      found[name] = dict(file)
  return found


def one_and_eight(folder, meshes, method='flow+diverse'):
  return run(folder, 1, {'one': '1,1,1,0'}, method) | run(folder, 8, meshes, method)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  return one_and_eight(tmp_path_factory.mktemp('devices'), MESHES)


@pytest.mark.parametrize('name', MESHES)
def test_eight_devices_equal_one(runs, name):
  check_equal(runs['one'], runs[name])


@pytest.mark.slow
@pytest.mark.parametrize(
  'method', ['reg+dispersive+sra+diverse', 'meanflow+repa+dispersive+diverse']
)
def test_eight_devices_equal_one_for_combined_methods(tmp_path, method):
  found = one_and_eight(tmp_path, COMBINED, method)
  check_equal(found['one'], found['dp_fsdp_tp'])


def check_equal(one, many):
  assert one['devices'] == 1 and many['devices'] == 8
  for key in one:
    if key not in ('bytes', 'devices', 'fingerprint'):
      # Sums over devices are taken in another order: float32 rounding, through three Adam steps.
      np.testing.assert_allclose(many[key], one[key], rtol=1e-5, atol=1e-5, err_msg=key)


def test_the_three_steps_moved_the_parameters(runs):
  assert len({tuple(row) for row in runs['one']['losses']}) == 3
  moved = [k for k in runs['one'] if k.startswith('params/')]
  distance = [
    np.abs(runs['one'][k] - runs['one'][k.replace('params/', 'ema/')]).max() for k in moved
  ]
  assert min(distance) > 1e-6


def test_a_further_average_is_of_the_parameters_after_each_step(runs):
  """By the integrals of t^gamma over the steps, and nothing of where it began."""
  power = average.PowerFunction(0.1).gamma + 1
  weights = np.diff((np.arange(4) / 3) ** power)
  for key in (k for k in runs['one'] if k.startswith('power/')):
    after = [runs['one'][key.replace('power/', f'after_{n}/')].astype('float64') for n in (1, 2, 3)]
    expected = sum(w * x for w, x in zip(weights, after, strict=True))
    np.testing.assert_allclose(runs['one'][key], expected, rtol=0, atol=1e-6, err_msg=key)


def test_a_fingerprint_does_not_depend_on_where_parameters_lie(runs):
  assert len({str(run['fingerprint']) for run in runs.values()}) == 1


def test_fsdp_splits_the_state(runs):
  whole = int(runs['one']['bytes'])
  assert int(runs['dp']['bytes']) == whole
  assert int(runs['fsdp']['bytes']) < 0.2 * whole


def test_zero1_splits_moments_and_average(runs):
  whole = int(runs['one']['bytes'])
  # A fifth, the parameters, is whole; moments and both averages are split in eight.
  least = whole / 5 + whole * 4 / 5 / 8
  assert least <= int(runs['zero1']['bytes']) < 1.05 * least
  assert int(runs['zero1_fsdp_tp']['bytes']) < int(runs['zero1']['bytes'])
