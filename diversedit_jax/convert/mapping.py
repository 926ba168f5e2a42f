"""From other systems' state dicts to our parameter trees and back, by the rules of a family.

Both directions are exact: values are rearranged or change their sign, and are not computed with but
in one layer of the family 'sit_original' (see `layouts.reverse_clock`). The fixed position table is
checked against ours and left out on the way in, and made anew on the way out.
"""

from collections.abc import Mapping
import math
import re
from typing import Any

import ml_dtypes
import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.convert import detection, families, plans
from diversedit_jax.models import embed
from diversedit_jax.weights import array_files

_TABLE_TOLERANCE = 1e-6


def to_ours(
  state_dict: Mapping[str, np.ndarray], family: str, *, grid: tuple[int, int] | None = None
) -> dict[str, Any]:
  """Our parameters {'model': ..., 'heads': ...} from a state dict.

  Args:
    state_dict: arrays by the names of the other system, as `load` returns them; those of MeanFlow's
      Flax parameters are joined by slashes, as net/x_embedder/proj/kernel.
    family: a name of `families.FAMILIES`.
    grid: (rows, columns) of tokens that the position table belongs to; None means a square.

  Returns:
    Nested dicts of arrays in the given dtypes; where layers of unequal dtypes are stacked, in the
    one that holds both.

  Raises:
    UserError: unknown family, or a list of all missing, unknown and misshapen entries.
  """
  rules = families.family(family)
  arrays = _renamed(rules, {name: np.asarray(array) for name, array in state_dict.items()})
  table = arrays.pop(rules.position_table, None)
  plan = plans.of_torch(rules, _shapes(arrays))
  problems = _misfits(arrays, plan.torch_shapes()) + _uneven(plan.counts)
  if table is not None:
    problems += _table_misfit(rules, table, plan.sizes.get('D'), grid)
  _refuse(problems, f'the state dict does not fit family {family!r}')

  def leaf(entry):
    layers = [entry.layout.to_ours(arrays[name], plan.sizes) for name in entry.torch]
    if not entry.stacked:
      return np.array(layers[0], order='C')
    # A plain np.stack of transposed views would keep their order in memory.
    out = np.empty((len(layers), *layers[0].shape), np.result_type(*layers))
    return np.stack(layers, out=out)

  return array_files.unflatten({entry.ours: leaf(entry) for entry in plan.entries})


def to_torch(
  params: Mapping[str, Any],
  family: str,
  *,
  patch_size: int = 2,
  grid: tuple[int, int] = (16, 16),
) -> dict[str, np.ndarray]:
  """The inverse of `to_ours`.

  Args:
    params: our parameters, nested.
    family: a name of `families.FAMILIES`.
    patch_size: p; our parameters tell only p*p*C. All models of the paper have 2.
    grid: (rows, columns) of tokens, for the position table; 16 x 16 at 256 px, 32 x 32 at 512 px.

  Returns:
    Arrays by their names, the position table among them if they store it.

  Raises:
    UserError: unknown family, or a list of all missing, unknown and misshapen entries.
  """
  rules = families.family(family)
  if patch_size < 1 or min(grid) < 1:
    raise types.UserError(f'{patch_size=} and {grid=} must be positive')
  arrays = {path: np.asarray(leaf) for path, leaf in trees.named_leaves(params).items()}
  plan = plans.of_ours(rules, _shapes(arrays), patch_size=patch_size)
  problems = _misfits(arrays, plan.our_shapes())
  _refuse(problems, f'the parameters do not fit family {family!r} with {patch_size=}')

  state_dict = {}
  if rules.position_table:
    table = _table(rules, plan.sizes['D'], grid)
    state_dict[rules.position_table] = table.astype(arrays[plan.entries[0].ours].dtype)
  for entry in plan.entries:
    array = arrays[entry.ours]
    shape = plan.shape(entry.terms)
    for name, layer in zip(entry.torch, array if entry.stacked else [array], strict=True):
      state_dict[name] = np.array(entry.layout.to_torch(layer, shape, plan.sizes), order='C')
  return state_dict


def infer_config(state_dict: Mapping[str, np.ndarray], family: str = 'sit') -> dict[str, Any]:
  """Sizes of a model, read off the shapes of its state dict; None for what they do not tell.

  Returns:
    depth, width, heads (told by qk_norm only), mlp_ratio, patch_size, channels, num_classes (a last
    row for the null label assumed), qk_norm, skips, interval, class_token (its width, 0 for none),
    learn_sigma, tokens (told by the position table only), projectors as (hidden width, output
    width) of each.

  Raises:
    UserError: unknown family.
  """
  rules = families.family(family)
  shapes = _renamed(rules, {name: tuple(array.shape) for name, array in state_dict.items()})
  table = shapes.pop(rules.position_table, None)
  plan = plans.of_torch(rules, shapes)
  size, counts = plan.sizes.get, plan.counts
  present = [entry for entry in plan.entries if any(name in shapes for name in entry.torch)]
  width, head_width, rows, hidden = size('D'), size('E'), size('R'), size('M')
  return {
    'depth': counts.blocks,
    'width': width,
    'heads': width // head_width if width and head_width else None,
    'mlp_ratio': hidden / width if width and hidden else None,
    'patch_size': size('p'),
    'channels': size('C'),
    'num_classes': None if rows is None else rows - 1,
    'qk_norm': 'qk_norm' in counts.parts,
    'skips': counts.skips > 0,
    'interval': any(e.ours.startswith('model/interval_embed/') for e in present),
    'class_token': size('Z', 0),
    'learn_sigma': detection.learns_sigma(rules, shapes),
    'tokens': table[1] - rules.zero_rows if table and len(table) == 3 else None,
    'projectors': tuple((size(f'P{i}'), size(f'Z{i}')) for i in range(counts.heads)),
  }


def _shapes(arrays):
  return {name: array.shape for name, array in arrays.items()}


def _renamed(rules, entries):
  for old, new in rules.continued:
    entries = _continue(entries, old, new)
  return entries


def _continue(entries, old, new):
  """Entries with module list `old` renamed to the modules that follow the last one of `new`."""
  numbers = re.compile(rf'{re.escape(new)}\.([0-9]+)\.')
  last = len({match[1] for name in entries if (match := numbers.match(name))})
  old_numbers = re.compile(rf'^{re.escape(old)}\.([0-9]+)\.')
  rename = lambda match: f'{new}.{int(match[1]) + last}.'
  renamed = {old_numbers.sub(rename, name): entry for name, entry in entries.items()}
  if len(renamed) != len(entries):
    raise types.UserError(f'{old} cannot continue {new}, whose numbers have gaps')
  return renamed


def _misfits(arrays, expected) -> list[str]:
  """One line for each entry that is missing, misshapen, not of floating point, or unknown."""
  problems = []
  for name, shape in expected.items():
    if name not in arrays:
      problems.append(f'{name}: missing, expected shape {_text(shape)}')
    elif arrays[name].shape != shape:
      problems.append(f'{name}: shape {_text(arrays[name].shape)}, expected {_text(shape)}')
    elif not _is_float(arrays[name].dtype):
      problems.append(f'{name}: {arrays[name].dtype}, expected floating point')
  for name, array in arrays.items():
    if name not in expected:
      problems.append(f'{name}: unknown, shape {_text(array.shape)}')
  return problems


def _is_float(dtype):
  try:
    ml_dtypes.finfo(dtype)
  except ValueError:
    return False
  return True


def _text(shape):
  return f'({", ".join(map(str, shape))})'


def _uneven(counts) -> list[str]:
  if counts.skips and counts.blocks % 2:
    return [f'blocks: long skips join two halves, but there are {counts.blocks} blocks']
  return []


def _refuse(problems, what):
  if problems:
    entries = 'one problem' if len(problems) == 1 else f'{len(problems)} problems'
    raise types.UserError(f'{what}, {entries}: {"; ".join(problems)}')


def _table(rules, width, grid) -> np.ndarray:
  """The position table [1, T, D] in PyTorch's form."""
  zeros = np.zeros((rules.zero_rows, width), np.float32)
  return np.concatenate([zeros, embed.position_table(*grid, width)])[None]


def _table_misfit(rules, found, width, grid) -> list[str]:
  name = rules.position_table
  if width is None or width % 4:
    return [f'{name}: cannot be checked for the width {width}']
  if found.ndim != 3:
    return [f'{name}: shape {_text(found.shape)}, expected (1, T, {width})']
  tokens = found.shape[1] - rules.zero_rows
  if grid is None:
    side = math.isqrt(max(tokens, 0))
    if not side or side * side != tokens:
      return [f'{name}: {tokens} tokens are not a square: give the grid as (rows, columns)']
    grid = (side, side)
  expected = _table(rules, width, grid)
  if found.shape != expected.shape:
    return [f'{name}: shape {_text(found.shape)}, expected {_text(expected.shape)}']
  if not _is_float(found.dtype):
    return [f'{name}: {found.dtype}, expected floating point']
  # A table stored in a short dtype is a rounded one: its values lie within [-1, 1].
  tolerance = max(_TABLE_TOLERANCE, float(ml_dtypes.finfo(found.dtype).eps))
  error = float(np.max(np.abs(found.astype(np.float64) - expected)))
  if not error <= tolerance:
    return [f'{name}: not the sine-cosine table of a {grid[0]}x{grid[1]} grid, off by {error:.2g}']
  return []
