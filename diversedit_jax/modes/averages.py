"""The weights of a checkpoint that `sample.weights` names: an item of it, or a sum of several.

An average by a power function that was not tracked is made of those that were, in this checkpoint
and in those before it that were kept, see `post_hoc`. They are read one after the other.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import operator
import pathlib
from typing import Any

import jax
import numpy as np

from diversedit_jax import checkpoint, types
from diversedit_jax.training import average, post_hoc

_MOST = 0.1  # Error of a profile from which on an average is another one.
_SETTLED = 1e-3  # Share of the network that a tracked average began with, to be a power function's.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """Weights as a sum of items of checkpoints.

  kind: what cards call them: 'params', 'ema' or 'ema@AVERAGE'.
  parts: step, item and coefficient of each.
  facts: for cards, how an average was made that was not tracked.
  """

  kind: str
  parts: Sequence[tuple[int, str, float]]
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def stored(self) -> bool:
    """Whether they are one item as it is."""
    return not self.facts


def find(
  folder: pathlib.Path, weights: str, main: float | None, key: str = 'sample.weights'
) -> Choice:
  """What a text names among the weights of a checkpoint.

  Args:
    folder: the checkpoint, checkpoints/STEP. weights: the text.
    main: decay of its item 'ema', None if it is not known.
    key: of which the text is the value, for messages.

  Raises:
    UserError: the checkpoint has no such average, and it cannot be made.
  """
  wanted, step = average.chosen(weights, key), int(folder.name)
  if not isinstance(wanted, str):
    if wanted == (None if main is None else average.Decay(main)):
      wanted = 'ema'
    elif (item := average.item(str(wanted))) in checkpoint.items(folder):
      wanted = item
  if isinstance(wanted, str):
    return Choice(kind=wanted, parts=[(step, wanted, 1.0)])
  held = ', '.join(name for name in checkpoint.items(folder) if name != 'opt')
  lacks = f'{key}={weights}: {folder} holds {held or "nothing"}'
  if isinstance(wanted, average.Decay):
    raise types.UserError(
      f'{lacks}; an average of this decay is kept from the step on at which '
      f'--config.train.averages={wanted} is given'
    )
  return _made(folder, wanted, lacks)


def _made(folder, wanted, lacks):
  """An average by a power function from those of the checkpoints up to this one."""
  found = [
    (step, name, one)
    for step in checkpoint.steps(folder.parent)
    if step <= int(folder.name)
    for name, one in _power_functions(folder.parent / str(step))
  ]
  if not found:
    raise types.UserError(
      f'{lacks}; this average is kept where --config.train.averages={wanted} is given, and can be '
      'made afterwards where it is std=0.05,std=0.1'
    )
  target = post_hoc.Profile(int(folder.name), wanted.gamma)
  fitted = post_hoc.fit([post_hoc.Profile(step, one.gamma) for step, _, one in found], target)
  steps = sorted({step for step, _, _ in found})
  if fitted.error > _MOST:
    raise types.UserError(
      f'{lacks}; what {len(steps)} checkpoints of steps {steps[0]} to {steps[-1]} have makes this '
      f'average with an error of {fitted.error:.0%} of its profile, expected {_MOST:.0%} at most; '
      'checkpoint.keep_every keeps more of them, and train.averages=std=0.05,std=0.1 has widths '
      'on both sides of most'
    )
  return Choice(
    kind=average.item(str(wanted)),
    parts=[(s, name, float(c)) for (s, name, _), c in zip(found, fitted.coefficients, strict=True)],
    facts={
      'of': sorted({name for _, name, _ in found}),
      'at_steps': steps,
      'profile_error': fitted.error,
    },
  )


def _power_functions(folder):
  """Those of a checkpoint of which nothing is left of a step at which they began."""
  names = [name for name in checkpoint.items(folder) if name.startswith(average.item('std='))]
  began = average.beginnings(checkpoint.read_meta(folder)) if names else {}
  for name in names:
    one = average.chosen(name, str(folder))
    if one.share_of(began.get(str(one), 0), int(folder.name), False) < _SETTLED:
      yield name, one


def total(choice: Choice, read: Callable[[int, Sequence[str]], Mapping[str, Any]]) -> Any:
  """The weights. read: (step, items) -> a tree of arrays by item; one step is held at a time."""
  found, parts = None, itertools.groupby(choice.parts, key=lambda part: part[0])
  for step, at_step in parts:
    factors = {item: coefficient for _, item, coefficient in at_step}
    for item, tree in read(step, list(factors)).items():
      if choice.stored:
        return tree
      scaled = jax.tree.map(lambda x, c=factors[item]: x * np.float32(c), tree)
      found = scaled if found is None else jax.tree.map(operator.add, found, scaled)
  return found
