"""Several real processes train what one trains, and end together; minutes, hence `slow`."""

import dataclasses
import re
import signal

from helpers import killed_runs, several, store_files
import numpy as np
import pytest

from diversedit_jax import checkpoint, together
from diversedit_jax.data import files

pytestmark = pytest.mark.slow
NOTED = 'helpers.noted_main'
STEPS = 24
# 24 rows are shared by 1, 2, 3 and 4 processes.
EVERY_STEP = [
  '--config.log.every=1',
  '--config.train.batch_size=24',
  '--config.log.telemetry_every=0',
]
EVERY_STEP += ['--config.optimizer.schedule=constant', '--config.checkpoint.every=6']
EVERY_STEP += [
  '--config.optimizer.learning_rate=1e-2'
]  # So that blocks, zero at first, come to count.


def trained(folder, count, steps, *flags, workdir=None):
  """Trains to a step, noting batches and files in a folder; returns the run's directory."""
  folder.mkdir()
  workdir = workdir or folder / 'run'
  processes = several.start(
    count,
    workdir,
    *EVERY_STEP,
    f'--config.train.steps={steps}',
    *flags,
    module=NOTED,
    env={'NOTES': str(folder)},
  )
  statuses, logs = several.ended(processes)
  assert statuses == [0] * count, logs
  return workdir


def batch(folder, count, number):
  """The whole batch that processes took in parts, in its order, as the bytes of each array."""
  parts = [np.load(folder / f'{i}-{number}.npz') for i in range(count)]
  rows = np.concatenate([part['rows'] for part in parts])
  places = np.unique(rows, return_index=True)[1]  # The first where several devices hold a row.
  names = set(parts[0].files) - {'rows'}
  assert len(places) == 24 and names >= {'images', 'labels'}
  return {name: np.concatenate([part[name] for part in parts])[places].tobytes() for name in names}


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """The notes and the rows of one process."""
  folder = tmp_path_factory.mktemp('one') / 'notes'
  return folder, killed_runs.rows(trained(folder, 1, STEPS))


def worst(rows, others):
  """The largest relative difference of a loss in each step."""
  losses = ('loss', 'velocity', 'diverse/loss', 'grad_norm')
  assert [row['step'] for row in rows] == [row['step'] for row in others]
  return [
    max(abs(a[name] - b[name]) / max(abs(a[name]), 1e-3) for name in losses)
    for a, b in zip(rows, others, strict=True)
  ]


def assert_same_averages(run, other, step):
  """Each is that of the other run but for rounding, beside what separates it from the others."""
  folders = [path / 'checkpoints' / str(step) for path in (run, other)]
  for item in sorted(killed_runs.ITEMS - {'opt'}):
    ours, theirs = (checkpoint.read(folder, item) for folder in folders)
    assert ours.keys() == theirs.keys()
    apart = lambda a, b: np.sqrt(sum(np.sum(np.square(a[name] - b[name])) for name in b))
    moved = apart(checkpoint.read(folders[0], 'params'), checkpoint.read(folders[0], 'ema'))
    assert apart(ours, theirs) < 1e-4 * moved, item


@pytest.mark.parametrize('axis', ['data', 'fsdp', 'tensor'])
def test_two_processes_train_what_one_trains(one, tmp_path, axis):
  sizes = [f'--config.mesh.{a}={2 if a == axis else 1}' for a in ('data', 'fsdp', 'tensor')]
  run = trained(tmp_path / 'notes', 2, 6, *sizes)
  found = worst(killed_runs.rows(run), one[1][:6])
  assert max(found) < 1e-5
  for number in range(1, 7):
    assert batch(tmp_path / 'notes', 2, number) == batch(one[0], 1, number)
  assert_same_averages(run, one[0] / 'run', 6)


def test_an_average_made_afterwards_by_two_processes_is_that_of_one(one, tmp_path):
  """Made of four checkpoints of one process, each of whose arrays two read in parts."""
  wanted = ['--mode=sample', '--config.sample.weights=ema@std=0.045', '--config.sample.number=8']
  images, facts = [], []
  for count in (1, 2):
    output = tmp_path / str(count)
    split = [f'--config.mesh.fsdp={count}', f'--output={output}', '--config.sampler.steps=4']
    steps = f'--config.train.steps={STEPS}'
    processes = several.start(count, one[0] / 'run', *EVERY_STEP, steps, *wanted, *split)
    statuses, logs = several.ended(processes)
    assert statuses == [0] * count, logs
    with np.load(output / 'samples' / 'samples.npz') as found:
      images.append(found['images'])
    facts.append(files.read_json(output / 'samples' / 'samples.json'))
  assert facts[0]['average']['at_steps'] == [6, 12, 18, 24]
  for name in ('average', 'parameters'):  # A digest of these.
    assert facts[0][name] == facts[1][name]
  np.testing.assert_allclose(*images, atol=1e-4)


def test_any_number_of_processes_continues(one, tmp_path):
  """4, 2, 1 and 3 in turn see the batches of one alone, and the first one writes the files."""
  run, step = tmp_path / 'run', 0
  for count in (4, 2, 1, 3):
    notes = tmp_path / str(count)
    trained(notes, count, step + 6, workdir=run)
    for number in range(1, 7):
      assert batch(notes, count, number) == batch(one[0], 1, step + number)
    step += 6
    written = [set((notes / f'{i}.txt').read_text().split()) for i in range(count)]
    assert '/metrics.jsonl' in ' '.join(written[0])
    for paths in written[1:]:
      assert all(path.startswith('/checkpoints') for path in paths), paths
  rows = killed_runs.rows(run)
  found = worst(rows, one[1])
  # Sums over devices round otherwise, and Adam carries that on: from 1e-7 to 4e-6 in 24 steps.
  assert max(found) < 1e-5


@pytest.mark.parametrize('lost', [0, 2])
def test_one_of_four_dies_and_the_others_name_it(tmp_path, lost):
  processes = several.start(4, tmp_path / 'run', '--config.train.steps=100000')
  several.until(processes[0], 'step 7/')
  processes[lost].kill()
  statuses, logs = several.ended(processes)
  for i in {0, 1, 2, 3} - {lost}:
    assert statuses[i] == together.LOST
    named = rf'error: process {lost} of 4 \(pid {processes[lost].pid} on \S+\) is gone'
    assert re.search(named, logs[i].splitlines()[-1])


def fail(processes, *words):
  """Both end with status 2 and the message of the second, soon."""
  statuses, logs = several.ended(processes)
  assert statuses == [2, 2], logs
  for log in logs:
    last = log.splitlines()[-1]
    assert last.startswith('error: ') and all(word in last for word in words), logs
  assert 'process 1' in logs[0].splitlines()[-1]


@pytest.fixture
def hosts(tmp_path):
  """A folder for each of two hosts."""
  folders = [tmp_path / 'host-0', tmp_path / 'host-1']
  for folder in folders:
    folder.mkdir()
  return folders


def test_a_shard_that_one_host_cannot_read_ends_both(tmp_path, hosts, monkeypatch):
  plan = store_files.PLAN
  known = {**plan.vae, 'file': 'vae', 'encoder_sha256': 'e' * 64}
  monkeypatch.setattr(store_files, 'PLAN', dataclasses.replace(plan, vae=known))
  for host in hosts:
    store_files.write(host / 'store')
  for shard in (hosts[1] / 'store').rglob('*.array_record'):
    shard.write_bytes(shard.read_bytes()[:-1000])
  flags = ['--config.data.source=store:store', '--config.train.batch_size=4']
  flags += ['--config.model.patch_size=1', '--config.eval.reference=']
  processes = several.start(2, tmp_path / 'run', *flags, cwds=hosts)
  fail(processes, 'store')


def test_a_file_of_weights_that_one_host_cannot_read_ends_both(tmp_path, hosts):
  np.savez(hosts[0] / 'start.npz', **{'model/x': np.ones(3, np.float32)})
  (hosts[1] / 'start.npz').write_bytes((hosts[0] / 'start.npz').read_bytes()[:100])
  fail(several.start(2, tmp_path / 'run', '--config.init_from=start.npz', cwds=hosts), 'start.npz')


def test_a_store_that_is_away_for_one_ends_both(tmp_path):
  run = trained(tmp_path / 'notes', 1, 6)
  processes = several.start(
    2,
    run,
    *EVERY_STEP,
    '--config.train.steps=12',
    module=NOTED,
    env={'NOTES': str(tmp_path), 'FAULT': '1'},
  )
  fail(processes, 'UNAVAILABLE: the store is being moved', 'the same command goes on')
  assert not (run / 'damaged_checkpoints').exists()


def test_sigterm_to_one_of_two_saves_on_both_and_a_truncated_checkpoint_costs_steps_only(tmp_path):
  workdir = tmp_path / 'run'
  flags = ['--config.optimizer.schedule=constant', '--config.checkpoint.every=30']
  one, two = several.start(2, workdir, *flags, '--config.train.steps=2000')
  several.until(one, 'step 35/')
  two.send_signal(signal.SIGTERM)
  statuses, logs = several.ended([one, two])
  assert statuses == [0, 0]
  step = int(re.search(r'SIGTERM: saved step (\d+)', logs[0]).group(1))
  assert 'loop.py' not in logs[1]  # The first process logs for both.
  for file in (workdir / 'checkpoints' / str(step) / 'ema').rglob('*'):
    if file.is_file() and file.stat().st_size > 1000:
      file.write_bytes(file.read_bytes()[:500])
  flags.append(f'--config.train.steps={step + 5}')
  statuses, logs = several.ended(several.start(2, workdir, *flags))
  assert statuses == [0, 0]
  assert re.search(r'continuing at step \d+', logs[0])
  assert (workdir / 'damaged_checkpoints' / str(step)).is_dir()
