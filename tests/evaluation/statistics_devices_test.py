"""Eight simulated devices, and two processes, give the statistics and scores of one device."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def start(output, devices, **variables):
  simulated = f'--xla_force_host_platform_device_count={devices}'
  variables |= {
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {simulated}',
  }
  command = [sys.executable, 'tests/helpers/statistics_devices.py', str(output)]
  return subprocess.Popen(command, cwd=ROOT, env=os.environ | variables)


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
  # Features are float32 sums of 768 products of order 1, in another order.
  for name in ('pool', 'mu_s', 'sigma_s'):
    np.testing.assert_allclose(many[name], one[name], atol=2e-6)
  for name in ('fid', 'inception_score', 'kid'):
    np.testing.assert_allclose(many[name], one[name], rtol=1e-5)
  for name in ('float32', 'float16'):
    np.testing.assert_allclose(many[name], one[name], atol=2 / 700)  # A point or two at a radius.


def test_eight_devices_equal_one(tmp_path, one):
  many = result(tmp_path / 'x.npz', start(tmp_path / 'x.npz', 8))
  check_equal(one, many, 8)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, one):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    address = f'localhost:{probe.getsockname()[1]}'
  variables = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2'}
  processes = [start(tmp_path / 'x.npz', 2, **variables, JAX_PROCESS_ID=str(i)) for i in range(2)]
  check_equal(one, result(tmp_path / 'x.npz', *processes), 4)
