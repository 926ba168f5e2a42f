"""The options of `prepare`, checked, and the plan of the store that follows from them."""

import dataclasses
import math
import pathlib
import re

from diversedit_jax import cores, trees, types
from diversedit_jax.data import pictures
from diversedit_jax.data.pictures import base
from diversedit_jax.data.store import layout
from diversedit_jax.frozen import autoencoders
from diversedit_jax.preparation import making

STORES = ('latents', 'pixels', 'both')
DTYPES = ('float16', 'float32')
VAE_DTYPES = ('float32', 'bfloat16')
_OF_LATENTS = ('vae', 'vae_scale', 'vae_shift', 'vae_dtype', 'dtype', 'twins')
_OF_LATENTS += ('rae', 'rae_weights', 'rae_statistics', 'rae_patch', 'rae_dtype')
# Usual number of shards, and bounds of their records: after a crash a whole shard is made again.
_SHARDS, _RECORDS = 64, (256, 65536)
# A reader keeps all files of a store open, and a process may usually open 1,024.
_FILES = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """One request. None stands for a default that depends on other things.

  source, classes, labels, split: arguments of `pictures.open_pictures`.
  output: folder of the store.
  vae: file or folder of the weights, or a place on the hub.
  vae_scale, vae_shift: scale and shift instead of those of the weights.
  rae: encoder by name, whose tokens are stored in place of an autoencoder's latents.
  rae_weights: folder with its weights. rae_statistics: file that normalises its tokens.
  rae_patch: side in pixels that one token stands for; None is `rae.PATCH`.
  vae_dtype, rae_dtype: precision of the products of either.
  size: side of the square pictures.
  crop, orientation: see `pictures.crop` and `pictures.decode`.
  store: 'latents', 'pixels' or 'both'.
  twins: whether to store latents of mirror images too.
  dtype: dtype of the latents.
  records_per_shard: pictures per shard; None makes about 64 shards.
  batch_size: pictures encoded at once, on all devices of the process.
  threads: threads that decode.
  worker, workers: number of this worker and of all; shard s belongs to worker s % workers.
  strict: whether a bad picture is an error; a file that is no picture never is.

  Raises:
    UserError: a value is unknown, or values exclude each other.
  """

  source: str
  output: pathlib.Path
  vae: str | pathlib.Path | None = None
  vae_scale: float | tuple[float, ...] | None = None
  vae_shift: float | tuple[float, ...] | None = None
  vae_dtype: str | None = None
  rae: str | None = None
  rae_weights: str | None = None
  rae_statistics: str | None = None
  rae_patch: int | None = None
  rae_dtype: str | None = None
  size: int = 256
  crop: str = 'adm'
  orientation: str = 'exif'
  store: str = 'latents'
  twins: bool = False
  dtype: str | None = None
  classes: str | None = None
  labels: str | None = None
  split: str = 'train'
  batch_size: int = 16
  threads: int | None = None
  records_per_shard: int | None = None
  worker: int = 0
  workers: int = 1
  strict: bool = False

  def __post_init__(self):
    for name, known in (
      ('store', STORES),
      ('crop', pictures.CROPS),
      ('orientation', pictures.ORIENTATIONS),
      ('dtype', (None, *DTYPES)),
      ('vae_dtype', (None, *VAE_DTYPES)),
      ('rae_dtype', (None, *VAE_DTYPES)),
    ):
      value = getattr(self, name)
      if value not in known:
        trees.check_known(f'--{name}', value, [k for k in known if k is not None])
    for name in ('size', 'batch_size', 'threads', 'records_per_shard', 'rae_patch'):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise types.UserError(f'--{name}={value}, expected a whole number of at least 1')
    if not 0 <= self.worker < self.workers:
      raise types.UserError(
        f'--shard={self.worker}/{self.workers}: workers are counted from 0, expected '
        f'0/{self.workers} to {self.workers - 1}/{self.workers}'
      )
    if re.match(r'\w+:/', str(self.output)):
      scheme, _, path = str(self.output).partition(':')
      copies = 'aws s3 cp --recursive' if scheme == 's3' else 'gcloud storage cp -r'
      raise types.UserError(
        f'--output={self.output} is a URL, expected a folder: a store is made on a disk; then '
        f'`{copies} FOLDER {scheme}://{path.lstrip("/")}` copies it'
      )
    self._check_vae()

  def _check_vae(self):
    if self.latents and self.vae is None and self.rae is None:
      raise types.UserError(
        f'--store={self.store} needs --vae=FILE, the weights of an autoencoder, or --rae=NAME, an '
        'encoder; --store=pixels stores pictures alone'
      )
    if self.vae is not None and self.rae is not None:
      raise types.UserError('--vae and --rae make different latents: give one of them')
    for name in _OF_LATENTS:
      given = getattr(self, name) not in (None, False)
      if not self.latents and given:
        why = 'mirroring stored pixels is exact' if name == 'twins' else 'there are no latents'
        raise types.UserError(f'--{name} does not go with --store=pixels: {why}; leave it out')
      kind, part, _ = name.partition('_')
      if given and part and getattr(self, kind) is None:
        raise types.UserError(f'--{name} goes with --{kind}; leave it out')

  @property
  def latents(self) -> bool:
    """Whether the store has latents."""
    return self.store != 'pixels'

  def decoding_threads(self) -> int:
    """Number of threads that decode; by default one for each core that this process may use."""
    return self.threads or cores.available()


def check_size(options: Options, config: autoencoders.Config) -> None:
  """Refuses an autoencoder that cannot take the pictures.

  Raises:
    UserError: it takes another size, or other channels than red, green and blue.
  """
  if options.size % config.factor:
    above = (options.size // config.factor + 1) * config.factor
    nearest = [str(size) for size in (above - config.factor, above) if size]
    raise types.UserError(
      f'--size={options.size} is not divisible by {config.factor}, the factor of {options.vae}; '
      f'use {" or ".join(nearest)}'
    )
  if config.image_channels != 3:
    raise types.UserError(f'{options.vae} takes {config.image_channels} channels, pictures have 3')


def make_plan(
  options: Options, collection: base.Pictures, made: making.Making | None
) -> layout.Plan:
  """The plan of the store; `made` is None for pixels alone.

  Raises:
    UserError: the shards have so few records that the store would have too many files.
  """
  columns = {}
  if made is not None:
    columns[made.column] = layout.ColumnFacts(
      dtype=options.dtype or 'float16', shape=made.shape, twins=options.twins
    )
  if options.store != 'latents':
    columns['pixels'] = layout.ColumnFacts(dtype='uint8', shape=(options.size, options.size, 3))
  listing = collection.listing
  fewest = -(-len(listing) * len(columns) // _FILES)
  records = options.records_per_shard or _records_per_shard(len(listing), fewest)
  if records < fewest:
    raise types.UserError(
      f'--records_per_shard={records} makes {-(-len(listing) // records)} shards of '
      f'{len(columns)} files each, more than the {_FILES} files that a reader keeps open; use '
      f'{fewest} or more'
    )
  return layout.Plan(
    source=collection.name,
    source_digest=listing.digest(),
    examples=len(listing),
    records_per_shard=records,
    columns=columns,
    label_names=tuple(listing.label_names),
    size=options.size,
    crop=options.crop,
    orientation=options.orientation,
    vae=made and made.facts,
  )


def _records_per_shard(examples, fewest):
  """The power of two that makes about 64 shards, within bounds and at least `fewest`."""
  low, high = _RECORDS
  usual = min(max(2 ** round(math.log2(examples / _SHARDS)), low), high)
  return max(usual, 2 ** math.ceil(math.log2(fewest)))
