"""Fixed tables of positions that other systems store and we compute."""

from collections.abc import Mapping
import math

import ml_dtypes
import numpy as np

from diversedit_jax import types
from diversedit_jax.convert import plans
from diversedit_jax.convert import rules as rules_lib
from diversedit_jax.models import embed, rotary, sizes
from diversedit_jax.weights import misfits

_TOLERANCE = 1e-6

# Attention heads by depth and width of published networks: of the blocks, the sizes and RAEv2's
# (imagenet-dinov3l-k7.yaml); of the decoder, RAE's (DiTDH-XL_DINOv2-B.yaml), which RAEv2's is too.
_HEADS = {
  'D': {(size.depth, size.width): size.heads for size in sizes.SIZES.values()} | {(28, 1440): 20},
  'W': {(2, 2048): 16},
}
_KEYS = {'D': '--heads', 'W': '--decoder_heads'}
_HEAD_WIDTHS = {'D': 'E', 'W': 'U'}  # Letters that the norms of queries and keys tell.


def of(
  rules: rules_lib.Family,
  plan: plans.Plan,
  grid: tuple[int, int],
  heads: Mapping[str, int | None],
) -> dict[str, np.ndarray]:
  """All tables of a family in PyTorch's form: positions [1, T, D], cosines and sines [T, d].

  Args:
    rules: the family.
    plan: the tensors of the network.
    grid: rows and columns of tokens.
    heads: attention heads by the letter of the width; None takes those that the norms of queries
      and keys tell, else those of a published network of this depth and width.

  Raises:
    UserError: nothing tells the number of heads, or one is given that does not fit.
  """
  found, letters = {}, plan.sizes
  depths = {'D': plan.counts.blocks, 'W': plan.counts.decoder}
  if rules.position_table:
    found[rules.position_table] = _positions(rules, letters['D'], grid)
  for one in rules.rotary:
    width = letters[one.width]
    depth = depths[one.width]
    told = width // norm if (norm := letters.get(_HEAD_WIDTHS[one.width])) else None
    count = heads[one.width] or told or _HEADS[one.width].get((depth, width))
    if not count:
      raise types.UserError(
        f'{depth} blocks of width {width} are of no published size: give the number of attention '
        f'heads, {_KEYS[one.width]}, which the tables of rotary positions depend on'
      )
    if width % count:
      raise types.UserError(f'{_KEYS[one.width]}={count} does not divide the width {width}')
    if told not in (None, count):
      raise types.UserError(
        f'{_KEYS[one.width]}={count} does not fit: norms of queries and keys are of {told} heads'
      )
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
  placeless = _placeless(turns, letters) if turns else rules.zero_rows
  tokens = found.shape[0 if turns else 1] - placeless
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


def _placeless(one, letters):
  return sum(letters.get(letter, 0) for letter in one.placeless)


def _turns(one, letters, width, grid):
  cos = one.name.endswith('cos')
  table = rotary.tables(*grid, width)[0 if cos else 1]
  still = np.full((_placeless(one, letters), width), float(cos), np.float32)
  return np.concatenate([table, still])
