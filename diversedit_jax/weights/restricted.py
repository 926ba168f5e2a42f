"""Unpickling that runs nothing: every name stands for something of ours, or ends the reading."""

from collections.abc import Callable, Mapping
import pathlib
import pickle
from typing import Any

from diversedit_jax import types


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


class Unpickler(pickle.Unpickler):
  """Knows only the names of a table.

  Args:
    file: the open file.
    path: its path, for messages.
    stand_ins: what each (module, name) becomes.
    kind: the kind of file that is read, for the message about other names.
    remedy: what a user who trusts the file can do.
  """

  def __init__(
    self,
    file: Any,
    path: pathlib.Path,
    stand_ins: Mapping[tuple[str, str], Any],
    *,
    kind: str,
    remedy: str,
  ):
    super().__init__(file)
    self._path, self._stand_ins, self._kind, self._remedy = path, stand_ins, kind, remedy

  def find_class(self, module, name):
    if (module, name) not in self._stand_ins:
      raise types.UserError(
        f'{self._path} asks for {f"{module}.{name}"!r}, which a {self._kind} does not need; '
        f'nothing in the file was run. If you trust its source, {self._remedy}'
      )
    return self._stand_ins[module, name]
