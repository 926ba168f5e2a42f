"""Inception-v3 (arXiv 1512.00567) as published scores use it, frozen.

This is the TensorFlow graph of 2015-12-05, with the input of ADM's evaluator: levels 0..255 are
resized to 299 x 299 by the `resize_bilinear` of TensorFlow 1, then

  (1)  x <- (x - 128) / 128
  (2)  convolution:  x <- ReLU(BN(W * x)),  BN with epsilon 1e-3 folded into W and a bias
  (3)  block:        x <- the outputs of its branches side by side

It differs from the Inception-v3 of torchvision in four things: the resize (half-pixel centres move
FID), averages that leave out the padding, a maximum where the last block had an average, and a head
with 1008 classes, whose bias the Inception score leaves out. Names are those of torchvision, as in
every published file of these weights.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import types
from diversedit_jax.weights import array_files

Params = dict[str, Any]

SIDE = 299
WIDTH, CLASSES = 2048, 1008
NORM_EPSILON = 1e-3
# ADM's `mixed_6/conv:0` cut to channels 0..6: TensorFlow calls the blocks mixed, mixed_1, ...,
# mixed_10, so its mixed_6 is Mixed_6d here, and its 1x1 branch comes first in the block's output.
SPATIAL_BLOCK, SPATIAL_CHANNELS = 'Mixed_6d', 7
SPATIAL_WIDTH = 17 * 17 * SPATIAL_CHANNELS

_HIGHEST = jax.lax.Precision.HIGHEST


class Conv(NamedTuple):
  """A convolution (2)."""

  name: str
  outputs: int
  rows: int = 1
  cols: int = 1
  stride: int = 1
  padding: Literal['SAME', 'VALID'] = 'SAME'


class Pool(NamedTuple):
  """A 3x3 pool; with stride 2 there is no padding, with stride 1 the padding is left out."""

  kind: Literal['max', 'average']
  stride: int = 1
  name: str = ''


class Fork(NamedTuple):
  """Branches (3), each a series of steps; a fork without a name is part of the block around it."""

  name: str
  branches: tuple[tuple['Conv | Pool | Fork', ...], ...]


class Features(NamedTuple):
  """Inputs of the scores, float32.

  pool: mean over the last map (`pool_3`) [N, 2048], for FID, precision and recall.
  spatial: 17 x 17 positions by 7 channels [N, 2023] (row, column, channel), for sFID.
  logits: logits without the head's bias [N, 1008], for the Inception Score.
  """

  pool: jax.Array
  spatial: jax.Array
  logits: jax.Array


class Layer(NamedTuple):
  """One convolution.

  kernel: shape [rows, columns, in, out].
  side: number of rows, and of columns, of its output.
  """

  kernel: tuple[int, int, int, int]
  side: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Inception:
  """A network with weights, made by `inception_files`.

  params: weights as float32 numpy arrays, with the names and shapes of `shapes`.
  file: name of the file they came from.
  sha256: digest of their names and values, the same whatever the format of the file.
  random: whether they are drawn, not trained; such scores compare with no published ones.
  verified: whether the file is the published one, byte for byte.
  """

  params: Params
  file: str
  sha256: str
  random: bool = False
  verified: bool = False


def features(params: Params, images_NHWC: jax.Array) -> Features:
  """Features of images, uint8 [N, H, W, 3] of any size; a pure function.

  An image's features do not depend on the others. Products have full float32 precision whatever
  JAX's default is: TF32 and bfloat16 would move scores.

  Raises:
    UserError: the images are not uint8 RGB.
  """
  if images_NHWC.ndim != 4 or images_NHWC.shape[-1] != 3 or images_NHWC.dtype != jnp.uint8:
    raise types.UserError(
      'Inception takes images uint8 [N, H, W, 3] with levels 0..255; found '
      f'{images_NHWC.dtype} {list(images_NHWC.shape)}'
    )
  maps = stages(params, (resize(images_NHWC) - 128) / 128)
  pool_ND = jnp.mean(maps['Mixed_7c'], axis=(1, 2))
  spatial = maps[SPATIAL_BLOCK][..., :SPATIAL_CHANNELS].reshape(-1, SPATIAL_WIDTH)
  logits_NK = jnp.matmul(pool_ND, params['fc']['kernel'], precision=_HIGHEST)
  return Features(pool=pool_ND, spatial=spatial, logits=logits_NK)


def resize(images_NHWC: jax.Array) -> jax.Array:
  """`tf.compat.v1.image.resize_bilinear` to 299 x 299 with its defaults, float32, bit for bit.

  Position i reads at i * size / 299: no half-pixel centres, no antialiasing, also when shrinking.
  Rows and columns are gathered, not multiplied by matrices: this is TensorFlow's arithmetic in its
  own order, columns first, and does not depend on a device's precision of products.
  """
  x_NHWC = images_NHWC.astype(jnp.float32)
  for axis in (2, 1):
    low, high, share = _positions(x_NHWC.shape[axis])
    below, above = jnp.take(x_NHWC, low, axis=axis), jnp.take(x_NHWC, high, axis=axis)
    gap = above - below
    # Compilers like to fuse a product and a sum into one rounding, which TensorFlow does not do.
    # An absolute value between them prevents it, and a product with a sign rounds nothing.
    step = jnp.abs(gap * share.reshape([-1 if i == axis else 1 for i in range(4)]))
    x_NHWC = below + jnp.sign(gap) * step
  return x_NHWC


def stages(params: Params, x_NHWC: jax.Array) -> dict[str, jax.Array]:
  """Maps after every step of `NETWORK` by name, for normalised 299 x 299 pixels."""
  maps = {}
  for step in NETWORK:
    x_NHWC = maps[step.name] = _run((step,), params, x_NHWC)
  return maps


def layers() -> dict[str, Layer]:
  """All convolutions in order, by slash-joined name."""
  found: dict[str, Layer] = {}
  _measure(NETWORK, '', 3, SIDE, found)
  return found


def shapes() -> Params:
  """The parameters as jax.ShapeDtypeStruct; a convolution (2) has a kernel and a bias."""
  flat = {'fc/kernel': (WIDTH, CLASSES)}
  for name, layer in layers().items():
    flat |= {f'{name}/kernel': layer.kernel, f'{name}/bias': layer.kernel[-1:]}
  return array_files.unflatten(
    {name: jax.ShapeDtypeStruct(shape, 'float32') for name, shape in flat.items()}
  )


def flops() -> float:
  """FLOPs of the products for one image of any size, a multiply-add being 2."""
  convs = sum(2 * math.prod(layer.kernel) * layer.side**2 for layer in layers().values())
  return float(convs + 2 * WIDTH * CLASSES)


def _positions(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The two neighbours of each of 299 positions, and its distance from the first one."""
  source = np.arange(SIDE, dtype=np.float32) * (np.float32(size) / np.float32(SIDE))
  low = np.floor(source)
  high = np.minimum(low + 1, size - 1)
  return low.astype(np.int32), high.astype(np.int32), source - low


def _run(steps, params, x_NHWC):
  for step in steps:
    if isinstance(step, Conv):
      x_NHWC = _convolve(step, params[step.name], x_NHWC)
    elif isinstance(step, Pool):
      x_NHWC = _maximum(x_NHWC, step.stride) if step.kind == 'max' else _average(x_NHWC)
    else:
      inner = params[step.name] if step.name else params
      x_NHWC = jnp.concatenate([_run(b, inner, x_NHWC) for b in step.branches], axis=-1)
  return x_NHWC


def _convolve(step, p, x_NHWC):
  y = jax.lax.conv_general_dilated(
    x_NHWC,
    p['kernel'],
    (step.stride,) * 2,
    step.padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=_HIGHEST,
  )
  return jax.nn.relu(y + p['bias'][None, None, None])


def _maximum(x_NHWC, stride):
  padding = 'SAME' if stride == 1 else 'VALID'
  window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
  return jax.lax.reduce_window(x_NHWC, -jnp.inf, jax.lax.max, window, strides, padding)


def _average(x_NHWC):
  """Average over the pixels in a 3x3 window: 9 inside, 6 at an edge, 4 in a corner."""
  found = [np.convolve(np.ones(n), np.ones(3), 'same') for n in x_NHWC.shape[1:3]]
  counts_HW = np.outer(*found).astype(np.float32)
  sums = jax.lax.reduce_window(x_NHWC, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), 'SAME')
  return sums / counts_HW[None, :, :, None]


def _measure(steps, prefix, channels, side, found):
  """Adds the layers of steps to `found`; returns the channels and the side of their output."""
  for step in steps:
    if isinstance(step, Fork):
      inner = f'{prefix}{step.name}/' if step.name else prefix
      made = [_measure(branch, inner, channels, side, found) for branch in step.branches]
      channels, side = sum(c for c, _ in made), made[0][1]
    elif isinstance(step, Conv):
      if step.padding == 'VALID':
        side = (side - step.rows) // step.stride + 1
      kernel = (step.rows, step.cols, channels, step.outputs)
      found[f'{prefix}{step.name}'] = Layer(kernel, side)
      channels = step.outputs
    elif step.stride == 2:
      side = (side - 3) // 2 + 1
  return channels, side


def _half(name, outputs):
  """A 3x3 convolution with stride 2 and without padding, which halves both sides."""
  return Conv(name, outputs, 3, 3, stride=2, padding='VALID')


def _series(name, *convs):
  """Convolutions one after the other, each (outputs, rows, columns); names are numbered from 1."""
  return tuple(Conv(f'{name}_{i}', *conv) for i, conv in enumerate(convs, start=1))


def _block_35(name, pooled):
  branches = (
    (Conv('branch1x1', 64),),
    _series('branch5x5', (48,), (64, 5, 5)),
    _series('branch3x3dbl', (64,), (96, 3, 3), (96, 3, 3)),
    (Pool('average'), Conv('branch_pool', pooled)),
  )
  return Fork(name, branches)


def _block_17(name, c):
  branches = (
    (Conv('branch1x1', 192),),
    _series('branch7x7', (c,), (c, 1, 7), (192, 7, 1)),
    _series('branch7x7dbl', (c,), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)),
    (Pool('average'), Conv('branch_pool', 192)),
  )
  return Fork(name, branches)


def _block_8(name, pool):
  cross = lambda a, b: Fork('', ((Conv(a, 384, 1, 3),), (Conv(b, 384, 3, 1),)))
  branches = (
    (Conv('branch1x1', 320),),
    (*_series('branch3x3', (384,)), cross('branch3x3_2a', 'branch3x3_2b')),
    (
      *_series('branch3x3dbl', (448,), (384, 3, 3)),
      cross('branch3x3dbl_3a', 'branch3x3dbl_3b'),
    ),
    (Pool(pool), Conv('branch_pool', 192)),
  )
  return Fork(name, branches)


def _smaller_17():
  branches = (
    (_half('branch3x3', 384),),
    (*_series('branch3x3dbl', (64,), (96, 3, 3)), _half('branch3x3dbl_3', 96)),
    (Pool('max', stride=2),),
  )
  return Fork('Mixed_6a', branches)


def _smaller_8():
  branches = (
    (*_series('branch3x3', (192,)), _half('branch3x3_2', 320)),
    (*_series('branch7x7x3', (192,), (192, 1, 7), (192, 7, 1)), _half('branch7x7x3_4', 192)),
    (Pool('max', stride=2),),
  )
  return Fork('Mixed_7a', branches)


NETWORK = (
  _half('Conv2d_1a_3x3', 32),
  Conv('Conv2d_2a_3x3', 32, 3, 3, padding='VALID'),
  Conv('Conv2d_2b_3x3', 64, 3, 3),
  Pool('max', stride=2, name='pool_1'),
  Conv('Conv2d_3b_1x1', 80),
  Conv('Conv2d_4a_3x3', 192, 3, 3, padding='VALID'),
  Pool('max', stride=2, name='pool_2'),
  _block_35('Mixed_5b', 32),
  _block_35('Mixed_5c', 64),
  _block_35('Mixed_5d', 64),
  _smaller_17(),
  _block_17('Mixed_6b', 128),
  _block_17('Mixed_6c', 160),
  _block_17('Mixed_6d', 160),
  _block_17('Mixed_6e', 192),
  _smaller_8(),
  _block_8('Mixed_7b', 'average'),
  _block_8('Mixed_7c', 'max'),
)
