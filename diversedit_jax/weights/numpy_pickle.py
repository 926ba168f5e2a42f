"""Reads pickles of nested dicts of NumPy arrays without running anything that they contain.

NumPy writes an array as calls of its own functions with a dtype, a shape and bytes. Here the table
`_stand_ins` has a function of ours for each of those names, which checks its arguments and makes
the array from the bytes. Any other name ends the reading with an error, and so does any other
object.
"""

import os
import pathlib
import pickle
from typing import Any

import numpy as np

from diversedit_jax import types
from diversedit_jax.weights import restricted

_KINDS = 'biuf'
_MULTIARRAY = ('numpy.core.multiarray', 'numpy._core.multiarray')  # Before and since NumPy 2.
_NUMERIC = ('numpy.core.numeric', 'numpy._core.numeric')


class _Dtype:
  """The dtype of plain numbers; its state brings the byte order."""

  __slots__ = ('value',)

  def __init__(self, code, align=False, copy=False):
    del align, copy  # Unused.
    if type(code) is not str or code[:1] not in _KINDS or not code[1:].isdecimal():
      raise pickle.UnpicklingError(f'an array with dtype {code!r}; only plain numbers are read')
    self.value = np.dtype(code)

  def __setstate__(self, state):
    _, order, subarray, names, fields, *_ = state
    if order not in ('<', '>', '=', '|') or not subarray is names is fields is None:
      raise pickle.UnpicklingError(f'a dtype with the state {state!r}')
    self.value = self.value.newbyteorder(order)


class _Array:
  """An array; `value` is None until its state comes."""

  __slots__ = ('value',)

  def __init__(self, value=None):
    self.value = value

  def __setstate__(self, state):
    _, shape, dtype, fortran, data = state
    self.value = _from_bytes(data, dtype, shape, 'F' if fortran else 'C')


def _from_bytes(data, dtype, shape, order='C'):
  if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype):
    raise pickle.UnpicklingError('an array that is not made of plain numbers')
  # `frombuffer` and `reshape` refuse a length that the shape does not have.
  return np.frombuffer(bytes(data), dtype.value).reshape(shape, order=order)


def _from_buffer(data, dtype, shape, order, axes=None):
  array = _from_bytes(data, dtype, shape, 'C' if order == 'K' else order)
  return _Array(array.transpose(axes) if order == 'K' else array)


def _encode(text, coding):
  if coding != 'latin1':  # How bytes travel in the protocols up to 2.
    raise pickle.UnpicklingError(f'bytes in the coding {coding!r}')
  return text.encode('latin1')


def _stand_ins() -> dict[tuple[str, str], Any]:
  """The objects that stand for the permitted globals; every file gets its own."""
  reconstruct = restricted.Call(lambda kind, shape, code: _Array())
  scalar = restricted.Call(lambda dtype, data: _Array(_from_bytes(data, dtype, ())))
  return {
    ('collections', 'OrderedDict'): restricted.Call(dict),
    ('numpy', 'dtype'): restricted.Call(_Dtype),
    ('numpy', 'ndarray'): restricted.Inert(),  # Only ever an argument of `_reconstruct`.
    ('_codecs', 'encode'): restricted.Call(_encode),
    # The bytes of an empty array, in protocol 2.
    ('__builtin__', 'bytes'): restricted.Call(lambda: b''),
    **{(module, '_reconstruct'): reconstruct for module in _MULTIARRAY},
    **{(module, 'scalar'): scalar for module in _MULTIARRAY},
    **{(module, '_frombuffer'): restricted.Call(_from_buffer) for module in _NUMERIC},
  }


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Arrays by slash-joined name, read-only; entries that are None are left out.

  Raises:
    UserError: the file is not a pickle, is damaged, holds anything but dicts, arrays, numbers and
      None, or names a global that is not permitted.
  """
  path = pathlib.Path(path)
  found: dict[str, np.ndarray] = {}
  remedy = 'load it with Python and save its arrays as .npz'
  try:
    with open(path, 'rb') as file:
      unpickler = restricted.Unpickler(
        file, path, _stand_ins(), kind='pickle of plain arrays', remedy=remedy
      )
      _collect(unpickler.load(), '', found, set())
  except types.UserError:
    raise
  except Exception as error:
    reason = f'{type(error).__name__}: {error}'
    raise types.UserError(f'{path} is not a pickle of plain arrays: {reason}') from error
  return found


def _collect(node, name, found, seen):
  if isinstance(node, dict):
    if id(node) in seen:  # It would be walked over and over, or without an end.
      raise pickle.UnpicklingError(f'{name or "the whole"} stands in two places')
    seen.add(id(node))
    for key, inner in node.items():
      if type(key) is not str:
        raise pickle.UnpicklingError(f'{name or "the whole"} has the key {key!r}, not a name')
      _collect(inner, f'{name}/{key}' if name else key, found, seen)
  elif isinstance(node, _Array) and node.value is not None and name:
    if name in found:
      raise pickle.UnpicklingError(f'{name} is there twice')
    found[name] = node.value
  elif type(node) in (bool, int, float) and name:
    found[name] = np.asarray(node)
  elif node is not None or not name:
    raise pickle.UnpicklingError(f'{name or "the whole"} is neither an array nor a dict of arrays')
