"""The background thread: order, errors, and its end."""

import dataclasses
import gc
import threading
import time

import numpy as np
import pytest

from diversedit_jax.data import order, pipeline, sources
from diversedit_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Indices:
  """A source whose examples are their indices; reading `poison` fails."""

  name = 'indices'
  space = 'latents'
  shape = (1, 1, 1)
  num_classes = 1
  n: int = 20
  poison: int = -1

  def __len__(self):
    return self.n

  def gather(self, indices):
    if self.poison in indices:
      raise OSError(f'example {self.poison} is unreadable')
    return {'latents': indices[:, None, None, None].astype(np.float32), 'labels': 0 * indices}


def read(iterator, steps):
  return [next(iterator)['latents'].ravel() for _ in range(steps)]


def ours():
  return [t for t in threading.enumerate() if t.name == 'batches']


@pytest.fixture(autouse=True)
def no_thread_outlives_the_test():
  yield
  gc.collect()
  deadline = time.monotonic() + 5
  while ours() and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not ours()


@pytest.mark.parametrize('start', [0, 5])
@pytest.mark.parametrize('prefetch', [1, 4])
def test_batches_of_consecutive_steps(start, prefetch):
  with pipeline.batches(
    Indices(), seed=1, batch_size=6, start_step=start, prefetch=prefetch
  ) as iterator:
    for step, batch in enumerate(read(iterator, 8), start):
      np.testing.assert_array_equal(batch, order.batch_indices(1, step, 6, 20))


def test_a_process_reads_its_rows_of_the_same_batch():
  options = {'seed': 1, 'batch_size': 8, 'start_step': 3}
  with pipeline.batches(Indices(), **options) as iterator:
    whole = read(iterator, 4)
  rows = np.array([0, 1, 5, 7])
  with pipeline.batches(Indices(), rows=rows, **options) as iterator:
    part = read(iterator, 4)
  for step in range(4):
    np.testing.assert_array_equal(part[step], whole[step][rows])


def test_digits_flow_through():
  with pipeline.batches(sources.digits('train'), seed=0, batch_size=32, start_step=0) as iterator:
    batch = next(iterator)
  assert batch['images'].shape == (32, 8, 8, 1) and batch['labels'].shape == (32,)


def test_prefetch_bounds_what_is_read_ahead():
  seen = []

  class Counting(Indices):
    def gather(self, indices):
      seen.append(1)
      return super().gather(indices)

  with pipeline.batches(Counting(), seed=0, batch_size=2, start_step=0, prefetch=3) as iterator:
    next(iterator)
    time.sleep(0.3)
    # One taken, three in the queue, one in the thread's hand.
    assert len(seen) == 5


def test_error_reaches_the_consumer_after_the_good_batches():
  n, size = 20, 5
  poison = int(order.batch_indices(0, 2, size, n)[3])
  iterator = pipeline.batches(Indices(poison=poison), seed=0, batch_size=size, start_step=0)
  read(iterator, 2)
  for _ in range(2):  # An error that is asked for again does not become silence or a hang.
    with pytest.raises(OSError, match=f'example {poison} is unreadable'):
      next(iterator)
  iterator.close()


def test_close_ends_the_thread_and_the_iterator():
  iterator = pipeline.batches(Indices(), seed=0, batch_size=4, start_step=0)
  next(iterator)
  assert len(ours()) == 1
  iterator.close()
  iterator.close()
  assert not ours()
  with pytest.raises(StopIteration):
    next(iterator)


def test_close_frees_a_waiting_consumer():
  class Slow(Indices):
    def gather(self, indices):
      time.sleep(0.5)
      return super().gather(indices)

  iterator = pipeline.batches(Slow(), seed=0, batch_size=4, start_step=0)
  threading.Timer(0.1, iterator.close).start()
  with pytest.raises(StopIteration):
    next(iterator)


def test_forgotten_iterator_ends_its_thread():
  iterator = pipeline.batches(Indices(), seed=0, batch_size=4, start_step=0)
  next(iterator)
  del iterator  # The fixture waits for the thread.


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'batch_size': 21}, r'\[1, 20\], the number of examples of indices; got 21'),
    ({'batch_size': 0}, 'got 0'),
    ({'prefetch': 0}, 'prefetch=0'),
    ({'start_step': -1}, 'start_step=-1'),
    ({'seed': -1}, 'seed=-1'),
  ],
)
def test_refusals_come_before_any_thread(options, message):
  with pytest.raises(UserError, match=message):
    pipeline.batches(Indices(), **{'seed': 0, 'batch_size': 4, 'start_step': 0} | options)
  assert not ours()
