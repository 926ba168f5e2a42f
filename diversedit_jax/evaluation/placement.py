"""Arrays between host, devices and processes, for the functions that sum over samples."""

import functools

import jax
from jax.experimental import multihost_utils
import numpy as np

from diversedit_jax import sharding


def spans_processes(mesh: jax.sharding.Mesh | None) -> bool:
  """Whether a mesh holds devices of other processes."""
  return mesh is not None and any(
    d.process_index != jax.process_index() for d in np.ravel(mesh.devices)
  )


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


def to_host(x: np.ndarray | jax.Array, mesh: jax.sharding.Mesh | None = None) -> np.ndarray:
  """The whole array on this process, wherever its parts are."""
  if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
    if mesh is None:
      raise ValueError('an array of several processes needs the mesh that it lies on')
    x = jitted(_identity, mesh)(x)
  return np.asarray(x)


@functools.cache
def jitted(function, mesh: jax.sharding.Mesh | None, donate: tuple[int, ...] = ()):
  """`jax.jit` with outputs whole on every device of the mesh; compiled once per function."""
  outputs = {} if mesh is None else {'out_shardings': sharding.replicated(mesh)}
  return jax.jit(function, donate_argnums=donate, **outputs)


def gather(x: np.ndarray) -> np.ndarray:
  """[P, ...]: the array of every process, bit for bit (JAX would round float64 to float32)."""
  x = np.ascontiguousarray(x)
  raw = multihost_utils.process_allgather(np.frombuffer(x.tobytes(), np.uint8))
  processes = jax.process_count()
  rows = np.ascontiguousarray(np.reshape(raw, (processes, -1)))
  return rows.view(x.dtype).reshape(processes, *x.shape)


def _identity(x: jax.Array) -> jax.Array:
  return x
