"""Arrays of the host on the devices of a mesh, for functions that compare many rows."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import numpy as np

from diversedit_jax import sharding


def put_rows(x_ND: np.ndarray, mesh: jax.sharding.Mesh | None) -> jax.Array:
  """Rows of a host array, split over the devices; the last row is repeated until they divide.

  In a mesh of several processes every process gives the same whole array. Without a mesh the array
  goes to the default device as it is.
  """
  if mesh is None:
    return jax.numpy.asarray(x_ND)
  x_ND = sharding.pad_rows(x_ND, sharding.round_up(len(x_ND), mesh))
  rows = sharding.process_rows(mesh, len(x_ND))
  return sharding.put_batch({'x': x_ND[rows]}, mesh, len(x_ND))['x']


@functools.cache
def jitted(function: Callable[..., Any], mesh: jax.sharding.Mesh | None) -> Callable[..., Any]:
  """`jax.jit` with outputs whole on every device of the mesh; compiled once per function."""
  if mesh is None:
    return jax.jit(function)
  return jax.jit(function, out_shardings=sharding.replicated(mesh))
