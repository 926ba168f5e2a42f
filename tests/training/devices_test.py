"""Eight simulated devices compute what one does; FSDP and ZeRO-1 split the state among them."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from diversedit_jax.training import average

HERE = pathlib.Path(__file__).parent
# Sizes of the axes 'data', 'fsdp' and 'tensor', and whether the state is split over 'data'.
MESHES = {'dp': '8,1,1,0', 'zero1': '8,1,1,1', 'zero1_fsdp_tp': '2,2,2,1'}
FSDP = {'fsdp': '1,8,1,0'}  # Slow, for the last one above splits parameters too.
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
      found[name] = dict(file) | {'sent': json.loads((folder / f'{name}.json').read_text())}
  return found


def one_and_eight(folder, meshes, method='flow+diverse'):
  return run(folder, 1, {'one': '1,1,1,0'}, method) | run(folder, 8, meshes, method)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('devices')


@pytest.fixture(scope='module')
def runs(folder):
  return one_and_eight(folder, MESHES)


@pytest.fixture(scope='module')
def fsdp(folder):
  return run(folder, 8, FSDP)['fsdp']


@pytest.mark.parametrize('name', MESHES)
def test_eight_devices_equal_one(runs, name):
  check_equal(runs['one'], runs[name])


@pytest.mark.slow
def test_eight_devices_that_split_all_parameters_equal_one(runs, fsdp, folder):
  check_equal(runs['one'], fsdp)
  assert fsdp['fingerprint'] == runs['one']['fingerprint']
  check_before(folder, 'fsdp')


@pytest.mark.slow
@pytest.mark.parametrize(
  'method',
  [
    'reg+haste+dispersive+sra+diverse',
    'meanflow+repa+dispersive+diverse',
    'reg+diverse;repa.preset=irepa',
    'selfflow+repa+dispersive+diverse',
    'reg+contrastive+diverse',
    'contrastive+diverse;contrastive.negatives=random',
    'repa+diverse;model.block=lightning',
    'repa+diverse;model.block=ddt;model.head.depth=2;model.head.width=64',
  ],
)
def test_eight_devices_equal_one_for_combined_methods(tmp_path, method):
  found = one_and_eight(tmp_path, COMBINED, method)
  check_equal(found['one'], found['dp_fsdp_tp'])


@pytest.mark.slow
def test_eight_devices_equal_one_with_muon(tmp_path):
  """Its moments are split like the rest, and matrices are made orthogonal as wholes."""
  meshes = {'zero1': MESHES['zero1'], 'zero1_fsdp_tp': MESHES['zero1_fsdp_tp']}
  found = one_and_eight(tmp_path, meshes, 'flow+diverse;optimizer.name=muon')
  for name in meshes:
    check_equal(found['one'], found[name])
    assert found[name]['bytes'] < 0.6 * found['one']['bytes']


def check_equal(one, many):
  assert one['devices'] == 1 and many['devices'] == 8
  for key in one:
    if key not in ('bytes', 'devices', 'fingerprint', 'sent'):
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


@pytest.mark.slow
def test_fsdp_splits_the_state(runs, fsdp):
  assert int(fsdp['bytes']) < 0.2 * int(runs['one']['bytes'])


def test_zero1_splits_moments_and_average(runs):
  whole = int(runs['one']['bytes'])
  assert int(runs['dp']['bytes']) == whole
  # A fifth, the parameters, is whole; moments and both averages are split in eight.
  least = whole / 5 + whole * 4 / 5 / 8
  assert least <= int(runs['zero1']['bytes']) < 1.05 * least
  assert int(runs['zero1_fsdp_tp']['bytes']) < int(runs['zero1']['bytes'])


@pytest.mark.parametrize('name', MESHES)
def test_parameters_of_before_come_to_their_places(runs, folder, name):
  check_before(folder, name)


def check_before(folder, name):
  """In the memory of what was read, unless each device wants a part of it: no warning of either."""
  found = json.loads((folder / f'before-{name}.json').read_text())
  split = name == 'zero1_fsdp_tp'
  assert found == {'warnings': [], 'right': True, 'in_place': [not split] * 2}


def test_a_block_sends_what_the_rules_imply(runs, folder):
  """In bytes: K of a kernel [D, D], B of a vector [D], X of the residual stream [N, T, D].

  A block has qkv (3 K), proj (1), both layers of the MLP (4 and 4) and adaLN (6). 'fsdp' splits
  them all, and the biases [D] of the two layers that give width D; 'tensor' splits the first four.
  What is split by 'fsdp' is gathered, once, and gradients are added over those who have other
  examples; 'tensor' adds two products with width D forwards, and two gradients of inputs backwards.
  """
  K, B, X = 4 * 32 * 32, 4 * 32, 4 * 16 * 16 * 32
  kernels, biases = 18 * K, (3 + 1 + 4 + 1 + 6) * B
  gathered = {'all-gather': [7, kernels + 2 * B]}
  shared = {'all-gather': [7, 6 * K + 12 * K // 2 + 2 * B]}
  gradients = 6 * K + 12 * K // 2 + 6 * B + 2 * B + (3 + 4) * B // 2
  assert json.loads((folder / 'block.json').read_text()) == {
    '8,1,1': {'forward': {}, 'gradients': {'all-reduce': [1, kernels + biases]}},
    '1,8,1': {
      'forward': gathered,
      'gradients': gathered | {'all-reduce': [1, kernels + biases]},
    },
    '4,1,2': {
      'forward': {'all-reduce': [2, 2 * X // 4]},
      'gradients': {'all-reduce': [5, 4 * X // 4 + gradients]},
    },
    '1,1,8': {'forward': {'all-reduce': [2, 2 * X]}, 'gradients': {'all-reduce': [4, 4 * X]}},
    '1,4,2': {
      'forward': shared | {'all-reduce': [2, 2 * X // 4]},
      'gradients': shared | {'all-reduce': [5, 4 * X // 4 + gradients]},
    },
  }


def test_a_step_sends_gradients_once_and_gathers_what_is_split(runs):
  """Beside them what the losses and norms add, which is small."""
  leaves = {key: x for key, x in runs['one'].items() if key.startswith('params/')}
  whole = sum(4 * x.size for x in leaves.values())
  assert runs['one']['sent'] == {}
  assert set(runs['dp']['sent']) == {'all-reduce'}
  for name in ('dp', 'zero1'):
    assert whole <= runs[name]['sent']['all-reduce'][1] < 1.1 * whole
  # The updated parameters, of which each device has its part, where eight divides an axis.
  split = sum(4 * x.size for x in leaves.values() if any(n % 8 == 0 for n in x.shape))
  assert split <= runs['zero1']['sent']['all-gather'][1] < 1.1 * split
