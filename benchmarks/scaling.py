"""What eight devices do with a training step: equality with one, collectives, bytes per device.

  python benchmarks/scaling.py

Devices are simulated on the CPU, one layout in a child process each, so no time means anything:
the numbers come from the compiled program and its results. A CPU adds bfloat16 in float32, so the
dtypes of sums come from the program before the backend's own passes.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

LAYOUTS = {  # Devices, sizes of 'data', 'fsdp' and 'tensor', whether ZeRO-1, the compute dtype.
  'one': (1, 1, 1, 1, False, 'float32'),
  'dp': (8, 8, 1, 1, False, 'float32'),
  'zero1': (8, 8, 1, 1, True, 'float32'),
  'fsdp': (8, 1, 8, 1, False, 'float32'),
  'tp2': (8, 4, 1, 2, False, 'float32'),
  'dp bfloat16': (8, 8, 1, 1, False, 'bfloat16'),
}


def child(layout: str, depth: int, width: int, output: str, dumped: str) -> None:
  """Three steps of one layout; writes losses and counts. dumped: an empty folder."""
  devices, data, fsdp, tensor, zero1, dtype = LAYOUTS[layout]
  os.environ['XLA_FLAGS'] = (
    f'--xla_force_host_platform_device_count={devices} --xla_dump_to={dumped} '
    '--xla_dump_hlo_pass_re=spmd-partitioning'
  )
  import jax
  import numpy as np

  from diversedit_jax import interpolants, sharding, trees
  from diversedit_jax.interpolants import times
  from diversedit_jax.methods import base, flow
  from diversedit_jax.methods import objective as objective_lib
  from diversedit_jax.models import config
  from diversedit_jax.planning import collectives
  from diversedit_jax.training import optim
  from diversedit_jax.training import state as state_lib
  from diversedit_jax.training import step as step_lib

  architecture = config.Architecture(
    input_size=(8, 8), depth=depth, width=width, heads=4, patch_size=2, num_classes=15
  )
  execution = config.Execution(dtype=dtype)
  law, path = times.Uniform(), interpolants.linear()
  objective = objective_lib.Objective(
    flow=flow.StochasticInterpolant(path=path, time_law=law, null_label=15)
  )
  mesh, tx = sharding.make_mesh(data, fsdp, tensor), optim.make(optim.OptimizerConfig(), 100)
  trainable = state_lib.Trainable(
    lambda rngs: base.Network(architecture, execution, rngs=rngs), tx, mesh, shard_over_data=zero1
  )
  state = trainable.init(jax.random.key(0))
  generator = np.random.default_rng(0)  # Away from zero, where blocks are the identity.
  noisy = lambda x, s: jax.device_put(np.asarray(x) + 0.05 * generator.normal(size=x.shape), s)
  noisy32 = lambda x, s: noisy(x, s).astype(np.float32)
  state = state.replace(params=jax.tree.map(noisy32, state.params, trainable.shardings.params))
  step = step_lib.compile_step(
    step_lib.make_step(
      objective,
      trainable.graphdef,
      tx,
      key=jax.random.key(1),
      ema_decay=0.9,
      learning_rate=lambda step: 1e-4,
    ),
    trainable.shardings,
    mesh,
  )
  batch = {
    'latents': generator.normal(size=(16, 8, 8, 4)).astype(np.float32),
    'labels': np.arange(16, dtype=np.int32) % 15,
  }
  rows = sharding.process_rows(mesh, 16)
  batch = sharding.put_batch({k: x[rows] for k, x in batch.items()}, mesh, 16)
  found = []
  with jax.set_mesh(mesh):
    compiled = step.lower(state, batch, {}).compile()
    for _ in range(3):
      state, metrics = compiled(state, batch, {})
      found.append([float(metrics['loss']), float(metrics['grad_norm'])])
  memory = compiled.memory_analysis()
  result = {
    'losses and gradient norms': found,
    'parameter_bytes': trees.num_bytes(trainable.params),
    'state_bytes_per_device': state_lib.bytes_per_device(state),
    'argument_bytes_per_device': memory.argument_size_in_bytes,
    'temporary_bytes_per_device': memory.temp_size_in_bytes,
    'collectives': collectives.collectives(compiled.as_text()),
    'collectives before the backend': collectives.collectives(partitioned(dumped)),
  }
  with open(output, 'w') as file:
    json.dump(result, file)


def partitioned(folder: str) -> str:
  """The dumped step as it left the partitioner; empty on one device."""
  found = pathlib.Path(folder).glob('*jit_step*after_spmd-partitioning*.txt')
  return ''.join(path.read_text() for path in found)


def goal_22(layouts: dict) -> dict:
  """Difference of float32 layouts from one device, bytes reduced, state on a device."""
  exact = [found for name, found in layouts.items() if LAYOUTS[name][-1] == 'float32']
  sums = layouts['dp bfloat16']['collectives before the backend']['all-reduce']
  return {
    'difference': max(found['largest relative difference from one device'] for found in exact),
    'bytes_off': abs(layouts['dp']['all-reduce / parameter bytes'] - 1),
    'state_share': layouts['fsdp']['state per device / whole'],
    'share_of_float32_in_bfloat16': sums['bytes by dtype'].get('f32', 0) / sums['bytes'],
  }


def main() -> None:
  """Runs all layouts and compares them with one device."""
  os.environ['JAX_PLATFORMS'] = 'cpu'  # Before the header, which says where numbers come from.
  import common

  parser = common.parser(__doc__.splitlines()[0], 'scaling')
  parser.add_argument('--depth', type=int, default=4)
  parser.add_argument('--width', type=int, default=128)
  parser.add_argument('--child', choices=LAYOUTS, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    with tempfile.TemporaryDirectory() as folder:
      child(args.child, args.depth, args.width, args.json, folder)
    return
  measured = {}
  for layout in LAYOUTS:
    with tempfile.NamedTemporaryFile(suffix='.json') as file:
      command = [sys.executable, __file__, f'--child={layout}', f'--json={file.name}']
      command += [f'--depth={args.depth}', f'--width={args.width}']
      subprocess.run(command, check=True)
      measured[layout] = json.load(file)
  one = measured['one']
  for found in measured.values():
    pairs = zip(found['losses and gradient norms'], one['losses and gradient norms'], strict=True)
    found['largest relative difference from one device'] = max(
      abs(a / b - 1) for row, other in pairs for a, b in zip(row, other, strict=True)
    )
    found['state per device / whole'] = (
      found['state_bytes_per_device'] / one['state_bytes_per_device']
    )
    reduced = found['collectives'].get('all-reduce', {'bytes': 0})['bytes']
    found['all-reduce / parameter bytes'] = reduced / found['parameter_bytes']
  arguments = {name: x for name, x in common.arguments(args).items() if name != 'child'}
  common.write(
    args.json, {'arguments': arguments, 'layouts': measured, 'goal_22': goal_22(measured)}
  )


if __name__ == '__main__':
  main()
