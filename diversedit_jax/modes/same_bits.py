"""Whether steps that are computed again come to the bits that a run recorded."""

import math

import jax
import jax.numpy as jnp

from diversedit_jax import checkpoint, trees
from diversedit_jax.training import optim, progress, writers


class Rows:
  """Rows of metrics.jsonl, compared with those that the replayed steps come to."""

  def __init__(self, path, sums):
    self._sums = progress.Accumulator(sums)
    rows = writers.read_jsonl(path / 'metrics.jsonl')
    self._rows = {row['step']: row for row in rows if 'steps_per_second' in row}
    self._same, self._differ = [], []

  def add(self, step, metrics):
    """Takes the metrics of a step, and compares if a report was due."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    skipped = values.pop('skipped', 0)
    if skipped or not all(map(math.isfinite, values.values())):
      self.leave_out(step)
      return
    self._sums.add(values)
    self._look(step)

  def leave_out(self, step):
    """Counts a step whose update is not applied."""
    self._sums.leave_out()
    self._look(step)

  def _look(self, step):
    if step not in self._rows:
      return
    row = self._rows[step]
    differ = [
      f'{k} {row.get(k)} there, {v} here' for k, v in self._sums.pop().items() if row.get(k) != v
    ]
    if differ:
      self._differ.append(f'the row of step {step} differs: {", ".join(differ)}')
    else:
      self._same.append(str(step))

  def lines(self):
    """What was found, in words."""
    if not self._same:
      return self._differ
    same = f'rows of metrics.jsonl, step {", ".join(self._same)}: the same to the bit'
    return [same, *self._differ]


def compare(trainable, checkpoints, state, step):
  """How a state differs from a checkpoint of its step, in words; [] without one.

  Item after item, since both have to be in memory.
  """
  if step not in checkpoints.steps():
    return []
  differ, count = [], 0
  held = checkpoint.items(checkpoints.name(step))  # An average may be younger than that.
  for item, mine in ((name, tree) for name, tree in state.items().items() if name in held):
    theirs = checkpoints.restore(trainable.targets(item), step)[1][item]
    if jax.tree.structure(theirs) != jax.tree.structure(mine):
      theirs = optim.other_form(theirs)
    found = trees.named_leaves(_other_values(mine, theirs))
    count += len(found)
    differ += [f'{item}/{name} in {int(n)} values' for name, n in found.items() if n]
  if not differ:
    return [f'checkpoint of step {step}: all {count} arrays the same to the bit']
  more = f' and {len(differ) - 5} more' if len(differ) > 5 else ''
  return [f'checkpoint of step {step} differs: {", ".join(differ[:5])}{more}']


@jax.jit
def _other_values(tree, other):
  """How many values of each array have other bits."""
  bits = lambda x: jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}')
  return jax.tree.map(lambda x, y: jnp.sum(bits(x) != bits(y)), tree, other)
