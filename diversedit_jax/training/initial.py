"""Initial parameters from those of another network: what is kept, fitted and new.

Names and shapes decide. Beside equal ones, these fit, and exactly:

  blocks          of a model with long skips and of one without, which are stored in another order
  label table     rows follow their classes, and the null row stays the null row
  head            of 2C channels the first C are the prediction; the others, if new, start at zero
  new skips       in their residual form start as the identity on x (`models.block`, (5))
  new interval    of MeanFlow: its embedding starts at zero, so that an average begins as velocity
  positions       are computed for whatever grid, never stored

Heads of a method, its prediction of an earlier block and the class token of REG are new where there
are none; the first two are left out where they have no place. All else that does not fit is
refused.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from diversedit_jax import options, types
from diversedit_jax.training import average, patterns
from diversedit_jax.weights import misfits

TABLE = 'model/label_embed/embedding'
"""Path of the label table, whose last row is the null label's."""
_HEAD = tuple(
  f'model/{of}/linear/{leaf}' for of in ('final', 'base') for leaf in ('kernel', 'bias')
)
_FIRST_LAYER = 'model/patch_embed/kernel'
_INTERVAL = 'model/interval_embed/'
_BASE = 'model/base/'
_FUSE = 'model/blocks/fuse/'
# Parts that a method or the skips bring, and how they start.
_BROUGHT = {
  'heads/': 'a head of the method, at random',
  'model/class_token_embed/': 'the class token of the method, at random',
  'model/decoder/class_token_embed/': 'the class token of the method, at random',
  'model/final/class_linear/': 'the class token of the method, at zero',
  _INTERVAL: 'the interval, with its last layer at zero',
  _BASE: "the method's prediction of an earlier block, at zero",
  _FUSE: 'long skips, as the identity on x',
}
_ASKED = 'init.new'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options.Section, section='init'):
  """How a new run takes over the weights that `init_from` names; see docs/weights.md."""

  weights: str = options.option(
    'ema', doc='Weights of a checkpoint: the average, or others as in sample.weights.'
  )
  classes: str = options.option(
    'auto',
    choices=('auto', 'number', 'new'),
    doc='Rows of the label table that are kept: auto, of classes with the same name, or number '
    'where neither side has names or both have as many classes; of the same number; or none.',
  )
  new: str = options.option(
    '', doc="Patterns of parameters that start anew, whatever was learned, as 'final/*'."
  )
  leave_out: str = options.option(
    '', doc="Patterns of weights that are not taken, as 'interval_embed/*'."
  )

  def __post_init__(self):
    super().__post_init__()
    average.chosen(self.weights, 'init.weights')


class Classes(NamedTuple):
  """Classes of a network: how many, and their names, () if they are not known."""

  number: int
  names: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """Where each parameter comes from.

  values: arrays by path that take the place of random ones, or of those rows that `rows` has.
  kept: paths of arrays as they were. fitted: path -> what was done, in words.
  new: path -> how it starts, in words. left_out: paths of the other network.
  """

  values: Mapping[str, np.ndarray]
  rows: Mapping[str, np.ndarray]
  kept: Sequence[str]
  fitted: Mapping[str, str]
  new: Mapping[str, str]
  left_out: Sequence[str]


def fit(
  found: Mapping[str, np.ndarray],
  expected: Mapping[str, tuple[int, ...]],
  given: Options,
  *,
  channels: int,
  names: Sequence[str] = (),
  found_names: Sequence[str] = (),
  origin: str = 'the file',
) -> Start:
  """Fits the arrays of another network into one.

  Args:
    found: arrays by path. expected: shapes by path.
    given: what the config says.
    channels: C, channels of the data.
    names, found_names: classes of the two networks, () if they are not known.
    origin: what `found` is, for the message.

  Raises:
    UserError: for what does not fit, with names, shapes and the way on.
  """
  heads = {n for n in found if n.startswith(('heads/', _BASE)) and n not in expected}
  left_out = heads | patterns.matching(given.leave_out, found, 'init.leave_out')
  asked = patterns.matching(given.new, expected, _ASKED)
  taken = _restacked({name: x for name, x in found.items() if name not in left_out}, expected)
  taken = {name: x for name, x in taken.items() if name not in asked}
  new = {name: how for name in expected if name not in taken and (how := _brought(name, expected))}
  new |= dict.fromkeys(asked, _ASKED)
  fitted, rows = {}, {}
  if TABLE in taken and TABLE in expected:
    taken, rows, fitted = _with_table(taken, expected[TABLE], given.classes, names, found_names)
  taken, of_head = _with_head(taken, expected, channels)
  fitted |= of_head
  wanted = {name: shape for name, shape in expected.items() if name not in new}
  wanted |= {name: (len(those), *expected[name][1:]) for name, those in rows.items()}
  _refuse(taken, wanted, origin)
  zeros = {
    name: np.zeros(expected[name], np.float32)
    for name in new
    if name == f'{_INTERVAL}fc2/kernel' and name not in asked
  }
  return Start(
    values={name: np.asarray(x, np.float32) for name, x in taken.items()} | zeros,
    rows=rows,
    kept=sorted(name for name in taken if name not in fitted),
    fitted=fitted,
    new=dict(sorted(new.items())),
    left_out=sorted(left_out),
  )


def same_classes(ours: Classes, theirs: Classes, how: str) -> tuple[Sequence[tuple[int, int]], str]:
  """(our label, their label) of each class that is the same, and why, in words.

  how: see `Options.classes`.
  """
  if how == 'new':
    return [], 'init.classes=new'
  known = bool(ours.names), bool(theirs.names)
  if how == 'auto' and all(known):
    place = {name: label for label, name in enumerate(theirs.names)}
    return [(label, place[n]) for label, n in enumerate(ours.names) if n in place], 'by name'
  if how == 'auto' and any(known) and ours.number != theirs.number:
    return [], 'their names are not known; init.classes=number takes them by number'
  return [(label, label) for label in range(min(ours.number, theirs.number))], 'by number'


def _brought(name, expected):
  """How an array that a method or the skips bring starts, in words; None for others."""
  if name.startswith(_FUSE) and f'{_FUSE}update/kernel' not in expected:
    return None
  return next((how for part, how in _BROUGHT.items() if name.startswith(part)), None)


def _restacked(found, expected):
  """The arrays with blocks in the order of the expected model: one stack, or two halves."""
  one, first, second = (f'model/blocks/{part}/' for part in ('layers', 'first', 'second'))
  has = lambda names, part: any(name.startswith(part) for name in names)
  part = lambda begin: {n.removeprefix(begin): x for n, x in found.items() if n.startswith(begin)}
  rest = {n: x for n, x in found.items() if not n.startswith((one, first, second))}
  if has(found, one) and has(expected, first):
    half = lambda x: len(x) // 2
    halves = {first + n: x[: half(x)] for n, x in part(one).items()}
    return rest | halves | {second + n: x[half(x) :][::-1] for n, x in part(one).items()}
  if has(found, first) and has(expected, one) and part(first).keys() == part(second).keys():
    later = part(second)
    return rest | {one + n: np.concatenate([x, later[n][::-1]]) for n, x in part(first).items()}
  return found


def _with_table(taken, shape, how, names, found_names):
  """The arrays with those rows of the label table that are taken; which; and what was done."""
  table, (rows, width) = taken[TABLE], shape
  if table.ndim != 2 or table.shape[1] != width:
    return taken, {}, {}
  ours, theirs = Classes(rows - 1, names), Classes(len(table) - 1, found_names)
  pairs, why = same_classes(ours, theirs, how)
  if table.shape == shape and list(pairs) == [(k, k) for k in range(rows - 1)]:
    return taken, {}, {}
  to, of = np.array([*pairs, (rows - 1, len(table) - 1)], np.int32).T
  text = (
    f'from {theirs.number} classes to {ours.number}: rows of {len(pairs)} kept ({why}), '
    f'{ours.number - len(pairs)} new; that of the null label kept'
  )
  return taken | {TABLE: table[of]}, {TABLE: to}, {TABLE: text}


def _with_head(taken, expected, channels):
  """The arrays with a head of as many channels as expected, C or 2C; and what was done."""
  same_input = _FIRST_LAYER in taken and taken[_FIRST_LAYER].shape == expected[_FIRST_LAYER]
  changed, fitted = {}, {}
  for name in _HEAD if same_input else ():
    if name not in taken or name not in expected:
      continue
    x, wanted = taken[name], expected[name][-1]
    of_one = (*x.shape[:-1], -1, channels)
    if x.shape[-1] == 2 * wanted:
      changed[name] = x.reshape(*x.shape[:-1], -1, 2, channels)[..., 0, :].reshape(
        *x.shape[:-1], wanted
      )
      fitted[name] = 'the prediction, without the variance'
    elif 2 * x.shape[-1] == wanted:
      pairs = np.stack([x.reshape(of_one), np.zeros_like(x).reshape(of_one)], axis=-2)
      changed[name] = pairs.reshape(*x.shape[:-1], wanted)
      fitted[name] = 'the prediction, and a variance that starts at zero'
  return taken | changed, fitted


def _refuse(taken, wanted, origin):
  """Refuses arrays that do not fit, with the way on (UserError)."""
  faults = misfits.find(taken, wanted, finite=True)
  if not faults:
    return
  unexpected = {name for name in taken if name not in wanted}
  missing = {name for name in wanted if name not in taken}
  unfit = missing | {n for n in wanted if n in taken and taken[n].shape != wanted[n]}
  if taken and not any(name.startswith('model/') for name in taken):
    raise types.UserError(
      f"{origin} has another system's names, as {misfits.first_few(list(taken))}: `python -m "
      'diversedit_jax.convert --input=FILE --output=NEW.safetensors` writes them as ours'
    )
  if any(name.startswith(f'{_FUSE}linear/') for name in missing):
    ways = [
      'long skips that replace x cannot begin without effect: --config.model.skip.residual=True '
      "adds them to x, which does, or --config.init.new='blocks/fuse/*' starts them at random"
    ]
  elif any(name.startswith('model/blocks/') and name.endswith('adaln/bias') for name in unfit):
    ways = ['these are weights of a network of another size: give the config that size']
  else:
    keys = ('leave_out', unexpected, taken, 'leaves out'), ('new', unfit, wanted, 'starts anew')
    ways = [
      f"--config.init.{key}='{patterns.of(names, among)}' {does} what does not fit"
      for key, names, among, does in keys
      if names
    ]
  ways = f'. {"; ".join(ways)}' if ways else ''
  raise types.UserError(f'{origin} does not fit the config: {"; ".join(faults)}{ways}')
