"""Two processes with one device each train what one process trains; one minute, hence `slow`."""

import os
import socket
import subprocess
import sys

import loop_test
import numpy as np
import pytest


def free_port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
  assert loop_test.run(tmp_path / 'one').returncode == 0
  shared = {'JAX_COORDINATOR_ADDRESS': f'localhost:{free_port()}', 'JAX_NUM_PROCESSES': '2'}
  processes = [
    subprocess.Popen(
      [*loop_test.command(tmp_path / 'two'), '--distributed'], cwd=loop_test.ROOT,
      stderr=sys.stderr, env=os.environ | shared | {'JAX_PROCESS_ID': str(i)},
    )
    for i in range(2)
  ]  # fmt: skip
  assert [process.wait() for process in processes] == [0, 0]
  one, two = loop_test.rows(tmp_path / 'one'), loop_test.rows(tmp_path / 'two')
  assert [row.keys() for row in one] == [row.keys() for row in two]
  for a, b in zip(one, two, strict=True):
    # Sums over two devices round differently, and 60 Adam steps carry that on.
    np.testing.assert_allclose(list(b.values()), list(a.values()), rtol=1e-3, atol=1e-4)
