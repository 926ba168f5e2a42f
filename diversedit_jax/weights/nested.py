"""Finds the arrays in what a pickle holds: dicts in dicts, networks, and much that is neither."""

from collections.abc import Iterator
import dataclasses
import itertools
import pickle
from typing import Any

import numpy as np

from diversedit_jax.weights import numpy_pickle, restricted

_MOST = 10**5
"""Entries that are walked over: sharing its dicts, a small file could have them without end."""
_LONGEST = 2**12
"""Characters of a name; what has a longer one is no weight, and is left out."""


@dataclasses.dataclass(frozen=True)
class Found:
  """What a tree holds.

  arrays: the leaves by name.
  parts: beginnings of names, one for each dict or network that holds arrays; those alone that
    hold floating-point numbers with axes, as weights are, if there are any.
  skipped: what has a name and is no array, in words by name.
  odd: those of them that users may miss: what stands among arrays, and lists of arrays.
  """

  arrays: dict[str, Any]
  parts: tuple[str, ...]
  skipped: dict[str, str]
  odd: dict[str, str]


def walk(
  root: Any, leaves: tuple[type, ...] = (), *, separator: str = '.', program: bool = False
) -> Found:
  """The arrays of a tree, by the joined names on the way to them.

  Args:
    root: what a pickle held.
    leaves: classes of leaves, beside arrays of NumPy; numbers become arrays.
    separator: what joins names.
    program: whether all objects are modules, as in TorchScript.

  Raises:
    UnpicklingError: a name twice, or more entries than a checkpoint has.
  """
  leaves = (np.ndarray, *leaves)
  arrays, parts, weighty, skipped, odd = {}, {}, {}, {}, {}
  entries = _visit(root, '', '', separator, program, False, frozenset())
  for name, part, node in itertools.islice(entries, _MOST):
    if name in arrays:
      raise pickle.UnpicklingError(f'{name} is there twice')
    if name and isinstance(node, leaves):
      node = np.asarray(node) if isinstance(node, int | float) else node
      arrays[name], parts[part] = node, None
      if node.shape and node.dtype.kind not in 'biu':
        weighty[part] = None
    elif node is not None:
      skipped[name] = getattr(node, 'origin', type(node).__name__)
      if isinstance(node, list | tuple) and node and isinstance(node[0], leaves):
        odd[name] = f'a list of {len(node)} arrays without names'
      elif isinstance(node, restricted.Unread) and part and part in parts:
        odd[name] = node.origin
  if next(entries, None):
    raise pickle.UnpicklingError(f'more than {_MOST} entries')
  return Found(arrays, tuple(weighty or parts), skipped, odd)


def _visit(node, name, part, separator, program, inside, above) -> Iterator[tuple[str, str, Any]]:
  """(name, beginning of the names of its part, node) of all that has no nodes below it.

  inside: whether the node is held by a module: the modules of a network are one part. above: ids of
  the nodes above it.
  """
  if isinstance(node, numpy_pickle.Array) and node.value is not None:
    node = node.value
  module = isinstance(node, restricted.Unread) and (program or '_parameters' in node.state)
  if module:
    children = node.state if program else _held(node.state)
  elif type(node) in (list, tuple) and not name:
    children = dict(enumerate(node))
  else:
    children = _items(node)
  if not children or id(node) in above:
    yield name, part, node
    return
  prefix = f'{name}{separator}' if name else ''
  part = part if module and inside else prefix
  for key, child in children.items():
    if type(key) in (str, int) and len(below := f'{prefix}{key}') <= _LONGEST:
      yield from _visit(child, below, part, separator, program, module, above | {id(node)})


def _items(node) -> dict[Any, Any]:
  if isinstance(node, restricted.Unread):
    return node.items
  return node if isinstance(node, dict) else {}


def _held(state) -> dict[Any, Any]:
  """What `state_dict()` of a module would hold, and its modules, from its attributes."""
  unsaved = state.get('_non_persistent_buffers_set')
  unsaved = unsaved if isinstance(unsaved, set | frozenset) else ()
  buffers = {k: x for k, x in _items(state.get('_buffers')).items() if k not in unsaved}
  return _items(state['_parameters']) | buffers | _items(state.get('_modules'))
