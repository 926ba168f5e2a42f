"""Samples on disk: ADM's `.npz`, written and read in batches, and the parts of an unfinished one.

ADM's evaluator (guided-diffusion, `evaluations/evaluator.py`) reads `arr_0`, uint8 [N, H, W, 3];
its samplers put the labels beside it as `arr_1`. Fifty thousand pictures of 256 x 256 are 9.8 GB,
so neither side ever holds them all.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import os
import pathlib
import shutil
import tempfile
from typing import IO
import zipfile
import zlib

import numpy as np

from diversedit_jax.data import files
from diversedit_jax.types import UserError

IMAGES, LABELS = 'arr_0', 'arr_1'


class SampleFile:
  """The images of an `.npz`, read from its beginning as often as wanted."""

  def __init__(self, path: str | os.PathLike[str]):
    """Reads the header alone.

    Raises:
      UserError: no such file, no `.npz`, or no uint8 images [N, H, W, 3] under `arr_0`.
    """
    self.path = pathlib.Path(path)
    with self._opened() as (_, shape, dtype, fortran):
      if len(shape) != 4 or shape[-1] != 3 or 0 in shape or dtype != np.uint8 or fortran:
        raise UserError(
          f'{self.path}: {IMAGES} is {dtype} {shape}, expected uint8 (N, H, W, 3) in C order'
        )
    self._shape = shape

  def __len__(self) -> int:
    return self._shape[0]

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, 3)."""
    return self._shape[1:]

  def labels(self) -> np.ndarray | None:
    """[N] integers of `arr_1`, where ADM's samplers put them; None without them.

    Raises:
      UserError: for an `arr_1` that cannot be read.
    """
    try:
      with np.load(self.path, allow_pickle=False) as archive:
        found = archive[LABELS] if LABELS in archive.files else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
      raise UserError(f'{self.path}: {LABELS} cannot be read: {error}') from error
    if isinstance(found, bytes):  # What numpy makes of a member without its header.
      raise UserError(f'{self.path}: {LABELS} cannot be read: it is no array')
    fits = found is not None and found.shape == (len(self),) and found.dtype.kind in 'iu'
    return found if fits else None

  def batches(self, size: int) -> Iterator[np.ndarray]:
    """All images in the order of the file, uint8 [n, H, W, 3], n = size but in the last.

    Raises:
      UserError: if the file ends early or is damaged.
    """
    with self._opened() as (member, shape, _, _):
      for start in range(0, len(self), size):
        n = min(size, len(self) - start)
        expected = n * int(np.prod(shape[1:]))
        try:
          data = member.read(expected)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
          raise UserError(f'{self.path} is damaged after {start} images: {error}') from error
        if len(data) != expected:
          raise UserError(f'{self.path} ends after {start} of {len(self)} images')
        yield np.frombuffer(data, np.uint8).reshape(n, *shape[1:])

  @contextlib.contextmanager
  def _opened(self):
    """The member after its header, and what the header says."""
    try:
      archive = zipfile.ZipFile(self.path)
    except FileNotFoundError as error:
      raise UserError(f'there is no {self.path}') from error
    except (zipfile.BadZipFile, IsADirectoryError, PermissionError) as error:
      raise UserError(f'{self.path} cannot be read as an .npz file: {error}') from error
    with archive:
      names = archive.namelist()
      if f'{IMAGES}.npy' not in names:
        raise UserError(
          f'{self.path} has no {IMAGES}, where images are expected; found '
          f'{", ".join(name.removesuffix(".npy") for name in names) or "nothing"}'
        )
      with archive.open(f'{IMAGES}.npy') as member:
        try:
          shape, fortran, dtype = _read_header(member)
        except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
          raise UserError(f'{self.path}: {IMAGES} cannot be read: {error}') from error
        yield member, shape, dtype, fortran


def _read_header(member):
  read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
  version = np.lib.format.read_magic(member)
  if version not in read:
    raise ValueError(f'its format version is {version}')
  return read[version](member)


def write_npz(
  path: str | os.PathLike[str],
  shape: tuple[int, ...],
  batches: Iterable[np.ndarray],
  labels: np.ndarray | None = None,
) -> None:
  """Writes an `.npz` as ADM's evaluator reads it; appears whole or not at all.

  Args:
    path: path of the file.
    shape: (N, H, W, 3) of all images.
    batches: uint8 [n, H, W, 3], together N.
    labels: integers [N], or None.

  Raises:
    ValueError: the batches do not add up to `shape`.
  """

  def checked():
    for batch in batches:
      if batch.dtype != np.uint8 or batch.shape[1:] != tuple(shape[1:]):
        raise ValueError(f'a batch is {batch.dtype} {batch.shape}, expected uint8 {shape}')
      yield {IMAGES: batch}

  whole = {} if labels is None else {LABELS: np.asarray(labels, np.int64)}
  write_arrays(path, shape[0], checked(), whole)


def write_arrays(
  path: str | os.PathLike[str],
  count: int,
  batches: Iterable[Mapping[str, np.ndarray]],
  whole: Mapping[str, np.ndarray],
) -> None:
  """Writes an `.npz` of arrays that arrive in batches; appears whole or not at all.

  Memory holds one batch. All arrays but the first wait in files beside `path`.

  Args:
    path: path of the file.
    count: number of rows of each array.
    batches: rows of every array by name, together `count`.
    whole: further arrays.

  Raises:
    ValueError: the batches do not add up to `count`, or change their shape or type.
  """
  with (
    files.atomic(path) as temporary,
    zipfile.ZipFile(temporary, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive,
    tempfile.TemporaryDirectory(prefix='.', dir=pathlib.Path(path).parent) as waiting,
  ):
    with contextlib.ExitStack() as stack:
      columns: dict[str, _Column] = {}
      for batch in batches:
        for name, rows in batch.items():
          if name not in columns:
            file = f'{name}.npy'
            if not columns:
              opened = archive.open(file, 'w', force_zip64=True)
            else:  # An archive takes one at a time.
              opened = open(pathlib.Path(waiting) / file, 'wb')  # noqa: SIM115
            columns[name] = _Column(
              stack.enter_context(opened), (count, *rows.shape[1:]), rows.dtype
            )
          columns[name].write(rows)
    for column in columns.values():
      column.check()
    for file in sorted(pathlib.Path(waiting).iterdir()):
      archive.write(file, file.name)
    for name, array in whole.items():
      with archive.open(f'{name}.npy', 'w') as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


class _Column:
  """An array in an open file, written from its first row to its last."""

  def __init__(self, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype):
    self._file, self._shape, self._dtype, self._seen = file, shape, dtype, 0
    header = {'descr': np.lib.format.dtype_to_descr(dtype), 'fortran_order': False, 'shape': shape}
    np.lib.format.write_array_header_1_0(file, header)

  def write(self, rows: np.ndarray) -> None:
    if rows.dtype != self._dtype or rows.shape[1:] != self._shape[1:]:
      raise ValueError(f'a batch is {rows.dtype} {rows.shape}, not {self._dtype} {self._shape}')
    self._file.write(np.ascontiguousarray(rows).data)
    self._seen += len(rows)

  def check(self) -> None:
    if self._seen != self._shape[0]:
      raise ValueError(f'{self._seen} images came for an array of {self._shape[0]}')


class Parts:
  """Samples that are made one batch after the other, each batch in a file that appears whole.

  An evaluation that is killed continues behind the last one, also with another batch size. There
  may be more files than a process can hold open, so each is open only while it is read.
  """

  def __init__(self, folder: str | os.PathLike[str], *, at_most: int | None = None):
    """Finds what is there already, from the headers alone.

    Args:
      folder: folder of the files.
      at_most: number of samples behind which files are left out; None takes all.

    Raises:
      UserError: a file is damaged.
    """
    self.folder = pathlib.Path(folder)
    self._files: list[pathlib.Path] = []
    self._count = 0
    for file in sorted(self.folder.glob('[0-9]*.npy')):
      if int(file.stem) == self._count and self._count != at_most:
        self._files.append(file)
        self._count += _rows(file)

  def __len__(self) -> int:
    """Number of samples so far."""
    return self._count

  def append(self, batch: np.ndarray) -> None:
    """Keeps the next samples [n, ...]."""
    self.folder.mkdir(parents=True, exist_ok=True)
    file = self.folder / f'{self._count:08d}.npy'
    with files.atomic(file) as temporary, open(temporary, 'wb') as opened:
      np.save(opened, batch)
    self._files.append(file)
    self._count += len(batch)

  def batches(self) -> Iterator[np.ndarray]:
    """All samples so far in their order, as they were kept; each file is read once."""
    for file in list(self._files):
      yield np.load(file, allow_pickle=False)

  def remove(self) -> None:
    """Forgets all samples, and the folder with whatever else is in it."""
    shutil.rmtree(self.folder, ignore_errors=True)
    self._files, self._count = [], 0


def _rows(file: pathlib.Path) -> int:
  """Number of rows of the array in an `.npy` file, from its header."""
  with open(file, 'rb') as opened:
    try:
      shape, _, _ = _read_header(opened)
      return shape[0]
    except (ValueError, IndexError) as error:
      raise UserError(f'{file} is damaged: {error}') from error
