"""Principal components of patches and of whole images, fitted on the training split.

The features need no weights; they serve small images and tests. A token describes its cell of the
model's grid and one more cell on each side, with the image's border repeated beyond it. Both bases
are whitened, so that cosine similarity sees every component.
"""

from collections.abc import Iterator
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import types
from diversedit_jax.data import images, sources
from diversedit_jax.frozen.encoders import base

COMPONENTS = 16
MAX_IMAGES = 4096
MAX_VALUES = 4096
"""Values that one image, or one window, may have; with more, the decomposition becomes slow."""
# A step of 8 bits in one of a million windows has more variance than this.
MIN_VARIANCE = 1e-11
_CHUNK = 256


def make(request: base.Request) -> base.Encoder:
  """The encoder for a grid; it computes in float32 whatever `request.dtype` is.

  Raises:
    UserError: the grid does not divide the pixels, there are too many pixels, or the source has too
      few examples.
  """
  size, windowed = int(np.prod(request.image_shape)), window_size(request)
  if max(size, windowed) > MAX_VALUES:
    raise types.UserError(
      f"encoder 'pca' is for small images: an image may have {MAX_VALUES} values and so may a "
      f'window of 3x3 patches; found {size} and {windowed}'
    )
  if len(request.source) <= COMPONENTS:
    raise types.UserError(
      f"encoder 'pca' needs more than {COMPONENTS} examples; {request.source.name} has "
      f'{len(request.source)}'
    )
  parts = {'tokens': windowed, 'summary': size}
  counts = {part: min(COMPONENTS, n) for part, n in parts.items()}
  return base.Encoder(
    name='pca',
    params={
      part: {
        'mean': jax.ShapeDtypeStruct((n,), 'float32'),
        'basis': jax.ShapeDtypeStruct((n, counts[part]), 'float32'),
      }
      for part, n in parts.items()
    },
    apply=functools.partial(apply, grid=request.grid),
    load=lambda: fit(request),
    image_shape=request.image_shape,
    flops=2.0 * request.grid[0] * request.grid[1] * windowed * counts['tokens']
    + 2.0 * size * counts['summary'],
  )


def apply(params: Any, x_NHWC: jax.Array, *, grid: tuple[int, int]) -> base.Features:
  """Whitened components of windows (tokens) and of images (summary)."""

  def project(p: Any, x: jax.Array) -> jax.Array:
    centred = x - p['mean'].reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.matmul(centred, p['basis'], precision='highest')

  x_NHWC = x_NHWC.astype(jnp.float32)
  return base.Features(
    tokens=project(params['tokens'], windows(x_NHWC, grid)),
    summary=project(params['summary'], x_NHWC.reshape(len(x_NHWC), -1)),
  )


def fit(request: base.Request) -> dict[str, dict[str, np.ndarray]]:
  """Fits means and bases, float32, to at most 4096 images spread evenly over the source.

  Raises:
    UserError: the source has no such pixels, or its images vary in too few ways.
  """
  flatten = {
    'tokens': lambda x: windows(x, request.grid).reshape(-1, window_size(request)),
    'summary': lambda x: x.reshape(len(x), -1),
  }
  sums = dict.fromkeys(flatten, (0, 0.0, 0.0))
  for x_NHWC in _pixels(request.source, request.image_shape):
    for part, function in flatten.items():
      x_NF = function(x_NHWC.astype(np.float64))
      terms = len(x_NF), x_NF.sum(axis=0), x_NF.T @ x_NF
      sums[part] = tuple(map(operator.add, sums[part], terms))
  return {part: _whitened(*sums[part], f'{part} of {request.source.name}') for part in flatten}


def window_size(request: base.Request) -> int:
  """Number of values in the window of a token.

  Raises:
    UserError: the grid does not divide the pixels.
  """
  (height, width, channels), (rows, cols) = request.image_shape, request.grid
  if height % rows or width % cols:
    raise types.UserError(
      f"encoder 'pca' needs a grid that divides the image; found {rows}x{cols} patches on "
      f'{height}x{width} pixels'
    )
  return 9 * (height // rows) * (width // cols) * channels


def windows(x_NHWC: Any, grid: tuple[int, int]) -> Any:
  """Windows [N, T, values] of a NumPy or JAX array, the border repeated; T is row-major."""
  n, height, width, _ = x_NHWC.shape
  rows, cols = _reach(height, grid[0]), _reach(width, grid[1])
  # [N, rows, 3h, cols, 3w, C]
  x = x_NHWC[:, rows][:, :, :, cols]
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, grid[0] * grid[1], -1)


def _reach(size: int, cells: int) -> np.ndarray:
  """Indices [cells, 3 * size / cells] of the pixels in the window of each cell along one axis."""
  step = size // cells
  offsets = np.arange(-step, 2 * step)
  return np.clip(np.arange(cells)[:, None] * step + offsets[None], 0, size - 1)


def _pixels(source: sources.Source, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
  count = min(len(source), MAX_IMAGES)
  indices = np.arange(count) * len(source) // count
  for start in range(0, count, _CHUNK):
    batch = source.gather(indices[start : start + _CHUNK])
    if 'images' not in batch and 'pixels' not in batch:
      raise types.UserError(f"encoder 'pca' needs pixels, and {source.name} has only latents")
    x_NHWC = batch['images'] if 'images' in batch else batch['pixels']
    if x_NHWC.dtype == np.uint8:
      x_NHWC = images.from_uint8(x_NHWC)
    if x_NHWC.shape[1:] != tuple(shape):
      raise types.UserError(
        f"encoder 'pca' was asked for pixels of shape {tuple(shape)}, and {source.name} has "
        f'{x_NHWC.shape[1:]}'
      )
    yield x_NHWC


def _whitened(
  n: int, sum_F: np.ndarray, products_FF: np.ndarray, what: str
) -> dict[str, np.ndarray]:
  """The leading components of n rows, scaled to unit variance, their largest entries positive."""
  mean_F = sum_F / n
  covariance_FF = products_FF / n - np.outer(mean_F, mean_F)
  count = min(COMPONENTS, len(mean_F))
  variances, vectors = np.linalg.eigh(covariance_FF)
  variances, vectors = variances[::-1][:count], vectors[:, ::-1][:, :count]
  usable = int(np.sum(variances > MIN_VARIANCE))
  if usable < count:
    raise types.UserError(
      f"encoder 'pca' needs {count} components that vary; the {what} have {usable}: the images are "
      'constant, too few, or too alike'
    )
  largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(count)]
  basis = vectors * np.sign(largest) / np.sqrt(variances)
  return {'mean': mean_F.astype(np.float32), 'basis': basis.astype(np.float32)}


base.register('pca', make)
