"""Reads the files that `torch.save` wrote before PyTorch 1.6, as `torch_file` reads newer ones.

Networks published before July 2020 have this format. A file is a series: four pickles (a magic
number, the version of the format, facts about the machine, the description of the objects), a
pickle with the keys of the storages, and for each key the number of its elements as 8 bytes and the
elements, both little-endian.

Python's own `pickle` writes a tensor with such a file in it, which holds the tensor's storage.
"""

import io
import os
from typing import Any

from diversedit_jax.weights import nested, restricted, torch_file

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


class LegacyFile(torch_file.TensorFile):
  """One open file of the older format.

  Raises:
    UserError: the file has another format, or is damaged.
  """

  def _open(self):
    self._places: dict[str, int] = {}
    return open(self._path, 'rb')

  def _read(self):
    unpickle = lambda: torch_file.Unpickler(self._file).load()
    head = unpickle(), unpickle()
    if head != (_MAGIC, _VERSION):
      raise torch_file.damaged(self._path, f'it does not begin with the version {_VERSION}')
    unpickle()  # The byte order and the sizes of C's integers; elements do not depend on them.
    described = torch_file.Unpickler(self._file)
    contents = described.load()
    keys, start = unpickle(), self._file.tell()
    size = self._file.seek(0, os.SEEK_END)
    self._file.seek(start)
    for key in keys:
      dtype, expected = described.storages[key]
      found = int.from_bytes(self._file.read(8), 'little')
      self._places[key] = self._file.tell()
      if found != expected:
        reason = f'storage {key} has {found} elements, expected {expected}'
        raise torch_file.damaged(self._path, reason)
      if self._places[key] + found * dtype.itemsize > size:
        raise torch_file.damaged(self._path, f'storage {key} ends after the last byte of the file')
      self._file.seek(found * dtype.itemsize, os.SEEK_CUR)
    self.unread += described.unread
    self.contents = contents
    return nested.walk(contents, (torch_file.Tensor,))

  def _bytes(self, key, size):
    if key not in self._places:
      raise torch_file.damaged(self._path, f'storage {key} is missing')
    self._file.seek(self._places[key])
    return self._file.read(size)


FROM_BYTES = ('torch.storage', '_load_from_bytes')


class PickleFile(torch_file.TensorFile):
  """One open pickle of tensors, as Python's `pickle` writes it.

  Raises:
    UserError: it is damaged.
  """

  def _open(self):
    self._stored: dict[str, tuple[_StoredFile, str]] = {}
    return open(self._path, 'rb')

  def _read(self):
    unpickler = torch_file.Unpickler(self._file, {FROM_BYTES: restricted.Call(self._storage_in)})
    contents = unpickler.load()
    self.unread += unpickler.unread
    return nested.walk(contents, (torch_file.Tensor,))

  def _storage_in(self, data):
    file, key = _StoredFile(self._path, data), str(len(self._stored))
    if not isinstance(file.contents, torch_file.Storage):
      return restricted.unread('a storage')
    self._stored[key] = file, file.contents.key
    return torch_file.Storage(file.contents.dtype, key, file.contents.size)

  def _bytes(self, key, size):
    file, its = self._stored[key]
    return file._bytes(its, size)


class _StoredFile(LegacyFile):
  """A file of the older format in memory."""

  contents: Any

  def __init__(self, path, data):
    self._data = data
    super().__init__(path)

  def _open(self):
    self._places = {}
    return io.BytesIO(self._data)
