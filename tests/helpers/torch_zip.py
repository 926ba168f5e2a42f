"""Writes files as `torch.save` does, without PyTorch: for the tests of reading them."""

from collections import OrderedDict
import io
import pickle
import zipfile

import numpy as np

STORAGES = {
  'float64': 'DoubleStorage',
  'float32': 'FloatStorage',
  'float16': 'HalfStorage',
  'bfloat16': 'BFloat16Storage',
  'int64': 'LongStorage',
  'int32': 'IntStorage',
  'int16': 'ShortStorage',
  'int8': 'CharStorage',
  'uint8': 'ByteStorage',
  'bool': 'BoolStorage',
}


class Global:
  """A name in the pickle, of something that need not exist here."""

  def __init__(self, module, name):
    self.module, self.name = module, name

  def __call__(self):
    raise AssertionError('only its name is written')


class Call:
  """The result of calling a global when the file is read."""

  def __init__(self, module, name, *args):
    self._reduced = (Global(module, name), args)

  def __reduce__(self):
    return self._reduced


class Instance:
  """An object of a class that need not exist here, made without its constructor."""

  def __init__(self, module, name, state):
    self.type, self.state = Global(module, name), state


class Items(Instance):
  """An object of a class that extends `dict`."""


class Storage:
  """A flat array that tensors look into."""

  def __init__(self, array):
    self.array = np.ascontiguousarray(array).reshape(-1)


def tensor(array, *, storage=None, offset=0, strides=None, metadata=None):
  """A tensor of an array, or of a view (strides in elements) of a given storage."""
  if storage is None:
    storage = Storage(array)
    strides = [s // array.itemsize for s in np.empty(array.shape, array.dtype).strides]
  extra = () if metadata is None else (metadata,)
  return Call(
    'torch._utils',
    '_rebuild_tensor_v2',
    storage,
    offset,
    tuple(array.shape),
    tuple(strides),
    False,
    OrderedDict(),
    *extra,
  )


def tensors(arrays):
  """Every array of a dict as a tensor of its own."""
  return {name: tensor(array) for name, array in arrays.items()}


def write(path, contents, *, order='little', **changes):
  """Writes a file; `changes` replaces records by name or, with None, leaves them out."""
  buffer = io.BytesIO()
  pickler = _Pickler(buffer, protocol=2)
  pickler.dump(contents)
  records = {'data.pkl': buffer.getvalue(), 'byteorder': order.encode(), 'version': b'3\n'}
  for key, storage in enumerate(pickler.storages):
    size = storage.array.dtype.itemsize
    words = storage.array.view(f'u{size}').astype(f'{"<" if order == "little" else ">"}u{size}')
    records[f'data/{key}'] = words.tobytes()
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in (records | changes).items():
      if data is not None:
        archive.writestr(f'archive/{name}', data)


def write_program(path, arrays):
  """Writes a TorchScript program that holds arrays by dotted name, beside code that is no code."""
  tree = {'training': False}
  for name, array in arrays.items():
    *parts, last = name.split('.')
    node = tree
    for part in parts:
      node = node.setdefault(part, {'training': False, '_is_full_backward_hook': None})
    node[last] = tensor(array)
  code = {'constants.pkl': b'\x80\x02).', 'code/__torch__.py': b'raise SystemExit'}
  write(path, module('__torch__.net.___torch_mangle_7', 'Net', tree), **code)


def module(path, name, held):
  """An instance of a program's class; dicts in what it holds become modules too."""
  held = {k: module(path, 'Part', v) if isinstance(v, dict) else v for k, v in held.items()}
  return Instance(path, name, held)


def legacy(contents, *, keys=None, counts=None):
  """The bytes of a file as `torch.save` wrote it before PyTorch 1.6.

  keys: wrong keys of the storages; counts: wrong numbers of their elements.
  """
  buffer = io.BytesIO()
  sizes = {'short': 2, 'int': 4, 'long': 4}
  facts = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': sizes}
  for head in (0x1950A86A20F9469CFC6C, 1001, facts):
    pickle.dump(head, buffer, protocol=2)
  pickler = _Pickler(buffer, protocol=2)
  pickler.extra = (None,)
  pickler.dump(contents)
  arrays = [storage.array for storage in pickler.storages]
  _Pickler(buffer, protocol=2).dump(keys or [str(i) for i in range(len(arrays))])
  for array, count in zip(arrays, counts or [a.size for a in arrays], strict=True):
    buffer.write(count.to_bytes(8, 'little') + array.tobytes())
  return buffer.getvalue()


def pickled(arrays, **beside):
  """The bytes of a pickle of tensors as Python's `pickle` writes it, and of what is beside them."""

  def stored(array):
    strides = [s // array.itemsize for s in np.empty(array.shape, array.dtype).strides]
    storage = Call('torch.storage', '_load_from_bytes', legacy(Storage(array)))
    return tensor(array, storage=storage, strides=strides)

  buffer = io.BytesIO()
  _Pickler(buffer, protocol=4).dump({name: stored(x) for name, x in arrays.items()} | beside)
  return buffer.getvalue()


class _Pickler(pickle._Pickler):
  """The pickler written in Python, which can be taught to write names that it cannot import."""

  dispatch = dict(pickle._Pickler.dispatch)

  extra = ()  # What an identity ends with.

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.storages = []

  def save_stub(self, stub):
    self.write(pickle.GLOBAL + f'{stub.module}\n{stub.name}\n'.encode())
    self.memoize(stub)

  dispatch[Global] = save_stub

  def save_instance(self, instance):
    self.save_stub(instance.type)
    self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
    self.memoize(instance)
    self.save(instance.state)
    self.write(pickle.BUILD)

  dispatch[Instance] = save_instance

  def save_items(self, instance):
    self.save_stub(instance.type)
    self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
    self.memoize(instance)
    self._batch_setitems(instance.state.items())

  dispatch[Items] = save_items

  def persistent_id(self, obj):
    if not isinstance(obj, Storage):
      return None
    if obj not in self.storages:
      self.storages.append(obj)
    kind = Global('torch', STORAGES[obj.array.dtype.name])
    return ('storage', kind, str(self.storages.index(obj)), 'cuda:0', obj.array.size, *self.extra)
