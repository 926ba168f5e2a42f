"""What is written to a bucket, on an emulator of the storage API: objects, locks, refusals."""

from concurrent import futures
import itertools
import json
import os
import socket
import threading

from etils import epath
from helpers import bucket
import pytest
import tensorstore

from diversedit_jax import buckets, locks, paths, types

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


def claim(path):
  return locks.claim(path, 'the house is lived in', 'build another')


@pytest.fixture
def lock():
  return paths.path(f'{bucket.new()}/.lock', bucket=True)


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


def test_storage_that_is_not_amazons_is_asked_where_it_is(monkeypatch):
  monkeypatch.setenv('AWS_ENDPOINT_URL', 'http://127.0.0.1:9')
  monkeypatch.setenv('AWS_REGION', 'here')
  monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
  found = buckets.opened('s3://lab/runs/').spec().to_json()
  assert (found['bucket'], found['path']) == ('lab', 'runs/')
  assert (found['endpoint'], found['aws_region']) == ('http://127.0.0.1:9', 'here')
