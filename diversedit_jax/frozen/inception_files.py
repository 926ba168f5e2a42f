"""Weights of Inception from the published files: names, layouts, batch norms folded in, digest.

Two ports of one TensorFlow graph are in use. PyTorch's has convolutions as [out, in, row, column]
and dots in its names; Flax's is a pickle of nested dicts, in our own layout:

  Mixed_5b.branch1x1.conv.weight     Mixed_5b/branch1x1/conv/kernel
  Mixed_5b.branch1x1.bn.running_var  Mixed_5b/branch1x1/bn/var
"""

from collections.abc import Mapping
import hashlib
import os
import pathlib
import re
import zlib

import jax.numpy as jnp
import numpy as np

from diversedit_jax import types
from diversedit_jax.frozen import inception
from diversedit_jax.weights import array_files

# Files by name, and where their authors publish them.
FILES = {
  'pt_inception-2015-12-05-6726825d.pth': (
    'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
    'pt_inception-2015-12-05-6726825d.pth'
  ),
  'weights-inception-2015-12-05-6726825d.pth': (
    'https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/'
    'weights-inception-2015-12-05-6726825d.pth'
  ),
  'inception_v3_weights_fid.pickle': (
    'https://www.dropbox.com/s/xt6zvlvt22dcwck/inception_v3_weights_fid.pickle?dl=1 '
    '(linked in https://github.com/matthias-wright/jax-fid)'
  ),
}
PUBLISHED_SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'
"""Of the `.pth`, one file by two names, which end with the first digits, as torch.hub has it."""

_FLAX = {
  'conv/kernel': 'conv.weight',
  'bn/scale': 'bn.weight',
  'bn/bias': 'bn.bias',
  'bn/mean': 'bn.running_mean',
  'bn/var': 'bn.running_var',
  'fc/kernel': 'fc.weight',
  'fc/bias': 'fc.bias',
}
# In some files, and no part of any score: the head's bias, counters and the head for training.
_UNUSED = re.compile(r'fc\.bias|AuxLogits\..*|.*\.num_batches_tracked')


def load(path: str | os.PathLike[str]) -> inception.Inception:
  """The network of a file, or of a folder with one of `FILES`.

  Args:
    path: a .pth, .pickle, .safetensors or .npz file with the names of either port; or
      'random:SEED', which is `random(SEED)`.

  Raises:
    UserError: no such file (where to find it is told), one that would run code, one that is not
      what its name says, or names, shapes or values that are not those of this network.
  """
  kind, _, seed = str(path).partition(':')
  if kind == 'random' and seed.isdecimal():
    return random(int(seed))
  path = _find(pathlib.Path(path))
  verified = _is_published(path)
  arrays = array_files.load(path)
  try:
    return from_arrays(arrays, file=path.name, verified=verified)
  except types.UserError as error:
    raise types.UserError(f'{path}: {error}') from error


def from_arrays(
  arrays: Mapping[str, np.ndarray], *, file: str = '', random: bool = False, verified: bool = False
) -> inception.Inception:
  """The network of arrays by the names of either port.

  Raises:
    UserError: as `load`.
  """
  arrays = _pytorch_names(arrays)
  expected = file_shapes()
  _check(arrays, expected)
  used = {name: np.asarray(arrays[name], np.float32) for name in expected}
  flat = {'fc/kernel': np.ascontiguousarray(used['fc.weight'].T)}
  for name in inception.layers():
    flat[f'{name}/kernel'], flat[f'{name}/bias'] = _fold(used, name.replace('/', '.'))
  return inception.Inception(
    params=array_files.unflatten(flat),
    file=file,
    sha256=array_files.digest(used.items()),
    random=random,
    verified=verified,
  )


def random(seed: int) -> inception.Inception:
  """The network with random weights, for tests and trials; no published score compares."""
  return from_arrays(random_arrays(seed), file=f'random-{seed}', random=True)


def random_arrays(seed: int) -> dict[str, np.ndarray]:
  """Arrays by PyTorch's names of which none is neutral; activations come out of order 1."""

  def draw(name, shape):
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
    if name.endswith('running_var'):
      return 0.5 + generator.random(shape)
    x = generator.standard_normal(shape)
    if name.endswith('conv.weight'):
      return x * np.sqrt(2 / np.prod(shape[1:]))
    if name == 'fc.weight':
      return 0.02 * x
    return 0.1 * x + name.endswith('bn.weight')

  return {name: draw(name, shape).astype(np.float32) for name, shape in file_shapes().items()}


def file_shapes() -> dict[str, tuple[int, ...]]:
  """Shapes of the arrays that are read, by PyTorch's names and in its layout."""
  shapes: dict[str, tuple[int, ...]] = {}
  for name, layer in inception.layers().items():
    name, (rows, cols, inputs, outputs) = name.replace('/', '.'), layer.kernel
    shapes[f'{name}.conv.weight'] = (outputs, inputs, rows, cols)
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      shapes[f'{name}.bn.{leaf}'] = (outputs,)
  return shapes | {'fc.weight': (inception.CLASSES, inception.WIDTH)}


def _fold(arrays, name):
  """Kernel and bias that do what convolution and batch norm did; in float64, rounded once."""
  weight, scale, bias, mean, variance = (
    arrays[f'{name}.{leaf}'].astype(np.float64)
    for leaf in ('conv.weight', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var')
  )
  factor = scale / np.sqrt(variance + inception.NORM_EPSILON)
  kernel = np.moveaxis(weight, (0, 1), (-1, -2)) * factor[None, None, None]
  return np.ascontiguousarray(kernel, np.float32), (bias - mean * factor).astype(np.float32)


def _pytorch_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Arrays of either port as PyTorch's has them."""
  if not any('/' in name for name in arrays):
    return dict(arrays)
  named = {}
  for name, array in arrays.items():
    tail = '/'.join(name.split('/')[-2:])
    theirs = (name.removesuffix(tail) + _FLAX.get(tail, tail)).replace('/', '.')
    if theirs in named:
      raise types.UserError(f'{theirs} is there twice, by the names of both ports')
    kernel = tail.endswith('kernel') and array.ndim > 1
    named[theirs] = np.moveaxis(array, (-1, -2), (0, 1)) if kernel else array
  return named


def _check(arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
  faults = [f'{name} is missing' for name in expected if name not in arrays]
  for name, array in arrays.items():
    if name not in expected:
      if not _UNUSED.fullmatch(name):
        faults.append(f'{name} is not expected')
    elif array.shape != expected[name]:
      faults.append(f'{name} has shape {array.shape}, expected {expected[name]}')
    elif not jnp.issubdtype(array.dtype, jnp.floating):
      faults.append(f'{name} has dtype {array.dtype}, expected floating-point numbers')
    elif not np.isfinite(array.astype(np.float32)).all():
      faults.append(f'{name} holds values that are not finite in float32')
    elif name.endswith('running_var') and array.min() < 0:
      faults.append(f'{name} holds negative variances')
  if faults:
    more = f'; and {len(faults) - 8} more' if len(faults) > 8 else ''
    raise types.UserError(
      "these are not the weights of the Inception of 2015-12-05 (torchvision's own, with 1000 "
      f"classes, are another network's): {'; '.join(faults[:8])}{more}"
    )


def _is_published(path: pathlib.Path) -> bool:
  """Whether a file is the published `.pth`; of the other forms no digest is known.

  Raises:
    UserError: for a file of another content by its name.
  """
  if path.suffix != '.pth':
    return False
  with open(path, 'rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if path.stem.endswith(f'-{PUBLISHED_SHA256[:8]}') and found != PUBLISHED_SHA256:
    raise types.UserError(
      f'{path} is damaged or another file: its SHA-256 is {found}, expected {PUBLISHED_SHA256}'
    )
  return found == PUBLISHED_SHA256


def _find(path: pathlib.Path) -> pathlib.Path:
  if path.is_file():
    return path
  for name in FILES:
    if (path / name).is_file():
      return path / name
  found = f'{path} holds none of them' if path.is_dir() else f'there is no {path}'
  places = '; '.join(f'{name} from {url}' for name, url in FILES.items())
  raise types.UserError(
    f'Inception needs its weights (about 95 MB), but {found}. They are published in three forms, '
    f'any of which will do: {places}. Download one and give its path'
  )
