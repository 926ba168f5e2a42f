"""Maps other systems' state dicts to our parameter trees and back, by the rules of a family.

Both directions are exact: values are moved or change their sign. The exception is one layer of the
families 'sit_original', 'selfflow' and 'lightning', where they are rounded (see
`layouts.reverse_clock`). Fixed tables of positions are checked against ours and left out on the way
in, and computed on the way out.
"""

from collections.abc import Mapping
import math
import re
from typing import Any

import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.convert import ddt, detection, diffusers_dit, families, plans, tables
from diversedit_jax.weights import array_files, misfits

_LABELS, _IMAGENET = 'model/label_embed/embedding', 1000


def to_ours(
  state_dict: Mapping[str, np.ndarray],
  family: str,
  *,
  grid: tuple[int, int] | None = None,
  num_classes: int | None = None,
  decoder_depth: int | None = None,
) -> dict[str, Any]:
  """Our parameters {'model': ..., 'heads': ...} from a state dict.

  Args:
    state_dict: arrays by the other system's names, as `load` returns them; the names of MeanFlow's
      Flax parameters are joined by slashes, as net/x_embedder/proj/kernel. Those of DiT may be
      diffusers'.
    family: a name of `families.FAMILIES`.
    grid: (rows, columns) of tokens that the position table belongs to; None means a square.
    num_classes: K. A table of K labels, of a model that was trained without dropping any, gets a
      row of zeros for the null label. None takes the last row for the null label.
    decoder_depth: blocks of the decoder, for 'ddt' where they are as wide as the others.

  Returns:
    Nested dicts of arrays in the given dtypes; layers with unequal dtypes are stacked in the dtype
    that holds both.

  Raises:
    UserError: the family is unknown, or the state dict does not fit it; the message lists missing,
      unknown and misshapen entries.
  """
  rules = families.family(family)
  arrays = {name: np.asarray(array) for name, array in state_dict.items()}
  arrays = _with_null_row(
    rules, _renamed(rules, _own_names(family, arrays, decoder_depth)), num_classes
  )
  stored = {name: arrays.pop(name) for name in rules.tables if name in arrays}
  plan = plans.of_torch(rules, _shapes(arrays))
  problems = misfits.find(arrays, plan.torch_shapes()) + _uneven(plan.counts)
  problems += [f'missing: {one.name}' for one in rules.rotary if one.name not in stored]
  for name, table in stored.items():
    problems += tables.misfit(rules, name, table, plan.sizes, grid)
  by = ", by DiT's own names," if family == 'dit' and diffusers_dit.recognises(state_dict) else ''
  _refuse(problems, f'the state dict{by} does not fit family {family!r}')

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
  heads: int | None = None,
  decoder_heads: int | None = None,
) -> dict[str, np.ndarray]:
  """The inverse of `to_ours`.

  Args:
    params: our parameters, nested.
    family: a name of `families.FAMILIES`.
    patch_size: p, since our parameters tell only p*p*C; all models of the paper have 2.
    grid: (rows, columns) of tokens, for fixed tables; 16 x 16 at 256 px, 32 x 32 at 512 px.
    heads: attention heads, for tables of rotary positions; None takes those of a published size.
    decoder_heads: those of the decoder of 'ddt' and 'raev2'.

  Returns:
    Arrays by the other system's names, with the fixed tables that the family stores.

  Raises:
    UserError: the family is unknown, the parameters do not fit it, as for `to_ours`, or the number
      of heads is not told.
  """
  how = {'patch_size': patch_size, 'grid': grid, 'heads': heads, 'decoder_heads': decoder_heads}
  return their_names(to_rules(params, family, **how), family)


def to_rules(
  params: Mapping[str, Any],
  family: str,
  *,
  patch_size: int = 2,
  grid: tuple[int, int] = (16, 16),
  heads: int | None = None,
  decoder_heads: int | None = None,
  fixed: bool = True,
) -> dict[str, np.ndarray]:
  """`to_torch` by the names of the family's rules, which `their_names` turns into theirs.

  fixed: whether with the fixed tables, which need the number of heads.
  """
  rules = families.family(family)
  if patch_size < 1 or min(grid) < 1:
    raise types.UserError(f'{patch_size=} and {grid=} must be positive')
  arrays = {path: np.asarray(leaf) for path, leaf in trees.named_leaves(params).items()}
  plan = plans.of_ours(rules, _shapes(arrays), patch_size=patch_size)
  problems = misfits.find(arrays, plan.our_shapes())
  _refuse(problems, f'the parameters do not fit family {family!r} with {patch_size=}')

  state_dict, dtype = {}, arrays[plan.entries[0].ours].dtype
  given = {'D': heads, 'W': decoder_heads}
  for name, table in tables.of(rules, plan, grid, given).items() if fixed else ():
    state_dict[name] = table.astype(dtype)
  for entry in plan.entries:
    array = arrays[entry.ours]
    shape = plan.shape(entry.terms)
    for name, layer in zip(entry.torch, array if entry.stacked else [array], strict=True):
      state_dict[name] = np.array(entry.layout.to_torch(layer, shape, plan.sizes), order='C')
  return state_dict


def their_names(arrays: Mapping[str, np.ndarray], family: str) -> dict[str, np.ndarray]:
  """Arrays from `to_rules` by the other system's names, where these are not those of the rules."""
  if families.family(family).has_decoder:
    return ddt.from_own(arrays, parted=family == 'raev2')
  return dict(arrays)


def infer_config(
  state_dict: Mapping[str, np.ndarray], family: str = 'sit', *, decoder_depth: int | None = None
) -> dict[str, Any]:
  """Sizes of a model, read off the shapes of its state dict; None where they do not tell.

  Args:
    state_dict: arrays by the other system's names, or by those of the rules (`to_rules`).
    family: a name of `families.FAMILIES`.
    decoder_depth: as for `to_ours`; names of the rules tell it.

  Returns:
    depth, width, heads (known only with qk_norm or tables of rotary positions), mlp_ratio,
    patch_size, channels, num_classes (the last row is taken for the null label), qk_norm, norm,
    mlp, rope, shift, time_features, position_table, conditioning, context (tokens of time and of
    label, None without), decoder (depth, width and heads of a wide head, None without), skips,
    interval, class_token (its width, 0 for none), base (whether an earlier block predicts too),
    learn_sigma, tokens (known only with a position table), and projectors as pairs (hidden width,
    output width).

  Raises:
    UserError: the family is unknown, lists of blocks that follow one another have gaps, the copies
      of embeddings in diffusers' DiT differ, or nothing tells which blocks are the decoder's.
  """
  rules = families.family(family)
  state_dict = _own_names(family, state_dict, decoder_depth)
  shapes = _renamed(rules, {name: tuple(array.shape) for name, array in state_dict.items()})
  stored = {name: shapes.pop(name) for name in rules.tables if name in shapes}
  table = stored.get(rules.position_table)
  plan = plans.of_torch(rules, shapes)
  size, counts = plan.sizes.get, plan.counts
  ours = {entry.ours for entry in plan.entries}
  present = [entry for entry in plan.entries if any(name in shapes for name in entry.torch)]
  width, head_width, rows, hidden = size('D'), size('E'), size('R'), size('M')
  turned = {one.width: stored[one.name][-1] for one in rules.rotary if one.name in stored}
  head_width, decoder_head = turned.get('D', head_width), turned.get('W')
  swiglu = 'swiglu' in counts.parts
  return {
    'depth': counts.blocks,
    'width': width,
    'heads': width // head_width if width and head_width else None,
    'mlp_ratio': _mlp_ratio(width, hidden, swiglu) if width and hidden else None,
    'patch_size': size('p'),
    'channels': size('C'),
    'num_classes': None if rows is None else rows - 1,
    'qk_norm': 'qk_norm' in counts.parts,
    'norm': 'rms' if 'rms' in counts.parts else 'layer',
    'mlp': 'swiglu' if swiglu else 'gelu',
    'rope': bool(rules.rotary),
    'shift': size('A') != 4 * width if width else True,
    'time_features': 'gaussian' if 'model/time_embed/frequencies' in ours else 'sinusoids',
    'position_table': not rules.has_decoder or bool(rules.position_table and (table or not stored)),
    'conditioning': 'tokens' if size('I') else 'adaln',
    'context': (size('I'), size('J')) if size('I') else None,
    'decoder': _decoder(counts.decoder, size('W'), decoder_head) if counts.decoder else None,
    'skips': counts.skips > 0,
    'interval': any(e.ours.startswith('model/interval_embed/') for e in present),
    'class_token': size('Z', 0),
    'base': any(e.ours.startswith('model/base/') for e in present),
    'learn_sigma': detection.learns_sigma(rules, shapes),
    'tokens': table[1] - rules.zero_rows if table and len(table) == 3 else None,
    'projectors': tuple((size(f'P{i}'), size(f'Z{i}')) for i in range(counts.heads)),
  }


def _decoder(depth, width, head_width):
  return depth, width, width // head_width if width and head_width else None


def _mlp_ratio(width, hidden, swiglu):
  """The roundest ratio that gives the hidden width, see `Architecture.hidden`."""
  if not swiglu:
    return hidden / width
  around = 1.5 * hidden / width
  for parts in (1, 2, 4, 8, 16):
    ratio = round(parts * around) / parts
    if int(2 / 3 * int(width * ratio)) == hidden:
      return ratio
  return math.ceil(1.5 * hidden) / width


def _own_names(family, arrays, decoder_depth=None):
  if families.family(family).has_decoder:
    return ddt.to_own(arrays, decoder_depth)
  return diffusers_dit.to_dit(arrays) if family == 'dit' else arrays


def _with_null_row(rules, arrays, num_classes):
  """Arrays whose table of labels has a row for the null label, if its rows are K labels alone."""
  name = next(rule.torch for rule in rules.rules if rule.ours == _LABELS)
  if name not in arrays or arrays[name].ndim != 2:
    return arrays
  rows, width = arrays[name].shape
  if num_classes is None and rows == _IMAGENET:
    raise types.UserError(
      f'{name} has {rows} rows: of {rows} classes, for a model that was trained without dropping '
      f'labels (class_dropout_prob=0), or of {rows - 1} and the null label? Say which: '
      f'--num_classes={rows} or --num_classes={rows - 1}'
    )
  if num_classes not in (None, rows, rows - 1):
    raise types.UserError(
      f'{name} has {rows} rows, which are {rows - 1} classes and the null label, or {rows} classes '
      f'of a model that was trained without dropping labels; given --num_classes={num_classes}'
    )
  if num_classes != rows:
    return arrays
  return arrays | {name: np.concatenate([arrays[name], np.zeros((1, width), arrays[name].dtype)])}


def _shapes(arrays):
  return {name: array.shape for name, array in arrays.items()}


def _renamed(rules, entries):
  for old, new in rules.continued:
    entries = _continue(entries, old, new)
  return entries


def _continue(entries, old, new):
  """Renames module list `old` so that it continues after the last module of `new`."""
  numbers = re.compile(rf'{re.escape(new)}\.([0-9]+)\.')
  last = len({match[1] for name in entries if (match := numbers.match(name))})
  old_numbers = re.compile(rf'^{re.escape(old)}\.([0-9]+)\.')
  rename = lambda match: f'{new}.{int(match[1]) + last}.'
  renamed = {old_numbers.sub(rename, name): entry for name, entry in entries.items()}
  if len(renamed) != len(entries):
    raise types.UserError(f'{old} cannot follow {new}, because the numbers of {new} have gaps')
  return renamed


def _uneven(counts) -> list[str]:
  if counts.skips and counts.blocks % 2:
    return [f'long skips need an even number of blocks, found {counts.blocks}']
  return []


def _refuse(problems, what):
  if problems:
    raise types.UserError(f'{what}: {"; ".join(problems)}')
