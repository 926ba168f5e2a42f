"""Devices that share a fast network, as the chips of a TPU slice do, and their places in a mesh.

Between slices data parallelism alone is cheap, so the first axis of a mesh runs over them, and all
others lie within one.
"""

from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
import numpy as np

from diversedit_jax import types


def groups(devices: Sequence[jax.Device], number: int) -> list[list[jax.Device]]:
  """The devices of each slice.

  Args:
    devices: devices of a mesh.
    number: how many slices there are: -1 takes what TPUs tell, and one of other devices; 1 takes
      all for one; others are parts of the same size, in the order of processes, where TPUs do not
      tell.

  Raises:
    UserError: there are others, or some are larger than others.
  """
  told: dict[int, list[jax.Device]] = {}
  for device in devices:
    its = getattr(device, 'slice_index', 0) if device.platform == 'tpu' else 0
    told.setdefault(its, []).append(device)
  if number in (-1, len(told)):
    found = [told[index] for index in sorted(told)]
  elif len(told) > 1 and number > 1:
    raise types.UserError(
      f'mesh.slices={number}, but the devices are in {len(told)} slices; leave it out, or give 1 '
      'to take them for one'
    )
  else:
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    if len(ordered) % number:
      raise types.UserError(
        f'mesh.slices={number} does not divide {len(ordered)} devices; give the number of groups '
        'with a fast network of their own, or 1 for none'
      )
    size = len(ordered) // number
    found = [ordered[i : i + size] for i in range(0, len(ordered), size)]
  if len({len(its) for its in found}) > 1:
    counts = ', '.join(str(len(its)) for its in found)
    raise types.UserError(
      f'slices of different sizes make no mesh; they have {counts} devices: start the run on whole '
      'slices of one topology'
    )
  return found


def check(sizes: Sequence[int], number: int) -> None:
  """Refuses a mesh (data, fsdp, tensor) of which more than 'data' would reach across slices.

  Raises:
    UserError: with the way on.
  """
  data, fsdp, tensor = sizes
  if data % number:
    raise types.UserError(
      f'mesh.fsdp={fsdp} times mesh.tensor={tensor} does not divide the '
      f'{data * fsdp * tensor // number} devices of each of {number} slices, so that parameters '
      'would be shared across the slow network between them: give the rest to mesh.data, or '
      '--config.mesh.slices=1 to have it so'
    )


def arrange(devices: Sequence[jax.Device], sizes: Sequence[int], number: int) -> np.ndarray:
  """The devices in the order of a mesh (data, fsdp, tensor): slices along 'data', next outermost.

  Raises:
    UserError: as `groups` and `check`.
  """
  found = groups(devices, number)
  check(sizes, len(found))
  data, *inside = sizes
  if len(found) > 1:
    shape = (data // len(found), *inside)
    return np.concatenate([_inside(shape, its) for its in found])
  by_slice = groups(devices, -1)  # Those that are taken for one.
  if len(by_slice) == 1:
    return _inside(sizes, devices)
  return np.concatenate([_inside((len(its),), its) for its in by_slice]).reshape(sizes)


def _inside(shape, devices):
  """The devices of one slice, by its own network."""
  return mesh_utils.create_device_mesh(tuple(shape), devices, allow_split_physical_axes=True)
