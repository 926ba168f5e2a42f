"""Faults injected into real runs: each survives, or ends with one line, and nothing is lost.

  pytest -m slow tests/faults_test.py

What survives is compared bit for bit with a run that nobody has disturbed: parameters, average,
moments, metrics and telemetry. Files and the clock are made to fail by `helpers/disk_faults.c`,
which needs a C compiler; a full disk and one that cannot be written are real, which needs root.
"""

import errno
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

from helpers import killed_runs, small_memory
import numpy as np
import pytest

from diversedit_jax import checkpoint, integrity, types
from diversedit_jax.data.sources import store
from diversedit_jax.data.store import layout

pytestmark = pytest.mark.slow
KILLS, SAVES, EVALUATIONS = 25, 5, 4
EVALUATED = (
  '--config.eval.every=20',
  '--config.eval.every_number=64',
  '--config.sampler.steps=4',
  '--config.eval.batch_size=64',
)


@pytest.fixture(scope='module', autouse=True)
def programs(tmp_path_factory):
  """What the runs compile is compiled once."""
  before = dict(os.environ)
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(tmp_path_factory.mktemp('programs')))
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  yield
  os.environ.clear()
  os.environ.update(before)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """A run that nobody disturbs, and how long it takes once its programs are compiled."""
  workdir = tmp_path_factory.mktemp('straight') / 'run'
  assert killed_runs.run(workdir).returncode == 0
  began = time.monotonic()
  assert killed_runs.run(workdir.with_name('again')).returncode == 0
  return workdir, time.monotonic() - began


@pytest.fixture(scope='session')
def shim(tmp_path_factory):
  """Environment in which files and the clock fail as the other variables say."""
  compiler, library = shutil.which('cc'), tmp_path_factory.mktemp('shim') / 'disk_faults.so'
  if compiler is None or not sys.platform.startswith('linux'):
    pytest.skip('needs Linux and a C compiler')
  source = pathlib.Path(__file__).parent / 'helpers' / 'disk_faults.c'
  subprocess.run([compiler, '-shared', '-fPIC', '-o', library, source, '-ldl'], check=True)
  return {'LD_PRELOAD': str(library)}


@pytest.fixture
def small_disk(tmp_path):
  """Mounts a disk of so many bytes, and a function to mount it anew; real, so for root alone."""
  folder = tmp_path / 'disk'
  folder.mkdir()

  def mount(options):
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'none', folder], check=False)
    if done.returncode:
      pytest.skip('needs the right to mount a disk')
    return folder

  yield mount
  subprocess.run(['umount', '-l', folder], check=False, stderr=subprocess.DEVNULL)


def kill(process):
  process.send_signal(signal.SIGKILL)
  return killed_runs.ended(process)[1]


def finish(workdir, *flags, **environment):
  done = killed_runs.run(workdir, *flags, **environment)
  assert done.returncode == 0, done.stderr
  return done.stderr


def test_killed_at_random_moments(straight, tmp_path):
  """Several times in one run: while it starts, compiles, reads a checkpoint, trains, saves."""
  moments, killed, runs = random.Random(0), 0, 0
  while killed < KILLS:
    workdir = tmp_path / str(runs)
    runs += 1
    for _ in range(5):
      process = killed_runs.start(workdir)
      try:
        process.wait(straight[1] * moments.uniform(0.3, 1))
        break
      except subprocess.TimeoutExpired:
        kill(process)
        killed += 1
    finish(workdir)
    killed_runs.assert_same_run(straight[0], workdir)
    shutil.rmtree(workdir)


def test_killed_while_a_checkpoint_is_written(straight, tmp_path):
  for number in range(SAVES):
    workdir, process = tmp_path / str(number), None
    process = killed_runs.start(workdir)
    unfinished = f'{10 * (number + 1)}{checkpoint.UNFINISHED[1:]}'
    while not (workdir / 'checkpoints' / unfinished).exists() and process.poll() is None:
      pass
    kill(process)
    left = [path.name for path in (workdir / 'checkpoints').glob(checkpoint.UNFINISHED)]
    log = finish(workdir)
    assert not left or f'continuing at step {10 * number}' in log or number == 0
    killed_runs.assert_same_run(straight[0], workdir)


def wait_for(process, there):
  while process.poll() is None and not there():
    time.sleep(0.002)


@pytest.fixture(scope='module')
def evaluated(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('evaluated') / 'run'
  finish(workdir, *EVALUATED)
  return workdir


def scores(workdir):
  files = sorted((workdir / 'eval' / 'during').glob('step-*.json'))
  return {file.name: json.loads(file.read_text())['scores'] for file in files}


@pytest.mark.parametrize('moment', range(EVALUATIONS))
def test_killed_while_it_evaluates(evaluated, tmp_path, moment):
  """The checkpoint of the step is there already, so the evaluation is done when it goes on."""
  workdir, step = tmp_path / 'run', (20, 40, 60, 60)[moment]
  process = killed_runs.start(workdir, *EVALUATED)
  wait_for(process, (workdir / 'telemetry' / f'similarity-{step:08d}.npz').exists)
  wait_for(process, (workdir / 'checkpoints' / str(step)).exists)
  if moment % 2 == 0:
    kill(process)
  else:
    process.send_signal(signal.SIGTERM)  # Training is over at 60: it may come to its end.
    killed_runs.ended(process)
  finish(workdir, *EVALUATED)
  killed_runs.assert_same_run(evaluated, workdir)
  assert len(scores(evaluated)) == 3 and scores(workdir) == scores(evaluated)


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGHUP'])
def test_told_to_end(straight, tmp_path, name):
  """Schedulers, people, closed terminals; a cloud that wants its machine back sends SIGTERM."""
  workdir, moment = tmp_path / 'run', random.Random(name)
  here = signal.signal(signal.Signals[name], signal.SIG_DFL)  # Not ignored, as nohup would have it.
  process = killed_runs.start(workdir, '--stopped_status=75')
  signal.signal(signal.Signals[name], here)
  wait_for(process, (workdir / 'checkpoints' / str(10 * moment.randint(1, 4))).exists)
  process.send_signal(signal.Signals[name])
  status, log = killed_runs.ended(process)
  assert status == 75 and f'{name}: saved step' in log
  finish(workdir)
  killed_runs.assert_same_run(straight[0], workdir)


# Every kind of file of a checkpoint, as a pattern, with what is in it.
FILES = {
  'numbers': 'params/ocdbt.process_0/d/*',
  'index': 'params/d/*',
  'manifest': 'ema/manifest.ocdbt',
  'names': 'opt/_METADATA',
  'places': 'params/_sharding',
  'metrics': 'meta/metadata',
}
DAMAGES = {
  'deleted': lambda data: None,
  'empty': lambda data: b'',
  'truncated': lambda data: data[: len(data) // 2],
  'one byte short': lambda data: data[:-1],
  'zeros': lambda data: bytes(len(data)),
  'flipped at a third': lambda data: flipped(data, len(data) // 3),
  'flipped in the middle': lambda data: flipped(data, len(data) // 2),
}


def flipped(data, place):
  return data[:place] + bytes([data[place] ^ 2]) + data[place + 1 :]


@pytest.fixture(scope='module')
def halfway(straight, tmp_path_factory):
  """The straight run as it was at step 50, with what came before."""
  workdir = tmp_path_factory.mktemp('halfway') / 'run'
  shutil.copytree(straight[0], workdir)
  for path in (*(workdir / 'checkpoints').glob('60'), *(workdir / 'telemetry').glob('*60.npz')):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  return workdir


def everything(folder):
  """Content of all files by what they hold, whatever folder they lie in."""
  return sorted(path.read_bytes() for path in folder.rglob('*') if path.is_file())


def damaged(folder, file, how):
  """Damages the largest file of a kind in a checkpoint."""
  path = max(folder.glob(FILES[file]), key=lambda path: path.stat().st_size)
  data = DAMAGES[how](path.read_bytes())
  path.unlink() if data is None else path.write_bytes(data)


# Every kind of file and every way once; all pairs are in the test below.
PAIRS = [*zip(FILES, DAMAGES, strict=False), ('numbers', 'flipped in the middle')]


@pytest.mark.parametrize('file, how', PAIRS)
def test_a_damaged_file_of_the_newest_checkpoint(straight, halfway, tmp_path, file, how):
  """Found, moved away whole, and the one before is used."""
  workdir = tmp_path / 'run'
  shutil.copytree(halfway, workdir)
  newest = workdir / 'checkpoints' / '50'
  damaged(newest, file, how)
  before = everything(newest)
  log = finish(workdir)
  assert 'checkpoints/50 cannot be read' in log and 'continuing at step 40' in log
  assert everything(workdir / 'damaged_checkpoints' / '50') == before
  killed_runs.assert_same_run(straight[0], workdir)


@pytest.mark.parametrize('file', FILES)
def test_no_damage_is_read_as_something_else(halfway, tmp_path, monkeypatch, file):
  """Whatever was done to a file, a reader is refused or gets what was written."""
  monkeypatch.setattr(integrity.time, 'sleep', lambda seconds: None)
  whole, item = halfway / 'checkpoints' / '50', FILES[file].partition('/')[0]
  item = 'params' if item == 'meta' else item
  expected, refused = checkpoint.read(whole, item), 0
  for how in DAMAGES:
    folder = tmp_path / how
    shutil.copytree(whole, folder)
    damaged(folder, file, how)
    try:
      found = checkpoint.read(folder, item)
    except types.UserError:
      refused += 1
      continue
    assert found.keys() == expected.keys()
    for name in expected:
      np.testing.assert_array_equal(found[name], expected[name], err_msg=f'{how}: {name}')
  # Orbax does without the file of places and the last byte of the numbers.
  assert refused >= len(DAMAGES) - 1


@pytest.mark.parametrize(
  'number, part',
  [
    (errno.ESTALE, 'ema/ocdbt.process_0/d/'),
    (errno.EIO, 'opt/manifest.ocdbt'),
    (errno.ETIMEDOUT, 'meta/metadata'),
  ],
)
def test_a_read_that_fails_and_passes(straight, halfway, tmp_path, shim, number, part):
  workdir = tmp_path / 'run'
  shutil.copytree(halfway, workdir)
  fails = shim | {'FAULT_CALL': 'read', 'FAULT_ERRNO': str(number), 'FAULT_COUNT': '2'}
  log = finish(workdir, FAULT_PATH=f'checkpoints/50/{part}', **fails)
  assert 'reading it again in' in log and 'continuing at step 50' in log
  assert not (workdir / 'damaged_checkpoints').exists()
  killed_runs.assert_same_run(straight[0], workdir)


def start_two(workdir, *flags, second=None):
  """Two processes of one run. second: environment of the second one."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    shared = {'JAX_COORDINATOR_ADDRESS': f'localhost:{probe.getsockname()[1]}'}
  shared |= {'JAX_NUM_PROCESSES': '2'}
  return [
    killed_runs.start(workdir, *flags, '--distributed', JAX_PROCESS_ID=str(i), **shared, **more)
    for i, more in enumerate(({}, second or {}))
  ]


def test_a_read_that_fails_on_one_process_of_two_and_passes(tmp_path, shim):
  workdir, constant = tmp_path / 'run', '--config.optimizer.schedule=constant'
  for process in start_two(workdir, constant):
    assert killed_runs.ended(process)[0] == 0
  fails = {'FAULT_CALL': 'read', 'FAULT_ERRNO': str(errno.ESTALE), 'FAULT_COUNT': '2'}
  fails |= {'FAULT_PATH': 'checkpoints/60/params/'} | shim
  again = start_two(workdir, constant, '--config.train.steps=65', second=fails)
  ends = [killed_runs.ended(process) for process in again]
  assert [status for status, _ in ends] == [0, 0], ends
  assert 'process 1: Stale file handle; reading it again' in ends[0][1]
  assert 'continuing at step 60' in ends[0][1]
  assert not (workdir / 'damaged_checkpoints').exists()


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_or_quota_that_is_full_for_a_while(straight, tmp_path, shim, number):
  workdir, full = tmp_path / 'run', tmp_path / 'full'
  fails = shim | {'FAULT_CALL': 'write', 'FAULT_ERRNO': str(number), 'FAULT_WHILE': str(full)}
  process = killed_runs.start(workdir, FAULT_PATH=f'{workdir}/', **fails)
  wait_for(process, (workdir / 'checkpoints' / '10').exists)
  full.touch()
  wait_for(process, lambda: 'could not be written' in process.log.read_text())
  full.unlink()
  status, log = killed_runs.ended(process)
  assert status == 0, log
  assert 'a checkpoint could not be written' in log and 'training goes on' in log
  assert {'10', '60'} <= {path.name for path in (workdir / 'checkpoints').iterdir()}
  # A file of telemetry that could not be written is told; no row is lost.
  assert killed_runs.rows(workdir) == killed_runs.rows(straight[0])
  found, expected = (killed_runs.arrays(of, killed_runs.STEPS) for of in (workdir, straight[0]))
  for name, values in expected.items():
    np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_disk_that_stays_full(straight, tmp_path, small_disk):
  """A real one: the run ends with status 2 and its last good checkpoint, and goes on later."""
  disk = small_disk('size=64m')
  workdir = disk / 'run'
  process = killed_runs.start(workdir)
  wait_for(process, (workdir / 'checkpoints' / '20').exists)
  with open(disk / 'ballast', 'wb') as ballast:
    try:
      while True:
        ballast.write(bytes(1 << 16))
        ballast.flush()
    except OSError:
      pass
  status, log = killed_runs.ended(process)
  last = log.strip().splitlines()[-1]
  assert status == 2 and 'Traceback' not in log, log
  assert re.search(
    r'could not be written: .*No space left on device; .*checkpoints/\d+, from', last
  )
  (disk / 'ballast').unlink()
  finish(workdir)
  killed_runs.assert_same_run(straight[0], workdir)


def test_a_workdir_that_cannot_be_written(tmp_path, small_disk):
  disk = small_disk('size=64m,ro')
  done = killed_runs.run(disk / 'run')
  assert done.returncode == 2 and 'Read-only file system' in done.stderr.splitlines()[-1]
  assert 'first step' not in done.stderr


def test_too_small_a_disk_is_refused_before_the_first_step(tmp_path, small_disk):
  done = killed_runs.run(small_disk('size=300k') / 'run')
  assert done.returncode == 2 and re.search('its disk has .* GB free, but 6 more', done.stderr)
  assert 'first step' not in done.stderr


def test_two_runs_in_one_workdir(straight, tmp_path):
  """The second is refused; what a killed one has left keeps nobody out."""
  workdir = tmp_path / 'run'
  process = killed_runs.start(workdir)
  wait_for(process, (workdir / 'checkpoints' / '10').exists)
  process.send_signal(signal.SIGSTOP)  # So that it is there for long enough.
  second = killed_runs.run(workdir)
  assert second.returncode == 2
  assert re.search(
    rf'is trained in by process {process.pid} on \S+ since 20\d\d-\d\d-\d\d ', second.stderr
  )
  kill(process)
  finish(workdir)
  killed_runs.assert_same_run(straight[0], workdir)


def test_a_clock_that_goes_backwards(straight, tmp_path, shim):
  """By an hour while it trains: files are older than those that were written before them."""
  workdir, earlier = tmp_path / 'run', tmp_path / 'earlier'
  process = killed_runs.start(workdir, CLOCK_BACK_WHILE=str(earlier), **shim)
  wait_for(process, (workdir / 'checkpoints' / '20').exists)
  earlier.touch()
  wait_for(process, (workdir / 'checkpoints' / '40').exists)
  kill(process)
  log = finish(workdir, CLOCK_BACK_WHILE=str(earlier), **shim)
  assert re.search('continuing at step [456]0', log)
  assert not re.search(r'-\d[\d.e+]* (steps|images)/s|ETA -', log)
  found = killed_runs.writers.read_jsonl(workdir / 'metrics.jsonl')
  timed = [row for row in found if 'seconds' in row]
  assert timed and all(row[name] > 0 for row in timed for name in killed_runs.TIMING)
  killed_runs.assert_same_run(straight[0], workdir)


def workers(pid):
  """Processes of `data.workers`: the children of a run, without the one that cleans up for it."""
  command = ['ps', '-o', 'pid=,args=', '--ppid', str(pid)]
  found = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
  return [int(line.split()[0]) for line in found if 'resource_tracker' not in line]


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """A folder of pictures, which worker processes read."""
  from PIL import Image

  folder, noise = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0)
  for number in range(64):
    path = folder / 'train' / str(number % 2) / f'{number:03d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
  return f'--config.data.source=folder:{folder}/train', '--config.data.size=8', folder


@pytest.fixture(scope='module')
def from_pictures(pictures, tmp_path_factory):
  """Flags of a run with worker processes, and one that nobody disturbs."""
  flags = (*pictures[:2], '--config.data.workers=2')
  workdir = tmp_path_factory.mktemp('from-pictures') / 'run'
  finish(workdir, *flags)
  return flags, workdir


def test_a_worker_process_that_dies(from_pictures, tmp_path):
  flags, straight = from_pictures
  workdir = tmp_path / 'run'
  process = killed_runs.start(workdir, *flags)
  wait_for(process, (workdir / 'checkpoints' / '20').exists)
  for worker in workers(process.pid):
    os.kill(worker, signal.SIGKILL)
  status, log = killed_runs.ended(process)
  if status:  # It may have had all its batches.
    assert status == 2, log
    (error,) = [line for line in log.splitlines() if line.startswith('error: ')]
    assert 'a process of data.workers ended with -9: somebody killed it' in error
  finish(workdir, *flags)
  killed_runs.assert_same_run(straight, workdir)


def test_too_little_shared_memory_for_the_worker_processes(from_pictures, tmp_path):
  """At the start the run is refused; where others fill it meanwhile, it ends, and goes on later."""
  flags, straight = from_pictures
  workdir = tmp_path / 'run'
  done = killed_runs.run(workdir, *flags, before=small_memory.words('64k'))
  assert done.returncode == 2 and 'first step' not in done.stderr
  refused = r'data.workers=2 needs 0.4 MiB of /dev/shm, 12 batches of .* 0.1 MiB are free; enlarge'
  assert re.search(refused, done.stderr.splitlines()[-1])
  process = killed_runs.start(workdir, *flags, before=small_memory.words('1m'))
  wait_for(process, (workdir / 'checkpoints' / '20').exists)
  small_memory.keep_full(process)
  status, log = killed_runs.ended(process)
  assert status == 2 and 'a process of data.workers ended with -7: /dev/shm is full' in log, log
  finish(workdir, *flags)
  killed_runs.assert_same_run(straight, workdir)


def test_corrupt_records_of_a_store(pictures, tmp_path):
  """The first ends a run and is named; as many as are borne are replaced, whenever it restarts."""
  root = tmp_path / 'store'
  prepare = [sys.executable, '-m', 'diversedit_jax.prepare', f'--source={pictures[2]}/train']
  subprocess.run(
    [*prepare, '--size=8', '--store=pixels', f'--output={root}'], cwd=killed_runs.ROOT, check=True
  )
  shard = layout.shard_file(root, 'pixels', 0)
  data = bytearray(shard.read_bytes())
  for record in store.StoreSource(root).gather(np.array([5, 17]))['images']:
    data[data.index(record.tobytes())] ^= 8
  shard.write_bytes(data)
  source = f'--config.data.source=store:{root}'
  done = killed_runs.run(tmp_path / 'first', source)
  assert done.returncode == 2
  assert re.search(rf'{shard.name} cannot be read: record \d+ is damaged', done.stderr)
  done = killed_runs.run(tmp_path / 'one', source, '--config.data.max_bad=1')
  assert done.returncode == 2 and 'data.max_bad=1 are borne' in done.stderr
  flags = (source, '--config.data.max_bad=2')
  log = finish(tmp_path / 'straight', *flags)
  assert log.count('the next good record takes the place of') == 2
  workdir = tmp_path / 'run'
  process = killed_runs.start(workdir, *flags, '--config.data.workers=1')
  wait_for(process, (workdir / 'checkpoints' / '20').exists)
  kill(process)
  finish(workdir, *flags)
  killed_runs.assert_same_run(tmp_path / 'straight', workdir)
  counted = [row.get('data/bad_records', 0) for row in killed_runs.rows(workdir)]
  assert max(counted) == 2
