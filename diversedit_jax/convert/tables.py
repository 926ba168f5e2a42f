"""Fixed tables of positions that other systems store and we compute."""

from collections.abc import Mapping
import math

import ml_dtypes
import numpy as np

from diversedit_jax import types
from diversedit_jax.convert import rules as rules_lib
from diversedit_jax.models import embed, rotary, sizes
from diversedit_jax.weights import misfits

_TOLERANCE = 1e-6

# Heads of published widths.
_HEADS = {size.width: size.heads for size in sizes.SIZES.values()} | {1440: 20, 2048: 16}
_KEYS = {'D': '--heads', 'W': '--decoder_heads'}


def of(
  rules: rules_lib.Family,
  letters: Mapping[str, int],
  grid: tuple[int, int],
  heads: Mapping[str, int | None],
) -> dict[str, np.ndarray]:
  """All tables of a family in PyTorch's form: positions [1, T, D], cosines and sines [T, d].

  Args:
    rules: the family.
    letters: values of the letters of its shapes.
    grid: rows and columns of tokens.
    heads: attention heads by the letter of the width; None takes those of a published width.

  Raises:
    UserError: the width is no published one and the number of heads is not given.
  """
  found = {}
  if rules.position_table:
    found[rules.position_table] = _positions(rules, letters['D'], grid)
  for one in rules.rotary:
    width = letters[one.width]
    count = heads[one.width] or _HEADS.get(width)
    if not count:
      raise types.UserError(
        f'width {width} is of no published size: give the number of attention heads, '
        f'{_KEYS[one.width]}, which the tables of rotary positions depend on'
      )
    if width % count:
      raise types.UserError(f'{_KEYS[one.width]}={count} does not divide the width {width}')
    found[one.name] = _turns(one, letters, width // count, grid)
  return found


def misfit(
  rules: rules_lib.Family,
  name: str,
  found: np.ndarray,
  letters: Mapping[str, int],
  grid: tuple[int, int] | None,
) -> list[str]:
  """What is wrong with a stored table, in words; nothing where it is as computed."""
  width = letters.get('D')
  if width is None or width % 4:
    return [f'{name} cannot be checked for width {width}']
  turns = next((one for one in rules.rotary if one.name == name), None)
  if found.ndim != (2 if turns else 3) or (turns and found.shape[1] % 4):
    wanted = '(T, d), d divisible by 4' if turns else f'(1, T, {width})'
    return [f'{name} has shape {misfits.shape_text(found.shape)} instead of {wanted}']
  front = _front(turns, letters) if turns else rules.zero_rows
  tokens = found.shape[0 if turns else 1] - front
  if grid is None:
    side = math.isqrt(max(tokens, 0))
    if not side or side * side != tokens:
      return [f'{name} has {tokens} tokens, not a square number: give the grid (rows, columns)']
    grid = (side, side)
  expected = (
    _turns(turns, letters, found.shape[1], grid) if turns else _positions(rules, width, grid)
  )
  if faults := misfits.find({name: found}, {name: expected.shape}):
    return faults
  # Values lie within [-1, 1]; a table in a short dtype is rounded, and so are angles of float32.
  angles = max(grid) * np.finfo(np.float32).eps if turns else 0
  tolerance = max(_TOLERANCE, angles, float(ml_dtypes.finfo(found.dtype).eps))
  error = float(np.max(np.abs(found.astype(np.float64) - expected)))
  if not error <= tolerance:
    kind = 'rotary' if turns else 'sine-cosine'
    return [f'{name} is not the {kind} table of a {grid[0]}x{grid[1]} grid (off by {error:.2g})']
  return []


def _positions(rules, width, grid):
  zeros = np.zeros((rules.zero_rows, width), np.float32)
  return np.concatenate([zeros, embed.position_table(*grid, width)])[None]


def _front(one, letters):
  return sum(letters.get(letter, 0) for letter in one.front)


def _turns(one, letters, width, grid):
  cos = one.name.endswith('cos')
  table = rotary.tables(*grid, width)[0 if cos else 1]
  still = np.full((_front(one, letters), width), float(cos), np.float32)
  return np.concatenate([table, still])
