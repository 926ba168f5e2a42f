"""Three training steps on meshes of simulated devices; writes losses, parameters, state bytes.

Also what the compiled step sends, and one block by itself, forwards and with its gradients; and how
parameters that versions before 0.4 stored come to their places.

Run by devices_test.py in a process of its own, since the number of devices is fixed at start:
  python eight_devices.py DEVICES METHOD[;KEY=TEXT ...] FOLDER NAME:DATA,FSDP,TENSOR,ZERO1 ...
writes FOLDER/NAME.npz, FOLDER/NAME.json and FOLDER/before-NAME.json for each mesh, and
FOLDER/block.json.
"""

import json
import os
import pathlib
import sys
import warnings

devices, method, folder, *layouts = sys.argv[1:]
simulated = f'--xla_force_host_platform_device_count={devices}'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {simulated}'

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import transformers  # Beside this file.

from configs import digits
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import restore_targets, rng, sharding, trees
from diversedit_jax.data import pipeline
from diversedit_jax.models import block
from diversedit_jax.models import config as model_config
from diversedit_jax.planning import collectives
from diversedit_jax.training import average, state, step
from diversedit_jax.weights import forms

method, *changes = method.split(';')
config = digits.get_config(f'method={method}')
for name, value in (change.split('=') for change in changes):
  config.update_from_flattened_dict({name: int(value) if value.isdigit() else value})
config.model.depth, config.model.width, config.train.batch_size = 4, 32, 32
config.model.unroll = 1  # Less to compile.
if 'haste' in method:
  transformers.use(config)
experiment = experiment_lib.build(config)
tx, key = experiment.transformation(), jax.random.key(0)


def noise(tree, seed):
  """Normal arrays of the shapes of a tree."""
  draw = np.random.default_rng(seed).normal
  return jax.tree.map(lambda x: draw(size=x.shape).astype(x.dtype), tree)


def away_from_zero(params):
  """Parameters, moved: gradients of zero-initialised blocks vanish, and Adam divides by them."""
  return jax.tree.map(lambda x, n: np.asarray(x) + 0.05 * n, params, noise(params, seed=1))


def write(name, found):
  (pathlib.Path(folder) / f'{name}.json').write_text(json.dumps(found))


def write_of_before(name, trainable):
  """Restores parameters from their form of before 0.4; writes warnings and what became of them."""
  target = restore_targets.make(trainable.params, trainable.shardings.params)
  values = noise(trainable.params, seed=2)
  place = lambda x, its: jax.device_put(x.reshape(its.shape), its.sharding)
  read = jax.tree.map(place, values, forms.targets_before(target))
  with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter('always')
    found = forms.restored(read, target)
  same = lambda x, value, its: bool(np.array_equal(x, value)) and x.sharding == its.sharding
  kernels = [x for path, x in trees.named_leaves(read).items() if path.endswith('qkv/kernel')]
  facts = {
    'warnings': [str(warning.message) for warning in told],
    'right': all(jax.tree.leaves(jax.tree.map(same, found, values, target))),
    'in_place': [x.is_deleted() for x in kernels],
  }
  write(f'before-{name}', facts)


def trained(name, mesh, shard_over_data):
  trainable = state.Trainable(
    experiment.network,
    tx,
    mesh,
    shard_over_data=shard_over_data,
    averages=[average.PowerFunction(0.1)],
  )
  write_of_before(name, trainable)
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
      fixed=trainable.fixed,
      averages=trainable.averages,
    ),
    layout,
    mesh,
  )
  losses, history, frozen = [], {}, experiment.objective.frozen()
  steps = pipeline.Steps(source=experiment.source, seed=0, batch_size=32)
  with jax.set_mesh(mesh), pipeline.batches(steps, start_step=0) as batches:
    program = None
    for _ in range(3):
      given = made, sharding.put_batch(next(batches), mesh, 32), frozen
      program = program or step_fn.lower(*given).compile()
      made, metrics = program(*given)
      losses.append([float(metrics[k]) for k in ('loss', 'velocity', 'diverse/loss', 'grad_norm')])
      history[f'after_{len(losses)}'] = jax.tree.map(np.asarray, made.params)
  sent = collectives.collectives(program.as_text())
  write(name, {kind: [sums['count'], sums['bytes']] for kind, sums in sent.items()})
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
    **trained(name, sharding.make_mesh(data, fsdp, tensor), bool(zero1)),
  )


# As block_test.py and devices_test.py have them: 16 examples of 16 tokens, width 32, 8 heads.
BLOCK = model_config.Architecture(
  depth=1, width=32, heads=8, patch_size=2, input_size=(8, 8), channels=1, num_classes=1
)


def of_a_block(*sizes):
  """Count and bytes of what a block sends, by kind: forwards, and with its gradients."""
  mesh = sharding.make_mesh(*sizes)
  make = lambda: block.Block(BLOCK, model_config.Execution(attention='xla'), rngs=nnx.Rngs(0))
  graphdef, variables = nnx.split(nnx.eval_shape(make))
  placed, rows = (
    nnx.to_pure_dict(sharding.shardings_of(variables, mesh)),
    sharding.batch_sharding(mesh),
  )

  def forward(params, x_NTD, c_ND):
    return sharding.constrain_batch(nnx.merge(graphdef, params)(x_NTD, c_ND))

  def gradients(params, x_NTD, c_ND):
    loss = lambda params, x_NTD: jnp.sum(jnp.square(forward(params, x_NTD, c_ND)))
    return jax.grad(loss, argnums=(0, 1))(params, x_NTD)

  given = nnx.to_pure_dict(variables), jnp.zeros((16, 16, 32)), jnp.zeros((16, 32))
  found = {}
  for name, function, out in (('forward', forward, rows), ('gradients', gradients, (placed, rows))):
    jitted = jax.jit(function, in_shardings=(placed, rows, rows), out_shardings=out)
    with jax.set_mesh(mesh):
      sent = collectives.collectives(jitted.lower(*given).compile().as_text())
    found[name] = {kind: [sums['count'], sums['bytes']] for kind, sums in sent.items()}
  return found


if len(jax.devices()) == 8 and method == 'flow+diverse':
  sizes = (8, 1, 1), (1, 8, 1), (4, 1, 2), (1, 1, 8), (1, 4, 2)
  write('block', {','.join(map(str, each)): of_a_block(*each) for each in sizes})
