"""Tables of named arrays: shapes, dtypes, norms and values that are not finite, in few lines.

Arrays that differ only in the numbers of their names share a line, as 'blocks.{0-27}.norm1.bias'.
If there still are too many, the deepest parts of names are left out: 'decoder.up_blocks (62)'.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math
import re

import numpy as np

from diversedit_jax.weights import misfits

LINES = 60
_NUMBER = re.compile(r'(?<![^./_])[0-9]+(?![^./_])')
_PART = re.compile(r'[./]')
_CHUNK = 2**22  # Values that are widened at a time.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
  """What a table says of some arrays.

  name: theirs, or what their names share. arrays: how many there are. shape: of each one; None if
  they differ. dtype: in words. values: number of all. squares: sum of the squares of all.
  not_finite: how many values are NaN or infinite.
  """

  name: str
  arrays: int
  shape: tuple[int, ...] | None
  dtype: str
  values: int
  squares: float
  not_finite: int

  @property
  def norm(self) -> float:
    """Euclidean norm over all values."""
    return math.sqrt(self.squares)


def measure(arrays: Mapping[str, np.ndarray]) -> list[Facts]:
  """The facts of each array, in the order of their names' parts."""
  return [_of_one(name, arrays[name]) for name in sorted(arrays, key=_in_order)]


def total(facts: Iterable[Facts], name: str = 'total') -> Facts:
  """The facts of several together."""
  facts = list(facts)
  shapes, dtypes = {one.shape for one in facts}, {one.dtype: None for one in facts}
  return Facts(
    name=name,
    arrays=sum(one.arrays for one in facts),
    shape=shapes.pop() if len(shapes) == 1 else None,
    dtype=', '.join(dtypes),
    values=sum(one.values for one in facts),
    squares=sum(one.squares for one in facts),
    not_finite=sum(one.not_finite for one in facts),
  )


def bounded(facts: Iterable[Facts], lines: int = LINES) -> list[Facts]:
  """The same arrays in at most so many lines; what is beyond them is together in the last."""
  facts = list(facts)
  numbered = _together(facts, lambda one: (_NUMBER.sub('{}', one.name), one.shape, one.dtype))
  rows = [total(group, _common_name([one.name for one in group])) for group in numbered]
  deepest = max((len(_PART.findall(one.name)) for one in rows), default=0)
  for depth in range(deepest, 0, -1):
    if len(rows) <= lines:
      break
    short = lambda one, depth=depth: ''.join(re.split(r'([./])', one.name)[: 2 * depth - 1])
    rows = [total(group, short(group[0])) for group in _together(rows, short)]
  if len(rows) <= lines:
    return rows
  rest = rows[lines - 1 :]
  return [*rows[: lines - 1], total(rest, f'... {len(rest):,} more')]


def table(facts: Iterable[Facts]) -> list[str]:
  """Lines of text: name, shape, dtype, values, norm and what is not finite."""
  head = ('name', 'shape', 'dtype', 'values', 'norm', '')
  rows = [head, *map(_cells, facts)]
  widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
  right = (False, False, False, True, True, False)
  align = lambda text, width, is_right: text.rjust(width) if is_right else text.ljust(width)
  return ['  '.join(map(align, row, widths, right)).rstrip() for row in rows]


def finite_in_words(one: Facts) -> str:
  """'all finite', or how many values are not."""
  return f'{one.not_finite:,} NaN or infinite' if one.not_finite else 'all finite'


def _of_one(name, array):
  flat, squares, bad = np.asarray(array).reshape(-1), 0.0, 0
  numbers = 0 if array.dtype.kind in 'SUMm' else flat.size  # Texts and times have no norm.
  for start in range(0, numbers, _CHUNK):
    some = np.abs(flat[start : start + _CHUNK]).astype(np.float64)
    finite = np.isfinite(some)
    bad += int(some.size - np.count_nonzero(finite))
    some = some if finite.all() else some[finite]
    squares += float(some @ some)
  return Facts(
    name=name,
    arrays=1,
    shape=tuple(array.shape),
    dtype=str(array.dtype),
    values=flat.size,
    squares=squares,
    not_finite=bad,
  )


def _in_order(name):
  return [(0, int(part), '') if part.isdecimal() else (1, 0, part) for part in _PART.split(name)]


def _together(facts, key):
  groups = {}
  for one in facts:
    groups.setdefault(key(one), []).append(one)
  return list(groups.values())


def _common_name(names):
  """'a.{0-3}.b' for a.0.b to a.3.b; numbers that all names share stay."""
  columns = zip(*(_NUMBER.findall(name) for name in names), strict=True)
  texts = iter([_numbers(column) for column in columns])
  return _NUMBER.sub(lambda _: next(texts), names[0])


def _numbers(found):
  numbers = sorted(set(map(int, found)))
  if len(numbers) == 1:
    return str(numbers[0])
  if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
    return f'{{{numbers[0]}-{numbers[-1]}}}'
  more = ',...' if len(numbers) > 4 else ''
  return f'{{{",".join(map(str, numbers[:4]))}{more}}}'


def _cells(one):
  shape = 'x'.join(map(str, one.shape)) or 'scalar' if one.shape is not None else 'several'
  many = f' ({one.arrays})' if one.arrays > 1 else ''
  bad = finite_in_words(one) if one.not_finite else ''
  return (
    f'{misfits.printable(one.name)}{many}',
    shape,
    one.dtype,
    f'{one.values:,}',
    f'{one.norm:.4g}',
    bad,
  )
