"""Arrays between host, devices and processes, for the functions that sum over samples."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from diversedit_jax import sharding


def own_rows(
  x: np.ndarray | jax.Array, mask_N: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Rows [M, ...] of a batch that this process answers for, and their places [M] in the batch.

  All rows of a numpy array are its own. Of a jax.Array it takes those that its devices hold, and of
  copies the first one only, so that over all processes each row is taken once.

  Args:
    x: a batch [N, ...]; only its first axis may be split over devices.
    mask_N: which rows count, the same on every process; None means all.

  Raises:
    ValueError: if another axis is split.
  """
  mask_N = np.ones(len(x), bool) if mask_N is None else np.asarray(mask_N, bool)
  if not isinstance(x, jax.Array):
    places_M = np.flatnonzero(mask_N)
    return np.asarray(x)[places_M], places_M
  rows, places = [np.zeros((0, *x.shape[1:]), x.dtype)], [np.zeros(0, np.int64)]
  for shard in sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0):
    if shard.replica_id != 0:
      continue
    if shard.data.shape[1:] != x.shape[1:]:
      raise ValueError(f'only the first axis of a batch may be split; got {x.sharding}')
    part = np.arange(len(x))[shard.index[0]]
    rows.append(np.asarray(shard.data)[mask_N[part]])
    places.append(part[mask_N[part]])
  return np.concatenate(rows), np.concatenate(places)


def put_rows(x_ND: np.ndarray, mesh: jax.sharding.Mesh | None) -> jax.Array:
  """Rows of a host array split over the devices, with rows of zeros appended until they divide.

  In a mesh of several processes every process gives the same whole array. Without a mesh the array
  goes to the default device as it is.
  """
  if mesh is None:
    return jax.numpy.asarray(x_ND)
  missing = -len(x_ND) % sharding.batch_divisor(mesh)
  if missing:
    x_ND = np.concatenate([x_ND, np.zeros((missing, *x_ND.shape[1:]), x_ND.dtype)])
  rows = sharding.process_rows(mesh, len(x_ND))
  return sharding.put_batch({'x': x_ND[rows]}, mesh, len(x_ND))['x']


@functools.cache
def jitted(function: Callable[..., Any], mesh: jax.sharding.Mesh | None) -> Callable[..., Any]:
  """`jax.jit` with outputs whole on every device of the mesh; compiled once per function."""
  if mesh is None:
    return jax.jit(function)
  return jax.jit(function, out_shardings=sharding.replicated(mesh))


def gather(x: np.ndarray) -> np.ndarray:
  """[P, ...]: the array of every process, bit for bit (JAX would round float64 to float32)."""
  x = np.asarray(x, order='C')
  raw = multihost_utils.process_allgather(np.frombuffer(x.tobytes(), np.uint8))
  processes = jax.process_count()
  rows = np.ascontiguousarray(np.reshape(raw, (processes, -1)))
  return rows.view(x.dtype).reshape(processes, *x.shape)
