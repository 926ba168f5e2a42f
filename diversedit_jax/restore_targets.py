"""What is wanted of a checkpoint's items, and in which form the checkpoint holds it.

A target is a tree of shapes, dtypes and shardings. An item may have one of several (`OneOf`), may
be missing (`IfThere`), and may be stored as earlier versions did (`weights.forms`).
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax

from diversedit_jax import integrity, trees, types
from diversedit_jax.weights import forms

_MOST = 5  # Arrays that a message names.


@dataclasses.dataclass(frozen=True)
class OneOf:
  """Targets of one item, of which that is read which the checkpoint has."""

  targets: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class IfThere:
  """The target of an item that a checkpoint may lack, and then is left out."""

  target: Any


class Fit(NamedTuple):
  """wanted: the target that a checkpoint fits. stored: the same, in the form that it has there."""

  wanted: Any
  stored: Any


def make(tree: Any, shardings: Any) -> Any:
  """The target for a tree of arrays or shapes: shape, dtype and sharding of each leaf."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
  )


def fit(
  targets: Mapping[str, Any],
  held: Mapping[str, Any],
  sums: Mapping[str, Mapping[str, int]],
  name: str,
) -> dict[str, Fit]:
  """How targets fit a checkpoint, by item, before anything is read.

  Args:
    targets: by item, from `make`, or `OneOf` several, or `IfThere`.
    held: a tree of shapes by item of the checkpoint; None where they cannot be read.
    sums: its checksums, as far as it has any, which name its arrays as well.
    name: of the checkpoint, for messages.

  Raises:
    UserError: it has other arrays, by name.
    Damaged: an item or its metadata lack what was written.
  """
  found, wrong = {}, []
  for item, target in targets.items():
    if isinstance(target, IfThere):
      if item not in held:
        if item in sums:
          raise integrity.Damaged(f'{item} is missing, which was written')
        continue
      target = target.target
    choices = target.targets if isinstance(target, OneOf) else (target,)
    pairs = [Fit(one, its) for one in choices for its in (one, forms.targets_before(one))]
    found[item] = pairs[0]
    if held.get(item) is None:
      continue  # Unreadable metadata is damage, which reading will find.
    shapes = _shapes(held[item])
    if item in sums and shapes.keys() != sums[item].keys():
      raise integrity.Damaged(f'{item} names other arrays than were written')
    found[item] = next((pair for pair in pairs if _shapes(pair.stored) == shapes), pairs[0])
    wrong += _differences(item, shapes, _shapes(found[item].stored))
  if wrong:
    more = f' and {len(wrong) - _MOST} more' if len(wrong) > _MOST else ''
    raise types.UserError(
      f'checkpoint {name} does not fit the config: {"; ".join(wrong[:_MOST])}{more}'
    )
  return found


def _shapes(tree):
  return {name: tuple(leaf.shape) for name, leaf in trees.named_leaves(tree).items()}


def _differences(item, found, wanted):
  return [
    f'{item}/{k}: found {found.get(k, "nothing")}, expected {wanted.get(k, "nothing")}'
    for k in sorted({*found, *wanted})
    if found.get(k) != wanted.get(k)
  ]
