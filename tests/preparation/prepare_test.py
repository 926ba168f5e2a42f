"""The command itself: killed, split over processes and devices, and what it says."""

import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

from helpers import small
import numpy as np
import pytest

from diversedit_jax import prepare
from diversedit_jax.data.store import layout, reader
from diversedit_jax.preparation import work

ROOT = pathlib.Path(__file__).parents[2]
BAD = {5: b'', 14: b'no picture'}


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
  """Pictures that take about 20 ms each to decode, so that a run can be caught at work; a VAE."""
  folder = tmp_path_factory.mktemp('inputs')
  small.write_pictures(folder / 'pictures', bad=BAD, side=1200)
  (folder / 'link').symlink_to('pictures')
  small.write_vae(folder / 'vae')
  return folder


def flags(inputs, output, *more):
  return [
    f'--source={inputs / "pictures"}',
    f'--vae={inputs / "vae"}',
    f'--output={output}',
    f'--size={small.SIZE}',
    '--records_per_shard=4',
    '--batch_size=3',
    '--threads=1',
    *more,
  ]


def start(arguments, **environment):
  # Not the cache of whoever runs the tests.
  environment['JAX_COMPILATION_CACHE_DIR'] = str(pathlib.Path(arguments[0][9:]).parent / 'cache')
  return subprocess.Popen(
    [sys.executable, '-m', 'diversedit_jax.prepare', *arguments],
    cwd=ROOT,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def ended(process):
  """Its output after a good end."""
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  return out + err


@pytest.fixture(scope='module')
def whole(inputs, tmp_path_factory):
  """The store of an undisturbed run."""
  root = tmp_path_factory.mktemp('whole') / 'store'
  assert prepare.main(flags(inputs, root, '--twins')) == 0
  return root


def kill_in_a_shard(process, shards, after):
  """SIGKILL once the run has finished so many shards; at no particular moment of the next one."""
  known, times = len(facts(shards)), [time.monotonic()]
  while len(times) <= after and process.poll() is None:
    if len(facts(shards)) >= known + len(times):
      times.append(time.monotonic())
    time.sleep(0.001)
  if after > 1:
    time.sleep(random.random() * (times[-1] - times[-2]))
  while process.poll() is None and not any(shards.glob('.moments-*')):
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL


def facts(shards):
  return list(shards.glob('0*.json'))


def test_a_killed_run_goes_on_to_the_same_store_bit_by_bit(inputs, whole, tmp_path):
  root = tmp_path / 'store'
  arguments = flags(inputs, root, '--twins')
  shards = root / 'shards'
  kill_in_a_shard(start(arguments), shards, after=0)
  left = [path.name for path in root.rglob('.*')]
  assert any(name.startswith('.moments') for name in left) and '.worker-0-of-1.lock' in left
  kill_in_a_shard(start(arguments), shards, after=2)
  assert 2 <= len(facts(shards)) < 6 and not (root / 'manifest.json').exists()
  kept = len(facts(shards))
  text = ended(start(arguments))
  assert f'{6 - kept} of them made now' in text
  assert '24 of 24 pictures (100%)' in text and 'ETA 0s | skipped 2 | memory' in text
  assert small.contents(root) == small.contents(whole)


def test_two_processes_and_two_devices_make_the_same_store(inputs, whole, tmp_path):
  """Each a worker; one on two devices, whose batches of 2 round otherwise than one batch of 3."""
  root = tmp_path / 'store'
  more = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=2'
  workers = [
    start(flags(inputs, root, '--twins', '--shard=1/2'), XLA_FLAGS=more),
    start(flags(inputs, root, '--twins', '--shard=0/2')),
  ]
  texts = [ended(worker) for worker in workers]
  assert sum('unfinished' in text for text in texts) <= 1
  assert reader.Store(root).manifest.content_sha256 == reader.Store(whole).manifest.content_sha256
  for shard in (0, 2, 4):
    name = layout.shard_file(root, 'moments', shard).relative_to(root)
    assert (root / name).read_bytes() == (whole / name).read_bytes()
  everything = np.arange(22)
  found, expected = (reader.Store(r).read('moments', everything) for r in (root, whole))
  # Half an ulp of float16 from each, 2^-11, and the rounding of float32 before it.
  np.testing.assert_allclose(found.astype('f4'), expected.astype('f4'), rtol=1.1e-3, atol=1e-4)
  np.testing.assert_array_equal(np.load(root / 'labels.npy'), np.load(whole / 'labels.npy'))


@pytest.mark.slow
def test_distributed_processes_share_the_work_and_do_not_wait_for_a_bad_one(
  inputs, whole, tmp_path
):
  """The second has the bad picture and ends at it; the first goes on, and starts with it anew."""
  root = tmp_path / 'store'

  def both(*more):
    with socket.socket() as probe:
      probe.bind(('localhost', 0))
      address = f'localhost:{probe.getsockname()[1]}'
    shared = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2'}
    arguments = flags(inputs, root, '--twins', '--distributed', *more)
    return [start(arguments, **shared, JAX_PROCESS_ID=str(i)) for i in range(2)]

  one, two = both('--strict')
  assert '3 of them made now' in ended(one)
  assert "'ant/005.jpg' cannot be used" in two.communicate(timeout=60)[1]
  assert two.returncode == 2
  one, two = both()
  assert '0 of them made now' in ended(one)
  assert '3 of them made now' in ended(two)
  assert small.contents(root) == small.contents(whole)


def test_a_faulty_store_ends_with_status_1(inputs, tmp_path, capsys):
  root = tmp_path / 'store'
  assert prepare.main([*_pixels(inputs, root)]) == 0
  path = layout.shard_file(root, 'pixels', 1)
  path.write_bytes(path.read_bytes()[:-1])
  assert prepare.main([f'--output={root}', '--verify']) == 1
  assert 'shards/pixels-00001.array_record: has 131071 bytes' in capsys.readouterr().out
  # As its last line advises.
  path.unlink()
  assert prepare.main(_pixels(inputs, root)) == 0
  capsys.readouterr()
  assert prepare.main([f'--output={root}', '--verify']) == 0
  text = capsys.readouterr().out
  assert 'examples  22' in text and 'faults    none' in text


def test_an_interrupted_run_says_how_to_go_on(inputs, tmp_path, monkeypatch, capsys):
  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(work.encode.Pipeline, 'results', interrupt)
  assert prepare.main(_pixels(inputs, tmp_path / 'store')) == 130
  assert 'run the same command to go on' in capsys.readouterr().err


def _pixels(inputs, root):
  return [
    f'--source={inputs / "pictures"}',
    '--store=pixels',
    f'--output={root}',
    '--size=32',
    '--records_per_shard=4',
  ]


@pytest.mark.parametrize(
  'change, words',
  [
    ('--size=30', '--size=30 is not divisible by 4'),
    ('--vae=nowhere', 'the autoencoder needs its weights'),
    ('--source=nowhere', 'nowhere'),
    ('--strict', "'ant/005.jpg' cannot be used: zero bytes"),
    ('--vae_scale=1,2,3', 'scale must be'),
    ('--output={inputs}/link/ant/store', 'lies in --source='),
  ],
)
def test_mistakes_end_with_one_message_before_anything_is_written(
  inputs, tmp_path, capsys, change, words
):
  change = change.format(inputs=inputs)
  arguments = flags(inputs, tmp_path / 'store', change)
  if change == '--strict':  # The fault shows when the picture is read.
    arguments.append('--records_per_shard=24')
  assert prepare.main(arguments) == 2
  lines = capsys.readouterr().err.splitlines()
  (line,) = (line for line in lines if line.startswith('prepare: '))
  assert words in line
  assert change == '--strict' or not (tmp_path / 'store').exists()
  assert not (tmp_path / 'store' / 'manifest.json').exists()
  assert {path.name for path in (inputs / 'pictures').iterdir()} == set(small.CLASSES)
