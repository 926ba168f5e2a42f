"""The section of a config that says what a run learns from: `data`."""

import dataclasses

from diversedit_jax import options, types
from diversedit_jax.data import sources
from diversedit_jax.data.pictures import crop, decode

RESIDENT = ('none', 'host', 'device')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions(options.Section, section='data'):
  """Which data, what is demanded of them, and how they reach the devices."""

  source: str = options.option(
    'digits',
    path=True,
    doc='digits | store:DIR, store:gs://BUCKET/DIR or store:s3://BUCKET/DIR | folder:DIR | '
    'tar:FILE | zip:FILE | csv:FILE | parquet:FILE | tfds:NAME[:SPLIT] | arrays:FILE.npz | '
    "synthetic:HxWxC:CLASSES; '{split}' in a path becomes train or test.",
  )
  num_classes: int | None = options.option(
    None,
    at_least=0,
    doc='Demanded number of classes; None takes what there are, for arrays:FILE the largest label '
    'plus one.',
  )
  classes: str | None = options.option(
    None,
    path=True,
    doc="For pictures: a file that names all classes in order, 'imagenet', or 'alphabetical' (even "
    'numbers, as before 0.3); None takes those found, numbers in their order.',
  )
  labels: str | None = options.option(
    None,
    path=True,
    doc='For pictures: a file that says their classes, or the column of a table; none (all are of '
    "one class), folders or prefix (what is before '_' in a name); None takes what the collection "
    'says.',
  )
  space: str | None = options.option(
    None,
    choices=tuple(sources.KEYS),
    may_change=True,
    doc='What the data must be, pixels or latents; None takes what they are.',
  )
  size: int | None = options.option(
    None,
    at_least=1,
    doc='Side in pixels: pictures are cropped to it, a store must have it; None takes what there '
    'is, and pictures need one.',
  )
  crop: str | None = options.option(
    None,
    choices=crop.CROPS,
    doc='For pictures: adm (Dhariwal and Nichol; None), center or exact; demanded of a store.',
  )
  orientation: str | None = options.option(
    None,
    choices=decode.ORIENTATIONS,
    doc="For pictures: exif (turned as the camera says; None) or stored (ADM's); demanded of a "
    'store.',
  )
  flip: bool = options.option(
    False,
    doc='Mirrors each example in each epoch by a fair coin; latents need mirrored twins in their '
    'store.',
  )
  cache: str | None = options.option(
    None,
    path=True,
    may_change=True,
    doc='For stores, in a bucket or on a slow disk: a folder on a disk of this host to which what '
    'is read is copied first, once for all processes of the host, and verified.',
  )
  resident: str = options.option(
    'none',
    choices=RESIDENT,
    may_change=True,
    doc="Where all examples are kept in memory: nowhere, in the host's, or on the devices.",
  )
  prefetch: int = options.option(
    2, at_least=1, may_change=True, doc='Batches kept ready, by each worker if there are some.'
  )
  threads: int = options.option(
    1,
    at_least=1,
    may_change=True,
    doc='Threads that gather a batch each; pictures in it are decoded by all cores.',
  )
  workers: int = options.option(
    0, at_least=0, may_change=True, doc='Processes that gather a batch each instead.'
  )
  max_bad: int = options.option(
    0,
    at_least=0,
    may_change=True,
    doc='Distinct bad records that a run bears: each is named and the next good one takes its '
    'place; 0 ends at the first.',
  )

  def __post_init__(self):
    super().__post_init__()
    if self.workers and self.resident != 'none':
      raise types.UserError(
        f'data.workers={self.workers} with data.resident={self.resident!r}: what is in memory '
        'needs no worker processes'
      )
    if self.max_bad and self.resident != 'none':
      raise types.UserError(
        f'data.max_bad={self.max_bad} with data.resident={self.resident!r}: all examples are read '
        'at the start, and a bad one ends the run; make a new store, or set data.resident=none'
      )
    if self.workers and self.threads > 1:
      raise types.UserError(
        f'data.threads={self.threads} with data.workers={self.workers}: a batch is gathered by one '
        'or the other'
      )

  def open(self, *, pixels: bool) -> sources.Source:
    """The train split. pixels: whether pixels that lie beside latents are wanted.

    Raises:
      UserError: see `data.sources.open_source`; or data of another size than the section states.
    """
    source = self._open('train', pixels, self.classes)
    if self.workers and not source.reads_files:
      raise types.UserError(
        f'data.workers={self.workers}, but {source.name} is in memory: each worker would get a copy'
      )
    return source

  def check_space(self, source: sources.Source) -> None:
    """Refuses what the model would learn to make, if that is not what `space` states.

    source: the train split, as latents where an encoder makes them of its pixels.

    Raises:
      UserError: naming what it is.
    """
    if self.space in (None, source.space):
      return
    make = '`python -m diversedit_jax.prepare --vae=...`'
    way = f'; make a store of latents by {make}, or give rae.encoder, which makes them in the step'
    raise types.UserError(
      f'data.space={self.space!r}, but {source.name} are {source.space}'
      f'{way if self.space == "latents" else ""}'
    )

  def open_test(self, train: sources.Source, *, pixels: bool) -> sources.Source:
    """The test split, with the classes of the train split.

    Raises:
      UserError: as `open`; or classes that differ.
    """
    source = self._open('test', pixels, train.label_names or None)
    if source.label_names != train.label_names or source.num_classes != train.num_classes:
      raise types.UserError(
        f'{source.name} has {source.num_classes} classes that are not the {train.num_classes} of '
        f'{train.name}; give prepare the same --classes=FILE for both'
      )
    return source

  def _open(self, split, pixels, classes):
    source = sources.open_source(
      self.source,
      split,
      self.num_classes,
      classes=classes,
      labels=self.labels,
      size=self.size,
      crop=self.crop,
      orientation=self.orientation,
      pixels=pixels,
      cache=self.cache,
    )
    for name in ('classes', 'labels', 'crop', 'orientation', 'cache'):
      if getattr(self, name) is not None and name not in source.options:
        raise types.UserError(f'data.{name}={getattr(self, name)!r} is not for {source.name}')
    found = source.pixel_shape
    if self.size is not None and found is not None and found[:2] != (self.size, self.size):
      raise types.UserError(
        f'data.size={self.size}, but the pixels of {source.name} are {found[0]}x{found[1]}'
      )
    return source
