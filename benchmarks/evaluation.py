"""What scoring costs: features of pictures a second, the sums over them, memory, and the scores.

  python benchmarks/evaluation.py
  python benchmarks/evaluation.py --batch_sizes=64,256,512 --pictures=8192 --sums=50000 \
    --points=10000 --subsets=100 --sampling_rate=RATE                             on one GPU

1. Memory: features [50,000, 2048] are made batch by batch in a child process and summed, with and
   without being kept for precision and recall; peak resident memory over that after a warm-up, in
   copies of all features. Exit status 1 if a goal is missed.
2. Features: images a second of Inception alone and of all of `feature_network.Extractor.summarise`,
   in turns, by wall clock and by CPU seconds, where other load does not count. The whole without a
   network, too: checks of the pictures, transfers and sums, which the host does in float64. Few
   pictures pay much for the ends of the sums, so the share of 50,000 is that of these two.
3. Scores: seconds of a Fréchet distance, of precision and recall, and of the kernel distance.

The weights are random, which changes no time.
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import pathlib
import resource
import statistics
import sys
import time

import common
import jax
import jax.numpy as jnp
import numpy as np
import timing

from diversedit_jax import sharding
from diversedit_jax.evaluation import (
  accumulate,
  checks,
  feature_network,
  moments,
  reference,
  scores,
)
from diversedit_jax.frozen import inception, inception_files

COUNT, WIDTH = checks.STANDARD_COUNT, inception.WIDTH
# The most memory wanted, in copies of all features: kept once, and sums alone.
MEMORY_GOALS = {'kept': 1.5, 'sums': 0.3}
# On an H200: images a second of one device, and the share of an evaluation that scoring takes.
RATE_GOAL, SHARE_GOAL = 2000, 0.02

Clocks = tuple[float, float]
"""Seconds by wall clock and of the CPU."""


def clocks() -> Clocks:
  """Now."""
  return time.perf_counter(), time.process_time()


def seconds(run: Callable[[], object]) -> Clocks:
  """Seconds of a call, its result waited for."""
  started = clocks()
  jax.block_until_ready(run())
  return tuple(now - then for now, then in zip(clocks(), started, strict=True))


def resident_mib() -> float:
  """Memory of this process now; where the system does not tell, the most so far."""
  pages = pathlib.Path('/proc/self/statm')
  if pages.exists():
    return int(pages.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def forget_peak() -> None:
  """Makes the most so far what it is now, where the system can; else the warm-up counts too."""
  with contextlib.suppress(OSError):
    pathlib.Path('/proc/self/clear_refs').write_text('5')


def sum_features(count: int, keep: int, batch: int) -> accumulate.Summary:
  """Statistics of features that are made on the way, as from a network."""
  draw = np.random.default_rng(0)
  sums = accumulate.Statistics(count, keep=keep)
  for start in range(0, count, batch):
    rows = min(batch, count - start)
    x_ND = draw.standard_normal((rows, WIDTH), np.float32)
    sums.add({'pool': jax.device_put(x_ND)})
  return sums.finish()


def memory_of(keep: int, count: int, batch: int) -> dict:
  """Peak memory of the sums over `count` features, of which `keep` are kept."""
  sum_features(2 * moments.CHUNK, 0, batch)  # Threads of matrix products have their buffers then.
  gc.collect()
  forget_peak()
  before, started = resident_mib(), clocks()
  summary = sum_features(count, keep, batch)
  wall, cpu = (now - then for now, then in zip(clocks(), started, strict=True))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
  kept = 0 if summary.pool_ND is None else len(summary.pool_ND)
  if (summary.n, kept) != (count, keep):
    raise RuntimeError(f'{summary.n} features were summed and {kept} kept, not {count} and {keep}')
  copy = count * WIDTH * 4 / 2**20
  return {
    'before_mib': before,
    'peak_mib': peak,
    'copy_mib': copy,
    'copies': (peak - before) / copy,
    'seconds': wall,
    'cpu_seconds': cpu,
  }


def measure_memory(count: int, batch: int) -> dict:
  """Each in its own process, because peak memory never falls."""
  context, measured = multiprocessing.get_context('spawn'), {}
  for name, keep in (('kept', count), ('sums', 0)):
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
      made = pool.submit(memory_of, keep, count, batch).result()
    goal = MEMORY_GOALS[name]
    measured[name] = {**made, 'goal': goal, 'met': made['copies'] < goal}
    print(
      f'{name}: {made["copies"]:.2f} copies of {made["copy_mib"]:.0f} MiB (goal < {goal}), '
      f'{made["seconds"]:.0f} s',
      flush=True,
    )
  # Without what both need: 1 if features are held once.
  measured['copies_of_features'] = measured['kept']['copies'] - measured['sums']['copies']
  return measured


def pictures(count: int, batch: int, side: int) -> Iterator[np.ndarray]:
  """Batches of uint8 noise, of which no two pictures are the same."""
  x_NHWC = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
  for start in range(0, count, batch):
    made = x_NHWC[: count - start].copy()
    made[:, 0, 0] = start % 256, start // 256 % 256, start // 256**2
    yield made


def measure_features(batch_sizes: list[int], count: int, side: int, rounds: int) -> dict:
  """Batch size -> images a second of the network and of the whole, and their ratio."""
  mesh, view = sharding.make_mesh(), feature_network.of_inception(inception_files.random(0))
  sides = {}
  for batch in batch_sizes:
    extractor, total = feature_network.Extractor(view, mesh, batch), -(-count // batch) * batch
    network = lambda extractor=extractor, total=total: [
      extractor(x) for x in pictures(total, extractor.batch_size, side)
    ]
    whole = lambda extractor=extractor, total=total: (
      extractor.summarise(pictures(total, extractor.batch_size, side), total).mu
    )
    sides[batch] = total, network, whole
    jax.block_until_ready(extractor(next(pictures(batch, batch, side))))
  turns = {batch: [] for batch in sides}
  for _ in range(rounds):
    for batch, (_, network, whole) in sides.items():
      turns[batch].append((*seconds(network), *seconds(whole)))
  return {
    str(batch): {
      'pictures': total,
      'network': timing.spread([total / wall for wall, _, _, _ in turns[batch]]),
      'network_cpu': timing.spread([total / cpu for _, cpu, _, _ in turns[batch]]),
      'whole': timing.spread([total / wall for _, _, wall, _ in turns[batch]]),
      'whole_cpu': timing.spread([total / cpu for _, _, _, cpu in turns[batch]]),
      'whole_over_network': timing.spread([b / a for a, _, b, _ in turns[batch]]),
      'whole_over_network_cpu': timing.spread([b / a for _, a, _, b in turns[batch]]),
    }
    for batch, (total, _, _) in sides.items()
  }


def stand_in() -> feature_network.FeatureNetwork:
  """A network that costs nothing, with features as wide as those of Inception."""

  widths = {'pool': WIDTH, 'spatial': inception.SPATIAL_WIDTH, 'logits': inception.CLASSES}

  def features(params, x_NHWC):
    del params
    low, high, more = x_NHWC[0, 0, 0].astype(jnp.uint32)
    key = jax.random.key(low + 256 * high + 65536 * more)  # `pictures` numbers the batches there.
    return {kind: jax.random.uniform(key, (len(x_NHWC), d)) for kind, d in widths.items()}

  return feature_network.FeatureNetwork(
    name='stand-in', file='', sha256='', random=True, resize='none', params={}, features=features
  )


def measure_sums(count: int, batch: int, side: int, rounds: int) -> dict:
  """Milliseconds for a picture of everything but the network, and seconds for 50,000."""
  extractor = feature_network.Extractor(stand_in(), sharding.make_mesh(), batch)
  run = lambda: extractor.summarise(pictures(count, batch, side), count).mu
  jax.block_until_ready(extractor(next(pictures(batch, batch, side))))
  wall, cpu = zip(*(seconds(run) for _ in range(rounds)), strict=True)
  return {
    'pictures': count,
    'batch_size': batch,
    'ms': timing.spread([1000 * t / count for t in wall]),
    'cpu_ms': timing.spread([1000 * t / count for t in cpu]),
    'seconds_for_50k': statistics.median(wall) * COUNT / count,
    'cpu_seconds_for_50k': statistics.median(cpu) * COUNT / count,
  }


def measure_scores(points: int, subsets: int, rounds: int) -> dict:
  """Seconds of each score."""
  mesh, draw = sharding.make_mesh(), np.random.default_rng(0)
  x_ND, y_ND = draw.standard_normal((2, points, WIDTH), np.float32)
  gaussians = (
    *scores.gaussian_statistics(draw.standard_normal((2 * WIDTH, WIDTH))),
    *scores.gaussian_statistics(draw.standard_normal((2 * WIDTH, WIDTH)) + 0.1),
  )
  size = min(1000, points)
  sides = {
    'frechet_distance': lambda: scores.frechet_distance(*gaussians),
    'precision_recall_float32': lambda: scores.precision_recall(x_ND, y_ND, mesh=mesh),
    'precision_recall_float16': lambda: scores.precision_recall(
      x_ND, y_ND, arithmetic='float16', mesh=mesh
    ),
    'kernel_distance': lambda: scores.kernel_distance(
      x_ND, y_ND, subsets=subsets, size=size, mesh=mesh
    ),
  }
  for name, run in sides.items():
    if name != 'frechet_distance':  # Which compiles nothing.
      run()
  turns = {name: [] for name in sides}
  for _ in range(rounds):
    for name, run in sides.items():
      turns[name].append(seconds(run))
  found = {
    name: {
      'seconds': timing.spread([a for a, _ in rows]),
      'cpu_seconds': timing.spread([b for _, b in rows]),
    }
    for name, rows in turns.items()
  }
  return {'width': WIDTH, 'points': points, 'subsets': subsets, 'subset_size': size, **found}


def goals(features: dict, sums: dict, found: dict, sampling_rate: float | None) -> dict:
  """Images a second of one accelerator, and its share of a whole evaluation."""
  rate, points = max(row['whole']['median'] for row in features.values()), found['points']
  # Distances of 50,000 samples and 10,000 of the reference, over those that were measured.
  pairs = COUNT**2 + reference.POOL_LIMIT**2 + COUNT * reference.POOL_LIMIT
  times = {
    'frechet_distance': 2,
    'kernel_distance': 1,
    'precision_recall_float16': pairs / (3 * points**2),
  }
  after = sum(found[name]['seconds']['median'] * factor for name, factor in times.items())
  scoring, one = COUNT / rate + after, rate / jax.device_count()
  made = {
    'images_per_second_of_a_device': one,
    'rate_goal': RATE_GOAL,
    'rate_met': one >= RATE_GOAL,
    'sums_seconds_for_50k': sums['seconds_for_50k'],
    'scoring_seconds_for_50k': scoring,
  }
  if sampling_rate:
    share = scoring / (scoring + COUNT / sampling_rate)
    made |= {'share': share, 'share_goal': SHARE_GOAL, 'share_met': share <= SHARE_GOAL}
  return made


def main() -> int:
  """Measures all three; 1 if a goal of memory is missed."""
  parser = common.parser(__doc__.splitlines()[0], 'evaluation')
  parser.add_argument('--count', type=int, default=COUNT, help='features whose memory is measured')
  parser.add_argument('--batch_sizes', default='2,8', help='of Inception')
  parser.add_argument('--pictures', type=int, default=8, help='through Inception in one turn')
  parser.add_argument('--side', type=int, default=256, help='of the pictures, in pixels')
  parser.add_argument('--sums', type=int, default=4_096, help='pictures without a network')
  parser.add_argument('--sum_batch', type=int, default=64, help='of those')
  parser.add_argument('--memory_batch', type=int, default=512, help='of the features in memory')
  parser.add_argument('--points', type=int, default=2_000, help='of precision and recall, twice')
  parser.add_argument('--subsets', type=int, default=10, help='of the kernel distance')
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument(
    '--sampling_rate', type=float, help='images/s that sampling reaches here, for the share'
  )
  args = parser.parse_args()
  # First, while this process has not taken the device.
  memory = measure_memory(args.count, args.memory_batch)
  batch_sizes = [int(batch) for batch in args.batch_sizes.split(',')]
  features = measure_features(batch_sizes, args.pictures, args.side, args.rounds)
  print(features, flush=True)
  sums = measure_sums(args.sums, args.sum_batch, args.side, args.rounds)
  # The rest of the work on one picture, which runs beside the network, over the network's.
  for clock, rate in (('', 'network'), ('cpu_', 'network_cpu')):
    best = max(row[rate]['median'] for row in features.values())
    sums[f'{clock}over_network'] = sums[f'{clock}ms']['median'] / 1000 * best
  print(sums, flush=True)
  found = measure_scores(args.points, args.subsets, args.rounds)
  measured = {'memory': memory, 'features': features, 'sums': sums, 'scores': found}
  if jax.default_backend() != 'cpu':
    measured['goals'] = goals(features, sums, found, args.sampling_rate)
  common.write(args.json, {'arguments': common.arguments(args), **measured})
  return 0 if all(memory[name]['met'] for name in MEMORY_GOALS) else 1


if __name__ == '__main__':
  sys.exit(main())
