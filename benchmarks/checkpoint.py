"""How long saving a checkpoint stops training, and how long restoring one takes.

  python benchmarks/checkpoint.py
  python benchmarks/checkpoint.py --size=XL/2                                        on one GPU

Parameters, average and both moments are saved by the project's own `checkpoint.Checkpoints`, in
turns: as training does it, where saving goes on behind it, and waiting until all is on disk. What
blocks is the wall time until `save` returns; it holds the check that all numbers are finite and the
copy off the device. Folders are new each time, and deleted.
"""

import pathlib
import tempfile
import time

import common
import jax
import steps
import timing

from diversedit_jax import checkpoint, sharding, trees
from diversedit_jax.methods import base
from diversedit_jax.training import state


def save_seconds(items: dict, folder: pathlib.Path) -> tuple[float, float]:
  """(until save returns, until all is on disk)."""
  checkpoints = checkpoint.Checkpoints(str(folder))
  started = time.perf_counter()
  checkpoints.save(1, items, {'step': 1})
  returned = time.perf_counter() - started
  checkpoints.wait()
  finished = time.perf_counter() - started
  checkpoints.close()
  return returned, finished


def restore_seconds(trainable: state.Trainable, folder: pathlib.Path) -> float:
  """Until all items are on the device again."""
  checkpoints = checkpoint.Checkpoints(str(folder))
  started = time.perf_counter()
  _, items, _ = checkpoints.restore(trainable.targets())
  jax.block_until_ready(items)
  seconds = time.perf_counter() - started
  checkpoints.close()
  return seconds


def main() -> None:
  """Measures saving and restoring."""
  parser = common.parser(__doc__.splitlines()[0], 'checkpoint')
  parser.add_argument('--size', default='B/2')
  parser.add_argument('--rounds', type=int, default=3)
  args = parser.parse_args()
  architecture = steps.Case(size=args.size, variant='skips', batch=1).architecture()
  make_network = lambda rngs: base.Network(architecture, rngs=rngs)
  trainable = state.Trainable(make_network, steps.transformation(), sharding.make_mesh())
  items = trainable.init(jax.random.key(0)).items()
  jax.block_until_ready(items)
  returned, finished, restored = [], [], []
  for turn in range(args.rounds + 1):  # The first one compiles the check, and does not count.
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      a, b = save_seconds(items, folder)
      c = restore_seconds(trainable, folder)
    if turn:
      returned.append(a)
      finished.append(b)
      restored.append(c)
    print(f'returned after {a:.2f} s, on disk after {b:.2f} s, restored in {c:.2f} s', flush=True)
  common.write(
    args.json,
    {
      'arguments': common.arguments(args),
      'gib': trees.num_bytes(items) / 2**30,
      'blocking_seconds': timing.spread(returned),
      'until_on_disk_seconds': timing.spread(finished),
      'blocking_over_waiting': timing.spread(
        a / b for a, b in zip(returned, finished, strict=True)
      ),
      'restore_seconds': timing.spread(restored),
    },
  )


if __name__ == '__main__':
  main()
