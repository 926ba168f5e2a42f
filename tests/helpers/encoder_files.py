"""What the tests of encoders share: requests, weight files, counted products."""

import math

from helpers import torch_zip
import numpy as np

from diversedit_jax.data import sources
from diversedit_jax.frozen import encoders
from diversedit_jax.weights import array_files


def part(arrays, prefix):
  """The arrays whose names begin with a prefix, without it."""
  return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def request_of(size, *, weights='', dtype='float32', channels=3):
  source = sources.ArraySource(
    name='none',
    space='pixels',
    num_classes=1,
    data=np.zeros((1, 1, 1, 1), np.uint8),
    labels=np.zeros(1, np.int32),
  )
  return encoders.Request(
    source=source,
    grid=(size[0] // 16, size[1] // 16),
    image_shape=(*size, channels),
    weights=str(weights),
    dtype=dtype,
  )


def random_arrays(shapes, seed=1):
  rng = np.random.default_rng(seed)
  return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(path, weights, *, key=None):
  """A file in the format of its suffix; key: the part of a PyTorch checkpoint to put them in."""
  if path.suffix in ('.pt', '.pth', '.tar'):
    tensors = torch_zip.tensors(weights)
    torch_zip.write(path, tensors if key is None else {key: tensors, 'epoch': 300})
  else:
    array_files.save(path, weights)


def dot_flops(jaxpr, times=1):
  """2 x multiply-adds of all matrix products of a jaxpr and all it calls."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
      total += times * 2 * math.prod(equation.outvars[0].aval.shape) * inner
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        total += dot_flops(inner, times * equation.params.get('length', 1))
  return total
