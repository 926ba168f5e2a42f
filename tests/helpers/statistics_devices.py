"""Statistics and scores of fixed samples on simulated devices; writes them to a file.

Run by statistics_devices_test.py in processes of their own:
  python statistics_devices.py OUTPUT.npz [shared]
On more than one process every process adds samples of its own, or with 'shared' every batch as one
global array over all devices.
"""

import os
import sys

output, shared = sys.argv[1], sys.argv[2:] == ['shared']

import jax
import numpy as np

from diversedit_jax import sharding
from diversedit_jax.evaluation import accumulate, checks, kernel, placement, scores

if 'JAX_COORDINATOR_ADDRESS' in os.environ:
  jax.distributed.initialize(
    num_processes=int(os.environ['JAX_NUM_PROCESSES']), process_id=int(os.environ['JAX_PROCESS_ID'])
  )

COUNT, BATCH = 700, 96
rng = np.random.default_rng(0)
samples = {
  'pool': np.maximum(rng.normal(0.3, 1, (COUNT, 16)), 0).astype(np.float32),
  'spatial': rng.normal(size=(COUNT, 2, 2, 3)).astype(np.float32),
  'logits': rng.normal(size=(COUNT, 9)).astype(np.float32),
}
images = rng.integers(0, 2, (COUNT, 2, 2, 1), np.uint8)
mesh = sharding.make_mesh(data=-1, fsdp=2 if jax.device_count() > 1 else 1)
alone = jax.process_count() > 1 and not shared
made, looked = accumulate.Statistics(COUNT, keep=COUNT, split=300), checks.ImageChecks(COUNT)
for number, begin in enumerate(range(0, COUNT, BATCH)):
  index = np.arange(begin, begin + BATCH)
  mask = index < COUNT
  batch = {k: x[np.minimum(index, COUNT - 1)] for k, x in samples.items()}
  # With processes on their own the first takes the last batches, so their shares are uneven.
  mine = jax.process_index() == (number % jax.process_count() if number < 5 else 0)
  if mine:
    looked.add(images[index[mask]], index[mask])
  if not alone:
    batch = {k: placement.put_rows(x, mesh) for k, x in batch.items()}
  if mine or not alone:
    made.add(batch, mask_N=mask, indices_N=index)
made.across_processes()
looked.across_processes()
summary = made.finish()
other = 1.1 * rng.permuted(samples['pool'][:200], axis=0) + 0.2
found = {
  'devices': jax.device_count(),
  'fid': scores.frechet_distance(summary.mu, summary.sigma, *scores.gaussian_statistics(other)),
  'inception_score': summary.inception_score,
  'pool': summary.pool_ND,
  'mu_s': summary.mu_s,
  'sigma_s': summary.sigma_s,
  'kid': kernel.full_kernel_distance(summary.pool_ND, other, block=90, mesh=mesh),
  'warnings': [*summary.warnings, *looked.warnings()],
}
for arithmetic in ('float32', 'float16'):
  found[arithmetic] = scores.precision_recall(
    other, summary.pool_ND, arithmetic=arithmetic, block=150, mesh=mesh
  )
if jax.process_index() == 0:
  np.savez(output, **found)
