"""Time from process start to the first step, and what unrolling the blocks does to compilation.

  python benchmarks/startup.py
  python benchmarks/startup.py --parts=compiling --size=XL/2 --batch=256 --dtype=bfloat16  on a GPU

1. first_step: each round starts training in processes of its own, with the digits config and with
   one of ImageNet's size on synthetic latents: cold, then warm with the compilation cache that the
   cold start left.
2. unrolling: the training step of a network of the same width and --depths blocks is compiled as a
   loop over blocks and unrolled, in turns, and never run.
3. compiling: the step of --size alone, as a loop and unrolled, in processes of its own, cold, then
   warm. Unlike the first step it needs no library for reading data.

The file is written after each part, so that what was measured survives being stopped.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import common
import steps
import timing

PARTS = ('first_step', 'unrolling', 'compiling')


def first_step_seconds(words: list[str], workdir: pathlib.Path, cache: pathlib.Path) -> float:
  """Wall seconds until the run's log says that the first step is done."""
  command = [
    sys.executable,
    '-m',
    'diversedit_jax.main',
    *words,
    f'--workdir={workdir}',
    '--config.preview.every=0',
    '--config.log.telemetry_every=0',
  ]
  started = time.monotonic()
  process = subprocess.Popen(
    command,
    cwd=common.ROOT,
    stderr=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    text=True,
    env=os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache)},
  )
  seconds = None
  lines = []
  for line in process.stderr:
    lines.append(line)
    if seconds is None and 'first step after' in line:
      seconds = time.monotonic() - started
  if process.wait() or seconds is None:
    raise RuntimeError(f'{" ".join(command)} failed: {"".join(lines[-20:])}')
  return seconds


def configs(args) -> dict[str, list[str]]:
  """Name -> flags of a short run."""
  imagenet = [
    f'--config=configs/s256.py:size={args.size},steps=2',
    f'--config.model.dtype={args.dtype}',
    f'--config.train.batch_size={args.batch}',
  ]
  return {'digits': ['--config=configs/digits.py', '--config.train.steps=60'], args.size: imagenet}


def measure_first_step(args) -> dict:
  """Name -> seconds cold and warm."""
  rows = {}
  for name, words in configs(args).items():
    cold, warm = [], []
    for _ in range(args.rounds):
      with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        cold.append(first_step_seconds(words, folder / 'cold', folder / 'cache'))
        warm.append(first_step_seconds(words, folder / 'warm', folder / 'cache'))
    rows[name] = cold_and_warm(cold, warm)
    print(f'{name}: {rows[name]}', flush=True)
  return rows


def cold_and_warm(cold: list[float], warm: list[float]) -> dict:
  """Their spreads, and that of their ratio."""
  return {
    'cold_seconds': timing.spread(cold),
    'warm_seconds': timing.spread(warm),
    'cold_over_warm': timing.spread(c / w for c, w in zip(cold, warm, strict=True)),
  }


def compile_turn(case: steps.Case, depth: int) -> timing.Turn:
  """Wall and CPU seconds of compiling a step with so many blocks."""
  started = time.process_time()
  made = steps.Step(
    case.architecture(depth=depth),
    case.execution(),
    steps.objective(case.variant),
    case.batch,
    allocate=False,
  )
  return timing.Turn(made.compile_seconds, time.process_time() - started)


def measure_unrolling(args) -> dict:
  """Depth -> compile seconds as a loop and unrolled, and their ratio."""
  rows = {}
  fields = {'size': args.size, 'variant': 'plain', 'batch': args.batch, 'dtype': args.dtype}
  cases = {name: steps.Case(**fields, unroll=u) for name, u in steps.UNROLL.items()}
  compile_turn(cases['loop'], 2)  # What a process does only once.
  for depth in args.depths:
    sides = {
      name: lambda case=case, depth=depth: compile_turn(case, depth) for name, case in cases.items()
    }
    turns = timing.alternate(sides, args.compile_rounds, warm_up=0)
    rows[str(depth)] = {
      'seconds': {name: timing.summary(found) for name, found in turns.items()},
      'loop_over_unrolled': timing.ratio(turns['loop'], turns['unrolled']),
    }
    print(f'depth {depth}: {rows[str(depth)]}', flush=True)
  return rows


def compile_alone(args) -> None:
  """Compiles one step and prints the seconds, in a process of its own."""
  case = steps.Case(
    size=args.size, variant='plain', batch=args.batch, dtype=args.dtype, unroll=args.only_unroll
  )
  made = steps.Step(
    case.architecture(), case.execution(), steps.objective('plain'), args.batch, allocate=False
  )
  steps.no_input_libraries()
  print(json.dumps({'seconds': made.compile_seconds}))


def measure_compiling(args) -> dict:
  """'loop', 'unrolled' -> compile seconds with an empty and with a filled cache."""
  rows = {}
  for name, unroll in steps.UNROLL.items():
    command = [
      sys.executable,
      __file__,
      f'--size={args.size}',
      f'--batch={args.batch}',
      f'--dtype={args.dtype}',
      f'--only_unroll={unroll}',
    ]
    times = {'cold': [], 'warm': []}
    for _ in range(args.compile_rounds):
      with tempfile.TemporaryDirectory() as cache:
        settings = {
          'JAX_COMPILATION_CACHE_DIR': cache,
          'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        }
        for found in times.values():
          done = subprocess.run(
            command,
            cwd=common.ROOT,
            env=os.environ | settings,
            check=True,
            text=True,
            stdout=subprocess.PIPE,
          )
          found.append(json.loads(done.stdout.splitlines()[-1])['seconds'])
    rows[name] = cold_and_warm(**times)
    print(f'{name}: {rows[name]}', flush=True)
  return rows


def parse() -> argparse.Namespace:
  """The flags."""
  parser = common.parser(__doc__.splitlines()[0], 'startup')
  add = parser.add_argument
  several = lambda text: [int(n) for n in text.split(',') if n]
  add('--parts', default=PARTS[:2], type=lambda text: text.split(','), help=f'some of {PARTS}')
  add('--rounds', type=int, default=1, help='of first steps')
  add('--size', default='S/2', help='beside the digits')
  add('--batch', type=int, default=2)
  add('--dtype', default='float32')
  add('--depths', type=several, default=[12, 28], help='whose compilation is compared')
  add('--compile_rounds', type=int, default=3)
  add('--only_unroll', type=int, help=argparse.SUPPRESS)  # For the processes started here.
  return parser.parse_args()


def main() -> None:
  """Measures what was asked for."""
  args = parse()
  if args.only_unroll is not None:
    compile_alone(args)
    return
  measured = {'arguments': common.arguments(args)}
  run = {
    'first_step': measure_first_step,
    'unrolling': measure_unrolling,
    'compiling': measure_compiling,
  }
  for part in common.chosen(args.parts, PARTS):
    measured[part] = run[part](args)
    common.write(args.json, measured)


if __name__ == '__main__':
  main()
