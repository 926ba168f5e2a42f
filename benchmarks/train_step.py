"""The whole training step: forward, backward, clipping, AdamW and the moving average.

  python benchmarks/train_step.py --peer=torch --torch_python=PYTHON_WITH_TORCH
  python benchmarks/train_step.py --variants=plain,skips,skips+loss --size=S/2
  python benchmarks/train_step.py --block=lightning --peer=torch --torch_python=PYTHON_WITH_TORCH
  python benchmarks/train_step.py --block=ddt --head=2,768,12 --peer=torch --torch_python=...
  python benchmarks/train_step.py --size=XL/2 --batch=256 --dtype=bfloat16           on one GPU

Everything that was asked for takes turns, a whole step (or --steps of them) each: every
combination of --variants, --attention, --unroll, --remat and --on_nonfinite, the same step in
PyTorch with --peer, and a matrix product of random numbers, so that speeds are shares of what the
device did just then.
Each turn of the peer is taken by a child process that lives throughout (benchmarks/peers).

Memory is what the compiler says, so it can be asked for a batch that would take too long to run
(--peak_batch): only at a large one are activations, which recomputation saves, most of it.

A multiply-add counts as two FLOPs, and a step as three forward passes (four with full
rematerialisation), elementwise work left out: `models/cost.py`. On a CPU compare CPU seconds, which
the load of other processes hardly touches; on an accelerator wall seconds.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import operator
import os
import sys

import common
from peers import serving
import steps
import timing

from diversedit_jax import cli
from diversedit_jax.models import attention, tuning

_PEER_NAMES = {'': 'torch', 'default': 'torch compiled'}


def parse() -> argparse.Namespace:
  """The flags."""
  parser = common.parser(__doc__.splitlines()[0], 'train_step')
  common.add_peer_flags(parser)
  add = parser.add_argument
  several = lambda default: {'default': default, 'type': lambda text: text.split(',')}
  add('--size', default='S/2')
  add('--batch', type=int, default=2)
  add(
    '--peak_batch',
    type=int,
    default=0,
    help='tell the memory of a step with so many examples, which is compiled and not run',
  )
  add('--resolution', type=int, default=256, help='of the pixels, 256 or 512')
  add('--block', default='sit', choices=('sit', 'lightning', 'ddt'))
  add('--qk_norm', action='store_true', help='of other blocks than sit')
  add('--head', type=_head, default=(), help='DEPTH,WIDTH,HEADS of a wide head; for --block=ddt')
  add('--dtype', default='float32')
  add('--variants', **several(['plain']), help='some of plain, skips, skips+loss')
  add('--attention', **several(['auto']), help='some of auto, xla, cudnn')
  add('--unroll', **several(['0']), help='see model.unroll')
  add('--remat', **several(['none']), help='some of none, full, dots, names')
  add('--on_nonfinite', **several(['stop']), help='some of stop, skip')
  add('--peer', default='', choices=('', 'torch'), help='the same variants there')
  add('--torch_compile', **several(['']), help="modes of torch.compile; '' runs eagerly")
  add('--torch_dtype', default='', help='of its autocast, if another than --dtype')
  add('--rounds', type=int, default=7)
  add('--slices', type=int, default=4, help='turns of each in one round')
  add('--steps', type=int, default=1, help='in one turn')
  return parser.parse_args()


def _head(text: str) -> tuple[int, int, int]:
  depth, width, heads = map(int, text.split(','))  # argparse tells of a ValueError.
  return depth, width, heads


def cases(args) -> dict[str, steps.Case]:
  """Name -> case; a name tells what differs between them."""
  options = {name: getattr(args, name) for name in ('attention', 'unroll', 'remat', 'on_nonfinite')}
  told = [name for name, values in options.items() if len(values) > 1]
  made = {}
  for variant, *values in itertools.product(args.variants, *options.values()):
    chosen = dict(zip(options, values, strict=True))
    name = ' '.join([variant, *(f'{option}={chosen[option]}' for option in told)])
    chosen['unroll'] = int(chosen['unroll'])
    made[name] = steps.Case(
      size=args.size,
      variant=variant,
      batch=args.batch,
      resolution=args.resolution,
      block=args.block,
      qk_norm=args.qk_norm,
      head=args.head,
      dtype=args.dtype,
      **chosen,
    )
  return made


def peers(args, threads: int, stack: contextlib.ExitStack) -> dict:
  """Name -> child process with the same step, ready."""
  made = {}
  if not args.peer:
    return made
  for variant, mode in itertools.product(args.variants, args.torch_compile):
    name = f'{variant} {_PEER_NAMES.get(mode, f"torch {mode}")}'
    child = stack.enter_context(serving.Child(args.torch_python, 'torch_train.py', threads=threads))
    facts = child.ask(
      'make',
      size=args.size,
      batch=args.batch,
      side=args.resolution // 8,
      variant=variant,
      block=args.block,
      qk_norm=args.qk_norm,
      head=args.head,
      dtype=args.torch_dtype or args.dtype,
      compile=mode,
    )
    common.check_peer(facts['device'])
    facts['compile_seconds'] = child.ask('compiled')['seconds']
    made[name] = (child, facts)
    print(name, facts, flush=True)
  return made


def describe(case: steps.Case, made: steps.Step, peak_batch: int) -> dict:
  """What a row says of one of our own steps. peak_batch: whose memory is told, if it is not 0."""
  architecture, execution = case.architecture(), case.execution()
  larger = made
  if peak_batch:
    larger = steps.make(dataclasses.replace(case, batch=peak_batch), allocate=False)
  return {
    'variant': case.variant,
    'attention': attention.implementation(architecture, execution),
    'unroll': tuning.blocks_per_step(execution, architecture.depth),
    'remat': case.remat,
    'on_nonfinite': case.on_nonfinite,
    'program': 'ours',
    'compile_seconds': made.compile_seconds,
    'peak_gib': larger.peak_bytes / 2**30,
    'peak_batch': peak_batch or case.batch,
    'loss': made.check(),
    'dispatch_ms': made.dispatch_ms(5),
  }


def rates(row: dict, turns, flops: float, args, ceiling_turns, ceiling_flops: float) -> dict:
  """Speeds of one row from its turns and those of the matrix product."""
  seconds = operator.attrgetter(timing.main_clock())
  share = [
    (flops / seconds(turn)) / (ceiling_flops / seconds(top))
    for turn, top in zip(turns, ceiling_turns, strict=True)
  ]
  return row | {
    'seconds': timing.summary(turns),
    'images_per_second': timing.spread(args.batch / turn.wall for turn in turns),
    'images_per_cpu_second': timing.spread(args.batch / turn.cpu for turn in turns),
    'tflops': timing.spread(flops / turn.wall / 1e12 for turn in turns),
    'of_matmul': timing.spread(share),
  }


def measure(args, threads: int) -> dict:
  """Name -> row."""
  ours, rows, sides, flops = cases(args), {}, {}, {}
  with contextlib.ExitStack() as stack:
    theirs = peers(args, threads, stack)
    made, states = {}, {}
    for name, case in ours.items():
      made[name] = steps.make(case, states)
      sides[name] = timing.clocked(made[name].run, args.steps)
      flops[name] = made[name].flops
      print(f'{name}: compiled in {made[name].compile_seconds:.1f} s', flush=True)
    for name, (child, _) in theirs.items():
      sides[name] = functools.partial(common.peer_turn, child, args.steps)
      flops[name] = made[next(k for k, c in ours.items() if c.variant == name.split()[0])].flops
    sides['matmul'], ceiling_flops = timing.matmul(timing.matmul_size(), args.dtype)
    turns = timing.alternate(sides, args.rounds, slices=args.slices, warm_up=2)
    for name, case in ours.items():
      rows[name] = describe(case, made[name], args.peak_batch)
    for name, (child, facts) in theirs.items():
      last = child.ask('turn')
      rows[name] = {'variant': name.split()[0], 'program': 'torch', **facts, 'loss': last['loss']}
      rows[name]['peak_gib'] = last['peak_bytes'] / 2**30 or None
  for name in rows:
    top = turns['matmul'], ceiling_flops
    rows[name] = rates(rows[name], turns[name], flops[name], args, *top)
    rows[name]['over'] = {
      other: {
        **timing.ratio(turns[name], turns[other]),
        'peak': rows[name]['peak_gib']
        and rows[other]['peak_gib']
        and rows[name]['peak_gib'] / rows[other]['peak_gib'],
      }
      for other in rows
      if other != name
    }
  return rows


def show(rows: dict) -> None:
  """A table of the rows, and the ratios of CPU or wall seconds between them."""
  clock = timing.main_clock()
  columns = f'{"ms (" + clock + ")":>28s}{"img/s":>9s}{"TF/s":>9s}{"of matmul":>11s}'
  print(f'\n{"":28s}{columns}{"GiB":>7s}{"compile s":>11s}')
  for name, row in rows.items():
    ms = {k: 1000 * v for k, v in row['seconds'][clock].items()}
    time = f'{ms["median"]:.0f} ({ms["min"]:.0f}..{ms["max"]:.0f})'
    median = lambda key, row=row: row[key]['median']
    print(
      f'{name:28s}{time:>28s}{median("images_per_second"):9.2f}{median("tflops"):9.3f}'
      f'{median("of_matmul"):11.1%}{row["peak_gib"] or 0:7.2f}{row["compile_seconds"]:11.1f}'
    )
  for name, row in rows.items():
    for other, found in row['over'].items():
      r = found[clock]
      print(f'{name} / {other}: {r["median"]:.3f} ({r["min"]:.3f}..{r["max"]:.3f})')
  sys.stdout.flush()


def main() -> None:
  """Measures and reports."""
  args = parse()
  threads = timing.use_threads(args.threads)  # Before the first array, which starts JAX.
  cli.keep_memory()  # As training does.
  # JAX takes a share of an accelerator's memory at once, and never gives any of it back.
  os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.45' if args.peer else '0.92')
  steps.one_device()
  ceilings = timing.ceilings()
  rows = measure(args, threads)
  show(rows)
  steps.no_input_libraries()
  fields = ('size', 'block', 'qk_norm', 'head', 'batch', 'resolution', 'dtype')
  for row in rows.values():
    row |= {name: getattr(args, name) for name in fields}
  measured = {
    'arguments': common.arguments(args),
    'threads': threads,
    'ceilings': ceilings,
    'flop_convention': 'a multiply-add is 2; a step is 3 forward passes, 4 with full remat',
    'rows': rows,
  }
  common.write(args.json, measured)


if __name__ == '__main__':
  main()
