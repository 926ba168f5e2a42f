"""Samples on disk: ADM's `.npz`, written and read in batches, and the parts of an unfinished one.

ADM's evaluator (guided-diffusion, `evaluations/evaluator.py`) reads `arr_0`, uint8 [N, H, W, 3];
its samplers put the labels beside it as `arr_1`. Fifty thousand pictures of 256 x 256 are 9.8 GB,
so neither side ever holds them all.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import os
import pathlib
import tempfile
from typing import IO
import zipfile

import numpy as np

from diversedit_jax import paths
from diversedit_jax.data import files
from diversedit_jax.types import UserError

IMAGES, LABELS = 'arr_0', 'arr_1'
"""Where ADM's evaluator finds images, and its samplers put labels."""


def read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
  """(shape, whether in Fortran's order, dtype) of an `.npy`, which is read up to its data.

  Raises:
    ValueError: it is none.
  """
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
    tempfile.TemporaryDirectory(prefix='.', dir=temporary.parent) as waiting,
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
    self.folder = paths.path(folder, bucket=True)
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
      with files.local(file) as there:
        yield np.load(there, allow_pickle=False)

  def remove(self) -> None:
    """Forgets all samples, and the folder with whatever else is in it."""
    files.remove_folder(self.folder)
    self._files, self._count = [], 0


def _rows(file: pathlib.Path) -> int:
  """Number of rows of the array in an `.npy` file, from its header."""
  with file.open('rb') as opened:
    try:
      shape, _, _ = read_header(opened)
      return shape[0]
    except (ValueError, IndexError) as error:
      raise UserError(f'{file} is damaged: {error}') from error
