"""Three training steps on a mesh of simulated devices; writes losses, parameters, state bytes.

Run by devices_test.py in processes of their own, since the number of devices is fixed at start:
  python eight_devices.py DEVICES DATA FSDP TENSOR ZERO1 METHOD OUTPUT.npz
"""

import os
import sys

devices, data, fsdp, tensor, zero1, method, output = sys.argv[1:]
simulated = f'--xla_force_host_platform_device_count={devices}'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {simulated}'

import jax
import numpy as np

from configs import digits
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import rng, sharding, trees
from diversedit_jax.data import pipeline
from diversedit_jax.training import state, step

config = digits.get_config(f'method={method}')
config.model.depth, config.model.width, config.train.batch_size = 4, 32, 32
# Gradients of zero-initialised blocks vanish and Adam divides by them; start off the origin
# instead.
experiment = experiment_lib.build(config)
mesh = sharding.make_mesh(int(data), int(fsdp), int(tensor))
tx = experiment.transformation()
trainable = state.Trainable(experiment.network, tx, mesh, shard_over_data=zero1 == 'yes')
key = jax.random.key(0)
made = trainable.init(key)


def away_from_zero(params):
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noisy = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(treedef, noisy)


params = jax.jit(away_from_zero, out_shardings=trainable.shardings.params)(made.params)
copied = jax.jit(
  lambda tree: jax.tree.map(jax.numpy.copy, tree), out_shardings=trainable.shardings.ema
)
made = made.replace(params=params, ema=copied(params))
step_fn = step.compile_step(
  step.make_step(
    experiment.objective,
    trainable.graphdef,
    tx,
    key=rng.stream(key, 'train'),
    ema_decay=0.9,
    learning_rate=experiment.schedule(),
  ),
  trainable.shardings,
  mesh,
)
losses, frozen = [], experiment.objective.frozen()
steps = pipeline.Steps(source=experiment.source, seed=0, batch_size=32)
with jax.set_mesh(mesh), pipeline.batches(steps, start_step=0) as batches:
  for _ in range(3):
    made, metrics = step_fn(made, sharding.put_batch(next(batches), mesh, 32), frozen)
    losses.append([float(metrics[k]) for k in ('loss', 'velocity', 'diverse/loss', 'grad_norm')])
host = jax.tree.map(
  lambda x: np.random.default_rng(x.size).normal(size=x.shape).astype(x.dtype), trainable.params
)
fingerprint = trees.fingerprint(jax.device_put(host, trainable.shardings.params))
arrays = {
  k: np.asarray(v) for k, v in trees.named_leaves({'params': made.params, 'ema': made.ema}).items()
}
np.savez(
  output,
  losses=losses,
  bytes=state.bytes_per_device(made),
  devices=len(jax.devices()),
  fingerprint=fingerprint,
  **arrays,
)
