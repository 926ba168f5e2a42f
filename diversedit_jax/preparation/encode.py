"""Pictures to records: decoded by threads ahead of the device, encoded in batches of one size.

While the device encodes a batch, threads decode the next ones (Pillow releases the interpreter
lock) and the latents of the batch before are written. A batch is a run of listed pictures without
the bad ones, padded with its last picture, so one compiled program encodes every batch and the
records of a shard depend on nothing outside it. Another batch size or device may differ in the last
bit.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import dataclasses
import hashlib
import itertools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

from diversedit_jax import sharding, types
from diversedit_jax.data.pictures import base, loading
from diversedit_jax.data.store import layout, writer
from diversedit_jax.preparation import making


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
  """A picture that could be read.

  index: position in the listing. sha256: digest of its file. pixels: crop, uint8 [S, S, 3].
  """

  index: int
  sha256: str
  pixels: np.ndarray


class Encoder:
  """Maps pictures uint8 [n, S, S, 3] to records float32 [n, ...] on local devices, see `making`.

  batch_size: the size asked for, rounded up to a multiple of the number of devices.
  """

  def __init__(self, made: making.Making, batch_size: int):
    devices = jax.local_devices()
    self.batch_size = -(-batch_size // len(devices)) * len(devices)
    mesh = jax.make_mesh((len(devices),), ('data',), (AxisType.Auto,), devices=devices)
    self._split = NamedSharding(mesh, PartitionSpec('data'))
    self._params = jax.device_put(made.params, NamedSharding(mesh, PartitionSpec()))

    def run(params, pixels_NHWC):
      return made.apply(params, pixels_NHWC.astype(jnp.float32) / 127.5 - 1)

    self._program = jax.jit(run, out_shardings=self._split)

  def start(self, pixels_NHWC: np.ndarray) -> jax.Array:
    """Starts to encode at most `batch_size` pictures, padded to that many, and does not wait."""
    padded = sharding.pad_rows(pixels_NHWC, self.batch_size)
    return self._program(self._params, jax.device_put(padded, self._split))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pipeline:
  """Makes the examples of a shard.

  collection: the pictures.
  plan: plan of the store.
  encoder: the encoder; None for a store of pixels alone.
  batch_size: number of pictures in a batch.
  pool: executor of `threads` threads, which decode.
  """

  collection: base.Pictures
  plan: layout.Plan
  encoder: Encoder | None
  batch_size: int
  pool: futures.Executor
  threads: int

  def results(self, shard: int) -> Iterator[writer.Example | base.Skipped]:
    """Yields what became of the pictures of a shard, examples in the order of their keys.

    Raises:
      UserError: latents are not finite in the store's dtype, every attempt to read a picture
        failed, or a batch is too large for the device.
    """
    window = self.threads + 2 * self.batch_size
    read = _ahead(self.pool, self._read, self.plan.entries(shard), window)
    try:
      yield from self._encoded(read)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      raise types.UserError(
        f'the device has no memory for {self.batch_size} pictures at once; take a smaller '
        f'--batch_size ({str(error).splitlines()[0]})'
      ) from error

  def _encoded(self, read):
    """Encodes batch by batch; one is on the device while the one before it is fetched."""
    earlier = None
    while group := list(itertools.islice(read, self.batch_size)):
      yield from (result for result in group if isinstance(result, base.Skipped))
      pictures = [result for result in group if isinstance(result, Picture)]
      started = pictures, self._start(pictures)
      if earlier is not None:
        yield from self._examples(*earlier)
      earlier = started
    if earlier is not None:
      yield from self._examples(*earlier)

  def _read(self, index):
    try:
      data, pixels = loading.load(
        self.collection,
        index,
        size=self.plan.size,
        rule=self.plan.crop,
        orientation=self.plan.orientation,
      )
    except base.BadPicture as error:
      return base.Skipped(self.collection.listing.names[index], str(error))
    return Picture(index, hashlib.sha256(data).hexdigest(), pixels)

  def _start(self, pictures):
    """Latents that the device is computing: one array, or two with twins."""
    if self.encoder is None or not pictures:
      return []
    pixels_NHWC = np.stack([picture.pixels for picture in pictures])
    mirrored = [pixels_NHWC[:, :, ::-1]] * self.plan.columns[self.plan.latents].twins
    return [self.encoder.start(x) for x in (pixels_NHWC, *mirrored)]

  def _examples(self, pictures, started):
    listing = self.collection.listing
    if started:
      found = np.stack([np.asarray(x)[: len(pictures)] for x in started], 1)
    for i, picture in enumerate(pictures):
      columns = {}
      if name := self.plan.latents:
        dtype = self.plan.columns[name].dtype
        columns[name] = _stored(found[i], dtype, listing.names[picture.index])
      if 'pixels' in self.plan.columns:
        columns['pixels'] = picture.pixels[None]
      yield writer.Example(
        key=listing.keys[picture.index],
        label=int(listing.labels[picture.index]),
        sha256=picture.sha256,
        columns=columns,
      )


def _ahead(
  pool: futures.Executor, function: Callable, arguments: Iterable, window: int
) -> Iterator:
  """Maps in order, with at most `window` calls that have begun and whose results are not taken."""
  waiting = collections.deque()
  try:
    for argument in arguments:
      waiting.append(pool.submit(function, argument))
      if len(waiting) >= window:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    for future in waiting:
      future.cancel()


def _stored(latents, dtype, name):
  with np.errstate(over='ignore'):
    stored = latents.astype(dtype)
  if not np.isfinite(stored).all():
    largest = np.abs(latents).max()
    if np.isfinite(largest):
      found, remedy = f'latents up to {largest:.3g}, more than {dtype} holds', '--dtype=float32'
    else:
      found, remedy = 'latents that are not finite', '--vae_dtype=float32 or other weights'
    raise types.UserError(f'the autoencoder gives {name!r} {found}; try {remedy}')
  return stored
