"""The sections of a config that steer a run as checked dataclasses, and how one is made."""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any, TypeVar

import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.data import sources
from diversedit_jax.data.pictures import crop, decode
from diversedit_jax.models import config as config_lib

T = TypeVar('T')
RESIDENT = ('none', 'host', 'device')
PRECISIONS = ('default', 'high', 'highest')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
  """source, classes, size, crop, orientation: see `data.sources.open_source`.

  num_classes, space: demanded of the source; None takes what it has. flip: see `data.pipeline`.
  resident: where all examples are kept in memory, if anywhere.
  prefetch, threads, workers: see `data.pipeline.batches`.
  """

  source: str
  num_classes: int | None
  classes: str | None
  space: str | None
  size: int | None
  crop: str | None
  orientation: str | None
  flip: bool
  resident: str
  prefetch: int
  threads: int
  workers: int

  def __post_init__(self):
    for name, known in (
      ('crop', crop.CROPS),
      ('orientation', decode.ORIENTATIONS),
      ('resident', RESIDENT),
      ('space', tuple(sources.KEYS)),
    ):
      if getattr(self, name) is not None:
        trees.check_known(f'data.{name}', getattr(self, name), known)
    if self.size is not None:
      at_least('data', 'size', self.size, 1)
    for name, low in (('prefetch', 1), ('threads', 1), ('workers', 0)):
      at_least('data', name, getattr(self, name), low)
    if self.workers and self.resident != 'none':
      raise types.UserError(
        f'data.workers={self.workers} with data.resident={self.resident!r}: what is in memory '
        'needs no worker processes'
      )
    if self.workers and self.threads > 1:
      raise types.UserError(
        f'data.threads={self.threads} with data.workers={self.workers}: a batch is gathered by one '
        'or the other'
      )

  def open(self, *, pixels: bool) -> sources.Source:
    """The train split. pixels: whether pixels that lie beside latents are wanted.

    Raises:
      UserError: see `data.sources.open_source`; or data of another kind than the section states.
    """
    source = self._open('train', pixels, self.classes)
    if self.workers and isinstance(source, sources.ArraySource | sources.SyntheticSource):
      raise types.UserError(
        f'data.workers={self.workers}, but {source.name} is in memory: each worker would get a copy'
      )
    return source

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
      size=self.size,
      crop=self.crop,
      orientation=self.orientation,
      pixels=pixels,
    )
    pictures = isinstance(source, sources.PictureSource)
    for name, fits in (
      ('classes', pictures),
      ('crop', pictures or isinstance(source, sources.StoreSource)),
      ('orientation', pictures or isinstance(source, sources.StoreSource)),
    ):
      if getattr(self, name) is not None and not fits:
        raise types.UserError(f'data.{name}={getattr(self, name)!r} is not for {source.name}')
    if self.space is not None and source.space != self.space:
      raise types.UserError(
        f'data.space={self.space!r}, but {source.name} are {source.space}; make a store of latents '
        'by `python -m diversedit_jax.prepare --vae=...`'
      )
    found = source.pixel_shape
    if self.size is not None and found is not None and found[:2] != (self.size, self.size):
      raise types.UserError(
        f'data.size={self.size}, but the pixels of {source.name} are {found[0]}x{found[1]}'
      )
    return source


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeOptions:
  """weights: file of the VAE that decodes samples, '' for none; see `frozen.vae_files.load`.

  scale, shift: of latents, one number or one for each channel; None is what the file or the store
    says. dtype: of its products.
  tile: side in latent pixels beyond which pictures are decoded in tiles; 0 never does.
  """

  weights: str
  scale: float | tuple[float, ...] | None
  shift: float | tuple[float, ...] | None
  dtype: str
  tile: int

  def __post_init__(self):
    trees.check_known('vae.dtype', self.dtype, config_lib.DTYPES)
    at_least('vae', 'tile', self.tile, 0)
    if self.tile == 1:
      raise types.UserError('vae.tile must be 0 or at least 2, got 1: tiles overlap')
    if self.scale is not None and np.min(self.scale) <= 0:
      raise types.UserError(f'vae.scale must be positive, got {self.scale}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
  """Length and statistics of training; see `configs.common.base`."""

  steps: int
  batch_size: int
  accumulate: int
  label_dropout: float
  ema_decay: float

  def __post_init__(self):
    for name in ('steps', 'batch_size', 'accumulate'):
      at_least('train', name, getattr(self, name), 1)
    if not 0 <= self.ema_decay < 1:
      raise types.UserError(f'train.ema_decay must lie in [0, 1), got {self.ema_decay}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshOptions:
  """Devices per mesh axis; one may be -1. 'fsdp' splits the state, 'tensor' the matrices."""

  data: int
  fsdp: int
  tensor: int

  def __post_init__(self):
    for name in ('data', 'fsdp', 'tensor'):
      if getattr(self, name) < 1 and getattr(self, name) != -1:
        raise types.UserError(f'mesh.{name} must be positive or -1, got {getattr(self, name)}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogOptions:
  """Intervals in steps; telemetry_every = 0 is off."""

  every: int
  telemetry_every: int
  telemetry_examples: int
  tensorboard: bool

  def __post_init__(self):
    at_least('log', 'every', self.every, 1)
    at_least('log', 'telemetry_every', self.telemetry_every, 0)
    at_least('log', 'telemetry_examples', self.telemetry_examples, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
  """every: steps. keep: how many of the newest. keep_every: these stay for ever; 0 is off."""

  every: int
  keep: int
  keep_every: int

  def __post_init__(self):
    at_least('checkpoint', 'every', self.every, 1)
    at_least('checkpoint', 'keep', self.keep, 1)
    at_least('checkpoint', 'keep_every', self.keep_every, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewOptions:
  """every: steps; 0 is off. rows: one class each. columns: samples of each class."""

  every: int
  rows: int
  columns: int

  def __post_init__(self):
    at_least('preview', 'every', self.every, 0)
    at_least('preview', 'rows', self.rows, 1)
    at_least('preview', 'columns', self.columns, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
  """Which weights make how many samples of which labels, from which seed."""

  seed: int
  batch_size: int
  weights: str
  number: int
  labels: str
  matmul_precision: str

  def __post_init__(self):
    trees.check_known('sample.weights', self.weights, ('ema', 'params'))
    trees.check_known('sample.matmul_precision', self.matmul_precision, PRECISIONS)
    at_least('sample', 'seed', self.seed, 0)
    if self.seed >= 2**32:  # As `data.order` needs it.
      raise types.UserError(f'sample.seed must be below 2**32, got {self.seed}')
    at_least('sample', 'batch_size', self.batch_size, 1)
    at_least('sample', 'number', self.number, 1)


def splat(cls: type[T], section: Mapping[str, Any], name: str, **extra: Any) -> T:
  """An instance of a dataclass from a config section; `extra` fields do not come from the config.

  Raises:
    UserError: naming unknown keys (and the nearest) and missing ones.
  """
  fields = [f for f in dataclasses.fields(cls) if f.name not in extra]
  required = [f.name for f in fields if f.default is dataclasses.MISSING]
  check_keys(f'config.{name}', section, [f.name for f in fields], required)
  return cls(**dict(section), **extra)


def check_keys(
  where: str, section: Mapping[str, Any], known: Iterable[str], required: Iterable[str] = ()
) -> None:
  """Refuses unknown keys, naming the nearest, and missing ones (UserError)."""
  for key in section:
    if key not in known:
      raise types.UserError(f'unknown key {where}.{key}{trees.did_you_mean(key, known)}')
  missing = [key for key in required if key not in section]
  if missing:
    raise types.UserError(f'{where} lacks {", ".join(missing)}')


def at_least(section: str, field: str, value: float, low: float) -> None:
  """Refuses a value below `low` (UserError)."""
  if value < low:
    raise types.UserError(f'{section}.{field} must be at least {low}, got {value}')
