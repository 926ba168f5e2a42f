"""Reads the files of `torch.save` without PyTorch and without running anything that they contain.

Such a file is a zip archive: `NAME/data.pkl`, a pickle that describes the objects; `NAME/data/KEY`,
the bytes of one storage each; `NAME/byteorder`. A pickle names functions to be called. Here every
name is looked up in the short table `_stand_ins`, whose entries only record their arguments; any
other name ends the reading with an error. Files from before PyTorch 1.6: `torch_legacy`.

A TorchScript program (`torch.jit.save`) is such an archive with code beside it. The code is not
looked at: its modules are taken apart into the tensors that they hold, as `state_dict()` would.
"""

from collections.abc import Iterator
import contextlib
import math
import os
import pathlib
import pickle
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

from diversedit_jax import types
from diversedit_jax.weights import restricted

_DTYPES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}
_BYTE_ORDERS = {b'little': '<', b'big': '>'}


class Tensor(restricted.Inert):
  """Where the elements of one tensor lie; `TensorFile.array` reads them."""

  __slots__ = ('dtype', 'key', 'offset', 'shape', 'storage_size', 'strides')

  def __init__(self, storage, offset, shape, strides):
    self.dtype, self.key, self.storage_size = storage.dtype, storage.key, storage.size
    self.offset, self.shape, self.strides = offset, tuple(shape), tuple(strides)
    numbers = (self.storage_size, offset, *self.shape, *self.strides)
    if len(self.shape) != len(self.strides) or not all(type(n) is int and n >= 0 for n in numbers):
      raise pickle.UnpicklingError(f'a tensor of shape {shape}, strides {strides}, offset {offset}')
    last = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
    if math.prod(self.shape) and offset + last >= self.storage_size:
      raise pickle.UnpicklingError(f'a tensor that ends after its storage of {self.storage_size}')


class Record(restricted.Inert):
  """An `argparse.Namespace`, as training scripts save it; its fields are not read."""

  __slots__ = ()

  def __setstate__(self, state):
    del state  # Unused.


class Module(restricted.Inert):
  """A module of a TorchScript program: its tensors and submodules by name, without its code."""

  __slots__ = ('held',)

  def __setstate__(self, state):
    if type(state) is not dict or not all(type(name) is str for name in state):
      raise pickle.UnpicklingError('a module that holds something without a name')
    self.held = state

  def tensors(self, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by dotted name, those of submodules included; seen: ids of the modules so far."""
    if id(self) in seen:  # Sharing could make a small file grow without end.
      raise pickle.UnpicklingError('a module in two places')
    seen.add(id(self))
    for name, value in self.held.items():
      if isinstance(value, Tensor):
        yield prefix + name, value
      elif isinstance(value, Module):
        yield from value.tensors(f'{prefix}{name}.', seen)


class _Dict(dict):
  """An `OrderedDict`; the attributes that PyTorch hangs on it (`_metadata`) are left out."""

  __slots__ = ()

  def __setstate__(self, state):
    del state  # Unused.


class _StorageType(restricted.Inert):
  __slots__ = ('dtype',)

  def __init__(self, dtype):
    self.dtype = np.dtype(dtype)


class _Storage(restricted.Inert):
  __slots__ = ('dtype', 'key', 'size')

  def __init__(self, dtype, key, size):
    self.dtype, self.key, self.size = dtype, key, size


def _rebuild_tensor(storage, offset, shape, strides, requires_grad, hooks, metadata=None):
  del requires_grad, hooks  # Unused.
  if metadata:
    raise pickle.UnpicklingError(f'a tensor with the lazy operations {metadata}')
  if not isinstance(storage, _Storage):
    raise pickle.UnpicklingError('a tensor without storage')
  return Tensor(storage, offset, shape, strides)


def _stand_ins() -> dict[tuple[str, str], Any]:
  """The objects that stand for the permitted globals; every file gets its own."""
  call, parameter = restricted.Call, lambda data, requires_grad, hooks, state=None: data
  return {
    ('collections', 'OrderedDict'): _Dict,
    ('argparse', 'Namespace'): Record,
    ('torch', 'Size'): call(tuple),
    ('torch._utils', '_rebuild_tensor_v2'): call(_rebuild_tensor),
    ('torch._utils', '_rebuild_parameter'): call(parameter),
    ('torch._utils', '_rebuild_parameter_with_state'): call(parameter),
    **{('torch', name): _StorageType(dtype) for name, dtype in _DTYPES.items()},
  }


class Unpickler(restricted.Unpickler):
  """Reads the description of the objects in a file.

  storages: (dtype, number of elements) by key, for every storage that the description mentions.
  program: whether the file is a TorchScript program, whose own classes are modules.
  """

  def __init__(self, file: Any, path: pathlib.Path, *, program: bool = False):
    remedy = 'load it with PyTorch and save its state_dict() alone'
    super().__init__(file, path, _stand_ins(), kind='file of plain tensors', remedy=remedy)
    self.storages: dict[str, tuple[np.dtype, int]] = {}
    self._program = program

  def find_class(self, module, name):
    if self._program and module.partition('.')[0] == '__torch__':
      return Module
    return super().find_class(module, name)

  def persistent_load(self, pid):
    # Older files have one more entry: the part of another storage, None for the whole.
    kind, storage_type, key, _, size, *part = pid
    known = kind == 'storage' and isinstance(storage_type, _StorageType) and part in ([], [None])
    if not known or type(key) is not str or type(size) is not int:
      raise pickle.UnpicklingError(f'a storage of an unknown kind {kind!r}')
    if self.storages.setdefault(key, (storage_type.dtype, size)) != (storage_type.dtype, size):
      raise pickle.UnpicklingError(f'storage {key} is described in two ways')
    return _Storage(storage_type.dtype, key, size)


class TensorFile:
  """One open file of tensors: `contents` is what was saved, with a `Tensor` for each tensor.

  Use it as a context manager. Nothing but the description is read until `array` asks for it, so an
  optimizer state of twice the model's size costs nothing.
  """

  byte_order = '<'

  def __init__(self, path: str | os.PathLike[str]):
    self._path = pathlib.Path(path)
    self._arrays: dict[str, np.ndarray] = {}
    self._file = self._open()
    try:
      with guard(self._path):
        self.contents = self._read()
    except BaseException:
      self._file.close()
      raise

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._file.close()

  def array(self, tensor: Tensor) -> np.ndarray:
    """The elements, a read-only view of the storage: tensors that share storage share memory."""
    if not math.prod(tensor.shape):
      return np.empty(tensor.shape, tensor.dtype)
    with guard(self._path):
      flat = self._storage(tensor)[tensor.offset :]
      strides = [n * tensor.dtype.itemsize for n in tensor.strides]
      return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)

  def _storage(self, tensor):
    if tensor.key not in self._arrays:
      size = tensor.dtype.itemsize
      data = self._bytes(tensor.key, tensor.storage_size * size)
      words = np.frombuffer(data, f'{self.byte_order}u{size}')
      self._arrays[tensor.key] = words.astype(f'=u{size}', copy=False).view(tensor.dtype)
    return self._arrays[tensor.key]


class TorchFile(TensorFile):
  """One open zip archive; the contents of a TorchScript program are its state dict.

  Raises:
    UserError: the file is not a zip archive of `torch.save` or `torch.jit.save`, is damaged, or
      names a global that is not permitted.
  """

  def _open(self):
    return _open_zip(self._path)

  def _read(self):
    self._names = set(self._file.namelist())
    found = [name.removesuffix('data.pkl') for name in self._names if name.endswith('/data.pkl')]
    if len(found) != 1 or found[0].count('/') != 1:
      raise types.UserError(f'{self._path} is a zip archive, but not one of torch.save')
    self._prefix = found[0]
    # Releases before 2.1 wrote no record of the byte order and ran on little-endian machines.
    if f'{self._prefix}byteorder' in self._names:
      order = self._file.read(f'{self._prefix}byteorder')
      if order not in _BYTE_ORDERS:
        raise damaged(self._path, f'unknown byte order {order[:20]!r}')
      self.byte_order = _BYTE_ORDERS[order]
    program = f'{self._prefix}constants.pkl' in self._names
    with self._file.open(f'{self._prefix}data.pkl') as pickled:
      contents = Unpickler(pickled, self._path, program=program).load()
    if program and not isinstance(contents, Module):
      raise damaged(self._path, 'a TorchScript program without a module')
    return dict(contents.tensors('', set())) if program else contents

  def _bytes(self, key, size):
    name = f'{self._prefix}data/{key}'
    if name not in self._names:
      raise damaged(self._path, f'record {name} is missing')
    found = self._file.getinfo(name).file_size
    if found != size:
      raise damaged(self._path, f'record {name} has {found} bytes, expected {size}')
    return self._file.read(name)


@contextlib.contextmanager
def guard(path: pathlib.Path) -> Iterator[None]:
  """Turns whatever a reader and the unpickler raise on damaged bytes into a `UserError`."""
  try:
    yield
  except types.UserError:
    raise
  except Exception as error:
    raise damaged(path, f'{type(error).__name__}: {error}') from error


def damaged(path: pathlib.Path, reason: str) -> types.UserError:
  """The error for a file of the right kind with wrong bytes."""
  return types.UserError(f'{path} is damaged or of an unknown version: {reason}')


def _open_zip(path):
  try:
    with open(path, 'rb') as file:
      head = file.read(4)
    return zipfile.ZipFile(path)
  except OSError as error:
    raise types.UserError(f'cannot read {path}: {error.strerror or error}') from error
  except zipfile.BadZipFile as error:
    if head[:2] == b'PK':
      reason = 'is truncated: its zip directory at the end is missing'
    else:
      reason = 'is not a file of torch.save'
    raise types.UserError(f'{path} {reason}') from error
