"""Pictures that exist already, to be scored or compared with: files of arrays, folders, archives.

  FILE.npz, FILE.npy     uint8 [N, H, W, 3], see `sample_files.SampleFile`: ADM's, DiT's and SiT's
                         samples, those of --mode=eval and --mode=sample
  FOLDER                 files of pictures, in class folders or not, as `sample_ddp.py` of DiT, SiT
                         and REPA leaves them
  KIND:PATH, FILE.tar    any collection of `data.pictures`

Several of them are one set, in their order.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
import itertools
import os
import pathlib
from typing import Protocol
import zipfile

import jax
import numpy as np

from diversedit_jax import paths
from diversedit_jax.data import pictures as pictures_lib
from diversedit_jax.data import sources
from diversedit_jax.evaluation import (
  cached_statistics,
  feature_network,
  pictures,
  reference,
  sample_files,
  samples,
)
from diversedit_jax.types import UserError

_LOSSY = ('.jpg', '.jpeg', '.jpe', '.jfif', '.webp', '.avif', '.heic')
_ARRAYS = ('.npz', '.npy')


class PictureSet(Protocol):
  """Pictures of one size in an order; their number is its length.

  name: name for cards and messages, without the machine's path.
  image_shape: (H, W, 3).
  remarks: sentences about what makes scores of them doubtful.
  """

  name: str
  image_shape: tuple[int, int, int]
  remarks: Sequence[str]

  def __len__(self) -> int: ...

  def labels(self) -> np.ndarray | None:
    """Class of each picture, integers [N]; None if it is not known."""

  def batches(self, size: int) -> Iterator[np.ndarray]:
    """All pictures in their order, uint8 [n, H, W, 3], n = size but in the last."""


def open_set(
  specs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], quantiser: str = 'truncate'
) -> PictureSet:
  """The set of one or several of the forms above.

  Args:
    specs: one, or several.
    quantiser: how floats in [-1, 1] become levels, see `data.images`.

  Raises:
    UserError: nothing there, no pictures, pictures of different sizes, or none that are square.
  """
  if isinstance(specs, str | os.PathLike):
    specs = [specs]
  if not specs:
    raise UserError('no samples: name a file or a folder')
  parts = [_open(os.fspath(spec), quantiser) for spec in specs]
  found = parts[0] if len(parts) == 1 else _Joined(parts)
  height, width, _ = found.image_shape
  if height != width:
    raise UserError(f'{found.name} holds {height}x{width} pictures, expected square ones')
  return found


def open_reference(
  spec: str,
  network: feature_network.FeatureNetwork,
  open_pictures: Callable[[str], sources.Source],
  *,
  image_size: int,
  mesh: jax.sharding.Mesh,
  batch_size: int,
  folder: pathlib.Path | None = None,
  quantiser: str = 'truncate',
  own: bool = False,
  key: str = 'eval.encoder',
) -> reference.Reference:
  """What the features of a network are compared with.

  Args:
    spec: a file of statistics, or pictures: as `data.source` names them, a path, or an `.npz`.
    network: whose features are compared.
    open_pictures: opens pictures of a spec 'KIND:PATH'.
    image_size: side of the samples.
    mesh, batch_size: see `cached_statistics`.
    folder: where statistics of collections of pictures are kept; None keeps none.
    quantiser: as for `open_set`.
    own: whether statistics that name no network are those of this one; else of Inception.
    key: config key of the network, for messages.

  Raises:
    UserError: as `reference.read` and `open_pictures`; or ADM's statistics, which are those of
      Inception, for an encoder.
  """
  known = spec.partition(':')[0] in sources.KINDS
  if known or not spec.lower().endswith(_ARRAYS):
    source = open_pictures(spec if known else pictures_lib.with_kind(spec))
    if folder is not None:
      return cached_statistics.cached_statistics(source, network, mesh, batch_size, folder)
    return _statistics(OfSource(source), network, mesh, batch_size)
  if _are_many_pictures(spec):
    found = sample_files.SampleFile(spec, quantiser)
    if found.image_shape[:2] != (image_size, image_size):
      raise UserError(
        f'{found.name} does not fit the samples: it holds pictures of {found.image_shape[:2]}, '
        f'expected {(image_size, image_size)}'
      )
    return _statistics(found, network, mesh, batch_size)
  found = reference.read(spec)
  if own or network.name == 'inception' or found.facts:
    return found
  # ADM's statistics are those of Inception, but any network can look at ADM's images.
  if found.images_NHWC is None:
    raise UserError(
      f'{found.name} holds statistics of Inception and no images: give {key}_reference, made by '
      f'--mode=stats with {key} as it is'
    )
  return dataclasses.replace(found, mu=None, sigma=None, mu_s=None, sigma_s=None)


def _are_many_pictures(file):
  """Whether a file holds pictures that `reference.read` does not know, or too many for it."""
  if not file.lower().endswith('.npz'):
    return True
  try:
    with np.load(file, allow_pickle=False) as archive:
      names = archive.files
  except (ValueError, OSError, EOFError, zipfile.BadZipFile):
    return False  # Its reader says what is wrong.
  if {'mu', 'mu_s', 'facts'} & set(names):
    return False
  if samples.IMAGES not in names:
    return True
  found = sample_files.SampleFile(file)
  as_adm = found.quantised is None and not found.remarks  # Bytes, three channels.
  return not as_adm or len(found) > reference.POOL_LIMIT


def _statistics(found, network, mesh, batch_size) -> reference.Reference:
  """`cached_statistics.summarise` of a set."""
  digest = hashlib.sha256()

  def read():
    for batch in found.batches(batch_size):
      digest.update(np.ascontiguousarray(batch).data)
      yield batch

  made = cached_statistics.summarise(read(), len(found), network, mesh, batch_size)
  given = {name: getattr(made, name) for name in ('n', 'mu', 'sigma', 'mu_s', 'sigma_s', 'pool_ND')}
  facts = cached_statistics.facts_of(
    network, image_size=found.image_shape[0], source=found.name, sha256=digest.hexdigest()
  )
  return reference.Reference(name=found.name, sha256=digest.hexdigest(), facts=facts, **given)


class OfSource:
  """See `PictureSet`: the pictures of a data source."""

  def __init__(self, source: sources.Source):
    """Refuses a source without square uint8 colour pictures (UserError)."""
    pictures.check_source(source)
    self._source = source
    self.name, self.image_shape, self.remarks = source.name, source.pixel_shape, []

  def __len__(self) -> int:
    return len(self._source)

  def labels(self) -> np.ndarray | None:
    return self._source.labels

  def batches(self, size: int) -> Iterator[np.ndarray]:
    return pictures.batches(self._source, size)


class _Files(OfSource):
  """See `PictureSet`: files of pictures of one size, as they are."""

  def __init__(self, spec: str):
    collection = pictures_lib.open_pictures(spec, labels='any')
    names = collection.listing.names
    try:
      first = pictures_lib.decode.decode(collection.read(0), 'stored')
    except pictures_lib.BadPicture as error:
      raise UserError(f'{collection.name}: {names[0]}: {error}') from error
    if first.width != first.height:
      raise UserError(
        f'{collection.name}: {names[0]} is {first.width}x{first.height}, expected square pictures'
      )
    super().__init__(
      sources.PictureSource(collection, size=first.width, crop='exact', orientation='stored')
    )
    lossy = sum(name.lower().endswith(_LOSSY) for name in names)
    if lossy:
      self.remarks = [
        f'{lossy} of {len(names)} pictures of {self.name} were compressed with losses, which moves '
        'FID: keep samples as PNG or in an .npz'
      ]

  def batches(self, size: int) -> Iterator[np.ndarray]:
    try:
      yield from super().batches(size)
    except sources.base.BadExample as error:
      raise UserError(
        f'{self.name}: {error.reason}; all samples must be sound and of one size'
      ) from error


class _Joined:
  """See `PictureSet`: several sets, one behind the other."""

  def __init__(self, parts: Sequence[PictureSet]):
    self._parts = parts
    self.name = f'{parts[0].name} and {len(parts) - 1} more'
    self.image_shape = parts[0].image_shape
    rules = [getattr(part, 'quantised', None) for part in parts]
    self.quantised = next(filter(None, rules), None)
    self.remarks = list(dict.fromkeys(line for part in parts for line in part.remarks))
    for part in parts:
      if part.image_shape != self.image_shape:
        raise UserError(
          f'{part.name} holds pictures of {part.image_shape[:2]}, but {parts[0].name} of '
          f'{self.image_shape[:2]}: one set has one size'
        )

  def __len__(self) -> int:
    return sum(map(len, self._parts))

  def labels(self) -> np.ndarray | None:
    found = [part.labels() for part in self._parts]
    return None if any(labels is None for labels in found) else np.concatenate(found)

  def batches(self, size: int) -> Iterator[np.ndarray]:
    return itertools.chain.from_iterable(part.batches(size) for part in self._parts)


def _open(spec, quantiser):
  path = paths.path(spec)
  if path.suffix.lower() in _ARRAYS or not (path.exists() or ':' in spec):
    return sample_files.SampleFile(path, quantiser)
  if path.is_dir() and (files := [*path.glob('*.np[yz]'), *path.glob('*/*.np[yz]')]):
    raise UserError(
      f'{path} holds files of arrays, as {files[0].relative_to(path)}: name the file itself, or '
      'several that are one set, each by --samples=FILE'
    )
  return _Files(spec)
