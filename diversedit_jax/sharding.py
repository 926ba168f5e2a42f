"""One mesh ('data', 'fsdp', 'tensor') and the rules that lay parameters and batches over it.

Parameters carry logical axis names ('embed', 'mlp', 'heads', 'layers', 'classes') in their
`out_sharding` metadata. A rule set maps logical names to mesh axes; a name without a rule is
replicated. Batches are split over 'data' and 'fsdp' together, so FSDP is data parallelism whose
state is split as well.
"""

from collections.abc import Mapping
from typing import Any

from absl import logging
from flax import nnx
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

from diversedit_jax import trees, types

MESH_AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')

RULES: dict[str, dict[str, str]] = {
  'dp': {},
  'fsdp': {'embed': 'fsdp'},
  'fsdp_tp': {'embed': 'fsdp', 'mlp': 'tensor', 'heads': 'tensor'},
}
"""Logical axis -> mesh axis, by the name of the rule set."""


def annotated(initializer: nnx.Initializer, *axes: str | None) -> nnx.Initializer:
  """An initialiser whose parameter carries logical axis names; needs no mesh in scope."""
  return nnx.with_partitioning(initializer, axes, eager_sharding=False)


def make_mesh(
  data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Any = None
) -> jax.sharding.Mesh:
  """Mesh over all devices; one of the three sizes may be -1, which takes what is left.

  Raises:
    UserError: if the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [data, fsdp, tensor]
  known = int(np.prod([s for s in sizes if s != -1]))
  if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  if int(np.prod(sizes)) != len(devices) or min(sizes) < 1:
    raise types.UserError(
      f'mesh {data=}, {fsdp=}, {tensor=} does not cover {len(devices)} devices: the sizes must '
      'multiply to that number (one of them may be -1)'
    )
  return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def rule_set(name: str) -> dict[str, str]:
  """The rules of that name.

  Raises:
    UserError: naming the nearest rule set.
  """
  if name not in RULES:
    raise types.UserError(f'unknown sharding rules {name!r}{trees.did_you_mean(name, RULES)}')
  return RULES[name]


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Leading axis over 'data' and 'fsdp'."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_divisor(mesh: jax.sharding.Mesh) -> int:
  """The number by which a batch must be divisible."""
  return int(np.prod([mesh.shape[a] for a in BATCH_AXES]))


def shardings_of(tree: Any, mesh: jax.sharding.Mesh, rules: Mapping[str, str]) -> Any:
  """Shardings of a tree of parameters, moments or averages, by their logical axis names.

  An axis whose size its mesh axis does not divide is replicated, and the log says so.

  Returns:
    The same tree with a `NamedSharding` in place of every `nnx.Variable` and every bare array.
  """

  def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    if not isinstance(leaf, nnx.Variable):
      return replicated(mesh)
    names = leaf.get_metadata().get('out_sharding') or ()
    spec = []
    for name, size in zip(names, leaf.shape, strict=True):
      axis = rules.get(name)
      if axis is not None and size % mesh.shape[axis]:
        logging.warning(
          '%s: axis %s of size %d is not divisible by mesh axis %s=%d and stays whole',
          trees.path_name(path), name, size, axis, mesh.shape[axis],
        )  # fmt: skip
        axis = None
      spec.append(axis)
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(of, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def constrain_batch(x: jax.Array) -> jax.Array:
  """Keeps the batch axis split inside a jitted function; does nothing where no mesh is set.

  Without it the compiler may prefer to split an activation like the FSDP parameter that made it.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not set(BATCH_AXES) <= set(mesh.axis_names):
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def put_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> types.Batch:
  """Global arrays from the rows that this process loaded."""
  sharding = batch_sharding(mesh)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
