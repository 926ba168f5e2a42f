"""Finds the differences between named arrays and those that a network expects, for errors."""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from diversedit_jax.weights import likely

_SHOWN = 5


def find(
  arrays: Mapping[str, np.ndarray],
  expected: Mapping[str, tuple[int | str, ...]],
  *,
  unused: Callable[[str], bool] = lambda name: False,
  finite: bool = False,
) -> list[str]:
  """The missing names, the unexpected names and the arrays of a wrong shape, dtype or value.

  Args:
    arrays: what was found, by name.
    expected: shapes by name; a letter stands for a size that is not known.
    unused: function that tells whether a name is ignored.
    finite: whether to look for NaNs and infinities too.

  Returns:
    One text for each of the three, with the first five names; empty if nothing is wrong. Where no
    name fits, the second says what the arrays look like, see `likely`.
  """
  missing = [name for name in expected if name not in arrays]
  unknown = [name for name in arrays if name not in expected and not unused(name)]
  wrong = [
    fault
    for name, shape in expected.items()
    if name in arrays and (fault := _fault(name, arrays[name], shape, finite))
  ]
  faults = [f'missing: {first_few(missing)}'] if missing else []
  kind = likely.kind(arrays) if len(missing) == len(expected) else ''
  faults += [f'not expected: {first_few(unknown)}{kind}'] if unknown else []
  return faults + ([first_few(wrong)] if wrong else [])


def first_few(parts: Sequence[str]) -> str:
  """The first five in one line, with the number of the others."""
  more = [f'and {len(parts) - _SHOWN} more'] if len(parts) > _SHOWN else []
  return printable(', '.join([*parts[:_SHOWN], *more]))


def printable(text: str) -> str:
  """Text of a file, in which what would steer a terminal or break the line is escaped."""
  return ''.join(x if x.isprintable() else ascii(x)[1:-1] for x in text)


def shape_text(shape: Sequence[int | str]) -> str:
  """A shape in words, as '(3, D)'."""
  return f'({", ".join(map(str, shape))})'


def _fault(name, array, shape, finite):
  if array.shape != shape:
    return f'{name} has shape {shape_text(array.shape)} instead of {shape_text(shape)}'
  if not jnp.issubdtype(array.dtype, jnp.floating):
    return f'{name} has dtype {array.dtype} instead of floating-point numbers'
  if finite and not np.isfinite(array.astype(np.float32)).all():
    return f'{name} holds values that are not finite in float32'
  return ''
