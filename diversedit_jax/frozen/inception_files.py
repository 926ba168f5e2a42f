"""Reads the published weights of Inception: names, layouts, batch norms folded in, digest.

Two ports of one TensorFlow graph are in use. PyTorch's stores convolutions as [out, in, row,
column] and has dots in its names; Flax's is a pickle of nested dicts, in our own layout:

  Mixed_5b.branch1x1.conv.weight     Mixed_5b/branch1x1/conv/kernel
  Mixed_5b.branch1x1.bn.running_var  Mixed_5b/branch1x1/bn/var
"""

from collections.abc import Mapping
import hashlib
import os
import pathlib
import re
import zlib

import numpy as np

from diversedit_jax import types
from diversedit_jax.frozen import inception
from diversedit_jax.weights import array_files, location, misfits

# Published files by name, with the places where their authors publish them.
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
"""Digest of the `.pth`, which has two names; both end with the first digits, as in torch.hub."""

_FLAX = {
  'conv/kernel': 'conv.weight',
  'bn/scale': 'bn.weight',
  'bn/bias': 'bn.bias',
  'bn/mean': 'bn.running_mean',
  'bn/var': 'bn.running_var',
  'fc/kernel': 'fc.weight',
  'fc/bias': 'fc.bias',
}
# Present in some files and used by no score: the head's bias, counters, the head for training.
_UNUSED = re.compile(r'fc\.bias|AuxLogits\..*|.*\.num_batches_tracked')


def load(path: str | os.PathLike[str]) -> inception.Inception:
  """Reads the network from a file, or from a folder with one of `FILES`.

  Args:
    path: a .pth, .pickle, .safetensors or .npz file with the names of either port; or
      'random:SEED', which is `random(SEED)`.

  Raises:
    UserError: there is no such file (the message says where to get it), it would run code, it is
      not what its name says, or its names, shapes or values are not those of this network.
  """
  kind, _, seed = str(path).partition(':')
  if kind == 'random' and seed.isdecimal():
    return random(int(seed))
  path = _find(path)
  verified = _is_published(path)
  arrays = array_files.load(path)
  try:
    return from_arrays(arrays, file=location.name(path), verified=verified)
  except types.UserError as error:
    raise types.UserError(f'{path}: {error}') from error


def from_arrays(
  arrays: Mapping[str, np.ndarray], *, file: str = '', random: bool = False, verified: bool = False
) -> inception.Inception:
  """The network with these arrays, by the names of either port.

  Raises:
    UserError: names, shapes or values are not those of this network.
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
  """The network with random weights, for tests and trials; its scores compare with no others."""
  return from_arrays(random_arrays(seed), file=f'random-{seed}', random=True)


def random_arrays(seed: int) -> dict[str, np.ndarray]:
  """Random arrays by PyTorch's names, none of them neutral; activations are of order 1."""

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
  """Shapes of the arrays that the network uses, by PyTorch's names and in its layout."""
  shapes: dict[str, tuple[int, ...]] = {}
  for name, layer in inception.layers().items():
    name, (rows, cols, inputs, outputs) = name.replace('/', '.'), layer.kernel
    shapes[f'{name}.conv.weight'] = (outputs, inputs, rows, cols)
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      shapes[f'{name}.bn.{leaf}'] = (outputs,)
  return shapes | {'fc.weight': (inception.CLASSES, inception.WIDTH)}


def _fold(arrays, name):
  """Kernel and bias that do what a convolution and its norm did; in float64, rounded once."""
  weight, scale, bias, mean, variance = (
    arrays[f'{name}.{leaf}'].astype(np.float64)
    for leaf in ('conv.weight', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var')
  )
  factor = scale / np.sqrt(variance + inception.NORM_EPSILON)
  kernel = array_files.kernel_from_torch(weight) * factor[None, None, None]
  return np.ascontiguousarray(kernel, np.float32), (bias - mean * factor).astype(np.float32)


def _pytorch_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays of either port, with PyTorch's names and layout."""
  if not any('/' in name for name in arrays):
    return dict(arrays)
  named = {}
  for name, array in arrays.items():
    tail = '/'.join(name.split('/')[-2:])
    theirs = (name.removesuffix(tail) + _FLAX.get(tail, tail)).replace('/', '.')
    if theirs in named:
      raise types.UserError(f'{theirs} is there twice, under the names of both ports')
    kernel = tail.endswith('kernel') and array.ndim > 1
    named[theirs] = np.moveaxis(array, (-1, -2), (0, 1)) if kernel else array
  return named


def _check(arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
  faults = misfits.find(arrays, expected, unused=_UNUSED.fullmatch, finite=True)
  if not faults:
    variances = [name for name in expected if name.endswith('running_var')]
    negative = [name for name in variances if arrays[name].min() < 0]
    faults = [f'negative variances: {misfits.first_few(negative)}'] if negative else []
  if faults:
    raise types.UserError(
      "these are not the weights of the Inception of 2015-12-05 (torchvision's own, with 1000 "
      f"classes, are another network's): {'; '.join(faults)}"
    )


def _is_published(path: pathlib.Path) -> bool:
  """Whether a file is the published `.pth`; no digest is known for the other forms.

  Raises:
    UserError: the name is that of the published file, and the content is not.
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


def _find(path: str | os.PathLike[str]) -> pathlib.Path:
  places = '; '.join(f'{name} from {url}' for name, url in FILES.items())
  publisher = f'Any of these published files will do: {places}. Download one and give its path'
  return array_files.find(path, FILES, 'Inception needs its weights (about 95 MB)', publisher)
