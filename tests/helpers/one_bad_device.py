"""Three guarded steps on eight simulated devices, the second with a NaN on one; writes the bits.

Run by nonfinite_test.py in a process of its own: python one_bad_device.py FILE.npz
"""

import os
import sys

os.environ['XLA_FLAGS'] = (
  f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
)

from helpers import small_runs
import jax
import numpy as np

from diversedit_jax import sharding
from diversedit_jax.modes import run_context
from diversedit_jax.training import step

experiment = small_runs.make(**{'train.on_nonfinite': 'skip'})
mesh = sharding.make_mesh(2, 4, 1)  # Parameters are split over four, and each part is on two.
trainable = run_context.make_trainable(experiment, mesh)
compiled = step.compile_step(
  run_context.make_step(experiment, trainable), trainable.shardings, mesh
)


def bits(state):
  """The bytes of parameters, moments and average on each device, as whole numbers."""
  leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
  parts = [
    [np.asarray(s.data).ravel().view(np.uint32) for s in x.addressable_shards] for x in leaves
  ]
  return np.stack([np.concatenate(of_device) for of_device in zip(*parts, strict=True)])


found = {'loss': [], 'skipped': [], 'step': [], 'bits': []}
with jax.set_mesh(mesh):
  state = trainable.init(jax.random.key(0))
  for k in range(3):
    batch = experiment.source.gather(np.arange(32 * k, 32 * k + 32))
    if k == 1:
      batch['images'][21, 2, 2] = np.nan  # Four rows to a device: on the sixth.
    state, metrics = compiled(state, sharding.put_batch(batch, mesh, 32), {})
    for name, value in (*metrics.items(), ('step', state.step), ('bits', bits(state))):
      found.setdefault(name, []).append(np.asarray(value))
np.savez(sys.argv[1], **found)
