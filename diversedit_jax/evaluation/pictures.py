"""Pictures of a data source for a network of evaluation, read ahead."""

from collections.abc import Iterator
from concurrent import futures

import numpy as np

from diversedit_jax import types
from diversedit_jax.data import sources
from diversedit_jax.types import UserError


def check_source(source: sources.Source) -> None:
  """Refuses a source without square uint8 colour pictures (UserError)."""
  shape = source.pixel_shape
  if shape is None:
    raise UserError(
      f'{source.name} has no pixels, which statistics of pictures need; give the pictures '
      'themselves, or make the store with --store=both'
    )
  if shape[0] != shape[1] or shape[2] != 3:
    raise UserError(f'{source.name} has pixels {shape}, expected square ones of 3 channels')
  found = pixels(source.gather(np.arange(1)))
  if found.dtype != np.uint8:
    raise UserError(f'{source.name} has pixels of type {found.dtype}, expected uint8')


def batches(source: sources.Source, size: int) -> Iterator[np.ndarray]:
  """All pictures of a source in its order, uint8 [n, H, W, 3]; the next batch is read meanwhile."""
  source.fetch()
  read = lambda start: pixels(source.gather(np.arange(start, min(start + size, len(source)))))
  with futures.ThreadPoolExecutor(1) as thread:
    waiting = thread.submit(read, 0)
    for start in range(size, len(source) + size, size):
      batch = waiting.result()
      if start < len(source):
        waiting = thread.submit(read, start)
      yield batch


def pixels(batch: types.Batch) -> np.ndarray:
  """The pictures of a batch, uint8 [n, H, W, 3]: its images, or what lies beside latents."""
  return batch['images'] if 'images' in batch else batch['pixels']
