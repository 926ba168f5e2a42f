"""Reads pickles of nested dicts of NumPy arrays without running anything that they contain.

NumPy writes an array as calls of its own functions with a dtype, a shape and bytes. Here the table
`stand_ins` has a function of ours for each of those names, which checks its arguments and makes the
array from the bytes. Arrays of anything but plain numbers have no value.
"""

import pickle
from typing import Any

import numpy as np

from diversedit_jax.weights import restricted

_KINDS = 'biuf'
_MULTIARRAY = ('numpy.core.multiarray', 'numpy._core.multiarray')  # Before and since NumPy 2.
_NUMERIC = ('numpy.core.numeric', 'numpy._core.numeric')


class _Dtype:
  """The dtype of plain numbers, None for any other; its state brings the byte order."""

  __slots__ = ('value',)

  def __init__(self, code, align=False, copy=False):
    del align, copy  # Unused.
    plain = type(code) is str and code[:1] in _KINDS and code[1:].isdecimal()
    self.value = np.dtype(code) if plain else None

  def __setstate__(self, state):
    if self.value is None:
      return
    _, order, subarray, names, fields, *_ = state
    if order not in ('<', '>', '=', '|') or not subarray is names is fields is None:
      raise pickle.UnpicklingError('a dtype with parts, or with an unknown byte order')
    self.value = self.value.newbyteorder(order)


class Array:
  """An array; `value` is None until its state comes, and for ever if it has no plain numbers."""

  __slots__ = ('value',)

  def __init__(self, value=None):
    self.value = value

  def __setstate__(self, state):
    _, shape, dtype, fortran, data = state
    self.value = _from_bytes(data, dtype, shape, 'F' if fortran else 'C')


def _from_bytes(data, dtype, shape, order='C'):
  if isinstance(dtype, restricted.Unread) or getattr(dtype, 'value', dtype) is None:
    return None
  if isinstance(data, str):  # The bytes of Python 2.
    data = data.encode('latin1')
  if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype):
    raise pickle.UnpicklingError('an array that is not made of plain numbers')
  # `frombuffer` and `reshape` refuse a length that the shape does not have.
  return np.frombuffer(bytes(data), dtype.value).reshape(shape, order=order)


def _from_buffer(data, dtype, shape, order, axes=None):
  array = _from_bytes(data, dtype, shape, 'C' if order == 'K' else order)
  return Array(array.transpose(axes) if order == 'K' and array is not None else array)


def _encode(text, coding):
  if coding != 'latin1':  # How bytes travel in the protocols up to 2.
    return restricted.unread('bytes in another coding than latin1')
  return text.encode('latin1')


def stand_ins() -> dict[tuple[str, str], Any]:
  """The objects that stand for the permitted globals; every file gets its own."""
  reconstruct = restricted.Call(lambda kind, shape, code: Array())
  scalar = restricted.Call(lambda dtype, data=b'': Array(_from_bytes(data, dtype, ())))
  return {
    ('collections', 'OrderedDict'): restricted.Dict,
    ('numpy', 'dtype'): restricted.Call(_Dtype),
    ('numpy', 'ndarray'): restricted.Inert(),  # Only ever an argument of `_reconstruct`.
    ('_codecs', 'encode'): restricted.Call(_encode),
    # The bytes of an empty array, in protocol 2.
    ('__builtin__', 'bytes'): restricted.Call(lambda: b''),
    **{(module, '_reconstruct'): reconstruct for module in _MULTIARRAY},
    **{(module, 'scalar'): scalar for module in _MULTIARRAY},
    **{(module, '_frombuffer'): restricted.Call(_from_buffer) for module in _NUMERIC},
  }


def read(file: Any) -> tuple[Any, list[str]]:
  """What an open file holds, and the names of the objects in it that are not read."""
  unpickler = restricted.Unpickler(file, stand_ins())
  return unpickler.load(), unpickler.unread
