"""A process that alone cannot write its part of a checkpoint holds the others up for seconds."""

import os
import subprocess
import sys

from helpers import several
import pytest

TWO = """
import os, resource, sys
import jax
from diversedit_jax import checkpoint, cli, cluster, sharding, together
def work():
  cluster.join()
  with together.together():
    mesh = sharding.make_mesh()
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    x = jax.jit(lambda: jax.random.normal(jax.random.key(0), (64, 1024)), out_shardings=rows)()
    keeper = checkpoint.Checkpoints(sys.argv[1])
    failing = jax.process_index() == int(sys.argv[2])
    whole = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step in (1, 2, 3):  # The second does not go on this process's disk.
      keeper.settle()  # Else a slow write of the second would find the limit lifted.
      if failing:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, whole[1]) if step == 2 else whole)
      keeper.save(step, {name: {'x': x * step} for name in checkpoint.ITEMS}, {})
    keeper.settle()
    if jax.process_index() == 0:
      print(keeper.steps(), flush=True)
    target = {'x': jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)}
    step, found, _ = keeper.restore({'params': target})
    assert step == 3 and bool((found['params']['x'] == x * 3).all())
    keeper.close()
sys.exit(cli.status(work))
"""


@pytest.mark.slow
@pytest.mark.parametrize('failing', [0, 1])
def test_the_others_go_on_and_are_told_of_it(tmp_path, failing):
  shared = os.environ | {'PYTHONPATH': several.PATH, 'JAX_NUM_PROCESSES': '2'}
  shared |= {'JAX_COORDINATOR_ADDRESS': f'localhost:{several.free_port()}', 'JAX_PLATFORMS': 'cpu'}
  both = [
    subprocess.Popen(
      [sys.executable, '-c', TWO, tmp_path / 'run', str(failing)],
      env=shared | {'JAX_PROCESS_ID': str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    said = [process.communicate(timeout=300) for process in both]  # Orbax alone takes 20 minutes.
  finally:
    for process in both:
      process.kill()
  logs = [log for _, log in said]
  assert [process.returncode for process in both] == [0, 0], logs
  assert said[0][0].endswith('[1, 3]\n')
  for log in logs:
    assert 'a checkpoint could not be written: ' in log and 'File too large' in log
  assert f'could not be written: process {failing}: ' in logs[1 - failing]
