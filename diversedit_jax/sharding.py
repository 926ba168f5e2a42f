"""One mesh ('data', 'fsdp', 'tensor') and the rules that lay parameters and batches over it.

Parameters carry logical axis names ('embed', 'mlp', 'heads', 'layers', 'classes') in their
`out_sharding` metadata. The rules map logical names to mesh axes; a name without a rule is
replicated. Batches are split over 'data' and 'fsdp' together, so FSDP is data parallelism whose
state is split as well.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from flax import nnx
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

from diversedit_jax import slices as slices_lib
from diversedit_jax import trees, types

MESH_AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')

RULES = {'embed': 'fsdp', 'mlp': 'tensor', 'heads': 'tensor'}
"""Logical axis -> mesh axis. An axis of size 1 splits nothing, so the mesh alone decides."""


def annotated(initializer: nnx.Initializer, *axes: str | None) -> nnx.Initializer:
  """An initialiser whose parameter carries logical axis names; needs no mesh in scope."""
  return nnx.with_partitioning(initializer, axes, eager_sharding=False)


def mesh_sizes(data: int, fsdp: int, tensor: int, devices: int) -> tuple[int, int, int]:
  """Devices per mesh axis; one of the three may be -1, which takes what is left.

  Raises:
    UserError: if the sizes do not multiply to the number of devices.
  """
  sizes = [data, fsdp, tensor]
  known = math.prod(s for s in sizes if s != -1)
  if sizes.count(-1) == 1 and known > 0 and devices % known == 0:
    sizes[sizes.index(-1)] = devices // known
  if math.prod(sizes) != devices or min(sizes) < 1:
    raise types.UserError(
      f'mesh {data=}, {fsdp=}, {tensor=} does not cover {devices} devices: the sizes must '
      'multiply to that number (one of them may be -1)'
    )
  return tuple(sizes)


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  *,
  devices: Sequence[jax.Device] | None = None,
  slices: int = -1,
) -> jax.sharding.Mesh:
  """Mesh over some devices, or all of all processes.

  See `mesh_sizes` for sizes, `slices.groups` for slices, and both for errors.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(data, fsdp, tensor, len(devices))
  arranged = slices_lib.arrange(devices, sizes, slices)
  return jax.sharding.Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def planned_mesh(
  data: int, fsdp: int, tensor: int, devices: int, *, slices: int = -1
) -> jax.sharding.AbstractMesh:
  """The mesh of as many devices as one plans to have; holds shapes only. See `make_mesh`."""
  sizes = mesh_sizes(data, fsdp, tensor, devices)
  slices_lib.check(sizes, max(slices, 1))
  return jax.sharding.AbstractMesh(sizes, MESH_AXES)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Leading axis over 'data' and 'fsdp'."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_divisor(mesh: jax.sharding.Mesh) -> int:
  """The number by which a batch must be divisible."""
  return int(np.prod([mesh.shape[a] for a in BATCH_AXES]))


def round_up(size: int, mesh: jax.sharding.Mesh) -> int:
  """Rows of the smallest batch of at least `size` rows that the mesh can share."""
  divisor = batch_divisor(mesh)
  return -(-size // divisor) * divisor


def pad_rows(x_N: np.ndarray, size: int) -> np.ndarray:
  """The rows [N, ...], N >= 1, and behind them as many copies of the last as make `size` rows."""
  if len(x_N) == size:
    return x_N
  return x_N[np.minimum(np.arange(size), len(x_N) - 1)]


def shardings_of(tree: Any, mesh: jax.sharding.Mesh, rules: Mapping[str, str] = RULES) -> Any:
  """Shardings of a tree of parameters by their logical axis names.

  An axis whose size its mesh axis does not divide stays whole; see `check_split`.

  Returns:
    The same tree with a `NamedSharding` in place of every `nnx.Variable` and every bare array.
  """

  def of(leaf: Any) -> NamedSharding:
    if not isinstance(leaf, nnx.Variable):
      return replicated(mesh)
    names = leaf.get_metadata().get('out_sharding') or ()
    axes = [rules.get(name) for name in names]
    spec = [
      axis if axis is not None and size % mesh.shape[axis] == 0 else None
      for axis, size in zip(axes, leaf.shape, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(of, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def split_over_data(shapes: Any, shardings: Any, mesh: jax.sharding.Mesh) -> Any:
  """The shardings, each with the largest axis of a shard that 'data' divides split over it as well.

  For moments and average, which no device needs whole (ZeRO-1, arXiv 1910.02054). What has no such
  axis, as a scalar, stays as it is.
  """

  def of(shape, sharding):
    shard = sharding.shard_shape(shape.shape)
    axes = [*sharding.spec, *(None,) * (len(shard) - len(sharding.spec))]
    fits = [(size, i) for i, size in enumerate(shard) if size % mesh.shape['data'] == 0]
    if fits:
      _, i = max(fits)
      axes[i] = 'data' if axes[i] is None else (axes[i], 'data')
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map(of, shapes, shardings) if mesh.shape['data'] > 1 else shardings


def shard_bytes(shapes: Any, shardings: Any) -> int:
  """Bytes on each device of a tree of shapes under its shardings."""
  sizes = jax.tree.map(
    lambda x, s: int(np.prod(s.shard_shape(x.shape))) * x.dtype.itemsize, shapes, shardings
  )
  return sum(jax.tree.leaves(sizes))


def check_tensor(mesh: jax.sharding.Mesh, heads: int, hidden: int, of: str = '') -> None:
  """Refuses a 'tensor' axis that does not divide the heads and the hidden layer of the MLP.

  of: whose they are, for the message.

  Raises:
    UserError: naming a size that does.
  """
  tensor = mesh.shape['tensor']
  shares = lambda size: heads % size == hidden % size == tensor % size == 0
  if shares(tensor):
    return
  best = max(size for size in range(1, tensor + 1) if shares(size))
  raise types.UserError(
    f'mesh.tensor={tensor} does not divide the {heads} heads and the {hidden} hidden features of '
    f'the MLP{of}, which are what it shares; use mesh.tensor={best} and give the rest to mesh.data'
  )


def check_split(shapes: Any, shardings: Any, mesh: jax.sharding.Mesh, width: int) -> None:
  """Refuses an 'fsdp' axis that leaves more than twice the bytes that it promises on a device.

  Raises:
    UserError: naming a size of 'fsdp' that divides the width.
  """
  whole, split = trees.num_bytes(shapes), shard_bytes(shapes, shardings)
  if split * mesh.shape['fsdp'] > 2 * whole:
    raise types.UserError(
      f'mesh.fsdp={mesh.shape["fsdp"]} leaves {split / whole:.0%} of the parameters on every '
      f'device, because it does not divide the width {width}; use '
      f'mesh.fsdp={math.gcd(mesh.shape["fsdp"], width)} and give the rest to mesh.data'
    )


def constrain_batch(x: jax.Array) -> jax.Array:
  """Keeps the batch axis split inside a jitted function; does nothing where no mesh is set.

  Without it the compiler may prefer to split an activation like the FSDP parameter that made it.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not set(BATCH_AXES) <= set(mesh.axis_names):
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def share_out(x: jax.Array) -> jax.Array:
  """Splits the leading axis over all devices inside a jitted function, whatever its size.

  Does nothing where no mesh is set.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def axis_size(axis: str, *, of: int) -> int:
  """Parts into which the mesh that is set splits an axis of size `of`; 1 where none is set."""
  mesh = jax.sharding.get_abstract_mesh()
  size = 1 if mesh.empty else dict(mesh.shape).get(axis, 1)
  return size if of % size == 0 else 1


def process_rows(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
  """Rows of a global batch that the devices of this process hold, sorted, int64."""
  slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in slices]))


def put_batch(
  batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh, batch_size: int
) -> types.Batch:
  """Global arrays from the rows `process_rows(mesh, batch_size)`, whatever the order of devices."""
  sharding, rows = batch_sharding(mesh), process_rows(mesh, batch_size)

  def put(local):
    def shard(index):
      places = np.searchsorted(rows, np.arange(batch_size)[index[0]])
      first, last = places[0], places[-1]
      # Neighbours are a view; an index would copy them.
      return local[first : last + 1] if last - first == len(places) - 1 else local[places]

    return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, shard)

  return {name: put(local) for name, local in batch.items()}
