"""What a core can read from a store of latents, and whether training waits for it.

  python benchmarks/data.py
  python benchmarks/data.py --size=S/2 --train_batch=256 --dtype=bfloat16        on one GPU
  python benchmarks/data.py --parts=reading --side=112       records as large as pixels at 256 px

1. Records a second on one core, in batches and in the order of training: by the store's source, by
   the same as it reads a bucket, by ArrayRecord itself in two ways, by Grain a record at a time,
   from a memory map of the same bytes, from memory, and as noise. By wall clock, and by CPU
   seconds, where other load does not count.
2. Input stall: steps a second of a loop that is fed as training is, over those of the same loop
   with one batch that lies on the device; with a step that only waits, and with a training step.

The store is made here, of random moments of the size of ImageNet's at 256 pixels. It lies in the
page cache, so no disk is measured. Its shards are smaller than those of ImageNet at the same
number; `--shards=1` shows what does not scale with that. Everything alternates within each round.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import itertools
import math
import os
import pathlib
import sys
import tempfile
import time

from array_record.python import array_record_module
import common
import grain
import jax
import numpy as np
import timing

from configs import imagenet
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import rng, sharding
from diversedit_jax.data import order, pipeline, sources
from diversedit_jax.data.store import layout, places, writer
from diversedit_jax.training import state, step

CLASSES, SEED = 1000, 0
SIDE = 32  # Side of the latents of 256 pixels.
PARTS = ('reading', 'waiting', 'training')
# Records a second on one core that are wanted, and the share of steps that stay.
GOALS = {'store': 50_000, 'memmap': 200_000}
STALL_GOAL = 0.98
# Taken before the clock starts, more than are prefetched.
WARM_UP = 4

SHUFFLED = 'grain, shuffled, its threads'

Reading = Callable[[range], Iterator[np.ndarray]]


def make_store(root: pathlib.Path, records: int, shards: int, side: int) -> None:
  """A finished store of random moments, [side, side, 8]."""
  shape = (side, side, 8)
  plan = layout.Plan(
    source='random',
    source_digest='',
    examples=records,
    records_per_shard=-(-records // shards),
    columns={'moments': layout.ColumnFacts(dtype='float16', shape=shape)},
    label_names=tuple(str(label) for label in range(CLASSES)),
    size=256,
    crop='adm',
    orientation='exif',
    vae={'file': 'random', 'encoder_sha256': '', 'scale': 0.18215, 'shift': 0},
  )
  root.mkdir()
  layout.write_json(root / 'plan.json', plan)
  generator = np.random.default_rng(SEED)
  for shard in range(plan.shards):
    entries = plan.entries(shard)
    moments = generator.standard_normal((len(entries), 1, *shape), np.float32).astype('float16')
    moments[..., 4:] = np.abs(moments[..., 4:])  # Standard deviations.
    examples = (
      writer.Example(key=f'{i:08d}', label=i % CLASSES, sha256='', columns={'moments': x})
      for i, x in zip(entries, moments, strict=True)
    )
    writer.write_shard(root, plan, shard, examples)
  writer.finish(root, plan, [], {})


def readings(source: sources.StoreSource, folder: pathlib.Path, batch: int) -> dict[str, Reading]:
  """Name -> steps -> their batches [batch, H, W, C]."""
  n, plan = len(source), source.plan
  shape = plan.columns['moments'].shape
  height, width, _ = shape
  held = sources.in_memory(source, flip=False)
  held.arrays['moments'].tofile(folder / 'moments')
  mapped = np.memmap(folder / 'moments', '<f2', 'r', shape=(n, *shape))
  # TensorStore takes ranges of bytes, here of files on this disk, and NumPy checks them.
  by_ranges = sources.StoreSource(places.Place(f'file://{source.store.root}'))
  noise = sources.open_source(
    f'synthetic:{height}x{width}x4:{CLASSES}:{n}'
  )  # float32, so as many bytes.
  indices = lambda k: order.batch_indices(SEED, k, batch, n)
  gathered = lambda of, key: lambda steps: (of.gather(indices(k))[key] for k in steps)
  paths = [
    str(layout.shard_file(source.store.root, 'moments', shard)) for shard in range(plan.shards)
  ]
  by_grain = grain.sources.ArrayRecordDataSource(paths)
  decode = lambda record: np.frombuffer(record, '<f2').reshape(shape)

  def shuffled_grain(steps):
    shuffled = grain.MapDataset.source(by_grain).shuffle(seed=steps.start)
    return iter(shuffled[: len(steps) * batch].map(decode).batch(batch).to_iter_dataset())

  def ordered_grain(steps):
    wanted = np.concatenate([indices(k) for k in steps])
    records = grain.MapDataset.source(wanted).map(lambda i: decode(by_grain[i])).batch(batch)
    return iter(records.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

  options = 'readahead_buffer_size:0,max_parallelism:0'
  readers = [array_record_module.ArrayRecordReader(path, options) for path in paths]

  def array_record(read, steps):
    for k in steps:
      wanted, out = indices(k), np.empty((batch, math.prod(shape)), '<f2')
      places = np.argsort(wanted)
      shards = wanted[places] // plan.records_per_shard
      for at in np.split(places, np.flatnonzero(np.diff(shards)) + 1):
        shard, _ = divmod(wanted[at[0]], plan.records_per_shard)
        records = read(readers[shard], (wanted[at] - shard * plan.records_per_shard).tolist())
        for place, record in zip(at, records, strict=True):
          out[place] = np.frombuffer(record, '<f2')
      yield out.reshape(-1, *shape)

  lists = lambda reader, rows: reader.read(rows)
  ranges = lambda reader, rows: (reader.read(row, row + 1)[0] for row in rows)
  return {
    'store': gathered(source, 'moments'),
    'store, as from a bucket': gathered(by_ranges, 'moments'),
    'array_record, a list per shard': functools.partial(array_record, lists),
    'array_record, a range per record': functools.partial(array_record, ranges),
    SHUFFLED: shuffled_grain,
    'grain, this order, no threads': ordered_grain,
    'memmap': lambda steps: (mapped[indices(k)] for k in steps),
    'host memory': gathered(held, 'moments'),
    'synthetic': gathered(noise, 'latents'),
  }


@contextlib.contextmanager
def one_core() -> Iterator[bool]:
  """Keeps every thread of this process on one core, where the system can; yields whether it did."""
  if not hasattr(os, 'sched_setaffinity'):
    yield False
    return
  threads = lambda: [int(thread) for thread in os.listdir('/proc/self/task')]
  before = os.sched_getaffinity(0)
  for thread in threads():
    os.sched_setaffinity(thread, {min(before)})
  try:
    yield True
  finally:
    for thread in threads():  # Those too that were started meanwhile.
      os.sched_setaffinity(thread, before)


def measure_reading(
  named: dict[str, Reading], batch: int, batches: int, rounds: int, slices: int
) -> dict:
  """Name -> records by second and by CPU second."""
  expected = next(named['store'](range(1)))
  for name, read in named.items():
    found = next(read(range(1)))
    same = name in (SHUFFLED, 'synthetic') or np.array_equal(found, expected)
    if found.nbytes != expected.nbytes or not same:
      raise RuntimeError(f'{name} reads another batch than the store')

  def side(read):
    turns = itertools.count()

    def turn():
      first = next(turns) * batches
      started = time.perf_counter(), time.process_time()
      for _ in read(range(first, first + batches)):
        pass
      return timing.Turn(time.perf_counter() - started[0], time.process_time() - started[1])

    return turn

  sides = {name: side(read) for name, read in named.items()}
  turns = timing.alternate(sides, rounds, slices=slices)
  records = batches * batch
  return {
    name: {
      'wall': timing.spread(records / turn.wall for turn in found),
      'cpu': timing.spread(records / turn.cpu for turn in found),
      'goal': GOALS.get(name),
      'over_store_cpu': timing.ratio(turns['store'], found)['cpu'],
    }
    for name, found in turns.items()
  }


class Feeds:
  """What a loop can be fed with: name -> iterator of batches on the devices."""

  def __init__(self, held: sources.HostSource, batch: int, stack: contextlib.ExitStack):
    mesh = sharding.make_mesh()
    on_device = sources.DeviceSource(
      held, whole=sharding.replicated(mesh), batch=sharding.batch_sharding(mesh)
    )
    put = lambda made: sharding.put_batch(made, mesh, batch)

    def fed(source):
      steps = pipeline.Steps(source=source, seed=SEED, batch_size=batch)
      return stack.enter_context(pipeline.batches(steps, start_step=0, put=put))

    self.fixed = put(held.gather(np.arange(batch)))
    self.named = {
      'store': fed(held.of),
      'resident=host': fed(held),
      'resident=device': map(on_device.look_up, fed(on_device)),
    }


def measure_stall(feeds: Feeds, run: Callable, steps: int, rounds: int, slices: int) -> dict:
  """Name -> steps a second, and their ratio to those with the fixed batch, by wall and CPU time.

  run: starts a step and returns what waits for it, which is called one step later, as in training.
  """

  def side(batches):
    def turn():
      for _ in range(WARM_UP):
        jax.block_until_ready(next(batches))
      started, wait = (time.perf_counter(), time.process_time()), lambda: None
      for _ in range(steps):
        earlier, wait = wait, run(next(batches))
        earlier()
      wait()
      wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
      return timing.Turn(wall / steps, cpu / steps)

    return turn

  fed = {'fixed': iter(lambda: feeds.fixed, None), **feeds.named}
  sides = {name: side(batches) for name, batches in fed.items()}
  turns = timing.alternate(sides, rounds, slices=slices)
  fixed = turns.pop('fixed')
  rows = {}
  for name, found in turns.items():
    ratio = timing.ratio(fixed, found)
    more = (1000 * (a.cpu - b.cpu) for a, b in zip(found, fixed, strict=True))
    rows[name] = {
      'over_fixed': ratio['wall'],
      'goal': STALL_GOAL,
      'over_fixed_cpu': ratio['cpu'],
      'rate': timing.spread(1 / turn.wall for turn in found),
      'cpu_ms_more': timing.spread(more),
    }
  return rows


class Waiting:
  """An accelerator that does a step in ten milliseconds and takes none of the host's time."""

  def __init__(self):
    self._free = 0.0

  def __call__(self, batch) -> Callable:
    jax.block_until_ready(batch)
    self._free = done = max(self._free, time.perf_counter()) + 0.01
    return lambda: time.sleep(max(0.0, done - time.perf_counter()))


def training_step(store: pathlib.Path, args) -> Callable:
  """The compiled step of plain flow matching on the store's moments."""
  config = imagenet.get(
    f'method=flow,skips=False,size={args.size},data=store:{store}', size='S/2', resolution=256
  )
  config.model.dtype, config.train.batch_size = args.dtype, args.train_batch
  experiment, mesh = experiment_lib.build(config), sharding.make_mesh()
  trainable = state.Trainable(experiment.network, experiment.transformation(), mesh)
  made = step.make_step(
    experiment.objective,
    trainable.graphdef,
    experiment.transformation(),
    key=rng.stream(jax.random.key(SEED), 'train'),
    ema_decay=0.9999,
    learning_rate=experiment.schedule(),
  )
  compiled = step.compile_step(made, trainable.shardings, mesh)
  held = [trainable.init(jax.random.key(SEED))]

  def run(batch):
    held[0], metrics = compiled(held[0], batch, {})
    return lambda: jax.block_until_ready(metrics)

  return run


def table(title: str, rows: dict, formats: dict[str, str]) -> None:
  """Prints rows of spreads; formats: of the numbers of a column, by its name in a row."""
  print(f'\n{title:34s}' + ''.join(f'{name:>28s}' for name in formats) + '    goal')
  cell = '{median:{format}} ({min:{format}}..{max:{format}})'.format
  for name, row in rows.items():
    cells = [cell(**row[column], format=form) for column, form in formats.items()]
    print(f'{name:34s}' + ''.join(f'{c:>28s}' for c in cells) + f'    {row["goal"] or ""}')
  sys.stdout.flush()


def reading_part(root: pathlib.Path, args) -> dict:
  """Measures reading on one core, and shows it."""
  with one_core() as pinned:
    named = readings(sources.StoreSource(root), root.parent, args.batch)
    reading = measure_reading(named, args.batch, args.batches, args.rounds, args.slices)
  core = 'one core' if pinned else 'all cores: this system pins none'
  formats = {'wall': ',.0f', 'cpu': ',.0f', 'over_store_cpu': '.2f'}
  table(f'records/s, {core}', reading, formats)
  return {'pinned': pinned, 'records_per_second': reading}


def main() -> None:
  """Measures reading, then stalls."""
  parser = common.parser(__doc__.splitlines()[0], 'data')
  parser.add_argument('--parts', nargs='+', default=PARTS, help=f'some of {", ".join(PARTS)}')
  parser.add_argument('--side', type=int, default=SIDE, help='of the latents, for reading alone')
  parser.add_argument('--records', type=int, default=16384)
  parser.add_argument('--shards', type=int, default=64)
  parser.add_argument('--batch', type=int, default=256, help='but for the training step')
  parser.add_argument('--batches', type=int, default=32, help='read in one turn')
  parser.add_argument('--steps', type=int, default=100, help='of the waiting step in one turn')
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--slices', type=int, default=4, help='turns of each reading in one round')
  parser.add_argument('--size', default='S/2', help='of the model that is trained')
  parser.add_argument('--train_batch', type=int, default=4)
  parser.add_argument('--train_steps', type=int, default=1, help='in one turn')
  parser.add_argument('--train_rounds', type=int, default=7)
  parser.add_argument('--train_slices', type=int, default=8, help='turns of each in one round')
  parser.add_argument('--dtype', default='float32')
  args = parser.parse_args()
  parts, measured = common.chosen(args.parts, PARTS), {}
  if args.side != SIDE and set(parts) != {'reading'}:
    raise SystemExit('--side is for --parts=reading: the model is of the latents of 256 pixels')
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    root = pathlib.Path(folder) / 'store'
    make_store(root, args.records, args.shards, args.side)
    if 'reading' in parts:
      measured |= reading_part(root, args)
    held = sources.in_memory(sources.StoreSource(root), flip=False)
    shown = {'over_fixed': '.3f', 'rate': '.2f'}
    if 'waiting' in parts:
      feeds = Feeds(held, args.batch, stack)
      waiting = measure_stall(feeds, Waiting(), args.steps, args.rounds, slices=1)
      title = f'steps/s, 10 ms, batch {args.batch}'
      table(title, waiting, {**shown, 'cpu_ms_more': '.1f'})
      measured['waiting'] = waiting
    if 'training' in parts:
      feeds, run = Feeds(held, args.train_batch, stack), training_step(root, args)
      training = measure_stall(
        feeds, run, args.train_steps, args.train_rounds, slices=args.train_slices
      )
      title = f'steps/s, {args.size}, batch {args.train_batch}'
      table(title, training, {**shown, 'over_fixed_cpu': '.3f'})
      measured['training'] = training
  if 'tensorflow' in sys.modules:
    raise RuntimeError('TensorFlow was imported: reading latents must not need it')
  common.write(args.json, {'arguments': common.arguments(args), **measured})


if __name__ == '__main__':
  main()
