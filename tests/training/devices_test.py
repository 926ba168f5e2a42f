"""Eight simulated devices compute what one does; FSDP and ZeRO-1 split the state among them."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
LAYOUTS = {
  'one': ('1', '1', '1', '1', 'no'),
  'dp': ('8', '8', '1', '1', 'no'),
  'zero1': ('8', '8', '1', '1', 'yes'),
  'fsdp': ('8', '1', '8', '1', 'no'),
  'dp_fsdp_tp': ('8', '2', '2', '2', 'no'),
  'zero1_fsdp_tp': ('8', '2', '2', '2', 'yes'),
}

COMBINED = ('dp_fsdp_tp',)  # For combinations of methods, which are slow.


def run(output, layout, method='flow+diverse'):
  subprocess.run(
    [
      sys.executable,
      str(HERE.parent / 'helpers' / 'eight_devices.py'),
      *LAYOUTS[layout],
      method,
      str(output),
    ],
    check=True,
    cwd=HERE.parents[1],
    env=os.environ | {'PYTHONPATH': str(HERE.parents[1])},
  )
  with np.load(output) as file:
    return dict(file)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('devices')
  return {name: run(folder / f'{name}.npz', name) for name in LAYOUTS if name not in COMBINED}


@pytest.mark.parametrize('name', [name for name in LAYOUTS if name not in ('one', *COMBINED)])
def test_eight_devices_equal_one(runs, name):
  check_equal(runs['one'], runs[name])


@pytest.mark.slow
@pytest.mark.parametrize(
  'method', ['reg+dispersive+sra+diverse', 'meanflow+repa+dispersive+diverse']
)
def test_eight_devices_equal_one_for_combined_methods(tmp_path, method):
  one, many = (run(tmp_path / f'{n}.npz', n, method) for n in ('one', 'dp_fsdp_tp'))
  check_equal(one, many)


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


def test_a_fingerprint_does_not_depend_on_where_parameters_lie(runs):
  assert len({str(run['fingerprint']) for run in runs.values()}) == 1


def test_fsdp_splits_the_state(runs):
  whole = int(runs['one']['bytes'])
  assert int(runs['dp']['bytes']) == whole
  assert int(runs['fsdp']['bytes']) < 0.2 * whole


def test_zero1_splits_moments_and_average(runs):
  whole = int(runs['one']['bytes'])
  # A quarter, the parameters, is whole; three quarters are split in eight.
  least = whole / 4 + whole * 3 / 4 / 8
  assert least <= int(runs['zero1']['bytes']) < 1.05 * least
  assert int(runs['zero1_fsdp_tp']['bytes']) < int(runs['zero1']['bytes'])
