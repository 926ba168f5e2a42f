"""Statistics and scores of fixed pictures on simulated devices; writes them to a file.

Run by statistics_devices_test.py in processes of their own: python statistics_devices.py OUTPUT.npz
"""

import os
import pathlib
import sys

output = sys.argv[1]
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np

if 'JAX_COORDINATOR_ADDRESS' in os.environ:
  jax.distributed.initialize(
    num_processes=int(os.environ['JAX_NUM_PROCESSES']), process_id=int(os.environ['JAX_PROCESS_ID'])
  )

from helpers import picture_eval

from diversedit_jax import sharding
from diversedit_jax.evaluation import feature_network, kernel, scores

COUNT, BATCH = 700, 96
rng = np.random.default_rng(0)
side = picture_eval.SIDE
pictures = rng.integers(0, 256, (COUNT, side, side, 3), np.uint8)
mesh = sharding.make_mesh(data=-1, fsdp=2 if jax.device_count() > 1 else 1)
extractor = feature_network.Extractor(picture_eval.network(), mesh, BATCH)
# In batches of another size, the last of which is not full.
batches = [pictures[i : i + 50] for i in range(0, COUNT, 50)]
summary = extractor.summarise(batches, COUNT, keep=COUNT)
other = 1.1 * rng.permuted(summary.pool_ND[:200], axis=0) + 0.2
found = {
  'devices': jax.device_count(),
  'fid': scores.frechet_distance(summary.mu, summary.sigma, *scores.gaussian_statistics(other)),
  'inception_score': summary.inception_score,
  'pool': summary.pool_ND,
  'mu_s': summary.mu_s,
  'sigma_s': summary.sigma_s,
  'kid': kernel.kernel_distance(summary.pool_ND, other, subsets=3, size=90, mesh=mesh),
}
for arithmetic in ('float32', 'float16'):
  found[arithmetic] = scores.precision_recall(
    other, summary.pool_ND, arithmetic=arithmetic, block=150, mesh=mesh
  )
if jax.process_index() == 0:
  np.savez(output, **found)
