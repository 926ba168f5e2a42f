"""Reads the files of `torch.save` without PyTorch and without running anything that they contain.

Such a file is a zip archive: `NAME/data.pkl`, a pickle that describes the objects; `NAME/data/KEY`,
the bytes of one storage each; `NAME/byteorder`. A pickle names functions to be called. Here those
that make tensors are looked up in the short table `_stand_ins`, whose entries only record their
arguments, and nothing comes of any other (`restricted`). Files from before PyTorch 1.6:
`torch_legacy`.

A TorchScript program (`torch.jit.save`) is such an archive with code beside it, and a network that
was saved whole is a pickle of its modules. Neither's code is looked at: modules are taken apart
into the tensors that they hold, as `state_dict()` would.
"""

from collections.abc import Iterator, Mapping
import contextlib
import io
import math
import os
import pathlib
import pickle
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

from diversedit_jax import types
from diversedit_jax.weights import nested, numpy_pickle, restricted

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
  'ComplexFloatStorage': np.complex64,
  'ComplexDoubleStorage': np.complex128,
  'UntypedStorage': np.uint8,
  # Those of quantised tensors, which are not read.
  'QInt8Storage': np.int8,
  'QUInt8Storage': np.uint8,
  'QInt32Storage': np.int32,
}
# Those that have no storage of their own name.
_UNTYPED = {
  **{name: np.dtype(name) for name in ('uint16', 'uint32', 'uint64')},
  'float8_e4m3fn': ml_dtypes.float8_e4m3fn,
  'float8_e4m3fnuz': ml_dtypes.float8_e4m3fnuz,
  'float8_e5m2': ml_dtypes.float8_e5m2,
  'float8_e5m2fnuz': ml_dtypes.float8_e5m2fnuz,
}
_BYTE_ORDERS = {b'little': '<', b'big': '>'}
_MOST = 2**30
"""Elements of a tensor that repeats its storage: a small file could have them without end."""


class Tensor(restricted.Inert):
  """Where the elements of one tensor lie; `TensorFile.array` reads them."""

  __slots__ = ('dtype', 'key', 'offset', 'shape', 'storage_size', 'strides')

  def __init__(self, storage, offset, shape, strides):
    self.dtype, self.key, self.storage_size = storage.dtype, storage.key, storage.size
    self.offset, self.shape, self.strides = offset, tuple(shape), tuple(strides)
    numbers = (self.storage_size, offset, *self.shape, *self.strides)
    if len(self.shape) != len(self.strides) or not all(type(n) is int and n >= 0 for n in numbers):
      raise pickle.UnpicklingError('a tensor whose shape, strides and offset do not go together')
    last = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
    if math.prod(self.shape) and offset + last >= self.storage_size:
      raise pickle.UnpicklingError(f'a tensor that ends after its storage of {self.storage_size}')
    if math.prod(self.shape) > max(self.storage_size, _MOST):
      raise pickle.UnpicklingError(f'a tensor of shape {self.shape} that repeats its storage')


class _StorageType(restricted.Inert):
  __slots__ = ('dtype',)

  def __init__(self, dtype):
    self.dtype = np.dtype(dtype)


class Storage(restricted.Inert):
  """The elements that tensors look into, by the key that they have in the file."""

  __slots__ = ('dtype', 'key', 'size')

  def __init__(self, dtype, key, size):
    self.dtype, self.key, self.size = dtype, key, size


def _rebuild_tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, lazy=None):
  del requires_grad, hooks  # Unused.
  if lazy or not isinstance(storage, Storage):
    kind = 'operations that are still to be done' if lazy else 'a storage that is not read'
    return restricted.unread(f'a tensor with {kind}')
  return Tensor(storage, offset, shape, strides)


def _rebuild_untyped(storage, offset, shape, strides, requires_grad, hooks, dtype, lazy=None):
  """A tensor whose dtype is told beside its storage of bytes."""
  if isinstance(storage, Storage) and isinstance(dtype, _StorageType):
    storage = Storage(dtype.dtype, storage.key, storage.size // dtype.dtype.itemsize)
  else:
    storage = dtype
  return _rebuild_tensor(storage, offset, shape, strides, requires_grad, hooks, lazy)


def _rebuild_from_type(function, kind, args, state):
  """A tensor of a derived class, or one with attributes."""
  del kind, state  # Unused.
  return function(*args)


def _stand_ins() -> dict[tuple[str, str], Any]:
  """The objects that stand for the permitted globals; every file gets its own."""
  call, first = restricted.Call, restricted.Call(lambda data, *rest: data)
  names = call(lambda found=(): frozenset(x for x in found if type(x) is str))
  return numpy_pickle.stand_ins() | {
    ('collections', 'defaultdict'): call(lambda *factory: restricted.Dict()),
    ('builtins', 'set'): names,
    ('__builtin__', 'set'): names,
    ('torch', 'Size'): call(tuple),
    ('torch._utils', '_rebuild_tensor'): call(_rebuild_tensor),
    ('torch._utils', '_rebuild_tensor_v2'): call(_rebuild_tensor),
    ('torch._utils', '_rebuild_tensor_v3'): call(_rebuild_untyped),
    ('torch._tensor', '_rebuild_from_type_v2'): call(_rebuild_from_type),
    ('torch._utils', '_rebuild_parameter'): first,
    ('torch._utils', '_rebuild_parameter_with_state'): first,
    ('torch._utils', '_rebuild_device_tensor_from_numpy'): first,
    **{('torch', name): _StorageType(dtype) for name, dtype in (_DTYPES | _UNTYPED).items()},
    ('torch.storage', 'UntypedStorage'): _StorageType(np.uint8),
  }


class Unpickler(restricted.Unpickler):
  """Reads the description of the objects in a file.

  more: stand-ins beside those of every file.
  storages: (dtype, number of elements) by key, for every storage that the description mentions.
  """

  def __init__(self, file: Any, more: Mapping[tuple[str, str], Any] | None = None):
    super().__init__(file, _stand_ins() | dict(more or {}))
    self.storages: dict[str, tuple[np.dtype, int]] = {}

  def persistent_load(self, pid):
    if pid[0] == 'module':  # A class with its source, in older files.
      return pid[1]
    # Older files have one more entry: the part of another storage, None for the whole.
    kind, storage_type, key, _, size, *part = pid
    if kind != 'storage' or part not in ([], [None]) or (type(key), type(size)) != (str, int):
      raise pickle.UnpicklingError('a storage of an unknown kind')
    if not isinstance(storage_type, _StorageType):
      return restricted.unread('a storage')
    if self.storages.setdefault(key, (storage_type.dtype, size)) != (storage_type.dtype, size):
      raise pickle.UnpicklingError(f'storage {key} is described in two ways')
    return Storage(storage_type.dtype, key, size)


class TensorFile:
  """One open file of tensors: `found` has a `Tensor` or an array of NumPy by name.

  Use it as a context manager. Nothing but the description is read until `array` asks for it, so an
  optimizer state of twice the model's size costs nothing.

  unread: the names of objects in the file that are not read.
  """

  byte_order = '<'

  def __init__(self, path: str | os.PathLike[str]):
    self._path = pathlib.Path(path)
    self._arrays: dict[tuple[str, np.dtype], np.ndarray] = {}
    self.unread: list[str] = []
    self._file = self._open()
    try:
      with guard(self._path):
        self.found = self._read()
    except BaseException:
      self._file.close()
      raise

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._file.close()

  def array(self, name: str) -> np.ndarray:
    """The elements, a read-only view of the storage: tensors that share storage share memory."""
    tensor = self.found.arrays[name]
    if isinstance(tensor, np.ndarray):
      return tensor
    with guard(self._path):
      if not math.prod(tensor.shape):
        return np.empty(tensor.shape, tensor.dtype)
      flat = self._storage(tensor)[tensor.offset :]
      strides = [n * tensor.dtype.itemsize for n in tensor.strides]
      view = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
      return view.view(tensor.dtype)

  def _storage(self, tensor):
    place = tensor.key, tensor.dtype
    if place not in self._arrays:
      size = tensor.dtype.itemsize
      data = self._bytes(tensor.key, tensor.storage_size * size)
      # Words of the elements' size, since NumPy strides no dtype of its extensions.
      pair = tensor.dtype.kind == 'c'
      words = np.frombuffer(data, f'{self.byte_order}u{size // (1 + pair)}')
      words = words.astype(words.dtype.newbyteorder('='), copy=False)
      self._arrays[place] = words.view(tensor.dtype) if pair else words
    return self._arrays[place]


class TorchFile(TensorFile):
  """One open zip archive.

  Raises:
    UserError: the file is not a zip archive of `torch.save` or `torch.jit.save`, or is damaged.
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
      unpickler = Unpickler(io.BufferedReader(pickled))
      contents = unpickler.load()
    self.unread += [] if program else unpickler.unread
    return nested.walk(contents, (Tensor,), program=program)

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
