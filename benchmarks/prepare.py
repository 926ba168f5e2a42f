"""Whether a killed preparation leaves the same bytes, and how fast the real autoencoder encodes.

  python benchmarks/prepare.py
  python benchmarks/prepare.py --source=tar:PHOTOGRAPHS.tar
  python benchmarks/prepare.py --source=tar:PHOTOGRAPHS.tar --full

1. The command prepares photographs undisturbed with a small random autoencoder, then again into
   another folder, where it is killed (SIGKILL to its process group) at random moments and started
   again. All files are compared byte by byte; the exit status is 1 if any differs.
2. With --full: the autoencoder of Stable Diffusion, with random weights, encodes some photographs
   in float32 and in bfloat16, in processes of their own that alternate.
"""

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time

import common
import jax
import numpy as np
from PIL import Image
from safetensors import numpy as safetensors
import timing

from diversedit_jax.data import pictures
from diversedit_jax.data.store import layout
from diversedit_jax.frozen import vae, vae_files
from diversedit_jax.preparation import encode, making

SMALL = vae.VAEConfig(block_channels=(16, 32, 32, 32), norm_groups=8)
SIZE = 256
DTYPES = ('float32', 'bfloat16')
# Share of the work left after which no kill comes, so that something is left for the next.
LATEST = 0.6


def make_pictures(path: pathlib.Path, count: int, seed: int) -> None:
  """JPEG files with the spectrum of photographs, in folders of four classes, of several sizes."""
  generator = np.random.default_rng(seed)
  for i in range(count):
    height, width = (int(side) for side in generator.integers(200, 640, 2))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(generator.standard_normal((3, height, width))) / frequency
    x_HWC = np.moveaxis(np.fft.irfft2(noise, s=(height, width)), 0, -1)
    pixels = np.clip(128 + 50 * x_HWC / x_HWC.std(), 0, 255).astype(np.uint8)
    file = path / f'class{i % 4}' / f'{i:05d}.jpg'
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, quality=90)


def write_small_vae(path: pathlib.Path) -> None:
  """Weights of the small autoencoder, with the settings that its arrays cannot tell."""
  path.mkdir()
  autoencoder = vae_files.random(SMALL, seed=0)
  safetensors.save_file(vae_files.to_arrays(autoencoder.params, SMALL), path / vae_files.FILE)
  settings = {'norm_num_groups': SMALL.norm_groups, 'scaling_factor': SMALL.scale}
  (path / vae_files.SETTINGS).write_text(json.dumps(settings))


class Command:
  """`python -m diversedit_jax.prepare` on one source; shards of a few pictures."""

  def __init__(self, source: str, weights: pathlib.Path, cache: pathlib.Path, per_shard: int):
    self._words = [
      sys.executable,
      '-m',
      'diversedit_jax.prepare',
      f'--source={source}',
      f'--vae={weights}',
      f'--size={SIZE}',
      f'--records_per_shard={per_shard}',
    ]
    self._environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache)}

  @contextlib.contextmanager
  def started(self, output: pathlib.Path, log: pathlib.Path):
    """The process, in a group of its own, which is killed at the end of the block."""
    with open(log, 'w') as file:
      process = subprocess.Popen(
        [*self._words, f'--output={output}'],
        cwd=common.ROOT,
        env=self._environment,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    try:
      yield process
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

  def finish(self, output: pathlib.Path, log: pathlib.Path) -> dict:
    """Runs to the end; seconds in all, and from the first shard begun to the end."""
    begun = time.monotonic()
    with self.started(output, log) as process:
      at_work = wait_for_work(process, log)
      if process.wait():
        raise RuntimeError(f'prepare failed with {process.returncode}: {log.read_text()}')
    ended = time.monotonic()
    return {'seconds': ended - begun, 'seconds_at_work': ended - at_work}


def wait_for_work(process: subprocess.Popen, log: pathlib.Path) -> float:
  """When the log says how many shards are missing, or the process ends."""
  while process.poll() is None and ' missing' not in log.read_text():
    time.sleep(0.005)
  return time.monotonic()


def kill(
  command: Command, output: pathlib.Path, log: pathlib.Path, moments: list[float], work: float
) -> list[dict]:
  """Kills a preparation once for each moment; what it left each time.

  moments: as shares of the time that the missing shards would take. work: seconds that all
  shards take undisturbed.
  """
  left = []
  for moment in moments:
    missing = 1.0
    if left:
      missing = 1 - left[-1]['shards_finished'] / left[-1]['shards']
    with command.started(output, log) as process:
      at_work = wait_for_work(process, log)
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment * missing * work)
      alive = process.poll() is None
      seconds = time.monotonic() - at_work
    names = [path.name for path in output.rglob('*') if path.is_file()]
    left.append(
      {
        'killed': alive,
        'seconds_at_work': seconds,
        'shards': layout.read_plan(output).shards,
        'shards_finished': sum(name[:5].isdigit() and name.endswith('.json') for name in names),
        'temporary_files': sum(name.startswith('.') for name in names),
      }
    )
    print(f'after {seconds:.2f} s of work: {left[-1]}', flush=True)
  return left


def differences(first: pathlib.Path, second: pathlib.Path) -> list[str]:
  """Names of files that only one folder has, or that differ in a byte."""
  files = [
    {path.relative_to(root).as_posix(): path for path in root.rglob('*') if path.is_file()}
    for root in (first, second)
  ]
  both = files[0].keys() & files[1].keys()
  changed = {name for name in both if files[0][name].read_bytes() != files[1][name].read_bytes()}
  return sorted(changed | (files[0].keys() ^ files[1].keys()))


def measure_kills(source: str, folder: pathlib.Path, args) -> dict:
  """Prepares twice, once with kills, and compares."""
  write_small_vae(folder / 'vae')
  log, whole, killed = folder / 'log', folder / 'whole', folder / 'killed'
  command = Command(source, folder / 'vae', folder / 'cache', args.records_per_shard)
  cold = command.finish(folder / 'cold', log)
  undisturbed = command.finish(whole, log)  # With programs in the cache, as those to be killed.
  generator = random.Random(args.seed)
  moments = [round(generator.uniform(0, LATEST), 3) for _ in range(args.kills)]
  print(f'seed {args.seed}: kills at {moments} of the time that is left', flush=True)
  left = kill(command, killed, log, moments, undisturbed['seconds_at_work'])
  rest = command.finish(killed, log)
  differ = differences(whole, killed) + differences(folder / 'cold', whole)
  print('identical' if not differ else f'different: {differ}', flush=True)
  plan, files = layout.read_plan(whole), [path for path in whole.rglob('*') if path.is_file()]
  return {
    'source': plan.source,
    'pictures': plan.examples,
    'shards': plan.shards,
    'skipped': layout.read_manifest(whole).skipped,
    'cold': cold,
    'undisturbed': undisturbed,
    'seed': args.seed,
    'moments': moments,
    'kills': left,
    'rest': rest,
    'files': len(files),
    'bytes': sum(path.stat().st_size for path in files),
    'different': differ,
    'identical': not differ,
  }


def encode_some(source: str, dtype: str, count: int, batch_size: int) -> dict:
  """Images a second of the full-size encoder, and the peak memory of this process."""
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  collection = pictures.open_pictures(source)
  pixels_NHWC = np.stack(
    [
      pictures.crop.crop(pictures.decode.decode(collection.read(i), 'exif'), SIZE, 'adm')
      for i in np.linspace(0, len(collection.listing) - 1, count).astype(int)
    ]
  )
  encoder = encode.Encoder(
    making.encoded(vae_files.random(vae.VAEConfig(), seed=0, dtype=dtype), SIZE), batch_size
  )
  batches = [
    pixels_NHWC[start : start + encoder.batch_size] for start in range(0, count, encoder.batch_size)
  ]
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  started = time.perf_counter()
  jax.block_until_ready(encoder.start(batches[0]))
  first = time.perf_counter() - started
  clocks = time.perf_counter(), time.process_time()
  moments = np.concatenate([np.asarray(encoder.start(batch))[: len(batch)] for batch in batches])
  seconds, cpu = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
  if not np.isfinite(moments).all():
    raise RuntimeError(f'moments in {dtype} are not finite')
  filled = len(batches) * encoder.batch_size  # Black pictures that fill the last batch cost too.
  measured = {
    'images_per_second': filled / seconds,
    'images_per_cpu_second': filled / cpu,
    'gigaflops_per_second': filled / seconds * encoding_flops() / 1e9,
    'first_batch_seconds': first,
    'gib_before_encoding': before / 2**20,
    'peak_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
  }
  device = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in device:
    measured['device_peak_gib'] = device['peak_bytes_in_use'] / 2**30
  return measured


def encoding_flops() -> float:
  """FLOPs of one image in the full-size encoder."""
  return vae.flops(vae.VAEConfig(), SIZE, SIZE)[0]


def measure_encoding(source: str, cache: pathlib.Path, args) -> dict:
  """dtype -> spreads over rounds; each turn in its own process, because peak memory never falls."""
  rows = {dtype: [] for dtype in DTYPES}
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(cache)
  context = multiprocessing.get_context('spawn')
  for _ in range(args.rounds):
    for dtype in DTYPES:
      with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        made = pool.submit(encode_some, source, dtype, args.count, args.batch_size).result()
      rows[dtype].append(made)
      print(dtype, made, flush=True)
  ratios = {
    f'bfloat16_over_float32_{name}': timing.spread(
      [b[name] / a[name] for a, b in zip(*rows.values(), strict=True)]
    )
    for name in ('images_per_second', 'images_per_cpu_second')
  }
  spreads = {
    dtype: {name: timing.spread([row[name] for row in made]) for name in made[0]}
    for dtype, made in rows.items()
  }
  return {**spreads, **ratios, 'gigaflops_per_image': encoding_flops() / 1e9}


def main() -> int:
  """Measures both; 1 if a byte differs."""
  parser = common.parser(__doc__.splitlines()[0], 'prepare')
  parser.add_argument('--source', help='pictures, as prepare takes them (default: made here)')
  parser.add_argument('--pictures', type=int, default=160, help='that are made without a source')
  parser.add_argument('--records_per_shard', type=int, default=16)
  parser.add_argument('--kills', type=int, default=5)
  parser.add_argument('--seed', type=int, default=0, help='of the moments, and of made pictures')
  parser.add_argument('--full', action='store_true', help='the full-size autoencoder as well')
  parser.add_argument('--count', type=int, default=8, help='photographs that it encodes')
  parser.add_argument('--batch_size', type=int, default=4, help='that it encodes at once')
  parser.add_argument('--rounds', type=int, default=2, help='of the full-size autoencoder')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder, source = pathlib.Path(name), args.source
    if source is None:
      source = f'folder:{folder / "pictures"}'
      make_pictures(folder / 'pictures', args.pictures, args.seed)
    measured = {'killed': measure_kills(source, folder, args)}
    if args.full:
      measured['encoding'] = measure_encoding(source, folder / 'cache', args)
  # A path on this machine says nothing elsewhere; the collection's own name does.
  arguments = common.arguments(args) | {'source': measured['killed']['source']}
  common.write(args.json, {'arguments': arguments, **measured})
  return 0 if measured['killed']['identical'] else 1


if __name__ == '__main__':
  sys.exit(main())
