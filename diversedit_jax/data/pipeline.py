"""Batches step after step, gathered and put on the devices ahead of their use.

Grain runs it. Its elements are whole batches, element k being that of step k, so that a batch is
read in one go and nothing about the order depends on threads or worker processes.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import gc
import signal
from typing import Any, Self

from absl import flags
import grain
import numpy as np

from diversedit_jax.data import order
from diversedit_jax.data.sources import base
from diversedit_jax.types import UserError

# More steps than any run has.
_END = 2**62

Put = Callable[[dict[str, np.ndarray]], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
  """Step -> this process's rows of its batch, as numpy arrays; a function of nothing else.

  source: of the examples. seed: of the data order. batch_size: examples of all processes together.
  rows: of the global batch that this process holds, see `sharding.process_rows`; None is all.
  flip: each example is mirrored in an epoch or not, by a fair coin of (seed, epoch, index).
  """

  source: base.Source
  seed: int
  batch_size: int
  rows: np.ndarray | None = None
  flip: bool = False

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
    return self.source.gather(indices) if flips is None else self.source.gather(indices, flips)


class Batches(Iterator[Mapping[str, Any]]):
  """Endless iterator of batches; made by `batches`. Use as a context manager or `close()`.

  An exception while a batch is made is raised by `next` once the batches before it are used up, and
  by every later `next`. After `close` the iterator is exhausted.
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
      # Grain's iterators close themselves again when they are collected, which prints a traceback
      # if that is at the interpreter's end.
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
    steps: what makes a batch.
    start_step: first step to produce, so that resuming needs the step alone.
    put: called on each batch, to put it on the devices; None leaves numpy arrays.
    prefetch: batches kept ready, at least one for each thread; by each worker if there are some.
    threads: that gather a batch each, and put it.
    workers: processes that gather a batch each instead of threads.

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
    flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own, also outside an absl program.
  alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
  made = made.to_iter_dataset(alone).mp_prefetch(options, worker_init_fn=_leave_signals)
  return Batches(iter(made if put is None else made.map(put)))


def _leave_signals(index: int, count: int) -> None:
  """A worker goes on where a whole process group is told to end: the run saves, then ends it."""
  del index, count
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
