"""Unpickling that runs nothing: every name stands for something of ours.

A pickle names functions and classes to be called. The few that make arrays stand in a table, each
for a function of ours that checks its arguments. Every other name becomes an `Unread`, which takes
whatever the pickle does with it and does nothing: a checkpoint may hold paths, dtypes or the
configuration of its training beside the weights, and they are no reason to refuse it.
"""

from collections.abc import Callable, Mapping
import pickle
from typing import Any


class Inert:
  """Refuses the state that a pickle may try to set on it."""

  __slots__ = ()

  def __setstate__(self, state):
    raise pickle.UnpicklingError(f'state for a {type(self).__name__}')


class Call(Inert):
  """A function of ours in an object without attributes, so that a pickle cannot alter it."""

  __slots__ = ('_function',)

  def __init__(self, function: Callable[..., Any]):
    self._function = function

  def __call__(self, *args):
    return self._function(*args)


class Dict(dict):
  """An `OrderedDict`; attributes that PyTorch hangs on it (`_metadata`) are left out."""

  __slots__ = ()

  def __setstate__(self, state):
    del state  # Unused.


class Unread:
  """What an object of an unknown class becomes; a subclass for each class that a file names.

  origin: name of the class or function in the file.
  items: what was set by key, as in a class that extends `dict`. state: its attributes.
  """

  __slots__ = ('items', 'state')
  origin = ''

  def __new__(cls, *args, **kwargs):
    made = super().__new__(cls)
    made.items, made.state = {}, {}
    return made

  def __init__(self, *args, **kwargs):
    del args, kwargs  # Unused.

  def __call__(self, *args, **kwargs):
    return type(self)()

  def __setitem__(self, key, value):
    self.items[key] = value

  def __setstate__(self, state):
    self.state = state if type(state) is dict else {}

  def append(self, value):
    """Takes a value that a pickle adds, and drops it."""

  extend = add = append


def unread(origin: str) -> Unread:
  """Something that is not read, by what it is."""
  return type('Unread', (Unread,), {'__slots__': (), 'origin': origin})()


class Unpickler(pickle._Unpickler):
  """Knows the names of a table; strings of Python 2 are read as Latin-1.

  It is the unpickler written in Python: that in C clears room for as many objects as a number in
  the file says, so that twenty bytes can take all memory.

  stand_ins: what each (module, name) becomes.
  unread: the names that are not in the table, in the order in which they were met.
  """

  dispatch = dict(pickle._Unpickler.dispatch)

  def __init__(self, file: Any, stand_ins: Mapping[tuple[str, str], Any]):
    super().__init__(file, encoding='latin1')
    self._stand_ins = dict(stand_ins)
    self.unread: list[str] = []

  def find_class(self, module, name):
    if (module, name) not in self._stand_ins:
      origin = ' '.join(f'{module}.{name}'.split())[:100]
      self._stand_ins[module, name] = type(unread(origin))
      self.unread.append(origin)
    return self._stand_ins[module, name]

  def persistent_load(self, pid):
    return unread('an object that the file keeps elsewhere')

  def load_bytearray8(self):
    # What is inherited clears a bytearray of the length that the file says before it reads.
    size = int.from_bytes(self.read(8), 'little')
    self.append(bytearray(self.read(size)))

  dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
