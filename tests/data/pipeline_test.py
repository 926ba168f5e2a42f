"""Batches by step: order, mirror images, threads, worker processes, errors, the end."""

import dataclasses
import gc
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time

from helpers import small_memory
import numpy as np
import pytest

from diversedit_jax.data import order, pipeline
from diversedit_jax.types import UserError

# The first 24 coins of seed 0, epoch 0, as they were when the order was defined.
FLIPS_OF_SEED_0 = '010110011110001011111010'


@dataclasses.dataclass(frozen=True)
class Indices:
  """A source whose examples are their indices; reading `poison` fails."""

  name = 'indices'
  space = 'latents'
  shape = (1, 1, 1)
  num_classes = 1
  n: int = 20
  poison: int = -1
  can_mirror: bool = True

  def __len__(self):
    return self.n

  def gather(self, indices, flips=None):
    if self.poison in indices:
      raise OSError(f'example {self.poison} is unreadable')
    flips = np.zeros(len(indices), bool) if flips is None else flips
    return {'latents': indices.astype(np.float32), 'labels': 0 * indices, 'flips': flips}


def steps(source=None, **options):
  return pipeline.Steps(
    **{'source': source or Indices(), 'seed': 1, 'batch_size': 6, 'flip': False, **options}
  )


def read(iterator, count):
  return [next(iterator)['latents'] for _ in range(count)]


def ours():
  return [t for t in threading.enumerate() if t.name.startswith('grain')]


@pytest.fixture(autouse=True)
def no_thread_outlives_the_test():
  yield
  gc.collect()
  deadline = time.monotonic() + 5
  while ours() and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not ours()


@pytest.mark.parametrize('start', [0, 5])
@pytest.mark.parametrize(('prefetch', 'threads'), [(1, 1), (4, 3)])
def test_batches_of_consecutive_steps(start, prefetch, threads):
  put = lambda batch: {'latents': batch['latents'] + 1}
  options = {'prefetch': prefetch, 'threads': threads, 'put': put}
  with pipeline.batches(steps(), start_step=start, **options) as iterator:
    for step, batch in enumerate(read(iterator, 8), start):
      np.testing.assert_array_equal(batch, order.batch_indices(1, step, 6, 20) + 1)


def test_worker_processes_change_nothing():
  with pipeline.batches(steps(flip=True), start_step=3, workers=2, put=dict) as iterator:
    for step in range(3, 10):
      batch, expected = next(iterator), steps(flip=True)(step)
      assert batch.keys() == expected.keys()
      for name, array in expected.items():
        np.testing.assert_array_equal(batch[name], array)


@pytest.mark.parametrize(
  ('workers', 'prefetch', 'free', 'fits'),
  [
    (2, 2, 36 + 66, True),
    (2, 2, 36 + 65, False),
    (2, 4, 60 + 65, False),
    (0, 2, 0, True),
  ],
)
def test_workers_need_shared_memory(monkeypatch, tmp_path, workers, prefetch, free, fits):
  """A batch of three small arrays has three pages; as many as Grain was seen to hold at once.

  66 semaphores are those of two workers.
  """
  found = shutil._ntuple_diskusage(0, 0, free * mmap.PAGESIZE)
  monkeypatch.setattr(pipeline.shutil, 'disk_usage', {tmp_path: found}.get)
  check = lambda folder: pipeline.check_shared_memory(
    Indices(), 6, prefetch=prefetch, workers=workers, folder=folder
  )
  check(tmp_path / 'absent')  # Another system than Linux.
  if fits:
    check(tmp_path)
    return
  with pytest.raises(UserError, match=f'{tmp_path}.*batches.*--shm-size.*data.threads'):
    check(tmp_path)


READS = """
import pipeline_test
from diversedit_jax import faults
from diversedit_jax.data import pipeline

steps = pipeline_test.steps(pipeline_test.Indices(n=4096), batch_size=4096)
with pipeline.batches(steps, start_step=0, workers=1) as found:
  try:
    pipeline_test.read(found, 20)
  except Exception as error:
    print(faults.told(error))
"""


@pytest.mark.parametrize(
  ('pages', 'told'),
  [
    (41 + 13, 'a process of data.workers ended with -7: /dev/shm is full; enlarge it'),
    pytest.param(
      16,
      'a semaphore for data.workers cannot be made: /dev/shm is full; enlarge it',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_shared_memory_that_is_full_is_named(pages, told):
  """Real memory; there are 41 semaphores, and a batch has 13 pages."""
  command = [*small_memory.words(str(pages * mmap.PAGESIZE)), sys.executable, '-c', READS]
  path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
  done = subprocess.run(
    command, env=os.environ | {'PYTHONPATH': path}, capture_output=True, text=True
  )
  assert done.stdout.startswith(told), done


@pytest.mark.parametrize('processes', [1, 4])
@pytest.mark.parametrize('flip', [False, True])
def test_processes_join_to_the_same_global_batches(processes, flip):
  rows = np.random.default_rng(processes).permutation(8).reshape(processes, -1)
  rows.sort(axis=1)
  whole = steps(batch_size=8, flip=flip)
  parts = [steps(batch_size=8, flip=flip, rows=r) for r in rows]
  for step in range(12):
    batch = whole(step)
    for r, part in zip(rows, parts, strict=True):
      for name, array in part(step).items():
        np.testing.assert_array_equal(array, batch[name][r], err_msg=name)


def test_an_epoch_shows_each_example_once_and_mirrors_about_half():
  n, epochs = 1000, 4
  made = steps(Indices(n=n), batch_size=50, flip=True)
  batches = [made(step) for step in range(epochs * n // 50)]
  seen = np.concatenate([b['latents'] for b in batches]).astype(int).reshape(epochs, n)
  flips = np.concatenate([b['flips'] for b in batches]).reshape(epochs, n)
  assert (np.sort(seen) == np.arange(n)).all()
  by_index = np.take_along_axis(flips, np.argsort(seen), axis=1)
  # Binomial: 1000 fair coins lie within 4 standard deviations of 63 / 1000 of a half.
  assert (np.abs(by_index.mean(axis=1) - 0.5) < 0.064).all()
  assert 0.4 < (by_index[0] != by_index[1]).mean() < 0.6, 'epochs must toss anew'


def test_flips_are_of_the_example_and_epoch_not_of_the_place():
  """A batch that crosses two epochs takes each example's coin of its own epoch."""
  indices, flips = order.batch_indices(3, 1, 7, 10), order.batch_flips(3, 1, 7, 10)
  expected = [order.flips(3, (7 + j) // 10, 10)[i] for j, i in enumerate(indices)]
  np.testing.assert_array_equal(flips, expected)


def test_flips_of_a_seed_never_change():
  """The stream of a bit generator is fixed by NumPy's compatibility policy."""
  assert ''.join('01'[int(f)] for f in order.flips(0, 0, 24)) == FLIPS_OF_SEED_0


def test_error_reaches_the_consumer_after_the_good_batches():
  n, size = 20, 5
  poison = int(order.batch_indices(0, 2, size, n)[3])
  made = steps(Indices(poison=poison), seed=0, batch_size=size)
  with pipeline.batches(made, start_step=0, threads=2) as iterator:
    read(iterator, 2)
    for _ in range(2):  # An error that is asked for again does not become silence or a hang.
      with pytest.raises(OSError, match=f'example {poison} is unreadable'):
        next(iterator)


def test_close_ends_the_threads_and_the_iterator():
  iterator = pipeline.batches(steps(), start_step=0)
  next(iterator)
  assert ours()
  iterator.close()
  iterator.close()
  with pytest.raises(StopIteration):
    next(iterator)


@pytest.mark.parametrize(
  ('made', 'options', 'message'),
  [
    ({'batch_size': 21}, {}, r'\[1, 20\], the number of examples of indices; got 21'),
    ({'source': Indices(can_mirror=False), 'flip': True}, {}, 'indices has no mirror images'),
    ({}, {'prefetch': 0}, 'prefetch=0'),
    ({}, {'start_step': -1}, 'start_step=-1'),
    ({'seed': 2**32}, {}, r'\[0, 2\*\*32\); got 4294967296'),
  ],
)
def test_refusals_come_before_any_thread(made, options, message):
  with pytest.raises(UserError, match=message):
    pipeline.batches(steps(**made), **{'start_step': 0, **options})
  assert not ours()
