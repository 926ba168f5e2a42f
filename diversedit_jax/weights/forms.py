"""Arrays that are stored in another form than versions before 0.4 stored them in.

The kernel of the attention's q, k and v was a matrix [D, 3D] and is [D, 3, D], their bias [3D] and
[3, D]. Values and their order in memory are the same, so weights, moments and averages of before
are only seen as other shapes, and a digest of weights is over the shapes of before.
"""

from collections.abc import Mapping
import math
import re
from typing import Any

import jax
import numpy as np

from diversedit_jax import trees

Shape = tuple[int, ...]

# Behind the names of an optimizer's state, if any. Blocks are stacked along a leading axis.
_QKV = re.compile(r'(?:.*/)?model/blocks/\w+/attn/qkv/(kernel|bias)')
_AXES = {'kernel': 4, 'bias': 3}


def before(name: str, shape: Shape) -> Shape:
  """The shape that versions before 0.4 gave to an array, by its path and its shape today."""
  if len(shape) != _axes_now(name):
    return shape
  return (*shape[:-2], shape[-2] * shape[-1])


def current(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Arrays by path in today's form, whichever they have."""
  return {name: x.reshape(_now(name, x.shape)) for name, x in arrays.items()}


def targets_before(target: Any) -> Any:
  """A restore target in the form that versions before 0.4 stored."""

  def of(path, leaf):
    shape = before(trees.path_name(path), leaf.shape)
    if shape == leaf.shape:
      return leaf
    # The axis that was one is whole on every device, as pieces of it mean nothing here.
    spec = jax.sharding.PartitionSpec(*tuple(leaf.sharding.spec)[: len(shape) - 1])
    whole = jax.sharding.NamedSharding(leaf.sharding.mesh, spec)
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=whole)

  return jax.tree_util.tree_map_with_path(of, target)


def restored(tree: Any, target: Any) -> Any:
  """Restored arrays in the shapes of their target."""

  def of(x, wanted):
    if x.shape == wanted.shape:
      return x
    of_shard = lambda x: math.prod(x.sharding.shard_shape(x.shape))
    donated = (0,) if of_shard(x) == of_shard(wanted) else ()  # A part of it takes no whole one.
    shaped = lambda x: x.reshape(wanted.shape)
    return jax.jit(shaped, out_shardings=wanted.sharding, donate_argnums=donated)(x)

  return jax.tree.map(of, tree, target)


def _now(name, shape):
  """The inverse of `before`; a shape that is neither stays, for others to refuse."""
  if len(shape) + 1 != _axes_now(name) or shape[-1] % 3:
    return shape
  return (*shape[:-1], 3, shape[-1] // 3)


def _axes_now(name):
  """Number of axes of an array that has another form today; None for all others."""
  found = _QKV.fullmatch(name)
  return found and _AXES[found[1]]
