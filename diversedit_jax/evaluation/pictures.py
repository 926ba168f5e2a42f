"""Pictures for a network of evaluation: those of a data source, read ahead; digests of batches."""

from collections.abc import Iterable, Iterator
from concurrent import futures
import hashlib

import numpy as np

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
  found = _pixels(source.gather(np.arange(1)))
  if found.dtype != np.uint8:
    raise UserError(f'{source.name} has pixels of type {found.dtype}, expected uint8')


def batches(source: sources.Source, size: int) -> Iterator[np.ndarray]:
  """All pictures of a source in its order, uint8 [n, H, W, 3]; the next batch is read meanwhile."""
  read = lambda start: _pixels(source.gather(np.arange(start, min(start + size, len(source)))))
  with futures.ThreadPoolExecutor(1) as thread:
    waiting = thread.submit(read, 0)
    for start in range(size, len(source) + size, size):
      batch = waiting.result()
      if start < len(source):
        waiting = thread.submit(read, start)
      yield batch


def digest(source: sources.Source) -> str:
  """SHA-256 of a source's pictures: of the data, and of how files of pictures are cropped."""
  if not isinstance(source, sources.PictureSource):
    return source.digest()
  made = f'{source.digest()} {source.crop} {source.orientation}'
  return hashlib.sha256(made.encode()).hexdigest()


def digested(of: Iterable[np.ndarray], digest: 'hashlib._Hash') -> Iterator[np.ndarray]:
  """The same batches, whose bytes go into a digest on the way."""
  for batch in of:
    digest.update(np.ascontiguousarray(batch).data)
    yield batch


def _pixels(batch):
  return batch['images'] if 'images' in batch else batch['pixels']
