"""What the diversity loss costs: alone, within a step, and by the number of blocks.

  python benchmarks/loss_overhead.py --torch_python=PYTHON_WITH_TORCH
  python benchmarks/loss_overhead.py --parts=step --size=XL/2 --batch=32 --dtype=bfloat16

1. alone: value and gradient of random features, in turns: the authors' eager PyTorch, which
   normalises in every pair; PyTorch with unit vectors made once; the definition over pairs compiled
   by XLA, and the same of unit vectors that are kept in memory, which XLA would make anew in every
   pair; one Gram matrix; and the running sum that training uses.
2. step: a training step with long skips, with and without the loss of all blocks, in turns.
3. sweep: the loss alone over k blocks, fitted by k and by pairs beside the paper's five run times,
   and steps of a thin network of 24 blocks with losses over half of them and over all.
4. bytes: what the compiled loss moves, in units of one block's features; unrolled, because XLA
   counts a loop's body once.
5. error: of the running sum in float32 from the definition in float64.
"""

import argparse
import functools
import math
import pathlib
import tempfile
import time

import common
import jax
import jax.numpy as jnp
import numpy as np
from peers import serving
from safetensors import numpy as safetensors
import steps
import timing

from diversedit_jax import cli
from diversedit_jax.losses import diversity, diversity_config, diversity_layers
from diversedit_jax.losses import diversity_streaming as streaming

PARTS = ('alone', 'step', 'sweep', 'bytes', 'error')
# Hours of SiT-L by blocks compared, 0 to all (arXiv 2603.04239, Table A7).
PAPER_HOURS = {0: 18.66, 5: 19.90, 10: 21.02, 15: 23.45, 20: 25.96, 24: 28.50}
_PEERS = {'torch, normalised in every pair': 'per_pair', 'torch, once': 'normalised_once'}
_SUM = diversity_config.DiversityConfig(adaptive=False)
_GRAM = diversity_config.DiversityConfig(adaptive=False, mi='absolute')


def features(depth: int, shape: tuple[int, int, int]) -> np.ndarray:
  """[L, N, T, D] float32, blocks that have something in common, as those of a network."""
  generator = np.random.default_rng(0)
  shared_NTD = generator.standard_normal(shape, np.float32)
  return shared_NTD + generator.standard_normal((depth, *shape), np.float32)


def of_features(f_LNTD: jax.Array, config: diversity_config.DiversityConfig) -> jax.Array:
  """The loss by the training path."""
  loss_G, terms_G = streaming.from_features(f_LNTD, config.select(len(f_LNTD)), config)
  return config.objective(loss_G, terms_G)[0]


def of_blocks(*blocks: jax.Array) -> jax.Array:
  """The running sum without a loop, each block an argument of its own."""
  selection = _SUM.select(len(blocks))
  carry, sums = streaming.init_statistics(blocks[0].shape, blocks[0].dtype), []
  for f_NTD, selected in zip(blocks, selection.selected_L, strict=True):
    carry, left = streaming.update(carry, f_NTD, selected, _SUM)
    sums.append(left)
  stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *sums)
  return _SUM.objective(*streaming.finish(carry, stacked, selection, _SUM))[0]


def pairs_once(f_LNTD: jax.Array) -> jax.Array:
  """The loop over pairs of unit vectors that are in memory, one product each, written with care.

  Without the barrier XLA makes them anew within the sum of every pair.
  """
  blocks = tuple(range(len(f_LNTD)))
  pairs = diversity_layers.all_pairs(blocks)
  # A list, whose gradients are of one block each; those of slices are as large as all blocks.
  u_LNTD = jax.lax.optimization_barrier([diversity.unit(f_NTD) for f_NTD in f_LNTD])
  cosines = f_LNTD[0, ..., 0].size
  mi = sum(jnp.vdot(u_LNTD[i], u_LNTD[j]) for i, j in pairs) / (len(pairs) * cosines)
  usage_D = diversity.channel_usage(f_LNTD, blocks)
  terms = (
    diversity.orthogonality(f_LNTD, pairs),
    mi,
    diversity.dispersion_of_usage(usage_D, len(blocks), 'paper'),
  )
  return sum(w * term for w, term in zip(diversity.PAPER_WEIGHTS, terms, strict=True))


COMPILED = {
  'XLA, pairs': lambda f: diversity.diversity_loss(f)[0],
  'XLA, pairs of unit vectors': pairs_once,
  'Gram matrix': functools.partial(of_features, config=_GRAM),
  'running sum': functools.partial(of_features, config=_SUM),
}


def measure_alone(args, threads: int) -> dict:
  """Name -> seconds of value and gradient, and the ratio to the running sum."""
  shape = (args.loss_batch, 256, args.width)
  f_LNTD, sides, losses, compiled = features(args.depth, shape), {}, {}, {}
  on_device = jnp.asarray(f_LNTD)
  for name, function in COMPILED.items():
    compiled[name] = jax.jit(jax.value_and_grad(function)).lower(on_device).compile()
    sides[name] = timing.clocked(functools.partial(compiled[name], on_device), args.repeat)
    losses[name] = float(compiled[name](on_device)[0])
  with tempfile.TemporaryDirectory() as folder:
    children = []
    try:
      if serving.has_torch(args.torch_python):
        file = str(pathlib.Path(folder) / 'features.safetensors')
        safetensors.save_file({'f_LNTD': f_LNTD}, file)
        for name, way in _PEERS.items():
          child = serving.Child(args.torch_python, 'torch_loss.py', threads=threads)
          children.append(child)
          facts = child.ask('make', file=file, way=way)
          common.check_peer(facts['device'])
          losses[name] = facts['loss']
          sides[name] = functools.partial(common.peer_turn, child, args.repeat)
      turns = timing.alternate(sides, args.rounds)
    finally:
      for child in children:
        child.close()
  for name, loss in losses.items():
    if not math.isclose(loss, losses['running sum'], rel_tol=1e-4):
      raise RuntimeError(f'{name} computes {loss}, the running sum {losses["running sum"]}')
  return {
    name: {
      'seconds': timing.summary(turns[name]),
      'loss': losses[name],
      'over_running_sum': timing.ratio(turns[name], turns['running sum']),
    }
    for name in sides
  }


def measure_step(args) -> dict:
  """Seconds of a step without and with the loss, and their ratio."""
  fields = {'size': args.size, 'batch': args.batch, 'dtype': args.dtype, 'unroll': args.unroll}
  states = {}
  made = {v: steps.make(steps.Case(variant=v, **fields), states) for v in ('skips', 'skips+loss')}
  sides = {name: timing.clocked(step.run) for name, step in made.items()}
  turns = timing.alternate(sides, args.rounds, slices=args.slices, warm_up=2)
  for step in made.values():
    step.check()
  return {
    **fields,
    'seconds': {name: timing.summary(found) for name, found in turns.items()},
    'on_over_off': timing.ratio(turns['skips+loss'], turns['skips']),
    'peak_gib': {name: step.peak_bytes / 2**30 for name, step in made.items()},
  }


def measure_sweep(args) -> dict:
  """How the cost of the loss grows with the number of blocks, alone and within a step."""
  # By default all blocks together stay below 32 MiB, above which glibc hands out fresh pages at
  # every call, whose faults would look like a cost that grows faster than k.
  shape = (args.sweep_batch, 256, args.width)
  counts = sorted({2, *(k for k in PAPER_HOURS if 0 < k < args.depth), args.depth // 2, args.depth})
  alone = {}
  for k in counts:
    f_LNTD = jnp.asarray(features(k, shape))
    compiled = jax.jit(jax.value_and_grad(COMPILED['running sum'])).lower(f_LNTD).compile()
    alone[k] = timing.clocked(functools.partial(compiled, f_LNTD), args.repeat)
  seconds = timing.alternate(alone, args.rounds)
  moved = {k: bytes_per_unit(of_blocks, k, shape) for k in (2, args.depth // 2, args.depth)}
  fits = {
    f'alone, {clock}': fit({k: found[clock]['median'] for k, found in summaries.items()})
    for summaries in [{k: timing.summary(found) for k, found in seconds.items()}]
    for clock in timing.Turn._fields
  }
  fits['alone, bytes'] = fit(moved)
  fits['paper, hours'] = fit({k: h - PAPER_HOURS[0] for k, h in PAPER_HOURS.items() if k})

  case = steps.Case(size='S/2', variant='plain', batch=args.batch, dtype=args.dtype)
  architecture = case.architecture(depth=args.depth, width=args.sweep_width, heads=2)
  step = lambda *diversity: steps.Step(
    architecture,
    case.execution(),
    steps.objective('plain', *diversity),
    args.batch,
    states=states,
  )
  states = {}
  made = {0: step()}
  for k in (args.depth // 2, args.depth):
    config = diversity_config.DiversityConfig(layers=tuple(range(k)))
    made[k] = step(config)
  turns = timing.alternate({k: timing.clocked(step.run) for k, step in made.items()}, args.rounds)
  none, half, all_blocks = turns.values()
  clock = timing.main_clock()
  added = [
    [getattr(turn, clock) - getattr(base, clock) for turn, base in zip(found, none, strict=True)]
    for found in (half, all_blocks)
  ]
  return {
    'alone_seconds': {str(k): timing.summary(found) for k, found in seconds.items()},
    'alone_all_over_half': timing.ratio(seconds[args.depth], seconds[args.depth // 2]),
    'fit': fits,
    'in_step_over_none': {
      str(k): timing.ratio(turns[k], none) for k in (args.depth // 2, args.depth)
    },
    'in_step_added_seconds': {
      str(k): timing.spread(found)
      for k, found in zip((args.depth // 2, args.depth), added, strict=True)
    },
  }


def fit(cost: dict[int, float]) -> dict[str, float]:
  """Least squares of cost = linear k + pairs k (k - 1) / 2, without a constant.

  'pairs_over_linear' is the second term over the first at the largest k.
  """
  k = np.array(list(cost), np.float64)
  columns = np.stack([k, k * (k - 1) / 2], axis=1)
  linear, pairs = np.linalg.lstsq(columns, np.array(list(cost.values())), rcond=None)[0]
  last = k.max()
  share = pairs * (last - 1) / 2 / linear
  return {'linear': float(linear), 'pair': float(pairs), 'pairs_over_linear': float(share)}


def bytes_per_unit(function, depth: int, shape: tuple[int, ...], dtype: str = 'float32') -> float:
  """Bytes that value and gradient access, in units of one block's features."""
  block = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
  made = jax.jit(jax.value_and_grad(function, argnums=tuple(range(depth))))
  cost = made.lower(*[block] * depth).compile().cost_analysis()
  return cost['bytes accessed'] / (math.prod(shape) * block.dtype.itemsize)


def measure_bytes(args) -> dict:
  """Units of one block's features that the running sum moves for each block."""
  shape = (args.loss_batch, 256, args.width)
  return {
    f'{dtype}_per_block': bytes_per_unit(of_blocks, args.depth, shape, dtype) / args.depth
    for dtype in ('float32', 'bfloat16')
  }


def measure_error(args) -> dict:
  """|found - expected| / |expected| of value and gradient, against float64."""
  f_LNTD = features(args.depth, (1, 64, args.width))
  found, grad = jax.jit(jax.value_and_grad(COMPILED['running sum']))(f_LNTD)
  with jax.enable_x64(True):
    exact = jnp.asarray(f_LNTD, jnp.float64)
    expected, expected_grad = jax.jit(jax.value_and_grad(COMPILED['XLA, pairs']))(exact)
    difference = np.float64(grad) - np.asarray(expected_grad)
    return {
      'value': abs(float(found) - float(expected)) / abs(float(expected)),
      'gradient': float(np.linalg.norm(difference) / np.linalg.norm(expected_grad)),
    }


def show(measured: dict) -> None:
  """The parts that were measured, as tables."""
  clock = timing.main_clock()
  cell = '{median:.3f} ({min:.3f}..{max:.3f})'.format
  for name, row in measured.get('alone', {}).items():
    ratio = row['over_running_sum'][clock]
    seconds = cell(**row['seconds'][clock])
    print(f'{name:34s}{seconds:>26s} s   over the running sum {cell(**ratio)}')
  if 'step' in measured:
    print(f'step with the loss / without: {cell(**measured["step"]["on_over_off"][clock])}')
  if 'sweep' in measured:
    for k, ratio in measured['sweep']['in_step_over_none'].items():
      print(f'thin step with the loss of {k} blocks / without: {cell(**ratio[clock])}')
    for name, found in measured['sweep']['fit'].items():
      print(f'fit of {name}: {found}')
  for part in ('bytes', 'error'):
    if part in measured:
      print(part, measured[part], flush=True)


def parse() -> argparse.Namespace:
  """The flags."""
  parser = common.parser(__doc__.splitlines()[0], 'loss_overhead')
  common.add_peer_flags(parser)
  add = parser.add_argument
  add('--parts', default=PARTS, type=lambda text: text.split(','), help=f'some of {PARTS}')
  add('--rounds', type=int, default=7)
  add('--slices', type=int, default=4, help='turns of each step in one round')
  add('--repeat', type=int, default=1, help='of the loss alone, in one turn')
  add('--depth', type=int, default=24, help='blocks of the loss alone and of the sweep')
  add('--width', type=int, default=1024, help='of the loss alone')
  add('--loss_batch', type=int, default=2, help='of the loss alone')
  add('--size', default='S/2', help='of the step')
  add('--batch', type=int, default=2, help='of the step')
  add('--dtype', default='float32', help='of the step')
  add('--unroll', type=int, default=0, help='see model.unroll')
  add('--sweep_batch', type=int, default=1, help='of the loss alone over k blocks')
  add('--sweep_width', type=int, default=64, help='of the thin network')
  return parser.parse_args()


def main() -> None:
  """Measures the parts."""
  args = parse()
  threads = timing.use_threads(args.threads)
  cli.keep_memory()  # As training does.
  steps.one_device()
  parts = {
    'alone': lambda: measure_alone(args, threads),
    'step': lambda: measure_step(args),
    'sweep': lambda: measure_sweep(args),
    'bytes': lambda: measure_bytes(args),
    'error': lambda: measure_error(args),
  }
  measured = {'arguments': common.arguments(args), 'threads': threads}
  for name in common.chosen(args.parts, PARTS):
    started = time.perf_counter()
    measured[name] = parts[name]()
    common.write(args.json, measured)  # After each one, so that it survives being stopped.
    print(f'\n{name}, {time.perf_counter() - started:.0f} s')
    show({name: measured[name]})
  steps.no_input_libraries()


if __name__ == '__main__':
  main()
