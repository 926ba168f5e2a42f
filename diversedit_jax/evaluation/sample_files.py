"""Images of an `.npz` or `.npy` that somebody has made, in batches."""

from collections.abc import Iterator
import contextlib
import os
import zipfile
import zlib

import numpy as np

from diversedit_jax import paths
from diversedit_jax.data import images
from diversedit_jax.evaluation import samples
from diversedit_jax.types import UserError

# The second is where --mode=sample puts them.
_IMAGES, _LABELS = (samples.IMAGES, 'images'), (samples.LABELS, 'labels')
_MOST = 8.0  # A network whose pixels go further beyond [-1, 1] made no pictures.


class SampleFile:
  """See `picture_sets.PictureSet`: the images of an `.npz` or `.npy`, in the order of the file.

  They are under `arr_0` (ADM, DiT, SiT, --mode=eval) or `images` (--mode=sample), or the one array
  of images that there is: uint8, or floats in [-1, 1], which are quantised. Images of one channel
  become grey ones of three.
  """

  def __init__(self, path: str | os.PathLike[str], quantiser: str = 'truncate'):
    """Reads the header, and of floats the first images.

    Args:
      path: path of the file. quantiser: rule for floats, see `data.images`.

    Raises:
      UserError: no such file, another file, or no images [N, H, W, 1 or 3].
    """
    self.path, self._quantiser = paths.path(path), quantiser
    self.name, self.remarks, self._member = self.path.name, [], ''
    with self._opened(self._choose()) as (_, shape, dtype, fortran):
      what = f'{self.path}: {self._member or "the array"} is {dtype} {shape}'
      if len(shape) == 4 and shape[1] in (1, 3) and shape[-1] not in (1, 3):
        key = f"['{self._member}']" if self._member else ''
        raise UserError(
          f'{what}: the channels come first. Turn it: python -c "import numpy as np; '
          f"np.savez('turned.npz', np.load('{self.path.name}'){key}.transpose(0, 2, 3, 1))\""
        )
      fits = len(shape) == 4 and shape[-1] in (1, 3) and 0 not in shape and not fortran
      if not fits or (dtype != np.uint8 and dtype.kind != 'f'):
        raise UserError(f'{what}, expected uint8 (N, H, W, 3) in C order')
    self._shape, self._dtype = shape, dtype
    if shape[-1] == 1:
      self.remarks.append(f'the pictures of {self.name} are grey: three equal channels are scored')
    if self.quantised:
      self._check_floats(next(self._raw(min(len(self), 64))))

  def __len__(self) -> int:
    return self._shape[0]

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, 3)."""
    return (*self._shape[1:3], 3)

  @property
  def quantised(self) -> str | None:
    """The quantiser of floats; None for bytes."""
    return None if self._dtype == np.uint8 else self._quantiser

  def labels(self) -> np.ndarray | None:
    """[N] integers of `arr_1` (ADM) or `labels` (--mode=sample); None without them.

    Raises:
      UserError: for labels that cannot be read.
    """
    if not self._member:
      return None
    name = ''
    try:
      with np.load(self.path, allow_pickle=False) as archive:
        name = next((name for name in _LABELS if name in archive.files), '')
        found = archive[name] if name else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
      raise UserError(f'{self.path}: {name} cannot be read: {error}') from error
    if isinstance(found, bytes):  # What numpy makes of a member without its header.
      raise UserError(f'{self.path}: {name} cannot be read: it is no array')
    fits = found is not None and found.shape == (len(self),) and found.dtype.kind in 'iu'
    return found if fits else None

  def batches(self, size: int) -> Iterator[np.ndarray]:
    """All images in the order of the file, uint8 [n, H, W, 3], n = size but in the last.

    Raises:
      UserError: if the file ends early or is damaged, or holds values that are not finite.
    """
    for batch in self._raw(size):
      if self.quantised:
        try:
          batch = images.to_uint8(batch, self._quantiser)
        except UserError as error:
          raise UserError(f'{self.path}: {error}') from error
      yield batch if batch.shape[-1] == 3 else np.repeat(batch, 3, axis=-1)

  def _raw(self, size):
    with self._opened(self._member) as (member, shape, dtype, _):
      for start in range(0, len(self), size):
        n = min(size, len(self) - start)
        expected = n * int(np.prod(shape[1:])) * dtype.itemsize
        try:
          data = member.read(expected)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
          raise UserError(f'{self.path} is damaged after {start} images: {error}') from error
        if len(data) != expected:
          raise UserError(f'{self.path} ends after {start} of {len(self)} images')
        yield np.frombuffer(data, dtype).reshape(n, *shape[1:])

  def _check_floats(self, x_NHWC):
    low, high = float(np.nanmin(x_NHWC)), float(np.nanmax(x_NHWC))
    if low >= 0 or max(-low, high) > _MOST:
      raise UserError(
        f'{self.path}: {self._member or "the array"} is {self._dtype} from {low:g} to {high:g}; '
        'expected uint8 from 0 to 255, or floats in [-1, 1] as --mode=sample writes them'
      )

  def _choose(self):
    """The name of the array of images; '' for an `.npy`."""
    if self.path.suffix.lower() == '.npy':
      return ''
    with self._archive() as archive:
      names = [name.removesuffix('.npy') for name in archive.namelist()]
      for name in _IMAGES:
        if name in names:
          return name
      shapes = {name: _shape_of(archive, name) for name in names}
    like = [name for name, shape in shapes.items() if len(shape) == 4 and shape[-1] == 3]
    if len(like) == 1:
      return like[0]
    held = ', '.join(f'{name} {shape or ""}'.strip() for name, shape in shapes.items())
    hint = ''
    if 'latents' in names:
      hint = '; latents become pictures by --mode=sample with --config.vae.weights=FILE'
    elif {'mu', 'sigma'} <= set(names):
      hint = '; these are statistics, which a reference may be, but no samples'
    raise UserError(
      f'{self.path} has no {samples.IMAGES}, nor images by another name (N, H, W, 3); found '
      f'{held or "nothing"}{hint}'
    )

  @contextlib.contextmanager
  def _archive(self):
    try:
      archive = zipfile.ZipFile(self.path)
    except FileNotFoundError as error:
      raise UserError(f'there is no {self.path}') from error
    except (zipfile.BadZipFile, IsADirectoryError, PermissionError) as error:
      raise UserError(f'{self.path} cannot be read as an .npz file: {error}') from error
    with archive:
      yield archive

  @contextlib.contextmanager
  def _opened(self, name):
    """The array `name` after its header, and what the header says."""
    self._member = name
    with contextlib.ExitStack() as stack:
      if name:
        member = stack.enter_context(stack.enter_context(self._archive()).open(f'{name}.npy'))
      else:
        try:
          member = stack.enter_context(open(self.path, 'rb'))
        except OSError as error:
          raise UserError(f'{self.path} cannot be read: {error.strerror}') from error
      try:
        shape, fortran, dtype = samples.read_header(member)
      except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f'{self.path}: {name or "it"} cannot be read: {error}') from error
      yield member, shape, dtype, fortran


def _shape_of(archive, name):
  """Shape of an array of an archive, () for what is none."""
  try:
    with archive.open(f'{name}.npy') as member:
      return samples.read_header(member)[0]
  except (KeyError, ValueError, zipfile.BadZipFile, zlib.error, EOFError):
    return ()
