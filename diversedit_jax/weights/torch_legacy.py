"""Reads the files that `torch.save` wrote before PyTorch 1.6, as `torch_file` reads newer ones.

Networks published before July 2020 are of this format. A file is a series: four pickles (a magic
number, the version of the format, facts about the machine, the description of the objects), a
pickle with the keys of the storages, and for each key the number of its elements as 8 bytes and the
elements, both little-endian.
"""

import os
import pathlib

import numpy as np

from diversedit_jax import types
from diversedit_jax.weights import torch_file

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
# How a pickle of that number begins, in the two protocols that PyTorch has written it with.
_HEADS = tuple(b'\x80' + bytes([p]) + b'\x8a\n' + _MAGIC.to_bytes(10, 'little') for p in (2, 3))


def recognises(path: str | os.PathLike[str]) -> bool:
  """Whether a file begins as those of the older format do; an unreadable one does not."""
  try:
    with open(path, 'rb') as file:
      return file.read(len(_HEADS[0])) in _HEADS
  except OSError:
    return False


class LegacyFile:
  """One open file, used as a `torch_file.TorchFile`.

  Raises:
    UserError: the file is of another format, is damaged, or names a global that is not permitted.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._path = pathlib.Path(path)
    self._arrays: dict[str, np.ndarray] = {}
    self._places: dict[str, int] = {}
    self._file = open(self._path, 'rb')  # noqa: SIM115 (closed by __exit__)
    try:
      with torch_file.guard(self._path):
        self._read()
    except BaseException:
      self._file.close()
      raise

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._file.close()

  def array(self, tensor: torch_file.Tensor) -> np.ndarray:
    """As `torch_file.TorchFile.array`."""
    with torch_file.guard(self._path):
      return torch_file.view(tensor, self._storage)

  def _read(self):
    unpickle = lambda: torch_file.Unpickler(self._file, self._path).load()
    head = unpickle(), unpickle()
    if head != (_MAGIC, _VERSION):
      raise self._damaged(f'it begins with {head}')
    unpickle()  # The byte order and the sizes of C's integers; elements do not depend on them.
    described = torch_file.Unpickler(self._file, self._path)
    self.contents = described.load()
    keys, size = unpickle(), os.path.getsize(self._path)
    for key in keys:
      dtype, expected = described.storages[key]
      found = int.from_bytes(self._file.read(8), 'little')
      self._places[key] = self._file.tell()
      if found != expected:
        raise self._damaged(f'storage {key} has {found} elements, expected {expected}')
      if self._places[key] + found * dtype.itemsize > size:
        raise self._damaged(f'it is truncated: storage {key} ends after its last byte')
      self._file.seek(found * dtype.itemsize, os.SEEK_CUR)

  def _storage(self, tensor):
    if tensor.key not in self._arrays:
      if tensor.key not in self._places:
        raise self._damaged(f'storage {tensor.key} is missing')
      self._file.seek(self._places[tensor.key])
      size = tensor.dtype.itemsize
      words = np.frombuffer(self._file.read(tensor.storage_size * size), f'<u{size}')
      self._arrays[tensor.key] = words.astype(f'=u{size}', copy=False).view(tensor.dtype)
    return self._arrays[tensor.key]

  def _damaged(self, reason: str) -> types.UserError:
    return torch_file.damaged(self._path, reason)
