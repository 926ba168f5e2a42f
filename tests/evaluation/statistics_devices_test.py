"""Eight simulated devices, and two processes, give the statistics and scores of one device."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent


def start(output, devices, *flags, **variables):
  simulated = f'--xla_force_host_platform_device_count={devices}'
  variables |= {
    'PYTHONPATH': str(HERE.parents[1]),
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {simulated}',
  }
  command = [
    sys.executable,
    str(HERE.parent / 'helpers' / 'statistics_devices.py'),
    str(output),
    *flags,
  ]
  return subprocess.Popen(command, cwd=HERE.parents[1], env=os.environ | variables)


def result(output, *processes):
  assert [p.wait() for p in processes] == [0] * len(processes)
  with np.load(output) as file:
    return dict(file)


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  output = tmp_path_factory.mktemp('one') / 'x.npz'
  return result(output, start(output, 1))


def check_equal(one, many, devices):
  assert (one['devices'], many['devices']) == (1, devices)
  assert one['fid'] > 0.01 and 0 < one['float32'].min() < one['float32'].max() < 1
  np.testing.assert_allclose(many['fid'], one['fid'], rtol=1e-10)
  np.testing.assert_allclose(many['inception_score'], one['inception_score'], rtol=1e-12)
  # Float32 sums in another order.
  np.testing.assert_allclose(many['kid'], one['kid'], rtol=1e-5)
  for name in ('mu_s', 'sigma_s'):
    np.testing.assert_allclose(many[name], one[name], atol=1e-12)
  for name in ('pool', 'float32', 'float16', 'warnings'):
    np.testing.assert_array_equal(many[name], one[name])


def test_eight_devices_equal_one(tmp_path, one):
  many = result(tmp_path / 'x.npz', start(tmp_path / 'x.npz', 8))
  check_equal(one, many, 8)


@pytest.mark.slow
@pytest.mark.parametrize('flags', [(), ('shared',)], ids=['own samples', 'global arrays'])
def test_two_processes_equal_one(tmp_path, one, flags):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    address = f'localhost:{probe.getsockname()[1]}'
  variables = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2'}
  processes = [
    start(tmp_path / 'x.npz', 2, *flags, **variables, JAX_PROCESS_ID=str(i)) for i in range(2)
  ]
  check_equal(one, result(tmp_path / 'x.npz', *processes), 4)
