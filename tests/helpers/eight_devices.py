"""Three training steps on meshes of simulated devices; writes losses, parameters, state bytes.

Run by devices_test.py in a process of its own, since the number of devices is fixed at start:
  python eight_devices.py DEVICES METHOD FOLDER NAME:DATA,FSDP,TENSOR,ZERO1 ...
writes FOLDER/NAME.npz for each mesh.
"""

import os
import pathlib
import sys

devices, method, folder, *layouts = sys.argv[1:]
simulated = f'--xla_force_host_platform_device_count={devices}'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {simulated}'

import jax
import numpy as np

from configs import digits
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import rng, sharding, trees
from diversedit_jax.data import pipeline
from diversedit_jax.training import average, state, step

config = digits.get_config(f'method={method}')
config.model.depth, config.model.width, config.train.batch_size = 4, 32, 32
config.model.unroll = 1  # Less to compile.
experiment = experiment_lib.build(config)
tx, key = experiment.transformation(), jax.random.key(0)


def noise(tree, seed):
  """Normal arrays of the shapes of a tree."""
  draw = np.random.default_rng(seed).normal
  return jax.tree.map(lambda x: draw(size=x.shape).astype(x.dtype), tree)


def away_from_zero(params):
  """Parameters, moved: gradients of zero-initialised blocks vanish, and Adam divides by them."""
  return jax.tree.map(lambda x, n: np.asarray(x) + 0.05 * n, params, noise(params, seed=1))


def trained(mesh, shard_over_data):
  trainable = state.Trainable(
    experiment.network,
    tx,
    mesh,
    shard_over_data=shard_over_data,
    averages=[average.PowerFunction(0.1)],
  )
  made = trainable.init(key)
  moved, layout = away_from_zero(made.params), trainable.shardings
  made = made.replace(
    params=jax.device_put(moved, layout.params), ema=jax.device_put(moved, layout.ema)
  )
  step_fn = step.compile_step(
    step.make_step(
      experiment.objective,
      trainable.graphdef,
      tx,
      key=rng.stream(key, 'train'),
      ema_decay=0.9,
      learning_rate=experiment.schedule(),
      averages=trainable.averages,
    ),
    layout,
    mesh,
  )
  losses, history, frozen = [], {}, experiment.objective.frozen()
  steps = pipeline.Steps(source=experiment.source, seed=0, batch_size=32)
  with jax.set_mesh(mesh), pipeline.batches(steps, start_step=0) as batches:
    for _ in range(3):
      made, metrics = step_fn(made, sharding.put_batch(next(batches), mesh, 32), frozen)
      losses.append([float(metrics[k]) for k in ('loss', 'velocity', 'diverse/loss', 'grad_norm')])
      history[f'after_{len(losses)}'] = jax.tree.map(np.asarray, made.params)
  whole = jax.device_put(noise(trainable.params, seed=0), layout.params)
  (power,) = made.averages.values()
  arrays = trees.named_leaves({'params': made.params, 'ema': made.ema, 'power': power, **history})
  return {
    'losses': losses,
    'bytes': state.bytes_per_device(made),
    'devices': len(jax.devices()),
    'fingerprint': trees.fingerprint(whole),
    **{name: np.asarray(x) for name, x in arrays.items()},
  }


for layout in layouts:
  name, _, sizes = layout.partition(':')
  data, fsdp, tensor, zero1 = map(int, sizes.split(','))
  np.savez(
    pathlib.Path(folder) / f'{name}.npz',
    **trained(sharding.make_mesh(data, fsdp, tensor), bool(zero1)),
  )
