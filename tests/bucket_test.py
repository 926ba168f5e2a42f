"""What is written to a bucket, on an emulator of the storage API: objects, locks, refusals."""

from concurrent import futures
import contextlib
import itertools
import json
import os
import socket
import threading
import time

from etils import epath
import gcsfs
from helpers import bucket, killed_runs
import numpy as np
import pytest
import tensorstore

from diversedit_jax import buckets, checkpoint, locks, paths, types
from diversedit_jax.data import files
from diversedit_jax.evaluation import samples
from diversedit_jax.experiment import run_dir
from diversedit_jax.training import writers

NOTHING = b'\2'  # TensorStore's generation of what is not there.


def test_the_emulator_keeps_the_conditions_on_which_a_lock_rests():
  store = tensorstore.KvStore.open(f'{bucket.new()}/').result()
  made = store.write('x', b'1', if_equal=NOTHING).result().generation
  assert not store.write('x', b'2', if_equal=NOTHING).result().generation
  assert store.read('x').result().stamp.generation == made
  changed = store.write('x', b'3', if_equal=made).result().generation
  assert not store.write('x', b'4', if_equal=made).result().generation
  assert not store.write('x', None, if_equal=made).result().generation
  assert store.read('x').result().value == b'3'
  assert store.write('x', None, if_equal=changed).result().generation
  assert not epath.Path(str(store.url)).exists()


class Asking:
  """A store whose answers to writes get lost, so that the library asks for the same again."""

  def __init__(self, store):
    self._store, self.read = store, store.read

  def write(self, *what, **how):
    self._store.write(*what, **how).result()
    return self._store.write(*what, **how)


def test_what_was_written_is_known_where_the_answer_got_lost(lock):
  there = buckets.Object(str(lock))
  there._store = Asking(there._store)
  made = there.write(b'1', NOTHING)
  assert made and made == there.read().generation
  assert there.write(b'2', NOTHING) is None and there.read().value == b'1'


# How the emulator answers while it is busy.
BUSY = {
  'busy': dict(status=503),
  'told to wait': dict(status=429),
  'done, but the answer is an error': dict(status=503, does=True),
  'slow': dict(seconds=0.3),
}


def claim(path):
  return locks.claim(path, 'the house is lived in', 'build another')


@pytest.fixture
def folder():
  return paths.path(bucket.new(), bucket=True)


@pytest.fixture
def lock(folder):
  return folder / '.lock'


@pytest.fixture
def quick(monkeypatch):
  """Beats of 50 ms, and half a second of silence."""
  monkeypatch.setattr(locks, '_BEAT', 0.05)
  monkeypatch.setattr(locks, '_SILENCE', 0.5)


def elsewhere(monkeypatch):
  monkeypatch.setattr(socket, 'gethostname', lambda: 'elsewhere')


def test_a_claim_in_a_bucket_keeps_others_out_and_leaves_nothing(lock, monkeypatch, quick):
  with monkeypatch.context() as there:
    elsewhere(there)
    held = claim(lock)
    held.__enter__()
  with pytest.raises(types.UserError, match='lived in by process .* on elsewhere since .*; build'):
    claim(lock).__enter__()
  held.__exit__(None, None, None)
  assert not lock.exists()
  with claim(lock):
    assert locks.holder(lock)['host'] == socket.gethostname()


def test_of_many_that_take_over_from_a_dead_host_one_does(lock, quick):
  """All have waited for the same silence before any of them writes."""
  left = {'host': 'elsewhere', 'pid': 1, 'since': 'yesterday'}
  buckets.Object(str(lock)).write(json.dumps(left).encode(), NOTHING)
  waited, over = threading.Barrier(4), threading.Event()

  def life(*_, found=locks._sign_of_life, **how):
    alive = found(lock, works=False)
    waited.wait()
    return alive

  def take():
    try:
      with claim(lock):
        over.wait(30)
        return True
    except types.UserError as error:
      assert f'process {os.getpid()} on {socket.gethostname()}' in str(error)
      return False

  with pytest.MonkeyPatch.context() as patched, futures.ThreadPoolExecutor(4) as pool:
    patched.setattr(locks, '_sign_of_life', life)
    takers = [pool.submit(take) for _ in range(4)]
    refused = list(itertools.islice(futures.as_completed(takers), 3))
    over.set()
    assert [taker.result() for taker in refused] == [False] * 3
    assert sum(taker.result() for taker in takers) == 1


def test_who_was_silent_and_is_replaced_ends(lock, quick, monkeypatch):
  lost = threading.Event()
  monkeypatch.setattr(locks, '_lost', lambda path: lost.set())
  with claim(lock):
    there = buckets.Object(str(lock))
    while there.write(b'{}', there.read().generation) is None:
      pass  # It beats.
    assert lost.wait(30)


def test_who_was_not_told_that_a_beat_was_written_or_whose_lock_was_removed_goes_on(
  lock, quick, monkeypatch
):
  ended = []
  monkeypatch.setattr(locks, '_lost', ended.append)
  there = buckets.Object(str(lock))
  with claim(lock):
    for left in ({**locks.holder(lock), 'beat': -1}, None):
      value = left and json.dumps(left).encode()
      while there.write(value, there.read().generation) is None:
        pass
      beat = locks.holder(lock)
      while locks.holder(lock) in ({}, beat) and not ended:
        time.sleep(0.01)
  assert not ended and not lock.exists()


def test_storage_that_is_not_amazons_is_asked_where_it_is(monkeypatch):
  monkeypatch.setenv('AWS_ENDPOINT_URL', 'http://127.0.0.1:9')
  monkeypatch.setenv('AWS_REGION', 'here')
  monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
  found = buckets.opened('s3://lab/runs/').spec().to_json()
  assert (found['bucket'], found['path']) == ('lab', 'runs/')
  assert (found['endpoint'], found['aws_region']) == ('http://127.0.0.1:9', 'here')


def test_a_file_appears_whole_or_not_at_all(folder):
  files.write_json(folder / 'x.json', {'a': 1})
  with pytest.raises(KeyError), files.atomic(folder / 'x.json') as temporary:
    temporary.write_text('half')
    raise KeyError
  assert files.read_json(folder / 'x.json') == {'a': 1}
  assert files.read_json(folder / 'none.json', may_lack=True) == {}
  assert [path.name for path in folder.iterdir()] == ['x.json']


def test_rows_are_in_the_bucket_before_a_checkpoint_and_at_the_end(folder):
  file = folder / 'metrics.jsonl'
  steps = lambda: [row['step'] for row in writers.read_jsonl(file)]
  rows = writers.JsonLines(file, start_step=0)
  rows.write({'step': 1})
  rows.write({'step': 2})
  assert steps() == [1]  # The next one waits, so that not every row is an upload.
  rows.sync()
  assert steps() == [1, 2]
  rows.write({'step': 3})
  rows.close()
  assert steps() == [1, 2, 3]
  rows = writers.JsonLines(file, start_step=2)
  rows.write({'step': 9})
  rows.close()
  assert steps() == [1, 2, 9]


def test_an_upload_that_fails_is_made_up_for_and_at_the_end_told(folder, monkeypatch, caplog):
  rows = writers.JsonLines(folder / 'metrics.jsonl', start_step=0)
  with monkeypatch.context() as cut_off:
    cut_off.setattr(paths, 'system', lambda _: {}['gone'])
    rows.write({'step': 1})
    assert "metrics.jsonl cannot be written: KeyError: 'gone'; it is tried again" in caplog.text
  rows.sync()
  assert [row['step'] for row in writers.read_jsonl(folder / 'metrics.jsonl')] == [1]
  rows.write({'step': 2})
  monkeypatch.setattr(paths, 'system', lambda _: {}['gone'])
  with pytest.raises(files.Unsent, match='gone'):
    rows.close()
  with pytest.raises(files.Unsent, match='x.json cannot be written: .*gone'):
    files.write_json(folder / 'x.json', {})


def test_rows_that_were_not_uploaded_go_with_the_checkpoint(folder, monkeypatch):
  file = folder / 'metrics.jsonl'
  rows = writers.JsonLines(file, start_step=0)
  rows.write({'step': 1})
  assert rows.sync() == []
  with monkeypatch.context() as cut_off:
    cut_off.setattr(paths, 'system', lambda _: {}['gone'])
    rows.write({'step': 2, 'loss': 0.1})
    rows.write({'step': 3})
    unsent = rows.sync()
  assert [row['step'] for row in writers.read_jsonl(file)] == [1]  # It is killed here.
  for _ in range(2):  # The second time they are there.
    rows = writers.JsonLines(file, start_step=3, unsent=unsent)
    assert writers.read_jsonl(file) == [{'step': 1}, {'step': 2, 'loss': 0.1}, {'step': 3}]
    rows.close()


def test_samples_in_parts_go_on(folder):
  batch = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
  samples.Parts(folder / 'parts').append(batch)
  parts = samples.Parts(folder / 'parts')
  parts.append(batch + 1)
  np.testing.assert_array_equal(np.concatenate(list(parts.batches())), [*batch, *(batch + 1)])
  parts.remove()
  assert not len(samples.Parts(folder / 'parts'))


def test_folders_move_and_are_listed(folder):
  for name in ('a/x.json', 'a/b/y.json', 'a/z.npz'):
    (folder / name).write_text(name)
  files.move(folder / 'a', folder / 'aside' / 'a')
  found = files.below(folder, '.json')
  assert sorted(map(str, found)) == [f'{folder}/aside/a/{name}' for name in ('b/y.json', 'x.json')]
  assert {path.read_text() for path in found} == {'a/x.json', 'a/b/y.json'}


def test_what_a_checkpoint_says_is_read_where_it_lies(folder):
  (folder / 'meta' / 'metadata').write_text('{"step": 1}')
  assert checkpoint.read_meta(str(folder)) == {'step': 1}


def test_a_checkpoint_that_was_not_written_to_the_end_is_none(folder):
  for name in ('7/meta/metadata', '8/meta/metadata', '8/commit_success.txt', 'x'):
    (folder / name).write_text('{}')
  assert checkpoint.steps(folder) == [8]


def test_a_bucket_that_is_not_there_is_refused_in_a_line(folder):
  with pytest.raises(types.UserError, match='workdir gs://none/x: there is no bucket none'):
    run_dir.open_for_output(paths.path('gs://none/x', bucket=True))


def test_a_bucket_that_may_not_be_read_is_refused_with_where_credentials_come_from(
  folder, monkeypatch
):
  async def refused(*unused, **unused_too):
    raise gcsfs.retry.HttpError({'code': 401, 'message': 'Anonymous caller'})

  monkeypatch.setattr(gcsfs.GCSFileSystem, '_call', refused)
  words = f'workdir {folder} cannot be read: HttpError: Anonymous caller.*; credentials come from'
  with pytest.raises(types.UserError, match=words):
    run_dir.open_for_output(folder)


@pytest.mark.parametrize('status', [401, 403])
def test_what_the_service_answers_to_others_is_told(folder, status):
  """By the words of the library, which differ by status."""
  bucket.disturb(9, of=folder.name, status=status)
  words = f'workdir {folder} cannot be read: .*(Unauthorized, 401|Forbidden).*; credentials come'
  with pytest.raises(types.UserError, match=words):
    run_dir.open_for_output(folder)
  bucket.disturb(0)


@pytest.mark.parametrize('how', BUSY)
def test_a_busy_bucket_is_asked_again(folder, how):
  """Objects written by TensorStore and by gcsfs, read, listed and removed."""
  tree = {'w': np.arange(3.0)}
  with contextlib.closing(checkpoint.Checkpoints(str(folder), keep=9)) as checkpoints:
    bucket.disturb(1, of=f'POST .*{folder.name}', **BUSY[how])
    checkpoints.save(1, {'params': tree}, {})
  assert bucket.disturb(1, of=f'GET .*{folder.name}', **BUSY[how]) == 0
  np.testing.assert_array_equal(checkpoint.read(folder / '1', 'params')['w'], tree['w'])
  assert bucket.disturb(1, of='POST', **BUSY[how]) == 0
  files.write_json(folder / 'x.json', {'a': 1})
  assert bucket.disturb(1, of=f'(GET|DELETE) .*{folder.name}', **BUSY[how]) == 0
  assert files.read_json(folder / 'x.json') == {'a': 1} and checkpoint.steps(folder) == [1]
  assert bucket.disturb(0) == 0


@pytest.fixture(scope='module')
def on_a_disk(tmp_path_factory):
  """A run on a disk that nobody disturbs."""
  workdir = tmp_path_factory.mktemp('disk') / 'run'
  done = killed_runs.run(workdir)
  assert done.returncode == 0, done.stderr
  return workdir


def assert_same_run(folder, on_a_disk):
  assert killed_runs.rows(folder) == killed_runs.rows(on_a_disk)
  ours, theirs = (killed_runs.arrays(run, killed_runs.STEPS) for run in (folder, on_a_disk))
  assert ours.keys() == theirs.keys() and len(ours) > 50
  for name in ours:
    np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('how', BUSY)
def test_a_run_goes_through_a_busy_bucket(folder, on_a_disk, how):
  """While it starts, saves and, killed and started again, reads; no answer is taken for damage."""
  bucket.disturb(3, of=folder.name, **BUSY[how])
  process = killed_runs.start_and_wait_for(folder, 'step 7/')
  assert bucket.disturb(4, of=f'POST .*{folder.name}/checkpoints/[23]0', **BUSY[how]) == 0
  for line in process.stderr:
    assert 'could not be written' not in line
    if 'step 49/' in line:
      break
  process.kill()
  process.wait()
  saved = max(checkpoint.steps(folder / 'checkpoints'))
  reads = f'GET .*{folder.name}/checkpoints/{saved}/'
  assert bucket.disturb(4, of=reads, **BUSY[how]) == 0
  done = killed_runs.run(folder)
  assert done.returncode == 0 and f'continuing at step {saved}' in done.stderr, done.stderr
  assert bucket.disturb(0) == 0
  assert not (folder / 'damaged_checkpoints').exists()
  assert_same_run(folder, on_a_disk)


@pytest.mark.slow
def test_a_run_in_a_bucket_is_what_it_is_on_a_disk_although_it_is_killed(folder, on_a_disk):
  process = killed_runs.start_and_wait_for(folder, 'step 42/')
  process.kill()
  process.wait()
  saved = checkpoint.steps(folder / 'checkpoints')
  assert saved and max(saved) < killed_runs.STEPS and (folder / '.training.lock').exists()
  done = killed_runs.run(folder)
  assert done.returncode == 0 and f'continuing at step {max(saved)}' in done.stderr, done.stderr
  assert not (folder / '.training.lock').exists()
  assert_same_run(folder, on_a_disk)

  with run_dir.claimed(folder):
    refused = killed_runs.run(folder)
  assert refused.returncode == 2
  assert f'workdir {folder} is trained in by process {os.getpid()} on' in refused.stderr

  mode = ('--config.sample.number=4', '--config.eval.number=40')
  for flags in (('--mode=sample',), ('--mode=eval',), ('--mode=eval', f'--output={folder}/out')):
    done = killed_runs.run(folder, *mode, *flags)
    assert done.returncode == 0, done.stderr
  with files.local(folder / 'samples' / 'samples.npz') as there, np.load(there) as made:
    assert len(made['images']) == 4
  scores = [files.read_json(place / 'eval' / 'digits.json') for place in (folder, folder / 'out')]
  assert scores[0]['scores'] == scores[1]['scores']


@pytest.mark.slow
def test_averages_are_made_of_checkpoints_in_a_bucket_and_a_step_is_replayed(on_a_disk, folder):
  """Six checkpoints make it, as on a disk; the step comes to the bits of all that the run keeps."""
  for file in on_a_disk.rglob('*'):
    if file.is_file():
      (folder / file.relative_to(on_a_disk).as_posix()).write_bytes(file.read_bytes())
  weights = ('--config.sample.number=4', '--config.sample.weights=ema@std=0.045')
  made = []
  for workdir in (on_a_disk, folder):
    output = folder / f'of-{len(made)}'
    done = killed_runs.run(workdir, '--mode=sample', *weights, f'--output={output}')
    assert done.returncode == 0, done.stderr
    facts = files.read_json(output / 'samples' / 'samples.json')
    assert facts['average']['at_steps'] == [10, 20, 30, 40, 50, 60]
    with files.local(output / 'samples' / 'samples.npz') as there, np.load(there) as found:
      made.append((found['images'].tobytes(), facts['parameters']))
  assert made[0] == made[1]
  done = killed_runs.run(folder, '--mode=replay', '--step=40')
  assert done.returncode == 0, done.stderr
  recorded = files.read_json(folder / 'replay' / 'step-40.json')['recorded']
  count = len(killed_runs.arrays(on_a_disk, 40))
  assert recorded[-1] == f'checkpoint of step 40: all {count} arrays the same to the bit'
