"""A source read once into the memory of the host, or of every device.

ImageNet's moments in float16 at 256 pixels are 21 GB, or 42 GB with those of mirror images. On the
device a batch is then a gather by indices inside a jitted function, and the host only names them.
"""

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import progress, types
from diversedit_jax.data.sources import base

_CHUNK = 4096  # Examples read at a time.


class HostSource(base.Wrapped):
  """See `base.Source`: another source with all its examples in memory; made by `in_memory`.

  arrays: all examples by key, [n, ...], without the labels.
  mirrored: latents of all mirror images by key, [n, ...]; arrays without them are mirrored here.
  """

  def __init__(
    self, of: base.Source, arrays: dict[str, np.ndarray], mirrored: dict[str, np.ndarray]
  ):
    super().__init__(of)
    self.arrays, self.mirrored = arrays, mirrored

  @property
  def num_bytes(self) -> int:
    """Bytes of all arrays."""
    return sum(x.nbytes for x in (*self.arrays.values(), *self.mirrored.values()))

  def gather(self, indices: np.ndarray, flips: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """See `base.Source`."""
    base.check_indices(self.name, indices, len(self))
    batch = {name: array[indices] for name, array in self.arrays.items()}
    for name in batch if flips is not None else ():
      if name in self.mirrored:
        batch[name][flips] = self.mirrored[name][indices[flips]]
      else:
        batch[name] = base.mirrored(batch[name], flips)
    return {**batch, 'labels': self.labels[indices]}


class DeviceSource(base.Wrapped):
  """See `base.Source`: every device holds all examples; `look_up` turns indices into a batch."""

  def __init__(
    self, host: HostSource, *, whole: jax.sharding.Sharding, batch: jax.sharding.Sharding
  ):
    """Puts a source that is in memory on the devices.

    whole: sharding of its arrays. batch: sharding of the examples that are looked up.
    """
    super().__init__(host.of)
    _check_devices(self.name, host.num_bytes, batch)
    put = lambda arrays: {
      name: jax.make_array_from_callback(x.shape, whole, lambda i, x=x: x[i])
      for name, x in arrays.items()
    }
    self._tables = put(host.arrays), put(host.mirrored)
    self._look_up = jax.jit(_look_up, out_shardings=batch)

  def gather(self, indices: np.ndarray, flips: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns 'index' int32 [n], 'labels', and 'flip' bool [n] if flips are given."""
    base.check_indices(self.name, indices, len(self))
    batch = {'index': indices.astype(np.int32), 'labels': self.labels[indices]}
    return batch if flips is None else {**batch, 'flip': flips}

  def look_up(self, batch: types.Batch) -> types.Batch:
    """Returns the examples of a batch of indices on the devices; each device gathers its own."""
    return self._look_up(*self._tables, batch)


def _look_up(tables, mirrored, batch):
  index_N, flip_N = batch['index'], batch.get('flip')
  found = {'labels': batch['labels']}
  for name, table in tables.items():
    x = table[index_N]
    if flip_N is not None:
      other = mirrored[name][index_N] if name in mirrored else x[:, :, ::-1]
      x = jnp.where(flip_N.reshape(-1, *(1,) * (x.ndim - 1)), other, x)
    found[name] = x
  return found


def in_memory(source: base.Source, *, flip: bool) -> HostSource:
  """Reads all examples of a source, and if examples are to be flipped the mirrored latents too.

  Raises:
    UserError: the machine has not enough memory.
  """
  n, first = len(source), np.arange(1)
  one = {name: x for name, x in source.gather(first).items() if name != 'labels'}
  more = source.mirrored_latents(first) if flip else {}
  size = n * sum(x.nbytes for x in (*one.values(), *more.values()))
  _check_memory(source.name, size)
  logging.info('%s: reading %.1f GiB into memory', source.name, size / 2**30)
  arrays, mirrored = (
    {name: np.empty((n, *x.shape[1:]), x.dtype) for name, x in examples.items()}
    for examples in (one, more)
  )
  reading = progress.Progress(f'reading {source.name}', n, 'examples')
  for start in range(0, n, _CHUNK):
    indices = np.arange(start, min(start + _CHUNK, n))
    chunk = source.gather(indices)
    for name, array in arrays.items():
      array[indices] = chunk[name]
    if mirrored:
      for name, x in source.mirrored_latents(indices).items():
        mirrored[name][indices] = x
    reading.at(start + len(indices))
  return HostSource(source, arrays, mirrored)


def _check_memory(name, size):
  try:
    with open('/proc/meminfo') as file:
      lines = dict(line.split(':') for line in file)
    available = int(lines['MemAvailable'].split()[0]) * 1024
  except (OSError, KeyError, ValueError):
    return  # Not Linux: the allocation itself will fail if there is too little.
  if size > available:
    raise types.UserError(
      f'data.resident: {name} needs {size / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} '
      'GiB are available; set data.resident=none'
    )


def _check_devices(name, size, sharding):
  for device in sharding.addressable_devices:
    stats = device.memory_stats() or {}
    free = stats.get('bytes_limit', size) - stats.get('bytes_in_use', 0)
    if 'bytes_limit' in stats and size > free:
      raise types.UserError(
        f'data.resident=device: {name} needs {size / 2**30:.1f} GiB on every device, and '
        f'{free / 2**30:.1f} GiB of {device} are free; set data.resident=host'
      )
