"""Two processes with one device each train what one process trains; minutes, hence `slow`."""

import os
import re
import signal
import socket
import subprocess

from helpers import killed_runs
import numpy as np
import pytest


def free_port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def start_two(workdir, *flags, **options):
  shared = {'JAX_COORDINATOR_ADDRESS': f'localhost:{free_port()}', 'JAX_NUM_PROCESSES': '2'}
  command = [*killed_runs.command(workdir, *flags), '--distributed']
  return [
    subprocess.Popen(
      command, cwd=killed_runs.ROOT, env=os.environ | shared | {'JAX_PROCESS_ID': str(i)}, **options
    )
    for i in range(2)
  ]


@pytest.mark.slow
@pytest.mark.parametrize('mesh', ['data', 'fsdp', 'tensor'])
def test_two_processes_train_what_one_trains(tmp_path, mesh):
  assert killed_runs.run(tmp_path / 'one').returncode == 0
  sizes = [
    f'--config.mesh.{axis}={2 if axis == mesh else 1}' for axis in ('data', 'fsdp', 'tensor')
  ]
  processes = start_two(tmp_path / 'two', *sizes)
  assert [process.wait() for process in processes] == [0, 0]
  one, two = killed_runs.rows(tmp_path / 'one'), killed_runs.rows(tmp_path / 'two')
  assert [row.keys() for row in one] == [row.keys() for row in two]
  for a, b in zip(one, two, strict=True):
    # Sums over two devices round differently, and 60 Adam steps carry that on.
    np.testing.assert_allclose(list(b.values()), list(a.values()), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_sigterm_to_one_of_two_saves_on_both_and_a_truncated_checkpoint_costs_steps_only(tmp_path):
  workdir = tmp_path / 'run'
  flags = ['--config.optimizer.schedule=constant', '--config.checkpoint.every=30']
  one, two = start_two(
    workdir, *flags, '--config.train.steps=2000', stderr=subprocess.PIPE, text=True
  )
  for line in one.stderr:
    if 'step 35/' in line:
      two.send_signal(signal.SIGTERM)
      break
  logs = [process.communicate()[1] for process in (one, two)]
  assert [one.returncode, two.returncode] == [0, 0]
  step = int(re.search(r'SIGTERM: saved step (\d+)', logs[0]).group(1))
  assert 'loop.py' not in logs[1]  # The first process logs for both.
  for file in (workdir / 'checkpoints' / str(step) / 'ema').rglob('*'):
    if file.is_file() and file.stat().st_size > 1000:
      file.write_bytes(file.read_bytes()[:500])
  flags.append(f'--config.train.steps={step + 5}')
  again = start_two(workdir, *flags, stderr=subprocess.PIPE, text=True)
  logs = [process.communicate()[1] for process in again]
  assert [process.returncode for process in again] == [0, 0]
  assert re.search(r'continuing at step \d+', logs[0])
  assert (workdir / 'damaged_checkpoints' / str(step)).is_dir()
