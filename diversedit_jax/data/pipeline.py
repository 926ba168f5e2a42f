"""Batches step after step, gathered ahead of their use by one background thread."""

from collections.abc import Iterator
import queue
import threading
from typing import Any, Self
import weakref

import numpy as np

from diversedit_jax.data import order, sources
from diversedit_jax.types import UserError

# How long a side waits on the queue before it looks whether the other one has gone, in seconds.
_POLL = 0.05


class Batches(Iterator[dict[str, np.ndarray]]):
  """Endless iterator of numpy batches; made by `batches`. Use as a context manager or `close()`.

  An exception in the thread is raised by `next` once the batches before it are used up, and by
  every later `next`. After `close` the iterator is exhausted.
  """

  def __init__(self, gather_step: Any, start_step: int, prefetch: int):
    self._queue: queue.Queue = queue.Queue(maxsize=prefetch)
    self._stop = threading.Event()
    self._error: BaseException | None = None
    # The thread knows nothing of this object, so that forgetting the iterator ends the thread.
    weakref.finalize(self, self._stop.set)
    self._thread = threading.Thread(
      target=_produce,
      args=(self._queue, self._stop, gather_step, start_step),
      name='batches',
      daemon=True,
    )
    self._thread.start()

  def __next__(self) -> dict[str, np.ndarray]:
    if self._error is not None:
      raise self._error
    while not self._stop.is_set():
      try:
        item = self._queue.get(timeout=_POLL)
      except queue.Empty:
        continue
      if isinstance(item, BaseException):
        self._error = item
        raise item
      return item
    raise StopIteration

  def close(self) -> None:
    """Ends the thread and waits for it; may be called twice."""
    self._stop.set()
    self._thread.join()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


def batches(
  source: sources.Source,
  *,
  seed: int,
  batch_size: int,
  start_step: int,
  rows: np.ndarray | None = None,
  prefetch: int = 2,
) -> Batches:
  """This process's part of the batches of steps start_step, start_step + 1, ...

  Args:
    source: of the examples.
    seed: of the data order.
    batch_size: examples per step of all processes together.
    start_step: first step to produce, so that resuming needs the step alone.
    rows: of the global batch that this process holds, see `sharding.process_rows`; None is all.
    prefetch: batches kept ready.

  Returns:
    Iterator of dicts of numpy arrays, leading size len(rows).

  Raises:
    UserError: if the source is smaller than a batch or a number is out of range.
  """
  if batch_size < 1 or batch_size > len(source):
    raise UserError(
      f'batch_size must lie in [1, {len(source)}], the number of examples of {source.name}; '
      f'got {batch_size}'
    )
  if prefetch < 1 or start_step < 0 or seed < 0:
    raise UserError(
      'batches need prefetch >= 1, start_step >= 0 and seed >= 0; got '
      f'prefetch={prefetch}, start_step={start_step}, seed={seed}'
    )

  def gather_step(step: int) -> dict[str, np.ndarray]:
    indices = order.batch_indices(seed, step, batch_size, len(source))
    return source.gather(indices if rows is None else indices[rows])

  return Batches(gather_step, start_step, prefetch)


def _produce(ready: queue.Queue, stop: threading.Event, gather_step: Any, step: int) -> None:
  """Fills the queue until told to stop or an exception, which it passes on."""
  failed = False
  while not stop.is_set() and not failed:
    try:
      item = gather_step(step)
    except BaseException as error:  # noqa: BLE001 - the consumer raises it.
      item, failed = error, True
    while not stop.is_set():
      try:
        ready.put(item, timeout=_POLL)
        break
      except queue.Full:
        continue
    step += 1
