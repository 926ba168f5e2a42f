"""How training speed grows with the GPUs of one machine: images a second of each over those of one.

  python benchmarks/devices.py                                    on a machine with several GPUs

A child process trains on one GPU, another one on all, each with the same batch for every GPU; both
take their turns in a row, since a process keeps the GPUs that it sees. Nothing is written where
there is only one. `JAX_NUM_CPU_DEVICES=2 JAX_PLATFORMS=cpu` rehearses it, and no time means
anything then.
"""

import argparse
import json
import os
import subprocess
import sys

import common
import jax
import steps
import timing


def child(args) -> None:
  """Prints the number of devices and the images a second of each, turn by turn."""
  count = jax.device_count()
  case = steps.Case(size=args.size, variant='plain', batch=args.child * count, dtype=args.dtype)
  made = steps.make(case)
  turns = timing.alternate({'step': timing.clocked(made.run, args.steps)}, args.rounds, warm_up=2)
  made.check()
  steps.no_input_libraries()
  rates = [args.child / turn.wall for turn in turns['step']]
  print(json.dumps({'devices': count, 'device': common.header()['device'], 'rates': rates}))


def run(batch: int, environment: dict[str, str]) -> dict:
  """What a child with such an environment found."""
  command = [sys.executable, __file__, *sys.argv[1:], f'--child={batch}']
  done = subprocess.run(
    command,
    cwd=common.ROOT,
    env=os.environ | environment,
    check=True,
    text=True,
    stdout=subprocess.PIPE,
  )
  return json.loads(done.stdout.splitlines()[-1])


def compare(one: dict, every: dict) -> dict:
  """Images a second of a device in both, and their ratio."""
  pairs = zip(every['rates'], one['rates'], strict=True)
  return {
    'devices': every['devices'],
    'images_per_second_of_one': timing.spread(one['rates']),
    'images_per_second_of_each': timing.spread(every['rates']),
    'each_over_one': timing.spread(itself / alone for itself, alone in pairs),
  }


def main() -> None:
  """Measures one and all devices."""
  parser = common.parser(__doc__.splitlines()[0], 'devices')
  add = parser.add_argument
  add('--size', default='XL/2')
  add(
    '--batches',
    default=[32, 128],
    type=lambda text: [int(n) for n in text.split(',')],
    help='examples on each GPU',
  )
  add('--dtype', default='bfloat16')
  add('--rounds', type=int, default=5)
  add('--steps', type=int, default=5, help='in one turn')
  add('--child', type=int, help=argparse.SUPPRESS)  # For the processes started here.
  args = parser.parse_args()
  if args.child:
    child(args)
    return
  first = os.environ.get('CUDA_VISIBLE_DEVICES', '0').partition(',')[0]
  alone = {'CUDA_VISIBLE_DEVICES': first, 'JAX_NUM_CPU_DEVICES': '1'}
  rows = {}
  for batch in args.batches:
    every = run(batch, {})
    if every['devices'] == 1:
      print(f'{every["device"]}: there is one device, so nothing is compared')
      return
    rows[str(batch)] = compare(run(batch, alone), every)
    print(batch, rows[str(batch)], flush=True)
  goal = {batch: row['each_over_one'] for batch, row in rows.items()}
  arguments = {name: x for name, x in common.arguments(args).items() if name != 'child'}
  common.write(args.json, {'arguments': arguments, 'rows': rows, 'goal_23': goal})


if __name__ == '__main__':
  main()
