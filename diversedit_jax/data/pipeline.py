"""Batches step after step, gathered and put on the devices ahead of their use.

Grain runs the threads and processes. Its elements are whole batches, element k being the batch of
step k, so a batch is read in one go and the order cannot depend on threads or worker processes.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import gc
import mmap
import os
import shutil
from typing import Any, Self

from absl import flags
import grain
import numpy as np

from diversedit_jax import signals
from diversedit_jax.data import bad_records, order
from diversedit_jax.data.sources import base
from diversedit_jax.types import UserError

# More steps than any run has.
_END = 2**62
# Semaphores of Grain 0.2.18 with worker processes, and those of each worker, as counted on Linux.
_SEMAPHORES = (16, 25)

Put = Callable[[dict[str, np.ndarray]], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
  """Maps a step to this process's rows of its batch, as numpy arrays.

  source: the examples.
  seed: seed of the data order.
  batch_size: examples of all processes together.
  rows: rows of the global batch that this process holds, see `sharding.process_rows`; None is all.
  flip: whether each example is mirrored or not by a fair coin of (seed, epoch, index).
  max_bad: how many distinct bad examples are replaced, see `bad_records`; 0 refuses the first.
  """

  source: base.Source
  seed: int
  batch_size: int
  rows: np.ndarray | None = None
  flip: bool = False
  max_bad: int = 0

  def __post_init__(self):
    name, n = self.source.name, len(self.source)
    if self.batch_size < 1 or self.batch_size > n:
      raise UserError(
        f'batch_size must lie in [1, {n}], the number of examples of {name}; got {self.batch_size}'
      )
    if not 0 <= self.seed < 2**32:
      raise UserError(f'the seed of the data order must lie in [0, 2**32); got {self.seed}')
    if self.flip and not self.source.can_mirror:
      raise UserError(
        f'data.flip=True, but {name} has no mirror images: mirrored latents are not the latents of '
        'the mirrored picture; prepare the store with --twins'
      )

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    indices = order.batch_indices(self.seed, step, self.batch_size, len(self.source))
    flips = None
    if self.flip:
      flips = order.batch_flips(self.seed, step, self.batch_size, len(self.source))
    if self.rows is not None:
      indices = indices[self.rows]
      flips = None if flips is None else flips[self.rows]
    source = self._replacing if self.max_bad else self.source
    return source.gather(indices) if flips is None else source.gather(indices, flips)

  @functools.cached_property
  def _replacing(self):
    return bad_records.Replacing(self.source, self.max_bad)


class Batches(Iterator[Mapping[str, Any]]):
  """Endless iterator of batches, made by `batches`. Use it as a context manager or `close()` it.

  If making a batch fails, `next` raises the exception once the batches before it are used up, and
  so does every later `next`. After `close` the iterator is exhausted.
  """

  def __init__(self, iterator: Any):
    self._iterator, self._error, self._closed = iterator, None, False

  def __next__(self) -> Mapping[str, Any]:
    if self._error is not None:
      raise self._error
    if self._closed:
      raise StopIteration
    try:
      return next(self._iterator)
    except Exception as error:
      self._error = error
      raise

  def close(self) -> None:
    """Ends the threads and worker processes; may be called twice."""
    if not self._closed:
      self._closed = True
      self._iterator.close()
      # Grain's iterators close themselves again when they are garbage-collected, which prints a
      # traceback if that happens while the interpreter shuts down.
      self._iterator = None
      gc.collect()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


def batches(
  steps: Steps,
  *,
  start_step: int,
  put: Put | None = None,
  prefetch: int = 2,
  threads: int = 1,
  workers: int = 0,
) -> Batches:
  """This process's batches of steps start_step, start_step + 1, ...

  Args:
    steps: makes the batch of a step.
    start_step: first step to produce, so that resuming needs only the step.
    put: puts a batch on the devices; None leaves numpy arrays.
    prefetch: number of batches kept ready (by each worker, if there are any); at least one per
      thread.
    threads: number of threads, each of which gathers and puts a whole batch.
    workers: number of processes that gather batches instead of the threads; 0 for none.

  Raises:
    UserError: a number is out of range.
  """
  if prefetch < 1 or start_step < 0 or threads < 1 or workers < 0:
    raise UserError(
      'batches need prefetch >= 1, threads >= 1, workers >= 0 and start_step >= 0; got '
      f'{prefetch=}, {threads=}, {workers=}, {start_step=}'
    )
  made = grain.MapDataset.range(start_step, _END).map(steps)
  if not workers:
    made = made if put is None else made.map(put)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    return Batches(iter(made.to_iter_dataset(options)))
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, even outside an absl program.
  alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
  made = made.to_iter_dataset(alone).mp_prefetch(options, worker_init_fn=_leave_signals)
  return Batches(iter(made if put is None else made.map(put)))


def check_shared_memory(
  source: base.Source,
  examples: int,
  *,
  prefetch: int,
  workers: int,
  folder: str | os.PathLike[str] = '/dev/shm',
) -> None:
  """Refuses worker processes whose batches do not fit into shared memory, which would kill them.

  Grain hands batches over in shared memory, of which containers often have 64 MiB: each worker's
  queue and the queue of its reader hold `prefetch` of them, and each side has one in its hands.
  Its semaphores lie there too, each in a page of its own. For moments it may need more, when the
  thread that gives back used batches is late.

  Args:
    source: of the examples. examples: of this process in a batch. prefetch, workers: see `batches`.
    folder: where the system keeps shared memory; another system than Linux has none.

  Raises:
    UserError: with the space needed, the space free, and what to change.
  """
  if not workers or not os.path.isdir(folder):
    return
  one = source.gather(np.arange(1)).values()
  page = mmap.PAGESIZE
  batch = sum(-(-x.nbytes * examples // page) * page for x in one)
  count = workers * (2 * prefetch + 2)
  needed = count * batch + (_SEMAPHORES[0] + _SEMAPHORES[1] * workers) * page
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise UserError(
      f'data.workers={workers} needs {needed / 2**20:.1f} MiB of {folder}, {count} batches '
      f'of {batch / 2**20:.2f} MiB, and {free / 2**20:.1f} MiB are free; enlarge it (docker run '
      f'--shm-size=..., or mount -o remount,size=... {folder}), lower data.workers or '
      'data.prefetch, or set data.workers=0 and data.threads'
    )


def _leave_signals(index: int, count: int) -> None:
  """Makes a worker ignore signals sent to the whole process group: the run saves, then ends it."""
  del index, count
  signals.ignore()
